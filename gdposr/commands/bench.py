"""Measure a bundle's speed and memory on this machine, on its own or beside other models.

All contenders take turns in every round, so that a busy moment hits them alike. Each runs once unmeasured, so that the threads of the
one before it do not count, and then measured. Figures are medians with quartiles, and ratios are medians over the rounds. Ours is timed
from array to array, with tiles, noise and rounding. Of the peers only the model is timed, in one piece, which favours them.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdposr import __version__
from gdposr.bench.overhead import TimedPicture
from gdposr.bench.timing import (
    LEAST,
    Contender,
    choose,
    measure,
    own_calls,
    own_figures,
    peak_memory,
    peer_calls,
    picture_ratios,
    ratios,
    spread,
    test_picture,
)
from gdposr.console import OK, add_bundle, emit, say, whole_number
from gdposr.forward import check_report

if TYPE_CHECKING:
    from runtime.bundle.reader import Bundle

HELP = "measure speed and memory, also beside other models"
# Seconds for a size given with --picture. At least `LEAST` rounds run.
TIME_LIMIT = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    # timed calls and rounds
    parser.add_argument(
        "--size", type=whole_number(8, 4096), default=128, help="side of the input picture (default: 128)"
    )
    parser.add_argument("--rounds", type=whole_number(1), default=20, help="measured rounds (default: 20)")
    parser.add_argument(
        "--warmup", type=whole_number(0), default=3, help="rounds before measuring (default: 3)"
    )
    parser.add_argument(
        "--device",
        action="append",
        help="where to run; may be repeated, to compare devices (default: auto)",
    )
    parser.add_argument(
        "--precision", action="append", help="measure only this one; may be repeated (default: all)"
    )
    parser.add_argument(
        "--threads", type=whole_number(1), help="CPU threads, for all contenders (default: all cores)"
    )
    # other models
    parser.add_argument(
        "--peer-onnx", type=Path, action="append", default=[], metavar="FILE", help="another model, as ONNX"
    )
    parser.add_argument(
        "--peer-ncnn",
        type=Path,
        metavar="PARAM",
        help="another model, as ncnn .param with its .bin beside it",
    )
    # whole pictures
    parser.add_argument(
        "--picture",
        type=whole_number(8, 4096),
        action="append",
        default=[],
        metavar="SIDE",
        help=f"also time whole pictures of this side, for {TIME_LIMIT:.0f} s or {LEAST} rounds; may be repeated",
    )
    # outputs
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with tables and plots")
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="write the times of whole pictures")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    check_report(args.report)
    from gdposr.bench.machine import describe_machine
    from gdposr.bench.report import as_text
    from runtime.backends.devices import usable_processors
    from runtime.bundle.reader import Bundle

    # contenders: precisions on devices, and other models
    bundle = Bundle.open(args.bundle)
    threads = args.threads or usable_processors()
    contenders = choose(bundle, args.device or ["auto"], args.precision or list(bundle.manifest.graphs))
    devices = ", ".join(dict.fromkeys(one.device for one in contenders))
    calls: dict[str, Callable[[], object]] = {}
    for one in contenders:
        calls |= own_calls(bundle, one.device, one.precision, threads, args.size, one.label)
    peers = peer_calls(args.peer_onnx, args.peer_ncnn, threads, args.size)
    say(
        f"{len(calls) + len(peers)} contenders, {args.rounds} rounds of {args.size}x{args.size}, {threads} threads on {devices}"
    )
    # measure: time in turns, memory in fresh processes
    times = measure(calls | peers, args.rounds, args.warmup)
    memory = {
        one.label: peak_memory(bundle, one.device, one.precision, threads, args.size) for one in contenders
    }
    # report
    result = {
        "version": __version__,
        "bundle": {"name": bundle.manifest.name, "path": str(bundle.path), "digest": bundle.digest},
        "machine": describe_machine(),
        "device": devices,
        "threads": threads,
        "size": args.size,
        "rounds": args.rounds,
        "warmup": args.warmup,
        "precisions": {
            one.label: own_figures(times, one.label) | {"peak_memory_mb": memory[one.label]}
            for one in contenders
        },
        "peers": {name: {"ms": spread(times[name])} for name in peers},
        "ratios": ratios(times, contenders, list(peers)),
        "picture_ratios": picture_ratios(
            times, {one.label: f"{one.label} picture" for one in contenders}, contenders, list(peers)
        ),
        "pictures": [large_pictures(args, bundle, contenders, threads, side) for side in args.picture],
    }
    write_reports(args, result)
    if args.json:
        emit(result)
    else:
        print(as_text(result))
    return OK


def large_pictures(
    args: argparse.Namespace, bundle: "Bundle", contenders: Sequence[Contender], threads: int, side: int
) -> dict[str, Any]:
    """Whole pictures: ours in tiles through the whole pipeline, the peers in one piece. "overhead" is the share outside the model.

    args: rounds, warm-up and peers.
    bundle: the model.
    contenders: ours.
    threads: for each model.
    side: of the picture in LR pixels.
    """
    picture = test_picture(side)
    calls: dict[str, Callable[[], object]] = {
        one.label: TimedPicture(bundle, one.device, one.precision, threads, picture) for one in contenders
    }
    peers = peer_calls(args.peer_onnx, args.peer_ncnn, threads, side)
    say(f"whole pictures of {side}x{side}, at most {args.rounds} rounds, about {TIME_LIMIT:.0f} s")
    times = measure(calls | peers, args.rounds, args.warmup, TIME_LIMIT)
    return {
        "size": side,
        "rounds": min(map(len, times.values())),
        "ms": {name: spread(times[name]) for name in (*calls, *peers)},
        "overhead": {name: spread(times[f"{name} overhead"]) for name in calls},
        "ratios": picture_ratios(
            times, {one.label: one.label for one in contenders}, contenders, list(peers)
        ),
    }


def write_reports(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write the page and the table if they were asked for."""
    from gdposr.bench.report import markdown, page
    from runtime.files import atomic_file

    for path, text in ((args.report, page), (args.table, markdown)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as stream:
                stream.write(text(result).encode())
            say(f"the report: {path}")
