"""`gdposr upscale ... --ray`: an archive on a Ray cluster, with the names, bytes, messages and exit codes of the plain command."""

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdposr.batch.pipes import STANDARD
from gdposr.batch.progress import occasional_lines, say_failed, summary
from gdposr.batch.task import Options, Outcome
from gdposr.batch.temporary import claimed
from gdposr.console import (
    FAILED,
    INTERRUPTED,
    OK,
    TERMINATED,
    Terminated,
    UsageError,
    emit_line,
    on_terminal,
    one_line,
    progress_bar,
    say,
    terminable,
)
from gdposr.fleet.photos import ArchivePhoto, Target, finished, plan_photos
from gdposr.fleet.report import REPORT, Report
from gdposr.fleet.store import is_address
from gdposr.fleet.worker import Result, Settings
from gdposr.forward import require

if TYPE_CHECKING:
    from runtime.bundle.reader import Bundle

# Modules of the extra `ray`.
PACKAGES = ("ray", "pyarrow", "pandas")
Settle = Callable[[Result], None]


def run_on_ray(args: argparse.Namespace, options: Options, bundle: "Bundle") -> int:
    """Plan, skip what is done, and enlarge the rest on the cluster. args: of `gdposr upscale`, with a text in `ray`."""
    # plan: check the request, list the photos and their existing outputs
    begin = time.perf_counter()
    _refuse(args)
    require(PACKAGES, "ray", "--ray")
    shown_out = str(args.out)
    target = Target(shown_out)
    photos = plan_photos(args.inputs, target, options)
    counts: dict[str, int] = dict.fromkeys(("ok", "skipped", "own", "failed"), 0)
    settled: set[int] = set()
    report = Report(target, options.seed, bundle.digest, args.skip_existing)

    def settle(result: Result) -> None:
        """Count and report a photo that is done, skipped or failed."""
        outcome = result.outcome
        counts[outcome.status] += 1
        settled.add(result.number)
        for note in outcome.notes:
            say(note)
        if outcome.status == "failed":
            say_failed(outcome)
        report.add(result)
        if args.json_lines:
            emit_line({"type": "file", **vars(outcome)})

    # settle photos that need no work
    waiting = list(_begun(photos, target, options, args.skip_existing, settle))
    facts: dict[str, Any] = {"device": None, "precision": None, "placement": None, "notes": []}
    stop: KeyboardInterrupt | None = None
    fault: str | None = None
    # enlarge the rest; the report lists the finished photos, also after an interruption
    try:
        if waiting:
            settings = _settings(args, options)
            with _claimed(target, waiting, options):
                facts |= _work(args.ray, settings, waiting, bundle, report, settle)
    except KeyboardInterrupt as signal:
        stop = signal
        how = "terminated" if isinstance(stop, Terminated) else "interrupted"
        say(f"{how}; finished files stay, no partial file is left")
    finally:
        if report.precision is not None or not waiting:  # if no work began, an older report stays
            try:
                for photo in photos:
                    if photo.number not in settled:
                        report.add(Result(photo.number, Outcome(photo.source), 0.0))
                say(f"the report is {report.close()}")
            except Exception as error:
                fault = one_line(error)
                say(f"failed: the report {target.shown(REPORT)} cannot be written: {fault}")
    # tell how it went
    seconds = time.perf_counter() - begin
    if args.json_lines:
        told = {**options.described(bundle, args.temperature), **facts, "photos": len(photos), **counts}
        emit_line({"type": "summary", **told, "interrupted": stop is not None, "seconds": round(seconds, 3)})
    say(summary(counts, len(photos), seconds))
    if stop is not None:
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    return FAILED if counts["failed"] or fault else OK


def _refuse(args: argparse.Namespace) -> None:
    """UsageError for options that have no meaning on a cluster."""
    from runtime.image.write.encode import WRITE_FORMATS

    if STANDARD in (*args.inputs, str(args.out)):
        raise UsageError("--ray: expected folders, files or addresses, got - for a pipe: leave out --ray")
    for name, remedy in (
        ("json", "take --json-lines, or read the Parquet report"),
        ("open", "look at the report"),
    ):
        if getattr(args, name):
            raise UsageError(f"--ray: --{name} is for one machine: {remedy}")
    suffix = os.path.splitext(str(args.out))[1].lower()
    if suffix in WRITE_FORMATS and not os.path.isdir(args.out):
        raise UsageError(
            f"--ray: expected a folder as OUT, got {args.out}: name a folder, or leave out --ray"
        )
    if not is_address(args.out) and os.path.exists(args.out) and not os.path.isdir(args.out):
        raise UsageError(f"{args.out} exists and is no folder: name another output")


