"""Write a bundle from a checkpoint: convert, quantize, compress, prove each file equal to torch, and put it in place whole.

    gdposr export --checkpoint export/weights/pocket --out build/pocket.gdposr --targets onnx,coreml

The checkpoint is a student, a training run, or a one-step model in diffusers layout. The new bundle is built beside the target and
swapped in at the end, so an interrupted export leaves what stood there before. The same checkpoint and tools give the same bytes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from export.coreml_target import TILE, VARIANTS, write_coreml
from export.onnx_target import PRECISIONS, default_precisions, write_onnx
from export.parity import ParityError, noise_for, samples
from export.source import Source, file_sha256, load_source
from runtime.bundle import Bundle
from runtime.errors import GdposrError
from runtime.files import MANIFEST_NAME, Graph, GraphFile, Package
from runtime.manifest import FORMAT_VERSION, Manifest, Probe
from training.checkpoint import replace_folder

TARGETS = ("onnx", "coreml")
PROBE_FLOOR_DB = {"fp32": 50.0, "fp16": 45.0, "int8": 32.0}  # of the 8-bit probe against torch, on any device
PROBE_INPUT, PROBE_OUTPUT, PROBE_SEED = "probe_lr.png", "probe_sr.png", 7
DEFAULT_PRECISION = {"cpu": "int8", "cuda": "fp16", "ane": "fp16", "openvino": "int8"}
SYSTEMS = ("iOS17", "iOS18")


@dataclass(frozen=True)
class Wanted:
    """What a bundle is to hold."""

    targets: tuple[str, ...] = ("onnx",)
    precisions: tuple[str, ...] | None = None  # of the ONNX graphs; None: those that suit the model
    variants: tuple[str, ...] = VARIANTS  # of the Core ML packages
    system: str = "iOS17"  # oldest system that is to run the packages
    tile: int = TILE  # LR pixels a package takes, in height and width
    images: bool = False  # packages take and give images instead of arrays
    calibration: Path | None = None  # photos for INT8; None: those inside scikit-image

    def __post_init__(self) -> None:
        for name, known in (("targets", TARGETS), ("precisions", PRECISIONS)):
            for value in getattr(self, name) or ():
                if value not in known:
                    raise ValueError(f"{name}: expected some of {', '.join(known)}, got {value!r}")
        if not self.targets or self.precisions == () or not self.variants:
            raise ValueError("expected at least one target, precision and variant, got none")
        if self.system not in SYSTEMS:
            raise ValueError(f"system: expected one of {', '.join(SYSTEMS)}, got {self.system!r}")


def write_bundle(
    checkpoint: Path,
    out: Path,
    wanted: Wanted | None = None,
    *,
    base: str | Path | None = None,
    prompt: str | None = None,
    name: str | None = None,
    accuracy: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Export a checkpoint folder to a bundle folder; returns the manifest. ParityError when a file misses its floor.

    base and prompt are for one-step models: where text encoder and scheduler come from if the checkpoint has none, and the prompt
    that is folded in (None: the default one). accuracy: a report of `gdposr accuracy` to store with the bundle.
    """
    _check_place(out)
    wanted = wanted or Wanted()
    source = load_source(checkpoint, base=base, prompt=prompt)
    precisions = wanted.precisions or default_precisions(source)
    if "int8" in precisions and "int8" not in default_precisions(source):
        raise ValueError(
            "precision: int8 is for students, whose activations keep to static ranges: leave it out for a one-step model, or distil it "
            "first (`gdposr distill`)"
        )
    if source.folded_db is not None:
        say(f"folded: {source.folded_db:.1f} dB against the model as it was")
    metadata = {"model": source.kind, "checkpoint_sha256": source.checkpoint_sha256}
    fresh = out.with_name(f"{out.name}.{os.getpid()}.new")
    fresh.mkdir(parents=True)
    try:
        graphs: dict[str, dict[str, Graph]] = {}
        packages: dict[str, dict[str, Package]] = {}
        measured: dict[str, Any] = {} if source.folded_db is None else {"folded_db": source.folded_db}
        if "coreml" in wanted.targets:  # first: it is quick to refuse a wrong variant or tile
            packages, measured["coreml_parity_db"] = write_coreml(
                source, fresh, wanted.variants, wanted.system, wanted.tile, wanted.images, metadata, say
            )
        if "onnx" in wanted.targets:
            graphs, onnx_measured = write_onnx(source, fresh, precisions, wanted.calibration, metadata, say)
            measured |= onnx_measured
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=name or out.name.removesuffix(".gdposr"),
            scale=source.scale,
            encoder=source.specs["encoder"],
            generator=source.specs["generator"],
            graphs=graphs,
            coreml=packages,
            size=source.size,
            noise=source.noise,
            t_n=source.t_n,
            t_d=source.t_d,
            color_fix="none",
            default_precision={
                d: p if p in graphs else next(iter(graphs)) for d, p in DEFAULT_PRECISION.items()
            }
            if graphs
            else {},
            probe=_write_probe(source, fresh, tuple(graphs)),
            provenance={
                "training": dict(source.training),
                "parameters": source.parameters,
                "tools": _tools(wanted.targets),
                **({"prompt": source.prompt} if source.prompt is not None else {}),
                **metadata,
            },
            accuracy={**measured, **(accuracy or {})},
        )
        (fresh / MANIFEST_NAME).write_text(json.dumps(manifest.to_dict(), indent=2, sort_keys=True) + "\n")
        Bundle.open(fresh).verify()
        replace_folder(fresh, out)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return manifest


