"""Write a bundle from a student checkpoint: convert, quantize, prove each precision equal to torch, and put it in place whole.

    gdposr export --checkpoint export/weights/pocket --out build/pocket.gdposr

The new bundle is built beside the target and swapped in at the end, so an interrupted export leaves what stood there before.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from calibration.samples import Sample, draw_samples
from export.onnx import BASE, FEATURES, IMAGE, NOISE, SR, OnnxStudent, convert_fp16, export_fp32
from export.quantize import quantize_int8
from export.student import Student, load_student
from runtime.bundle import Bundle
from runtime.errors import GdposrError
from runtime.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    GraphFile,
    GraphSpec,
    Manifest,
    NoiseSpec,
    Probe,
    SizeRule,
    TensorSpec,
)
from runtime.noise import noise_field
from training.checkpoint import replace_folder

PRECISIONS = ("fp32", "fp16", "int8")
PARITY_FLOOR_DB = {
    "fp32": 100.0,
    "fp16": 55.0,
    "int8": 36.0,
}  # worst PSNR against torch over sizes, photos and seeds
PROBE_FLOOR_DB = {"fp32": 50.0, "fp16": 45.0, "int8": 32.0}  # the same for the 8-bit probe, on any device
PROBE_INPUT, PROBE_OUTPUT, PROBE_SEED = "probe_lr.png", "probe_sr.png", 7
CALIBRATION_SAMPLES = 32
PARITY_SIZES = ((64, 64), (48, 80), (34, 22))  # LR pixels
BEST_TILE = 256
DEFAULT_PRECISION = {"cpu": "int8", "cuda": "fp16", "ane": "fp16", "openvino": "int8"}


class ParityError(GdposrError):
    """A converted graph differs from torch by more than its floor allows."""


def write_bundle(
    checkpoint: Path,
    out: Path,
    *,
    name: str | None = None,
    precisions: Sequence[str] = PRECISIONS,
    calibration: Path | None = None,
    accuracy: Mapping[str, Any] | None = None,
    say: Any = lambda text: None,
) -> Manifest:
    """Export a checkpoint folder to a bundle folder; returns the manifest. ParityError when a precision misses its floor."""
    if out.exists() and not (out / MANIFEST_NAME).is_file():
        raise FileExistsError(f"{out} exists and is not a bundle; choose another --out")
    student, training = load_student(checkpoint)
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        say("converting to ONNX")
        metadata = {
            "model": "gdposr student",
            "checkpoint_sha256": _sha256((checkpoint / "model.safetensors").read_bytes()),
        }
        graphs = {"fp32": export_fp32(student, fresh, metadata)}
        if "fp16" in precisions:
            graphs["fp16"] = {r: convert_fp16(p, fresh / f"{r}.fp16.onnx") for r, p in graphs["fp32"].items()}
        if "int8" in precisions:
            say("quantizing to INT8")
            graphs["int8"] = quantize_int8(
                graphs["fp32"], fresh, _samples(student, calibration, CALIBRATION_SAMPLES, seed=0)
            )
        kept = {precision: graphs[precision] for precision in PRECISIONS if precision in precisions}
        say("checking against torch")
        parity = {p: check_parity(student, OnnxStudent(paths), p) for p, paths in kept.items()}
        for precision, worst in parity.items():
            say(f"  {precision}: at least {worst:.1f} dB (floor {PARITY_FLOOR_DB[precision]:g} dB)")
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            name=name or out.name.removesuffix(".gdposr"),
            scale=student.config.scale,
            **_tensor_specs(student),
            graphs={p: {role: _entry(path) for role, path in paths.items()} for p, paths in kept.items()},
            size=_size_rule(student),
            noise=NoiseSpec(1, student.config.noise_channels, student.config.fold),
            t_n=None,
            t_d=None,
            color_fix="none",
            default_precision={d: p if p in kept else next(iter(kept)) for d, p in DEFAULT_PRECISION.items()},
            probe=_write_probe(student, fresh, tuple(kept)),
            provenance={
                "training": training,
                "parameters": student.parameters_total,
                "tools": _tools(),
                **metadata,
            },
            accuracy={"parity_db": {p: round(v, 1) for p, v in parity.items()}, **(accuracy or {})},
        )
        if "fp32" not in kept:
            for path in graphs["fp32"].values():
                path.unlink()
        (fresh / MANIFEST_NAME).write_text(json.dumps(manifest.to_dict(), indent=2, sort_keys=True) + "\n")
        Bundle.open(fresh).verify()
        replace_folder(fresh, out)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return manifest


def check_parity(student: Student, converted: OnnxStudent, precision: str) -> float:
    """Worst PSNR in dB (peak 1) of the converted graphs against torch over `PARITY_SIZES`, each with two photos and seeds."""
    worst = np.inf
    for height, width in PARITY_SIZES:
        for sample in _samples(student, None, 2, seed=1):
            image = np.ascontiguousarray(sample.lr[None, :, :height, :width])
            if image.shape[2:] != (height, width):
                image = np.pad(image, ((0, 0), (0, 0), (0, 0), (0, width - image.shape[3])), mode="reflect")
            noise = np.random.default_rng(height).standard_normal(
                (
                    1,
                    student.config.noise_channels,
                    height // student.config.fold,
                    width // student.config.fold,
                ),
                dtype=np.float32,
            )
            with torch.no_grad():
                expected = student(torch.from_numpy(image), torch.from_numpy(noise)).numpy()
            came = converted(image, noise)
            if not np.isfinite(came).all():
                raise ParityError(
                    f"{precision}: the converted graphs give NaN or infinity at {height}x{width}; export fp32 instead"
                )
            mse = float(np.square(came.astype(np.float64) - expected).mean())
            worst = min(worst, 200.0 if mse == 0 else -10 * np.log10(mse))
    floor = PARITY_FLOOR_DB[precision]
    if worst < floor:
        raise ParityError(
            f"{precision}: expected at least {floor:g} dB PSNR against torch, came {worst:.1f} dB; "
            "nothing was written. Leave this precision out with --precision, or calibrate on more photos"
        )
    return float(worst)


def _samples(student: Student, folder: Path | None, count: int, seed: int) -> list[Sample]:
    config = student.config
    return draw_samples(
        folder, count, size=64, channels=config.noise_channels, downscale=config.fold, seed=seed
    )


def _tensor_specs(student: Student) -> dict[str, GraphSpec]:
    c = student.config
    image = TensorSpec(IMAGE, 3, 1.0, (0.0, 1.0))
    features = TensorSpec(FEATURES, c.width, 1.0 / c.fold)
    base = TensorSpec(BASE, 3 * c.scale**2, 1.0)
    noise = TensorSpec(NOISE, c.noise_channels, 1.0 / c.fold)
    sr = TensorSpec(SR, 3, float(c.scale), (0.0, 1.0))
    return {
        "encoder": GraphSpec((image,), (features, base)),
        "generator": GraphSpec((features, base, noise), (sr,)),
    }


def _size_rule(student: Student) -> SizeRule:
    c = student.config
    context = -(-c.receptive_radius // c.fold) * c.fold
    return SizeRule(multiple_of=c.fold, minimum=8 * c.fold, tile=BEST_TILE, context=context)


def _write_probe(student: Student, folder: Path, precisions: Sequence[str]) -> Probe:
    """A degraded photo and torch's own result for it, as 8-bit PNG files."""
    (sample,) = _samples(student, None, 1, seed=2)
    Image.fromarray(_pixels(sample.lr)).save(folder / PROBE_INPUT)
    noise = _probe_noise(student, sample.lr.shape[1:])
    with torch.no_grad():
        sr = student(torch.from_numpy(sample.lr[None]), torch.from_numpy(noise[None]))[0].numpy()
    Image.fromarray(_pixels(sr)).save(folder / PROBE_OUTPUT)
    floors = {precision: PROBE_FLOOR_DB[precision] for precision in precisions}
    return Probe(_entry(folder / PROBE_INPUT), _entry(folder / PROBE_OUTPUT), PROBE_SEED, floors)


