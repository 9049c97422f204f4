"""Measure a bundle's speed and memory on this machine, on its own or beside other models.

All contenders take turns in every round, so that a busy moment hits them alike, each once unmeasured and then
measured, so that none pays for its neighbour's threads; figures are medians with quartiles, and ratios are
medians over the rounds.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdposr import __version__
from gdposr.console import OK, emit, say, table, whole_number
from gdposr.timing import (
    Contender,
    bound,
    choose,
    measure,
    own_calls,
    own_figures,
    peak_memory,
    peer_calls,
    ratio,
    ratios,
    spread,
    test_picture,
)

if TYPE_CHECKING:
    from runtime.bundle import Bundle

HELP = "measure speed and memory, also beside other models"
LARGE_ROUNDS = 3

COLUMNS = {
    "encoder": "encoder_ms",
    "generator": "generator_ms",
    "first sample": "first_sample_ms",
    "further sample": "further_sample_ms",
    "picture": "picture_ms",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", nargs="?", type=Path, help="a bundle folder or zip (default: the built-in one)"
    )
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
    parser.add_argument(
        "--peer-onnx", type=Path, action="append", default=[], metavar="FILE", help="another model, as ONNX"
    )
    parser.add_argument(
        "--peer-ncnn",
        type=Path,
        metavar="PARAM",
        help="another model, as ncnn .param with its .bin beside it",
    )
    parser.add_argument(
        "--picture",
        type=whole_number(8, 4096),
        action="append",
        default=[],
        metavar="SIDE",
        help=f"also time whole pictures of this side, in {LARGE_ROUNDS} rounds; may be repeated",
    )
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with tables and plots")
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="write the times of whole pictures")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from gdposr.machine import describe_machine
    from runtime.bundle import Bundle
    from runtime.devices import usable_processors

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
    times = measure(calls | peers, args.rounds, args.warmup)
    memory = {
        one.label: peak_memory(bundle, one.device, one.precision, threads, args.size) for one in contenders
    }
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
    """Whole pictures of a side: ours in tiles through the whole pipeline, the peers in one piece."""
    from runtime.upscaler import Upscaler

    picture = test_picture(side)
    calls: dict[str, Callable[[], object]] = {}
    for one in contenders:
        upscaler = Upscaler(bundle, device=one.device, precision=one.precision, threads=threads, check=False)
        calls[one.label] = bound(upscaler.up, picture)
    peers = peer_calls(args.peer_onnx, args.peer_ncnn, threads, side)
    say(f"whole pictures of {side}x{side}, {LARGE_ROUNDS} rounds")
    times = measure(calls | peers, LARGE_ROUNDS, 0)
    return {
        "size": side,
        "rounds": LARGE_ROUNDS,
        "ms": {name: spread(values) for name, values in times.items()},
        "ratios": {f"{ours} / {peer}": ratio(times[ours], times[peer]) for ours in calls for peer in peers},
    }


def write_reports(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """The page and the table that were asked for."""
    from gdposr.bench_report import markdown, page
    from runtime.image import atomic_file

    for path, text in ((args.report, page), (args.table, markdown)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as stream:
                stream.write(text(result).encode())
            say(f"the report: {path}")


def as_text(result: dict[str, Any]) -> str:
    """The result for a person."""
    machine = result["machine"]
    flags = " ".join(flag if present else f"no-{flag}" for flag, present in machine["cpu_flags"].items())
    bundle = result["bundle"]
    lines = [
        f"{bundle['name']} ({bundle['digest']}) on {result['device']}, {result['threads']} threads, "
        f"{result['size']}x{result['size']} input, {result['rounds']} rounds",
        f"{machine['cpu']}: {flags}; load {machine['load']}; "
        + " ".join(f"{name} {version}" for name, version in machine["packages"].items()),
        "",
    ]
    rows: list[tuple[str, ...]] = [("ms, median [quartiles]", *COLUMNS, "peak memory")]
    for label, figures in result["precisions"].items():
        peak = figures["peak_memory_mb"]
        memory = "unknown" if peak is None else f"{peak:.0f} MB"
        rows.append((label, *(_shown(figures[column]) for column in COLUMNS.values()), memory))
    rows += [(name, "", "", _shown(peer["ms"]), "", "", "") for name, peer in result["peers"].items()]
    for block in result["pictures"]:
        for name, ms in block["ms"].items():
            rows.append((f"{name}, {block['size']}x{block['size']}", "", "", "", "", _shown(ms), ""))
    lines += [
        table(rows),
        "",
        table(
            [
                ("ratio", ""),
                *((name, f"{value:.3f}") for name, value in result["ratios"].items()),
                *(
                    (f"{name}, {block['size']}x{block['size']} picture", f"{value:.3f}")
                    for block in result["pictures"]
                    for name, value in block["ratios"].items()
                ),
            ]
        ),
    ]
    return "\n".join(lines)


def _shown(figure: dict[str, float]) -> str:
    return f"{figure['median']:.1f} [{figure['low']:.1f} {figure['high']:.1f}]"
