"""Upscale photos: files, folders (the tree is kept) or globs.

OUT with the suffix of a picture is one file; anything else is a folder, with names that carry the seed:
photo_x4_seed3.png, and for several samples photo_x4_seed3_s0.png, photo_x4_seed3_s1.png, ...
An output of the same name is replaced in one step; an input never is. A photo that cannot be done is
reported and the rest go on. A run that was interrupted or killed leaves whole files only: the same command
with --skip-existing does the rest. Ctrl-C ends with exit code 130, SIGTERM with 143.
"""

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdposr import __version__
from gdposr.batch.leftovers import claimed
from gdposr.batch.plan import Options, Outcome, Task, plan_tasks
from gdposr.batch.progress import header_pixels, photo_progress
from gdposr.batch.run import Batch
from gdposr.console import (
    FAILED,
    INTERRUPTED,
    OK,
    TERMINATED,
    Terminated,
    UsageError,
    emit,
    emit_line,
    memory_size,
    pixel_limit,
    say,
    scale_factor,
    terminable,
    whole_number,
)

if TYPE_CHECKING:
    from runtime.bundle.reader import Bundle
    from runtime.upscale.upscaler import Upscaler

HELP = "upscale photos: files, folders or globs"

SELECT = ("all", "sheet", "best")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="a photo, a folder of photos, or a quoted glob"
    )
    parser.add_argument(
        "-o", "--out", required=True, type=Path, help="a picture's name (one output) or a folder"
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**64 - 1),
        default=0,
        help="which texture is drawn; same seed, same bytes (default: 0)",
    )
    samples = parser.add_mutually_exclusive_group()
    samples.add_argument(
        "--samples", type=whole_number(1, 10_000), default=1, help="versions per photo (default: 1)"
    )
    samples.add_argument(
        "--sample",
        type=whole_number(0, 9_999),
        metavar="K",
        help="only version K of a seed: the file that --samples with more than K versions would write",
    )
    parser.add_argument(
        "--select",
        choices=SELECT,
        default="all",
        help="of several samples keep all, a labelled contact sheet, or the best by a no-reference score (default: all)",
    )
    parser.add_argument("--scale", type=scale_factor, help="any factor up to 4 (default: the model's own)")
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave out photos whose outputs are all there, by name alone: names carry scale, seed and sample, but not the "
        "model, its precision or the colour fix; with --select best any one of the samples counts",
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, ... (`gdposr info` lists those at hand)"
    )
    parser.add_argument(
        "--precision", default="auto", help="auto, fp32, fp16 or int8, as the bundle has them"
    )
    parser.add_argument(
        "--bundle", type=Path, help="a model bundle, folder or zip (default: the built-in one)"
    )
    parser.add_argument(
        "--tile", type=whole_number(1), help="tile side in input pixels (default: the model's best)"
    )
    parser.add_argument(
        "--color-fix", help="none, adain or wavelet: take the colours from the input (default: the model's)"
    )
    parser.add_argument(
        "--threads", type=whole_number(1), help="CPU threads (default: all cores); never changes the result"
    )
    parser.add_argument(
        "--max-memory",
        type=memory_size,
        metavar="SIZE",
        help="such as 800M or 1.5G: smaller tiles, and no photo is read before its turn (default: no limit)",
    )
    parser.add_argument(
        "--max-pixels",
        type=pixel_limit,
        metavar="MEGAPIXELS",
        help="refuse larger inputs (default: 100 megapixels)",
    )
    parser.add_argument(
        "--quality", type=whole_number(1, 100), default=95, help="for a .jpg or .webp OUT (default: 95)"
    )
    reports = parser.add_mutually_exclusive_group()
    reports.add_argument("--json", action="store_true", help="print a report on stdout")
    reports.add_argument(
        "--json-lines",
        action="store_true",
        help="print a line of JSON on stdout for each photo as soon as it is done, and one for the whole run",
    )


def run(args: argparse.Namespace) -> int:
    """Plan, leave out what is there, load the model once, then photo by photo."""
    with terminable():
        try:
            return _run(args)
        except Terminated:  # before any photo was begun
            say("terminated")
            return TERMINATED