def _probe_noise(student: Student, shape: tuple[int, ...]) -> np.ndarray:
    c = student.config
    return noise_field(PROBE_SEED, 0, shape[0] // c.fold, shape[1] // c.fold, channels=c.noise_channels)


def _pixels(image: np.ndarray) -> np.ndarray:
    """(3, h, w) in [0, 1] -> (h, w, 3) uint8."""
    return (np.clip(image, 0, 1).transpose(1, 2, 0) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _entry(path: Path) -> GraphFile:
    content = path.read_bytes()
    return GraphFile(path.name, len(content), _sha256(content))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _tools() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "onnxscript")}


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 1 when a parity floor is missed, 2 for wrong arguments or checkpoints."""
    parser = argparse.ArgumentParser(
        prog="gdposr export", description="Write a bundle from a student checkpoint."
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="folder with model.safetensors and config.json"
    )
    parser.add_argument("--out", type=Path, required=True, help="bundle folder to write, NAME.gdposr")
    parser.add_argument("--targets", default="onnx", help="onnx (Core ML is not built yet)")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument(
        "--calibration", type=Path, help="folder of photos for INT8 (default: those inside scikit-image)"
    )
    parser.add_argument(
        "--accuracy", type=Path, help="JSON report of `gdposr accuracy` to put into the manifest"
    )
    args = parser.parse_args(argv)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        if args.targets != "onnx":
            raise ValueError(f"--targets: only onnx can be written so far, got {args.targets!r}")
        report = json.loads(args.accuracy.read_text()) if args.accuracy else None
        manifest = write_bundle(
            args.checkpoint,
            args.out,
            precisions=args.precision,
            calibration=args.calibration,
            accuracy=report,
            say=say,
        )
    except ParityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (GdposrError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    total = sum(file.bytes for file in manifest.files)
    say(f"{args.out}: {', '.join(manifest.graphs)}; {total / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
