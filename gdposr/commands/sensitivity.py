"""Tell which layers of a bundle bear few bits: the quality when one layer alone is quantized.

The figures were measured when the bundle was exported. They decided which layers INT8 leaves in floating point, and how many bits each
weight of a mixed Core ML package has.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdposr import __version__
from gdposr.console import FAILED, OK, add_bundle, emit, say, table
from gdposr.forward import check_report

if TYPE_CHECKING:
    from calibration.sensitivity import LayerNoise

HELP = "tell which layers of a bundle bear few bits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with the plots")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    check_report(args.report)
    from calibration.sensitivity import read_rows
    from runtime.bundle.reader import Bundle
    from runtime.files import atomic_file

    bundle = Bundle.open(args.bundle)
    accuracy = bundle.manifest.accuracy
    rows = read_rows(accuracy.get("sensitivity", {}))
    if not rows:
        say(
            f"{bundle.path}: no layer was measured; export the student again with INT8 or the Core ML variant mixed"
        )
        return FAILED
    if args.report:
        from calibration.report.accuracy import sensitivity_page

        args.report.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(args.report) as stream:
            stream.write(sensitivity_page(bundle.manifest.name, rows).encode())
        say(f"the report: {args.report}")
    chosen = {target: chosen_bits(target, found, accuracy) for target, found in rows.items()}
    if args.json:
        layers = {
            target: [row.to_dict() | {"chosen": chosen[target][row.layer]} for row in found]
            for target, found in rows.items()
        }
        emit({"version": __version__, "bundle": bundle.digest, "sensitivity": layers})
    else:
        print("\n\n".join(_table(target, found, chosen[target]) for target, found in rows.items()))
    return OK


def chosen_bits(target: str, rows: "Sequence[LayerNoise]", accuracy: dict[str, Any]) -> dict[str, int]:
    """Bits of each layer of a target by name. 32: INT8 left it in floating point."""
    layers = [row.layer for row in rows]
    if target == "coreml":
        weights = accuracy.get("mixed_bits", {})
        return {name: weights.get(role, {}).get(weight, 16)
                for name in layers for role, _, weight in [name.partition("/")]}  # fmt: skip
    few, many, wide = (
        (4, 8, accuracy.get("w4", {}).get("wide", ()))
        if target == "w4"
        else (8, 32, accuracy.get("int8", {}).get("float_layers", ()))
    )
    return {name: many if name in wide else few for name in layers}


def _table(target: str, rows: "Sequence[LayerNoise]", chosen: dict[str, int]) -> str:
    """The layers of one target, the most sensitive first."""
    widths = sorted({row.bits for row in rows})
    psnr = {(row.layer, row.bits): row.psnr for row in rows}
    layers = sorted({row.layer for row in rows}, key=lambda layer: (psnr[layer, widths[0]], layer))
    lines: list[tuple[str, ...]] = [(target, *(f"{width} bits, dB" for width in widths), "chosen bits")]
    for layer in layers:
        figures = (f"{psnr[layer, width]:.1f}" if (layer, width) in psnr else "-" for width in widths)
        lines.append((layer, *figures, str(chosen[layer])))
    return table(lines)