def _settings(args: argparse.Namespace, options: Options) -> Settings:
    return Settings(
        options=options,
        out=str(args.out) if is_address(args.out) else os.path.abspath(args.out),
        shown_out=str(args.out),
        bundle=None if args.bundle is None else os.path.abspath(args.bundle),
        device=args.device,
        precision=args.precision,
        threads=args.threads or 1,
        tile=args.tile,
        color_fix=args.color_fix,
        max_memory=args.max_memory,
        temperature=args.temperature,
    )


def _begun(
    photos: Sequence[ArchivePhoto], target: Target, options: Options, skip_existing: bool, settle: Settle
) -> Iterator[ArchivePhoto]:
    """Settle the photos that need no work, and yield the others.

    photos: of the run.
    target: the output folder.
    options: what to make from each photo.
    skip_existing: whether photos whose pictures exist need no work.
    settle: called with the result of each photo that needs none.
    """
    present = target.present() if skip_existing else lambda name: False
    samples = dict(zip(options.parts, options.numbers, strict=True)) if options.select == "all" else {}
    for photo in photos:
        outcome = Outcome(photo.source)
        if photo.fault is not None:
            outcome.status, outcome.error = "failed", photo.fault
        elif there := finished(photo, options, present):
            outcome.status = "skipped"
            parts = dict(zip(photo.outputs(options), options.parts, strict=True))
            outcome.outputs = [
                {"path": target.shown(name), "sample": samples.get(parts[name])} for name in there
            ]
        else:
            yield photo
            continue
        settle(Result(photo.number, outcome, 0.0))


@contextlib.contextmanager
def _claimed(target: Target, photos: Sequence[ArchivePhoto], options: Options) -> Iterator[None]:
    """Claim a local output folder, see `claimed`. A store needs no claim: a killed run leaves no file there with a picture's name."""
    if target.store is not None:
        yield
        return
    from runtime.files import make_folder

    make_folder(Path(target.out))
    names = (Path(target.out, name) for photo in photos for name in photo.outputs(options))
    with claimed(Path(target.out), names):
        yield


def _work(
    address: str,
    settings: Settings,
    photos: Sequence[ArchivePhoto],
    bundle: "Bundle",
    report: Report,
    settle: Settle,
) -> dict[str, Any]:
    """Enlarge the photos on the cluster. Returns what a node loaded, as in the reports of the plain command.

    address: of the cluster, see `cluster`.
    settings: of every worker, with the device and precision that the user asked for.
    photos: to enlarge.
    bundle: the model, for the message that names it.
    report: gets the precision that was loaded.
    settle: called with each result.
    """
    import dataclasses

    from gdposr.fleet.cluster import cluster, enlarged, loaded

    with cluster(address), terminable():  # Ray sets its own handler of SIGTERM, so ours comes after it
        facts, takes = loaded(settings)
        settings = dataclasses.replace(settings, device=facts["device"], precision=facts["precision"])
        report.precision = facts["precision"]
        for note in facts["notes"]:
            say(note)
        say(f"{bundle.manifest.name} ({bundle.digest}) on {facts['device']} in {facts['precision']}, by Ray")
        with _progress(len(photos)) as done, contextlib.closing(enlarged(photos, settings, takes)) as results:
            for count, result in enumerate(results, 1):
                settle(result)
                done(count, result.outcome.input)
    return facts


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int, str], None]]:
    """A function to call with the number of photos done and the newest. It shows a bar on a terminal, else a line now and then."""
    if on_terminal():
        with progress_bar("photos") as update:
            yield lambda count, name: update(count, total, None)
        return
    show, begin = occasional_lines(), time.monotonic()

    def line(count: int, name: str) -> None:
        from gdposr.batch.progress import duration

        left = (time.monotonic() - begin) * (total - count) / count
        show(f"{count}/{total} {os.path.basename(name)}", count / total, f"{duration(left)} left")

    yield line
