"""Inspect and verify Core ML packages, on any machine.

    gdposr coreml lint PACKAGE... [--all] [--strict] [--json]
    gdposr coreml verify PACKAGE... --against BUNDLE [--floor DB] [--samples N] [--device reference|cpu|gpu|ane] [--json]

PACKAGE is an .mlpackage folder, or a bundle's folder with packages inside. Without --against, `verify` compares with
the graphs of the bundle that contains the packages. Each package must reach the PSNR that it promises; on devices
other than `reference`, at most 40 dB are required."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.mil.lint import RULES, Report, every_operation, lint, summary
from export.mil.package.program import SUFFIX, Program, find_packages, read_package
from runtime.errors import GdposrError
from runtime.text import finite, print_error

# Exit codes.
OK, FAILED, USAGE = 0, 1, 2
# Operations listed for each rule; --all lists all.
_SHOWN = 3


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 on success; 1 if a floor is missed or, with --strict, a flag raised; 2 for wrong arguments or unreadable packages."""
    args = _parser().parse_args(argv)
    try:
        return _lint(args) if args.verb == "lint" else _verify(args)
    except (GdposrError, OSError, ValueError) as error:
        print_error(error)
        return USAGE


def _lint(args: argparse.Namespace) -> int:
    reports: list[Report] = []
    documents: list[dict[str, Any]] = []
    texts: list[str] = []
    for path in (package for given in args.packages for package in find_packages(given)):
        _say(f"{path}: reading")
        program = read_package(path)
        report = lint(program)
        reports.append(report)
        texts.append(_report_text(program, report, args.all))
        listed = {"every_operation": list(every_operation(program))} if args.all else {}
        documents.append(report.to_dict() | listed)
    if args.json:
        _emit(documents)
    else:
        print("\n\n".join(texts))
    return FAILED if args.strict and any(report.flags for report in reports) else OK


def _verify(args: argparse.Namespace) -> int:
    from export.mil.device import check_device
    from export.mil.verify import Result, VerifyError, verify
    from runtime.bundle.reader import Bundle

    check_device(args.device)
    groups: dict[Path, list[Path]] = {}
    for given in args.packages:
        against = args.against or (given if given.suffix != SUFFIX else given.parent)
        groups.setdefault(against, []).extend(find_packages(given))
    results: list[Result] = []
    for against, packages in groups.items():
        if args.against is None and not (against / "manifest.json").is_file():
            raise VerifyError(
                f"{packages[0]}: expected a bundle to compare with, got none; name it by --against"
            )
        results += verify(
            packages,
            Bundle.open(against),
            floor=args.floor,
            samples=args.samples,
            device=args.device,
            say=_say,
        )
    if args.json:
        _emit([result.to_dict() for result in results])
    else:
        rows: list[tuple[str, ...]] = [("package", "role", "size", "device", "PSNR", "floor", "")]
        rows += [_row(result) for result in results]
        print(_table(rows))
        for result in results:
            if result.error:
                print(f"{result.package}: {result.error}", file=sys.stderr)
    return OK if all(result.ok for result in results) else FAILED


def _row(result: Any) -> tuple[str, ...]:
    return (
        result.package,
        result.role,
        f"{result.size[0]}x{result.size[1]}",
        result.device,
        "-" if result.error else f"{result.psnr_db:.1f} dB",
        f"{result.floor_db:g} dB",
        "ok" if result.ok else "FAILED",
    )


def _report_text(program: Program, report: Report, everything: bool) -> str:
    total = sum(report.operations.values())
    lines = [f"{report.package}: {report.opset}, specification {report.specification}, {total} operations"]
    lines += _indent([(name, str(count)) for name, count in report.operations.items()])
    lines.append("weights")
    lines += _indent(
        [(s.kind, f"{s.tensors} tensors", f"{s.bytes / 1e6:.3f} MB") for s in report.storage]
    ) or ["  none"]
    if everything:
        lines.append("operations in order")
        lines += _indent(list(every_operation(program)))
    flagged = summary(report.flags)
    lines.append("may not run on the Neural Engine" if flagged else "no known obstacle for the Neural Engine")
    for rule, flags in flagged.items():
        lines.append(f"  {rule}: {len(flags)} x {RULES[rule]}")
        shown = flags if everything else flags[:_SHOWN]
        lines += [f"    {flag.op} {flag.name}: {flag.detail}" for flag in shown]
        if len(flags) > len(shown):
            lines.append(f"    and {len(flags) - len(shown)} more (--all)")
    return "\n".join(lines)


def _indent(rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"  {line}" for line in _table(rows).splitlines()] if rows else []


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _emit(result: object) -> None:
    """Print JSON to stdout; infinite numbers become null."""
    print(json.dumps(finite(result), indent=2, allow_nan=False))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gdposr coreml", description="Inspect and verify Core ML packages, on any machine."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    packages: dict[str, Any] = {"nargs": "+", "type": Path, "metavar": "PACKAGE"}
    looked = verbs.add_parser("lint", help="list operations, weights and obstacles for the Neural Engine")
    looked.add_argument("packages", help="an .mlpackage, or a bundle's folder with some inside", **packages)
    looked.add_argument("--all", action="store_true", help="list every operation with its outputs")
    looked.add_argument("--strict", action="store_true", help="exit with code 1 if a flag is raised")
    looked.add_argument("--json", action="store_true", help="print the report as JSON")
    checked = verbs.add_parser("verify", help="compare the output of packages with a bundle's fp32 graphs")
    checked.add_argument("packages", help="an .mlpackage, or a bundle's folder with some inside", **packages)
    checked.add_argument(
        "--against",
        type=Path,
        metavar="BUNDLE",
        help="bundle to compare with (default: the one that contains the packages)",
    )
    checked.add_argument(
        "--floor",
        type=float,
        metavar="DB",
        help="least PSNR (default: the package's gdposr.floor_db, but at most 40 dB on devices other than the reference and for an "
        "encoder's features, and at most 25 dB for the features if weights are compressed)",
    )
    checked.add_argument(
        "--samples", type=_count, default=4, metavar="N", help="photos to compare on (default: 4)"
    )
    checked.add_argument(
        "--device",
        choices=("reference", "cpu", "gpu", "ane"),
        default="reference",
        help="device that runs the packages; all but the first need a Mac",
    )
    checked.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