def _check_place(out: Path) -> None:
    """out must be free, or hold a bundle and nothing else: it is replaced as a whole."""
    if not out.exists():
        return
    try:
        manifest = Bundle.open(out).manifest if out.is_dir() else None
    except GdposrError:
        manifest = None
    if manifest is None:
        raise FileExistsError(f"{out} exists and is not a bundle; choose another --out")
    named = {file.file for file in manifest.files} | {MANIFEST_NAME}
    strangers = sorted(
        name
        for path in out.rglob("*")
        if path.is_file() and (name := path.relative_to(out).as_posix()) not in named
    )
    if strangers:
        raise FileExistsError(
            f"{out} holds {strangers[0]}, which is not of the bundle there and would be lost; move it, or choose another --out"
        )


def _write_probe(source: Source, folder: Path, precisions: Sequence[str]) -> Probe:
    """A degraded photo and torch's own result for it, as 8-bit PNG files."""
    (sample,) = samples(source, None, 1, seed=2)
    Image.fromarray(_pixels(sample.lr)).save(folder / PROBE_INPUT)
    height, width = sample.lr.shape[1:]
    noise = noise_for(source, height, width, seed=PROBE_SEED)
    sr = source(torch.from_numpy(sample.lr[None]), torch.from_numpy(noise))[0].numpy()
    Image.fromarray(_pixels(sr)).save(folder / PROBE_OUTPUT)
    floors = {precision: PROBE_FLOOR_DB[precision] for precision in precisions}
    return Probe(_entry(folder / PROBE_INPUT), _entry(folder / PROBE_OUTPUT), PROBE_SEED, floors)


def _pixels(image: np.ndarray) -> np.ndarray:
    """(3, h, w) in [0, 1] -> (h, w, 3) uint8."""
    return (np.clip(image, 0, 1).transpose(1, 2, 0) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _entry(path: Path) -> GraphFile:
    return GraphFile(path.name, path.stat().st_size, file_sha256(path))


def _tools(targets: Sequence[str]) -> dict[str, str]:
    """Versions of the packages that wrote the files."""
    names = ["torch"]
    names += ["onnx", "onnxruntime", "onnxscript"] if "onnx" in targets else []
    names += ["coremltools"] if "coreml" in targets else []
    return {name: importlib.metadata.version(name) for name in names}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gdposr export", description="Write a bundle from a checkpoint.")
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
    parser.add_argument("--base", help="of a checkpoint with unet/ and vae/ only: the model with the rest")
    parser.add_argument("--prompt", help="the prompt folded into a one-step model (default: a general one)")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        help="of the ONNX graphs (default: those that suit the model)",
    )
    parser.add_argument(
        "--calibration", type=Path, help="folder of photos for INT8 (default: those inside scikit-image)"
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        default=list(VARIANTS),
        help="of the Core ML packages (default: %(default)s)",
    )
    parser.add_argument(
        "--system", choices=SYSTEMS, default="iOS17", help="oldest system that runs the packages"
    )
    parser.add_argument(
        "--tile",
        type=int,
        default=TILE,
        help="LR pixels a package takes, in height and width (default: %(default)s)",
    )
    parser.add_argument(
        "--images", action="store_true", help="packages take and give images instead of arrays"
    )
    parser.add_argument(
        "--accuracy", type=Path, help="JSON report of `gdposr accuracy` to put into the manifest"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 1 when a parity floor is missed, 2 for wrong arguments or checkpoints."""
    args = _parser().parse_args(argv)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        wanted = Wanted(
            targets=tuple(args.targets.split(",")),
            precisions=None if args.precision is None else tuple(args.precision),
            variants=tuple(args.variant),
            system=args.system,
            tile=args.tile,
            images=args.images,
            calibration=args.calibration,
        )
        report = json.loads(args.accuracy.read_text()) if args.accuracy else None
        manifest = write_bundle(
            args.checkpoint, args.out, wanted, base=args.base, prompt=args.prompt, accuracy=report, say=say
        )
    except ParityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (GdposrError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    total = sum(file.bytes for file in manifest.files)
    held = [*manifest.graphs, *(f"Core ML {variant}" for variant in manifest.coreml)]
    say(f"{args.out}: {', '.join(held)}; {total / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
