"""The computations that `make verify-arm` compares: run by the emulated ARM Python, and imported by tools/arm/verify.py on the host.

It imports only `runtime` and its dependencies, since the emulated Python has nothing else.
"""

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from runtime.backends.choice import open_backend
from runtime.bundle.reader import Bundle
from runtime.noise import noise_field
from runtime.upscale.probe import probe_output, read_rgb, run_probe
from runtime.upscale.upscaler import Upscaler

# Precisions of the probe and the picture.
PRECISIONS: Final = ("fp32", "int8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.arm.checks", description=__doc__)
    parser.add_argument("vectors", type=Path, help="folder of noise.json and picture.json")
    parser.add_argument("--bundle", type=Path, help="bundle to run (default: the built-in one)")
    args = parser.parse_args(argv)
    json.dump(results(args.vectors, args.bundle), sys.stdout)
    return 0


def results(vectors: Path, bundle: Path | None = None) -> dict[str, Any]:
    """This machine's results for the vectors and the bundle's probe. Pixels are rows of RGB in hex, as in picture.json."""
    noise = json.loads((vectors / "noise.json").read_text(encoding="utf-8"))
    case = json.loads((vectors / "picture.json").read_text(encoding="utf-8"))
    opened = Bundle.open() if bundle is None else Bundle.open(bundle)
    return {
        "machine": platform.machine(),
        "onnxruntime": onnxruntime.__version__,
        "bits": [value_bits(value) for value in noise["values"]],
        "digests": [field_digest(field) for field in noise["fields"]],
        "probe": {precision: probe(opened, precision) for precision in PRECISIONS},
        "picture": {precision: to_rows(picture(opened, precision, case)) for precision in PRECISIONS},
    }


def value_bits(value: dict[str, Any]) -> str:
    """The bits of one value of noise, a case of noise.json."""
    channel = value["channel"]
    field = noise_field(
        int(value["seed"]), value["sample"], 1, 1, channels=channel + 1, y0=value["y"], x0=value["x"]
    )
    return f"{int(field[channel].view(np.uint32).item()):08x}"


def field_digest(field: dict[str, Any]) -> str:
    """SHA-256 of a field as little-endian float32, a case of noise.json."""
    size = (field["height"], field["width"])
    values = noise_field(
        int(field["seed"]),
        field["sample"],
        *size,
        channels=field["channels"],
        y0=field["y0"],
        x0=field["x0"],
    )
    return hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()


def probe(bundle: Bundle, precision: str) -> dict[str, Any]:
    """The probe's verdict, and its pixels."""
    backend = open_backend(bundle, "cpu", precision, threads=1)
    verdict = run_probe(bundle, backend)
    image = read_rgb(bundle, bundle.manifest.probe.input)
    pixels = probe_output(bundle, backend, image, bundle.manifest.probe.seed)
    return {
        "psnr_db": verdict.psnr_db,
        "floor_db": verdict.floor_db,
        "ok": verdict.ok,
        "rows": to_rows(pixels),
    }


def picture(bundle: Bundle, precision: str, case: dict[str, Any]) -> np.ndarray:
    """The picture of picture.json, enlarged: (scale h, scale w, 3) uint8."""
    with Upscaler(bundle, device="cpu", precision=precision, threads=1) as upscaler:
        return upscaler.up(to_pixels(case["image"]), int(case["seed"]), first=case["sample"])[0]


def to_pixels(rows: list[str]) -> np.ndarray:
    """Rows of hex -> (h, w, 3) uint8."""
    return np.stack([np.frombuffer(bytes.fromhex(row), np.uint8).reshape(-1, 3) for row in rows])


def to_rows(image: np.ndarray) -> list[str]:
    """(h, w, 3) uint8 -> rows of hex."""
    return [row.tobytes().hex() for row in image]


if __name__ == "__main__":
    sys.exit(main())