def _run(args: argparse.Namespace) -> int:
    from runtime.bundle.reader import Bundle

    begin = time.perf_counter()
    if args.sample is not None and args.select != "all":
        raise UsageError(f"--sample is one version, got --select {args.select}: leave one of them out")
    bundle = Bundle.open(args.bundle)
    scale = args.scale or float(bundle.manifest.scale)
    options = Options(
        args.seed, args.samples, args.select, scale, args.quality, bundle.digest, args.sample, args.max_pixels
    )
    tasks = plan_tasks(args.inputs, args.out, options)
    if args.skip_existing:
        _skip(tasks, options)
    waiting = [task for task in tasks if task.outcome.status != "skipped"]
    facts: dict[str, Any] = {"device": None, "precision": None, "placement": None, "notes": []}
    stop: KeyboardInterrupt | None = None

    def settled(outcome: Outcome) -> None:
        if args.json_lines:
            emit_line({"type": "file", **vars(outcome)})

    for task in tasks:
        if task.outcome.status == "skipped":
            settled(task.outcome)
    targets = [task.target(part) for task in tasks for part in options.parts]
    if not waiting:
        with _folder(tasks[0], args.out, targets):
            pass  # nothing to write, but what a killed run left goes
    else:
        with _open(args, bundle) as upscaler:
            say(f"{bundle.manifest.name} ({bundle.digest}) on {upscaler.device} in {upscaler.precision}")
            try:
                for task in waiting:
                    task.pixels = header_pixels(task.source)
                with (
                    _folder(tasks[0], args.out, targets, make=True),
                    photo_progress([task.pixels for task in waiting]) as meter,
                ):
                    Batch(options, upscaler, meter, settled, overlap=args.max_memory is None).run(waiting)
            except KeyboardInterrupt as signal:
                stop = signal
                how = "terminated" if isinstance(stop, Terminated) else "interrupted"
                say(f"{how}; finished files stay, no partial file is left")
            facts = {
                "device": upscaler.device,
                "precision": upscaler.precision,
                "placement": upscaler.placement,
                "notes": list(upscaler.notes),
            }
    outcomes = [task.outcome for task in tasks if task.begin or task.outcome.status == "skipped"]
    counts = {
        status: sum(outcome.status == status for outcome in outcomes)
        for status in ("ok", "skipped", "failed")
    }
    seconds = time.perf_counter() - begin
    report = {**_described(options, bundle), **facts, "photos": len(tasks), **counts}
    report |= {"interrupted": stop is not None, "seconds": round(seconds, 3)}
    if args.json:
        emit(report | {"files": [vars(outcome) for outcome in outcomes]})
    if args.json_lines:
        emit_line({"type": "summary", **report})
    if len(tasks) > 1 or counts["skipped"]:
        say(_summary(counts, len(tasks), seconds))
    if stop is not None:
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    return FAILED if counts["failed"] else OK


def _skip(tasks: Sequence[Task], options: Options) -> None:
    """Mark the photos whose outputs are all there."""
    for task in tasks:
        there = task.finished(options)
        if there:
            task.outcome.status = "skipped"
            named = options.select == "all"
            samples = dict(zip(options.parts, options.numbers, strict=True)) if named else {}
            found = {
                str(task.target(part)): samples.get(part) for part in there
            }  # one file may have been named
            task.outcome.outputs = [{"path": path, "sample": sample} for path, sample in found.items()]


def _open(args: argparse.Namespace, bundle: "Bundle") -> "Upscaler":
    from runtime.upscale.upscaler import Upscaler

    return Upscaler(
        bundle,
        device=args.device,
        precision=args.precision,
        threads=args.threads,
        tile=args.tile,
        color_fix=args.color_fix,
        max_memory=args.max_memory,
        notify=say,
    )


@contextlib.contextmanager
def _folder(task: Task, out: Path, targets: Sequence[Path], make: bool = False) -> Iterator[None]:
    """The output folder, free of what killed runs left there."""
    folder = out if task.exact is None else task.folder
    if make:
        with contextlib.suppress(OSError):  # each photo's own attempt reports it
            folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder, targets) as removed:
        if removed:
            say(f"removed {removed} temporary file{'s' * (removed > 1)} of a killed run")
        yield


def _described(options: Options, bundle: "Bundle") -> dict[str, Any]:
    """What a report says of the request."""
    from runtime.image.grain import NAME

    return {
        "version": __version__,
        "bundle": {"name": bundle.manifest.name, "path": str(bundle.path), "digest": bundle.digest},
        "seed": options.seed,
        "samples": len(options.numbers),
        "sample": options.only,  # null: all from 0
        "select": options.select,
        "score": NAME if options.select == "best" else None,
        "scale": options.scale,
    }


def _summary(counts: dict[str, int], total: int, seconds: float) -> str:
    """One line: what became of the photos."""
    words = {"ok": "done", "skipped": "skipped, their outputs exist", "failed": "failed"}
    parts = [f"{counts[status]} {word}" for status, word in words.items() if counts[status]]
    return f"{total} photos: {'; '.join(parts) or 'none done'} ({seconds:.1f} s)"
