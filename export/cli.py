"""The command `gdposr export`: writes a bundle from a checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from calibration.measure.gates import Gates
from export.coreml.target import CHUNK_BYTES, TILE
from export.onnx.int8.quantize import INT8_PRESETS
from export.parity import ParityError
from export.write_bundle import SYSTEMS, Wanted, write_bundle
from runtime.bundle.manifest import PRECISIONS
from runtime.errors import GdposrError
from runtime.text import print_error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gdposr export", description="Write a bundle from a checkpoint.")
    # inputs and output
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="a student's folder (model.safetensors, config.json), a training run, or a one-step model in diffusers layout",
    )
    parser.add_argument("--out", type=Path, required=True, help="bundle folder to write, NAME.gdposr")
    parser.add_argument(
        "--targets", default="onnx", help="onnx, coreml, or both: onnx,coreml (default: onnx)"
    )
    parser.add_argument(
        "--base", help="for a checkpoint with only unet/ and vae/: the model with the other parts"
    )
    parser.add_argument("--prompt", help="the prompt folded into a one-step model (default: a general one)")
    # ONNX graphs, and INT8's calibration and limits
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        help="precisions of the ONNX graphs (default: depends on the model)",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        help="calibration photos for INT8: a folder, or the output of `python -m calibration.samples` (default: scikit-image's photos)",
    )
    parser.add_argument(
        "--int8",
        choices=list(INT8_PRESETS),
        default="avx2",
        help="; ".join(f"{name}: {preset.purpose}" for name, preset in INT8_PRESETS.items())
        + " (default: %(default)s)",
    )
    parser.add_argument(
        "--float-layer",
        action="append",
        default=[],
        metavar="NODE",
        help="a node to keep in floating point in INT8 graphs; may be repeated",
    )
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="GATE=VALUE",
        help="limit of the loss by INT8 instead of the preset's, such as max_psnr_loss=0.05; may be repeated",
    )
    parser.add_argument(
        "--sqf-weights",
        type=Path,
        metavar="FILE",
        help="SqueezeNet 1.1 as .safetensors; INT8 must then also pass the SQF gate",
    )
    # Core ML packages
    parser.add_argument(
        "--variant",
        nargs="+",
        help="variants of the Core ML packages (default: depends on the model)",
    )
    parser.add_argument(
        "--system", choices=SYSTEMS, default="iOS17", help="oldest system that must run the packages"
    )
    parser.add_argument(
        "--tile",
        type=int,
        default=TILE,
        help="side in LR pixels of a package's input (default: %(default)s)",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=_size,
        default=[],
        metavar="HEIGHTxWIDTH",
        help="further sizes in LR pixels that a package takes; with --system iOS18",
    )
    parser.add_argument(
        "--chunk-mb",
        type=float,
        default=CHUNK_BYTES / 1e6,
        metavar="MB",
        help="most megabytes of a package's weights in float16; a larger generator of a one-step model is cut into packages that run "
        "one after the other (default: %(default)g)",
    )
    parser.add_argument(
        "--images", action="store_true", help="packages take and return images instead of arrays"
    )
    # other parts of the manifest
    parser.add_argument(
        "--accuracy", type=Path, help="JSON report of `gdposr accuracy` to store in the manifest"
    )
    return parser


def _size(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, such as 64x96, got {text!r}")
    return int(height), int(width)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 on success, 1 if a parity floor is missed, 2 for wrong arguments or checkpoints."""
    args = _parser().parse_args(argv)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        wanted = Wanted(
            targets=tuple(args.targets.split(",")),
            precisions=None if args.precision is None else tuple(args.precision),
            variants=None if args.variant is None else tuple(args.variant),
            system=args.system,
            tile=args.tile,
            images=args.images,
            sizes=tuple(args.sizes),
            chunk_mb=args.chunk_mb,
            calibration=args.calibration,
            int8=args.int8,
            float_layers=tuple(args.float_layer),
            sqf_weights=args.sqf_weights,
            budget=Gates.from_texts(args.budget) if args.budget else None,
        )
        report = json.loads(args.accuracy.read_text()) if args.accuracy else None
        manifest = write_bundle(
            args.checkpoint, args.out, wanted, base=args.base, prompt=args.prompt, accuracy=report, say=say
        )
    except ParityError as error:
        print_error(error)
        return 1
    except (GdposrError, ValueError, OSError) as error:
        print_error(error)
        return 2
    total = sum(file.bytes for file in manifest.files)
    held = [*manifest.graphs, *(f"Core ML {variant}" for variant in manifest.coreml)]
    say(f"{args.out}: {', '.join(held)}; {total / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
