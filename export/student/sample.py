"""Upscale a folder of pictures with a checkpoint, a published network or bicubic, without exporting a model.

    gdposr train sample --model STUDENT|FILE.param|x4plus|bicubic --lr DIR --out DIR [--seed 0] [--sample 0]

Noise is the runtime's own function of seed and sample, so a student gives the same picture here as its exported fp32 model."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from calibration.measure.pairs import named_photos, read_rgb
from export.student.network import load_student
from export.student.prior.network import PACKAGED, Prior
from runtime.errors import GdposrError
from runtime.noise import noise_field
from runtime.text import print_error
from training.data.degradation import from_picture, to_picture
from training.devices import torch_device

BICUBIC = "bicubic"

Enlarge = Callable[[Tensor], Tensor]  # (3, h, w) in [0, 1] -> (3, 4h, 4w) in [0, 1]


def enlarger(model: str, seed: int = 0, sample: int = 0, device: str = "cpu") -> Enlarge:
    """The function that `model` names.

    model: "bicubic", "x4plus", an ncnn .param file, or a student's folder.
    seed, sample: select the noise; only a student uses them.
    device: that runs the network.

    Raises FileNotFoundError or ValueError if model is none of these."""
    if model == BICUBIC:
        return lambda lr: from_picture(
            to_picture(lr).resize((4 * lr.shape[2], 4 * lr.shape[1]), Image.Resampling.BICUBIC)
        )
    if model == PACKAGED or model.endswith(".param"):
        prior = Prior.load(model).to(device=device, memory_format=torch.channels_last)
        return lambda lr: prior(lr[None].to(device))[0].cpu()
    student, _ = load_student(model)
    student.to(device)
    c = student.config

    @torch.no_grad()
    def draw(lr: Tensor) -> Tensor:
        height, width = lr.shape[1:]
        more = [-side % c.fold for side in (height, width)]
        padded = F.pad(lr[None], (0, more[1], 0, more[0]), mode="replicate")
        field = noise_field(
            seed, sample, padded.shape[2] // c.fold, padded.shape[3] // c.fold, channels=c.noise_channels
        )
        noise = torch.from_numpy(np.ascontiguousarray(field))[None]
        return student(padded.to(device), noise.to(device))[0, :, : c.scale * height, : c.scale * width].cpu()

    return draw


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 on success, 2 on a wrong argument or a picture that cannot be read or written."""
    parser = argparse.ArgumentParser(
        prog="gdposr train sample", description="Upscale a folder of pictures without exporting the model."
    )
    parser.add_argument(
        "--model", required=True, help="a student's folder, an ncnn .param file, x4plus, or bicubic"
    )
    parser.add_argument("--lr", type=Path, required=True, help="folder of pictures; its subfolders are kept")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or auto")
    args = parser.parse_args(argv)
    try:
        enlarge = enlarger(args.model, args.seed, args.sample, torch_device(args.device))
        for name, path in sorted(named_photos(args.lr).items()):
            target = args.out / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            to_picture(enlarge(from_picture(Image.fromarray(read_rgb(path))))).save(target)
    except (GdposrError, OSError, ValueError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
