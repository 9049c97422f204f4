"""Measure how good a bundle's pictures are, on pairs of small and large photos with the same names.

Reported per precision: PSNR on Y, SSIM, NIQE, SQF if its weights are given, how much samples differ, whether tile borders show, the
time of one picture, and metrics of pyiqa if asked for (--metric). Further rows are bicubic enlargement, the bundle's Core ML packages
(--coreml), trained one-step models (--onestep NAME=RUN), other models (--peer-onnx, --peer-ncnn), and pictures of any method in a
folder (--sr NAME=DIR). Every difference to fp32 has its 95 % interval over the pictures, and counts only if that excludes zero.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdposr import __version__
from gdposr.console import FAILED, OK, UsageError, add_bundle, emit, progress_bar, say, table, whole_number
from gdposr.forward import check_report, require

if TYPE_CHECKING:
    from calibration.measure.accuracy import AccuracyReport, Row
    from calibration.report.crops import CropCollector
    from gdposr.accuracy.onestep_rows import OneStepRow
    from runtime.bundle.reader import Bundle

HELP = "measure quality on pairs of small and large photos"
# Timed rounds by default, and rounds before them that are not counted.
ROUNDS, WARMUP = 7, 1
# Crops of the open photos, if no folders are given.
OPEN_PAIRS = 24
# Largest LR side of the timed picture in pixels.
LARGEST = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    # pictures and metrics
    add_bundle(parser)
    add(
        "--lr",
        type=Path,
        metavar="DIR",
        help="folder of small photos (default, with --hr: degraded crops of the openly licensed photos inside scikit-image)",
    )
    add("--hr", type=Path, metavar="DIR", help="folder of the large ones, same names")
    add("--sqf-weights", type=Path, metavar="FILE", help="SqueezeNet 1.1 as .safetensors; without it no SQF")
    add(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="also lpips, musiq or maniqa of pyiqa, or all of them; may be repeated",
    )
    # rows: of the bundle, then other models
    add("--precision", action="append", help="measure only this one; may be repeated (default: all)")
    add(
        "--coreml",
        action="append",
        default=[],
        metavar="VARIANT",
        help="also this variant of the Core ML packages, or all that are there; may be repeated (needs the extra `coreml`)",
    )
    add(
        "--sr",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="another method's pictures; may be repeated",
    )
    add(
        "--onestep",
        action="append",
        default=[],
        metavar="NAME=RUN",
        help="a trained one-step model, run in torch on the CPU: a training run, a base or a merged folder; may be repeated (needs the "
        "extra `train`)",
    )
    add(
        "--onestep-base",
        metavar="SOURCE",
        help="source of text encoder and scheduler for the --onestep models that have none, such as the public GDPO-SR folder",
    )
    add("--peer-onnx", type=Path, action="append", default=[], metavar="FILE", help="another model, as ONNX")
    add(
        "--peer-ncnn",
        type=Path,
        metavar="PARAM",
        help="another model, as ncnn .param with its .bin beside it",
    )
    # gates
    add(
        "--check",
        action="store_true",
        help="exit with 1 unless every model keeps its budget: the manifest's, or else that of INT8 against fp32",
    )
    add(
        "--budget",
        action="append",
        default=[],
        metavar="GATE=VALUE",
        help="a limit for every model, such as max_psnr_loss=0.05, in place of its own; exit with 1 when it is broken; may be repeated",
    )
    # how it is run, and whether it is timed
    add("--limit", type=whole_number(1), help="only the first N pairs")
    add("--seed", type=whole_number(0, 2**64 - 1), default=0, help="seed of the samples (default: 0)")
    add("--device", default="auto", help="where the model runs (default: auto)")
    add("--threads", type=whole_number(1), help="CPU threads (default: all cores)")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--rounds",
        type=whole_number(1),
        default=ROUNDS,
        help=f"timed rounds of one picture (default: {ROUNDS})",
    )
    speed.add_argument("--no-speed", action="store_true", help="leave out the timing")
    # outputs
    add("--report", type=Path, metavar="FILE.html", help="write a page with the table and crops")
    add("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    check_report(args.report)
    if (args.lr is None) != (args.hr is None):
        raise UsageError("--lr and --hr belong together: give both, or neither for the open photos")
    if args.lr is not None:
        return _run(args)
    require(("torch", "safetensors", "skimage"), "export", "accuracy without --lr and --hr")
    from calibration.samples import write_open_pairs

    with tempfile.TemporaryDirectory(prefix="gdposr-") as folder:
        count = args.limit or OPEN_PAIRS
        args.lr, args.hr = write_open_pairs(Path(folder), count)
        photos = {_photo(path.stem) for path in args.lr.iterdir()}
        pictures = f"{count} degraded crops of {len(photos)} open photos (scikit-image)"
        say(f"measuring on {pictures}; --lr and --hr take your own")
        return _run(args, pictures, _photo)


def _photo(name: str) -> str:
    """The open photo of a crop: its name without the number."""
    return name.rpartition("-")[0]


def _run(
    args: argparse.Namespace, pictures: str | None = None, group: Callable[[str], str] | None = None
) -> int:
    """Measure, time, show. pictures: a description of them. group: picture name -> the photo that it is a crop of."""
    from calibration.report.crops import CropCollector
    from calibration.report.tables import table_rows
    from gdposr.accuracy.differences import difference_lines
    from gdposr.bench.machine import describe_machine
    from runtime.backends.devices import usable_processors
    from runtime.errors import ImageError

    threads = args.threads or usable_processors()
    machine = describe_machine()
    crops = CropCollector() if args.report else None
    try:
        report = _measured(args, pictures, group, crops, _flat(machine, threads), threads)
    except ImageError as error:  # no photo is left out of a mean, so an unusable one ends the command
        raise UsageError(str(error)) from error
    if report.sqf_note:
        say(f"no SQF: {report.sqf_note}")
    if args.report:
        from calibration.report.accuracy import write_report

        args.report.parent.mkdir(parents=True, exist_ok=True)
        write_report(args.report, report, crops)
        say(f"the report: {args.report}")
    if args.json:
        emit({"version": __version__, **report.to_dict(), "machine": report.machine | machine})
    else:
        print(table([tuple(row) for row in table_rows(report)]))
        for line in difference_lines(report):
            print(line)
        for gate in report.gates:
            verdict, value = "ok" if gate.ok else "BROKEN", "not measured"
            if gate.value is not None:
                value = f"{gate.value:.4g}"
            print(f"{verdict:7} {gate.row} {gate.gate.replace('_', ' ')} {gate.limit:g}: {value}")
    return FAILED if report.ok is False else OK


def _measured(
    args: argparse.Namespace,
    pictures: str | None,
    group: Callable[[str], str] | None,
    crops: "CropCollector | None",
    machine: dict[str, str],
    threads: int,
) -> "AccuracyReport":
    """The report, with times unless they were declined. ImageError for unusable pictures.

    args: of the command, with folders in `lr` and `hr`.
    pictures: a description of them; None: the folders.
    group: picture name -> the photo that it is a crop of; None: each picture is a photo.
    crops: collects the worst crops for the HTML report; None: there is none.
    machine: for the report.
    threads: of all models.
    """
    from calibration.measure.accuracy import evaluate, measured_precisions
    from gdposr.accuracy.budgets import chosen_budgets
    from gdposr.accuracy.coreml_rows import ROW, fitting_variants, open_methods
    from gdposr.accuracy.onestep_rows import onestep_methods, open_rows
    from gdposr.bench.peers import load_peers, peer_methods
    from runtime.bundle.reader import Bundle
    from training.metrics.pyiqa import wanted

    # check: folders, weights, sizes and budgets, before any long work
    folders = {name: Path(folder) for name, folder in (_named("--sr NAME=DIR", text) for text in args.sr)}
    trained = [_named("--onestep NAME=RUN", text) for text in args.onestep]
    for folder in (args.lr, args.hr, *folders.values()):
        if not folder.is_dir():
            raise UsageError(f"{folder}: expected a folder of photos, there is none: check the path")
    if args.sqf_weights is not None and not args.sqf_weights.is_file():
        raise UsageError(
            f"{args.sqf_weights}: expected SqueezeNet 1.1 as .safetensors, there is nothing: check the path"
        )
    # rows: the bundle's own, with their budgets
    bundle = Bundle.open(args.bundle)
    metrics = wanted(args.metric)
    sizes = _checked_sizes(args, bundle.manifest.scale)
    variants = fitting_variants(bundle, args.coreml, sizes)
    names = [*measured_precisions(bundle, args.precision), *(ROW.format(variant) for variant in variants)]
    budgets = chosen_budgets(args, bundle, names, metrics)
    # rows: other models, loaded once for quality and for speed
    peers = peer_methods(load_peers(args.peer_onnx, args.peer_ncnn, threads))
    prompt = bundle.manifest.provenance.get("prompt")  # of a bundle from a one-step model
    with open_rows(trained, bundle.manifest.scale, threads, args.onestep_base, prompt) as onestep:
        # measure: quality, row by row
        with open_methods(bundle, variants, args.seed) as packages, progress_bar("measuring") as update:
            report = evaluate(
                bundle,
                args.lr,
                args.hr,
                precisions=args.precision,
                device=args.device,
                threads=args.threads,
                seed=args.seed,
                limit=args.limit,
                folders=folders,
                methods=[*peers, *onestep_methods(onestep, args.seed), *packages],
                sqf_weights=args.sqf_weights,
                extra_metrics=metrics,
                budgets=budgets,
                pictures=pictures,
                group=group,
                machine=machine,
                progress=lambda done, total, row: update(done, total, f"measuring {row}"),
                observe=crops,
            )
        # time: the same rows in turns
        if args.no_speed:
            return report
        return _timed(args, bundle, report, threads, next(iter(sizes.values())), onestep)


def _checked_sizes(args: argparse.Namespace, scale: int) -> dict[str, tuple[int, int]]:
    """(height, width) of each LR picture by name, read before any work. ImageError for a pair that cannot be measured."""
    from calibration.measure.pairs import find_pairs, read_rgb
    from calibration.measure.table import check_sizes

    sizes = {}
    for pair in find_pairs(args.lr, args.hr, args.limit):
        lr, hr = read_rgb(pair.lr), read_rgb(pair.hr)
        check_sizes(pair, lr, hr, scale)
        sizes[pair.name] = (lr.shape[0], lr.shape[1])
    return sizes


def _timed(
    args: argparse.Namespace,
    bundle: "Bundle",
    report: "AccuracyReport",
    threads: int,
    size: tuple[int, int],
    onestep: "Sequence[OneStepRow]",
) -> "AccuracyReport":
    """The report with the median time of a whole picture in the rows of ONNX, peers and one-step models, which take turns.

    args: of the command.
    bundle: the model.
    report: without times.
    threads: of all models.
    size: (height, width) of an LR picture. The timed square picture does not exceed it.
    onestep: the loaded one-step models.
    """
    from gdposr.accuracy.onestep_rows import onestep_calls
    from gdposr.bench.timing import measure, own_calls, peer_calls, test_picture

    rule = bundle.manifest.size
    side = min(LARGEST, *size) // rule.multiple_of * rule.multiple_of
    side = max(side, -(-rule.minimum // rule.multiple_of) * rule.multiple_of)
    calls = {}
    for row in report.rows:
        if row.target == "onnx" and row.device is not None:
            own = own_calls(bundle, row.device, row.name, threads, side)
            calls[row.name] = next(call for name, call in own.items() if name.endswith(" picture"))
    calls |= peer_calls(args.peer_onnx, args.peer_ncnn, threads, side)
    calls |= onestep_calls(onestep, test_picture(side))
    if not calls:
        return report
    say(f"timing {side}x{side}, {args.rounds} rounds, {threads} threads")
    times = measure(calls, args.rounds, WARMUP)

    def with_time(row: "Row") -> "Row":
        return replace(row, milliseconds=statistics.median(times[row.name])) if row.name in times else row

    machine = report.machine | {"timed": f"{side}x{side} LR, median of {args.rounds} rounds"}
    return replace(report, rows=tuple(with_time(row) for row in report.rows), machine=machine)


def _flat(machine: dict[str, Any], threads: int) -> dict[str, str]:
    """`describe_machine` without the versions, as text."""
    flags = " ".join(flag if present else f"no-{flag}" for flag, present in machine["cpu_flags"].items())
    values = {**machine, "cpu_flags": flags, "threads": threads}
    return {name: str(value) for name, value in values.items() if name != "packages" and value is not None}


def _named(option: str, text: str) -> tuple[str, str]:
    """NAME and its value. option: with its form, such as --sr NAME=DIR."""
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        flag, form = option.split()
        raise UsageError(f"{flag} expects {form}, got {text!r}")
    return name, value
