"""Measure how good a bundle's pictures are, on pairs of small and large photos with the same names.

Reported per precision: PSNR on Y, SSIM, NIQE, SQF where its weights are given, and how much samples differ;
bicubic enlargement stands beside them, and any other method whose pictures lie in a folder (--sr NAME=DIR).
"""

import argparse
from pathlib import Path

from gdposr import __version__
from gdposr.console import FAILED, OK, UsageError, emit, progress_bar, say, table, whole_number

HELP = "measure quality on pairs of small and large photos"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", nargs="?", type=Path, help="a bundle folder or zip (default: the built-in one)"
    )
    parser.add_argument("--lr", required=True, type=Path, metavar="DIR", help="folder of small photos")
    parser.add_argument(
        "--hr", required=True, type=Path, metavar="DIR", help="folder of the large ones, same names"
    )
    parser.add_argument(
        "--sqf-weights", type=Path, metavar="FILE", help="SqueezeNet 1.1 as .safetensors; without it no SQF"
    )
    parser.add_argument(
        "--precision", action="append", help="measure only this one; may be repeated (default: all)"
    )
    parser.add_argument(
        "--sr",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="another method's pictures; may be repeated",
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
        "--check",
        action="store_true",
        help="exit with 1 unless every precision keeps its budget against fp32",
    )
    parser.add_argument("--limit", type=whole_number(1), help="only the first N pairs")
    parser.add_argument(
        "--seed", type=whole_number(0, 2**64 - 1), default=0, help="seed of the samples (default: 0)"
    )
    parser.add_argument("--device", default="auto", help="where the model runs (default: auto)")
    parser.add_argument("--threads", type=whole_number(1), help="CPU threads (default: all cores)")
    parser.add_argument(
        "--report", type=Path, metavar="FILE.html", help="write a page with the table and crops"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from calibration.accuracy import evaluate
    from calibration.gates import INT8_GATES
    from calibration.report import CropCollector, table_rows, write_report
    from gdposr.machine import describe_machine
    from gdposr.peers import load_peers, on_pictures
    from runtime.backend import usable_processors
    from runtime.bundle import Bundle

    folders = dict(_named_folder(text) for text in args.sr)
    for folder in (args.lr, args.hr, *folders.values()):
        if not folder.is_dir():
            raise UsageError(f"{folder}: expected a folder of photos, there is none: check the path")
    if args.sqf_weights is not None and not args.sqf_weights.is_file():
        raise UsageError(
            f"{args.sqf_weights}: expected SqueezeNet 1.1 as .safetensors, there is nothing: check the path"
        )
    bundle = Bundle.open(args.bundle)
    runs = load_peers(args.peer_onnx, args.peer_ncnn, args.threads or usable_processors())
    crops = CropCollector() if args.report else None
    with progress_bar("measuring") as update:
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
            peers={name: on_pictures(peer) for name, peer in runs.items()},
            sqf_weights=args.sqf_weights,
            gates=INT8_GATES if args.check else None,
            progress=lambda done, total, row: update(done, total, f"measuring {row}"),
            observe=crops,
        )
    if report.sqf_note:
        say(f"no SQF: {report.sqf_note}")
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        write_report(args.report, report, crops)
        say(f"the report: {args.report}")
    if args.json:
        emit({"version": __version__, "machine": describe_machine(), **report.to_dict()})
    else:
        print(table([tuple(row) for row in table_rows(report)]))
        for gate in report.gates:
            verdict = "ok" if gate.ok else "BROKEN"
            print(f"{verdict:7} {gate.row} {gate.gate.replace('_', ' ')} {gate.limit:g}: {gate.value}")
    return FAILED if report.ok is False else OK


def _named_folder(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise UsageError(f"--sr expects NAME=DIR, got {text!r}")
    return name, Path(folder)
