"""Upscale a folder of pictures with a checkpoint, a published network or bicubic, without exporting a model.

    gdposr train sample --model STUDENT|RUN|FILE.param|x4plus|bicubic --lr DIR --out DIR [--seed 0] [--samples 4]

Noise is the runtime's own function of seed and sample, so a student gives the same picture here as its exported fp32
model, and so does a one-step model for the exported prompt. Here each picture may have a caption of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from calibration.measure.onestep import restore
from calibration.measure.pairs import named_photos, read_rgb
from export.prior.network import PACKAGED, Prior
from export.student.model.checkpoint import load_student
from export.student.model.network import Student
from runtime.bundle.manifest import COLOR_FIXES
from runtime.errors import GdposrError
from runtime.noise import noise_field
from runtime.text import print_error
from runtime.upscale.color import color_fix
from training.data.degradation import from_picture, to_picture
from training.devices import torch_device
from training.pixels import to_bytes

BICUBIC = "bicubic"

# (3, h, w) in [0, 1] -> (3, 4h, 4w) in [0, 1].
Enlarge = Callable[[Tensor], Tensor]
# Path, (h, w, 3) uint8, sample -> (4h, 4w, 3) uint8.
Draw = Callable[[Path, np.ndarray, int], np.ndarray]


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
    student = load_student(model)[0].to(device)
    return lambda lr: student_sample(student, lr, seed, sample, device)


@torch.no_grad()
def student_sample(
    student: Student, lr: Tensor, seed: int, sample: int = 0, device: str | torch.device = "cpu"
) -> Tensor:
    """A sample of a picture, (3, h, w) in [0, 1] -> (3, 4h, 4w) in [0, 1], with the runtime's noise.

    student: the model.
    lr: the picture.
    seed, sample: select the noise.
    device: that the student is on.
    """
    c = student.config
    height, width = lr.shape[1:]
    more = [-side % c.fold for side in (height, width)]
    padded = F.pad(lr[None], (0, more[1], 0, more[0]), mode="replicate")
    rows, columns = (side // c.fold for side in padded.shape[2:])
    noise = torch.from_numpy(noise_field(seed, sample, rows, columns, channels=c.noise_channels))[None]
    return student(padded.to(device), noise.to(device))[0, :, : c.scale * height, : c.scale * width].cpu()


def is_one_step(model: str) -> bool:
    """Whether `training.model.loading.load_model` reads it: a run, a folder with unet/, or a hub name."""
    places = [Path(model), Path(model, "model")]
    if any((place / name).exists() for place in places for name in ("model.json", "unet")):
        return True
    return "/" in model and not model.startswith((".", "/")) and not Path(model).exists()


def drawer(args: argparse.Namespace) -> Draw:
    """The function that draws sample k of the photo at a path, (h, w, 3) uint8 -> (4h, 4w, 3) uint8, for `args.model`."""
    device = torch_device(args.device)
    single = args.model in (BICUBIC, PACKAGED) or args.model.endswith(".param")
    if single or not is_one_step(args.model):
        foreign = [name for name in ("base", "prompt") if getattr(args, name) is not None]
        if foreign:
            raise ValueError(f"--{foreign[0]} is for one-step models, got --model {args.model}: leave it out")
        if single and args.samples > 1:
            raise ValueError(f"{args.model} has no noise and makes one picture: leave --samples out")
        enlarge = [enlarger(args.model, args.seed, args.sample + k, device) for k in range(args.samples)]
        return lambda path, lr, k: np.asarray(
            to_picture(enlarge[k - args.sample](from_picture(Image.fromarray(lr))))
        )
    from training.model.loading import load_model  # needs diffusers and peft, which a student does not
    from training.model.text import PromptSource

    model = load_model(args.model, base=args.base, device=device)
    prompts = None
    if model.text is not None:
        prompts = PromptSource(args.lr, args.prompt or model.prompt)
        print(prompts.describe(named_photos(args.lr).values()))
    return lambda path, lr, k: restore(
        model, lr, args.seed, k, None if prompts is None else prompts.prompt_for(path)
    )


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 on success, 2 on a wrong argument or a picture that cannot be read or written."""
    parser = argparse.ArgumentParser(
        prog="gdposr train sample", description="Upscale a folder of pictures without exporting the model."
    )
    parser.add_argument(
        "--model",
        required=True,
        help="a student's folder; a one-step model: run, folder or hub name; an ncnn .param file, x4plus, or bicubic",
    )
    parser.add_argument("--lr", type=Path, required=True, help="folder of pictures; its subfolders are kept")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", type=int, default=0, help="number of the first sample (default 0)")
    parser.add_argument(
        "--samples",
        type=int,
        default=1,
        metavar="N",
        help="N of each picture, NAME_s0.png and on (default: one, NAME.png)",
    )
    parser.add_argument(
        "--base", metavar="SOURCE", help="text encoder and scheduler of a one-step model without them"
    )
    parser.add_argument(
        "--prompt",
        help="for all pictures; default: the captions beside them (photo.txt, metadata.jsonl), else a general one",
    )
    parser.add_argument(
        "--color-fix", choices=COLOR_FIXES, default="none", help="as in gdposr upscale (default none)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or auto")
    args = parser.parse_args(argv)
    try:
        if args.samples < 1:
            raise ValueError(f"--samples must be at least 1, got {args.samples}")
        draw = drawer(args)
        # pictures: each drawn as often as asked for
        for name, path in sorted(named_photos(args.lr).items()):
            lr = read_rgb(path)
            for k in range(args.sample, args.sample + args.samples):
                target = args.out / (f"{name}_s{k}.png" if args.samples > 1 else f"{name}.png")
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(_fixed(draw(path, lr, k), lr, args.color_fix)).save(target)
    except (GdposrError, OSError, ValueError) as error:
        print_error(error)
        return 2
    return 0


def _fixed(sr: np.ndarray, lr: np.ndarray, method: str) -> np.ndarray:
    """sr with the colours of lr, both uint8."""
    if method == "none":
        return sr
    fixed = color_fix(sr.astype(np.float32) / 255, lr.astype(np.float32) / 255, method)
    return to_bytes(torch.from_numpy(fixed)).numpy()


if __name__ == "__main__":
    raise SystemExit(main())
