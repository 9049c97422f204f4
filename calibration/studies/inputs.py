"""Inputs of a blind study: six kinds of small pictures, one folder each, to be enlarged by the models that are compared.

    python -m calibration.studies.inputs --photos DIR --out DIR [--real DIR] [--camera DIR] [--each 8] [--seed 0]

From photos that no training has seen: clean (only reduced), jpeg75, jpeg40 and heavy (blur, noise, JPEG). real: low-quality photos as
they are. camera: LR pictures of real camera pairs. OUT/lr/KIND/NAME.png are the inputs, OUT/hr/KIND/NAME.png the truth of the first
four kinds. The seed alone decides on photos and windows, so another seed gives another study.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from calibration.measure.pairs import named_photos, read_rgb
from runtime.errors import GdposrError
from runtime.text import print_error
from training.data.degradation import from_picture, jpeg, to_picture
from training.data.everyday import degrade_everyday

# Kind -> quality of its JPEG.
QUALITY = {"jpeg75": 75, "jpeg40": 40}
MADE = ("clean", *QUALITY, "heavy")
# Side of a window in HR pixels; 128 LR pixels.
SIDE = 512


def reduced(hr: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8, multiples of 4 -> (H/4, W/4, 3) uint8, degraded as one of `MADE`."""
    truth = from_picture(Image.fromarray(hr))
    if kind == "heavy":
        lr = degrade_everyday(truth, rng, "heavy")
    else:
        small = to_picture(truth).resize((hr.shape[1] // 4, hr.shape[0] // 4), Image.Resampling.BICUBIC)
        lr = from_picture(small)
        if kind in QUALITY:
            lr = jpeg(lr, QUALITY[kind])
    return np.array(to_picture(lr))


def window(picture: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A random window. side: of the window at most, in pixels; it is cut to a multiple of 4."""
    height, width = (min(side, size) // 4 * 4 for size in picture.shape[:2])
    top = int(rng.integers(0, picture.shape[0] - height + 1))
    left = int(rng.integers(0, picture.shape[1] - width + 1))
    return picture[top : top + height, left : left + width]


def write_inputs(
    photos: Path, out: Path, each: int, seed: int, real: Path | None, camera: Path | None
) -> int:
    """Write the inputs and return how many.

    photos: folder of photos that are reduced.
    out: folder for them, lr/KIND and hr/KIND.
    each: pictures of each kind.
    seed: of choice and degradation.
    real, camera: folders of those kinds; None: leave the kind out.
    GdposrError if `photos` holds too few.
    """
    chosen = sorted(named_photos(photos).items())
    if len(chosen) < each:
        raise GdposrError(
            f"{photos}: expected at least {each} photos, got {len(chosen)}: give more, or a smaller --each"
        )
    order = np.random.default_rng(seed).permutation(len(chosen))
    count = 0
    for number, kind in enumerate(MADE):
        for k in range(each):
            name, path = chosen[int(order[(number * each + k) % len(chosen)])]
            rng = np.random.default_rng([seed, number, k])
            hr = window(read_rgb(path), SIDE, rng)
            _write(out / "hr" / kind / f"{name}.png", hr)
            _write(out / "lr" / kind / f"{name}.png", reduced(hr, kind, rng))
            count += 1
    for number, (kind, folder) in enumerate((("real", real), ("camera", camera))):
        if folder is None:
            continue
        found = sorted(named_photos(folder / "LR" if (folder / "LR").is_dir() else folder).items())
        order = np.random.default_rng([seed, number]).permutation(len(found))[:each]
        for k in order:
            name, path = found[int(k)]
            rng = np.random.default_rng([seed, number, int(k)])
            _write(out / "lr" / kind / f"{name}.png", window(read_rgb(path), SIDE // 4, rng))
            count += 1
    return count


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 if the inputs cannot be made."""
    parser = argparse.ArgumentParser(
        prog="python -m calibration.studies.inputs", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--photos", type=Path, required=True, help="photos that no training has seen")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--real", type=Path, help="low-quality photos as they are")
    parser.add_argument("--camera", type=Path, help="LR pictures of camera pairs, or a folder with LR/ in it")
    parser.add_argument("--each", type=int, default=8, help="pictures of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        count = write_inputs(args.photos, args.out, args.each, args.seed, args.real, args.camera)
    except (GdposrError, OSError, ValueError) as error:
        print_error(error)
        return 2
    print(f"{count} inputs in {args.out / 'lr'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
