"""Measure a bundle's speed and memory on this machine, on its own or beside other models.

All contenders take turns in every round, so that a busy moment hits them alike, each once unmeasured and then
measured, so that none pays for its neighbour's threads; figures are medians with quartiles, and ratios are
medians over the rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdposr import __version__
from gdposr.console import OK, UsageError, emit, progress_bar, say, table, whole_number

if TYPE_CHECKING:
    import numpy as np

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

Times = dict[str, list[float]]  # call -> milliseconds per round


@dataclass(frozen=True)
class Contender:
    """A precision on a device. label: the precision's name, with the device's before it where several devices are compared."""

    label: str
    device: str
    precision: str


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
        calls[one.label] = _bound(upscaler.up, picture)
    peers = peer_calls(args.peer_onnx, args.peer_ncnn, threads, side)
    say(f"whole pictures of {side}x{side}, {LARGE_ROUNDS} rounds")
    times = measure(calls | peers, LARGE_ROUNDS, 0)
    return {
        "size": side,
        "rounds": LARGE_ROUNDS,
        "ms": {name: spread(values) for name, values in times.items()},
        "ratios": {f"{ours} / {peer}": _ratio(times[ours], times[peer]) for ours in calls for peer in peers},
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


def choose(bundle: "Bundle", devices: Sequence[str], precisions: Sequence[str]) -> list[Contender]:
    """Every precision on every device, each once; notes about the choice are told."""
    from runtime.devices import resolve

    chosen: list[tuple[str, str]] = []
    for device in dict.fromkeys(devices):
        for precision in precisions:
            name, kind, notes = resolve(bundle, device, precision)
            for note in notes:
                say(note)
            chosen.append((name, kind))
    several = len({name for name, _ in chosen}) > 1
    return [
        Contender(f"{name} {kind}" if several else kind, name, kind) for name, kind in dict.fromkeys(chosen)
    ]


def own_calls(
    bundle: "Bundle", device: str, precision: str, threads: int, size: int, label: str | None = None
) -> dict[str, Callable[[], object]]:
    """The timed calls of a contender: each graph alone, and a whole picture through the pipeline (tiles, colour, noise)."""
    import numpy as np

    from runtime.backend import open_backend
    from runtime.noise import noise_field
    from runtime.upscaler import Upscaler

    rule, noise = bundle.manifest.size, bundle.manifest.noise
    if size % rule.multiple_of or size < rule.minimum:
        raise UsageError(
            f"--size: this model takes multiples of {rule.multiple_of} from {rule.minimum} on, got {size}"
        )
    label = precision if label is None else label
    backend = open_backend(bundle, device, precision, threads)
    picture = test_picture(size)
    image = picture.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    cells = size // noise.downscale
    grain = noise_field(0, 0, cells, cells, channels=noise.channels)[None]
    features = backend.encode(image)
    upscaler = Upscaler(bundle, device=device, precision=precision, threads=threads, check=False)
    return {
        f"{label} encoder": lambda: backend.encode(image),
        f"{label} generator": lambda: backend.generate(features, grain),
        f"{label} picture": lambda: upscaler.up(picture),
    }


def peer_calls(
    onnx_files: Sequence[Path], param: Path | None, threads: int, size: int
) -> dict[str, Callable[[], object]]:
    """The timed calls of other models, by name."""
    import numpy as np

    from gdposr.peers import load_peers

    image = test_picture(size).transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    return {name: _bound(run, image) for name, run in load_peers(onnx_files, param, threads).items()}


def measure(calls: dict[str, Callable[[], object]], rounds: int, warmup: int) -> Times:
    """Milliseconds of every call in every round, the calls taking turns; each is made twice and timed once."""
    times: Times = {name: [] for name in calls}
    with progress_bar("measuring") as update:
        for round_number in range(warmup + rounds):
            for name, call in calls.items():
                call()  # threads of the one before may still spin, and the caches hold its data
                begin = time.perf_counter()
                call()
                if round_number >= warmup:
                    times[name].append((time.perf_counter() - begin) * 1e3)
            update(round_number + 1, warmup + rounds, None)
    return times


def own_figures(times: Times, label: str) -> dict[str, Any]:
    """first: encoder and generator; further: the generator alone, since the features are kept; picture: `Upscaler.up`."""
    encoder, generator = times[f"{label} encoder"], times[f"{label} generator"]
    return {
        "encoder_ms": spread(encoder),
        "generator_ms": spread(generator),
        "first_sample_ms": spread(_sum(encoder, generator)),
        "further_sample_ms": spread(generator),
        "picture_ms": spread(times[f"{label} picture"]),
    }


def ratios(times: Times, contenders: Sequence[Contender], peers: Sequence[str]) -> dict[str, float]:
    """The figures that hold from machine to machine, each the median over the rounds: every contender against fp32 on its own
    device, against its own precision on the first device, and against the peers."""
    first = {
        one.label: _sum(times[f"{one.label} encoder"], times[f"{one.label} generator"]) for one in contenders
    }
    labels = {(one.device, one.precision): one.label for one in contenders}
    result = {}
    for one in contenders:
        result[f"{one.label} further / first sample"] = _ratio(
            times[f"{one.label} generator"], first[one.label]
        )
        for other in ((one.device, "fp32"), (contenders[0].device, one.precision)):
            if other in labels and other != (one.device, one.precision):
                result[f"{one.label} / {labels[other]}"] = _ratio(first[one.label], first[labels[other]])
        for peer in peers:
            result[f"{one.label} / {peer}"] = _ratio(first[one.label], times[peer])
    return result


def peak_memory(bundle: "Bundle", device: str, precision: str, threads: int, size: int) -> float | None:
    """The most memory a fresh process needs to load the model and upscale one picture, in 10^6 bytes."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_memory_job, str(bundle.path), device, precision, threads, size).result()


def _memory_job(path: str, device: str, precision: str, threads: int, size: int) -> float | None:
    from gdposr.machine import peak_memory_mb
    from runtime.upscaler import Upscaler

    with Upscaler(path, device=device, precision=precision, threads=threads, check=False) as upscaler:
        upscaler.up(test_picture(size))
    peak = peak_memory_mb()
    return None if peak is None else round(peak, 1)


def test_picture(size: int) -> "np.ndarray":
    """A picture of the given side, (size, size, 3) uint8: ramps with some grain, always the same."""
    import numpy as np

    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    grain = (np.arange(size * size, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(24)).reshape(
        size, size
    ) / 2048
    return np.rint(np.clip(np.stack([x, y, (x + y) / 2], axis=2) + grain[..., None], 0, 1) * 255).astype(
        np.uint8
    )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, milliseconds."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    )
    return {"median": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


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


def _sum(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(first, second, strict=True)]


def _ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(ours, other, strict=True)), 4)


def _bound(run: Callable[["np.ndarray"], object], image: "np.ndarray") -> Callable[[], object]:
    return lambda: run(image)
