"""Upscale photos: files, folders (the tree is kept) or globs.

OUT with the suffix of a picture is one file; anything else is a folder, with names that carry the seed:
photo_x4_seed3.png, and for several samples photo_x4_seed3_s0.png, photo_x4_seed3_s1.png, ...
An output of the same name is replaced in one step, an input never. A photo that fails is reported, and
the others go on. An interrupted or killed run leaves only complete files, and the same command with
--skip-existing does the rest. Ctrl-C ends with exit code 130, SIGTERM with 143.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdposr.batch.arguments import add_arguments
from gdposr.batch.outputs import plan_tasks
from gdposr.batch.pipes import STANDARD, check_stdout, from_stdin, to_stdout
from gdposr.batch.progress import photo_progress, say_failed, summary
from gdposr.batch.run import Batch
from gdposr.batch.task import Options, Outcome, Task
from gdposr.batch.temporary import claimed
from gdposr.console import (
    FAILED,
    INTERRUPTED,
    OK,
    TERMINATED,
    Terminated,
    UsageError,
    emit,
    emit_line,
    one_line,
    say,
    terminable,
)

if TYPE_CHECKING:
    from runtime.bundle.reader import Bundle
    from runtime.upscale.upscaler import Upscaler

__all__ = ["HELP", "add_arguments", "run"]

HELP = "upscale photos: files, folders or globs"


def run(args: argparse.Namespace) -> int:
    """Plan, skip what is done, load the model once, then enlarge photo by photo."""
    with terminable():
        try:
            if args.ray is not None:
                return _on_ray(args)
            for item in (*args.inputs, args.out):
                if "://" in str(item) and not os.path.lexists(item):
                    raise UsageError(
                        f"{item} is an address, which is for clusters: add --ray, or name a path here"
                    )
            return _through_pipes(args) if STANDARD in (*args.inputs, str(args.out)) else _run(args, {})
        except Terminated:  # before any photo was begun
            say("terminated")
            return TERMINATED


def _on_ray(args: argparse.Namespace) -> int:
    from gdposr.fleet.command import run_on_ray
    from runtime.bundle.reader import Bundle

    bundle = Bundle.open(args.bundle)
    return run_on_ray(args, _options(args, bundle), bundle)


def _options(args: argparse.Namespace, bundle: "Bundle") -> Options:
    """What to make from each photo. UsageError if two options do not go together."""
    if args.sample is not None and args.select != "all":
        raise UsageError(f"--sample is one version, got --select {args.select}: leave one of them out")
    if args.compare and args.select == "sheet":
        raise UsageError("--compare shows one version, got --select sheet: leave one of them out")
    return Options(
        args.seed,
        args.samples,
        args.select,
        args.scale or float(bundle.manifest.scale),
        args.quality,
        bundle.digest,
        args.sample,
        args.max_pixels,
        args.compare,
        args.strip,
    )


def _through_pipes(args: argparse.Namespace) -> int:
    """A run with a photo from stdin, a picture to stdout, or both."""
    from runtime.image.read.decode import MAX_PIXELS

    to_pipe, stdout = str(args.out) == STANDARD, sys.stdout
    if to_pipe:
        check_stdout(stdout)
        clash = [
            name for name in ("json", "json_lines", "compare", "open", "skip_existing") if getattr(args, name)
        ]
        if clash:
            option = clash[0].replace("_", "-")
            raise UsageError(f"-o - is the picture alone, got --{option}: leave it out, or name a file")
    if STANDARD in args.inputs and len(args.inputs) > 1:
        raise UsageError(f"- is one photo on stdin, got {len(args.inputs)} inputs: name it alone")
    labels = {}
    with tempfile.TemporaryDirectory(prefix="gdposr-") as name:
        if STANDARD in args.inputs:
            args.inputs = [str(from_stdin(Path(name), args.max_pixels or MAX_PIXELS))]
            labels[args.inputs[0]] = "stdin"
        if to_pipe:
            args.out = Path(name) / "stdout.png"
            labels[str(args.out)] = "stdout"
        code = _run(args, labels)
        if to_pipe and code == OK:
            problem = to_stdout(args.out, stdout)
            if problem is not None:
                say(problem)
                return FAILED
    return code


def _run(args: argparse.Namespace, labels: dict[str, str]) -> int:
    """A run over photos. labels: texts that messages show instead of paths."""
    from runtime.bundle.reader import Bundle

    # plan: every photo with its files, before the model is loaded
    begin = time.perf_counter()
    bundle = Bundle.open(args.bundle)
    options = _options(args, bundle)
    tasks = plan_tasks(args.inputs, args.out, options, args.skip_existing)
    for task in tasks:
        task.labels = labels
        task.outcome.input = labels.get(task.outcome.input, task.outcome.input)
    # settle: entries that are no photos, and photos with all their files
    photos = [task for task in tasks if task.outcome.status in ("unfinished", "skipped")]
    waiting = [task for task in photos if task.outcome.status == "unfinished"]
    facts: dict[str, Any] = {"device": None, "precision": None, "placement": None, "notes": []}
    stop: KeyboardInterrupt | None = None

    def settled(outcome: Outcome) -> None:
        if args.json_lines:
            emit_line({"type": "file", **vars(outcome)})

    for task in tasks:
        if task.outcome.status != "unfinished":
            if task.outcome.status == "failed":
                say_failed(task.outcome)
            settled(task.outcome)
    # enlarge
    targets = [task.target(part) for task in photos for part in options.parts]
    if not waiting:
        if photos:
            with _folder(photos[0], args.out, targets):
                pass  # nothing to write, but files of a killed run are removed
    else:
        with _open(args, bundle) as upscaler:
            say(f"{bundle.manifest.name} ({bundle.digest}) on {upscaler.device} in {upscaler.precision}")
            work = [] if _refused(waiting, args.out, settled) else waiting
            try:
                with (
                    _folder(waiting[0], args.out, targets),
                    photo_progress([task.pixels for task in work]) as meter,
                ):
                    Batch(options, upscaler, meter, settled, overlap=args.max_memory is None).run(work)
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
    # report: the result of each photo, also after an interruption
    outcomes = [task.outcome for task in tasks if task.begin or task.outcome.status != "unfinished"]
    counts = {
        status: sum(outcome.status == status for outcome in outcomes)
        for status in ("ok", "skipped", "own", "failed")
    }
    seconds = time.perf_counter() - begin
    report = {**options.described(bundle, args.temperature), **facts, "photos": len(tasks), **counts}
    report |= {"interrupted": stop is not None, "seconds": round(seconds, 3)}
    if args.json:
        emit(report | {"files": [vars(outcome) for outcome in outcomes]})
    if args.json_lines:
        emit_line({"type": "summary", **report})
    if len(tasks) > 1 or counts["skipped"] or counts["own"]:
        say(summary(counts, len(tasks), seconds))
    if args.open and stop is None:
        _show([output for outcome in outcomes for output in outcome.outputs], args.out)
    if stop is not None:
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    return FAILED if counts["failed"] else OK


def _open(args: argparse.Namespace, bundle: "Bundle") -> "Upscaler":
    from runtime.upscale.upscaler import Upscaler

    return Upscaler(
        bundle,
        device=args.device,
        precision=args.precision,
        threads=args.threads,
        tile=args.tile,
        color_fix=args.color_fix,
        temperature=args.temperature,
        max_memory=args.max_memory,
        notify=say,
    )


def _refused(waiting: Sequence[Task], out: Path, settled: Callable[[Outcome], None]) -> bool:
    """Whether the output folder cannot be made. Then the error is printed once, and every photo has failed."""
    from runtime.errors import ImageError
    from runtime.files import make_folder

    try:
        make_folder(out if waiting[0].exact is None else waiting[0].folder)
    except ImageError as error:
        say(f"failed: {error}")
        for task in waiting:
            task.outcome.status, task.outcome.error = "failed", one_line(error)
            settled(task.outcome)
        return True
    return False


@contextlib.contextmanager
def _folder(task: Task, out: Path, targets: Sequence[Path]) -> Iterator[None]:
    """Claim the output folder, and tell how many files of killed runs were removed."""
    folder = out if task.exact is None else task.folder
    with claimed(folder, targets):
        yield


def _show(outputs: Sequence[dict[str, Any]], out: Path) -> None:
    """Show the output, or the folder if there are several."""
    if outputs:
        one = Path(outputs[0].get("compare", outputs[0]["path"]))
        problem = _open_viewer(one if len(outputs) == 1 else out)
        if problem is not None:
            say(problem)


def _open_viewer(path: Path) -> str | None:
    """Start the system's viewer of a file or folder without waiting for it. Returns None, or the error as a sentence."""
    place = os.path.abspath(path)
    try:
        if sys.platform == "win32":
            os.startfile(place)
            return None
        opener = "open" if sys.platform == "darwin" else "xdg-open"
        if shutil.which(opener) is None:
            return f"{place} cannot be shown: expected the program {opener}, got none; open the file yourself"
        subprocess.Popen(
            [opener, place],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C here does not close it
        )
    except OSError as error:
        return f"{place} cannot be shown ({error.strerror or error}): open the file yourself"
    return None
