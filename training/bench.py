"""How fast the training data comes, and what the vectorised reward weights gain: times of this machine, one thread each.

gdposr train bench --data DIR
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.attributes import BINS, PATCH, THRESHOLD, TOP, detail_share, gray_levels, sobel_magnitude
from training.data import CropParams, PairDataset, PhotoSet, find_images


def seconds_per_pair(photos: PhotoSet, crop: int, mild_share: float, pairs: int) -> float:
    """Mean time of one pair in this process: crop, augmentation, degradation."""
    dataset = PairDataset(photos, CropParams(crop), mild_share=mild_share)
    began = time.perf_counter()
    for k in range(pairs):
        dataset[k]
    return (time.perf_counter() - began) / pairs


def detail_share_by_loop(hr: Tensor) -> Tensor:
    """`detail_share` the obvious way, patch by patch with numpy; sizes must be multiples of the patch."""
    shares = []
    for magnitude in sobel_magnitude(gray_levels(hr)).clamp(0, TOP).numpy():
        plane = magnitude.reshape(magnitude.shape[-2:])
        detailed = []
        for y in range(0, plane.shape[0], PATCH):
            for x in range(0, plane.shape[1], PATCH):
                counts, _ = np.histogram(plane[y : y + PATCH, x : x + PATCH], bins=BINS, range=(0, TOP))
                p = counts[counts > 0] / counts.sum()
                detailed.append(-(p * np.log2(p)).sum() >= THRESHOLD)
        shares.append(np.mean(detailed))
    return torch.tensor(np.array(shares), dtype=torch.float32)


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Median time of a call, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table; exit code 0, or 2 when there are no photos."""
    parser = argparse.ArgumentParser(
        prog="gdposr train bench", description="Time the parts of training that run on the CPU."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of photos")
    parser.add_argument("--pairs", type=int, default=200, help="pairs to make for each row")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        began = time.perf_counter()
        photos = PhotoSet(find_images(args.data))
        decoding = time.perf_counter() - began
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"decoding {len(photos)} photos once: {1e3 * decoding / len(photos):.1f} ms each")
    for crop in (128, 192, 512):
        for mild_share, name in ((0.0, "the paper's"), (1.0, "mild")):
            each = seconds_per_pair(
                photos, crop, mild_share, args.pairs if crop < 512 else max(1, args.pairs // 4)
            )
            print(
                f"pair of {crop} HR pixels, {name} degradation: {1e3 * each:.1f} ms, {1 / each:.0f} a second"
            )
    size = 51 * PATCH
    hr = torch.rand(4, 3, size, size)
    fast, slow = seconds(lambda: detail_share(hr)), seconds(lambda: detail_share_by_loop(hr), 1)
    patches = 4 * 51 * 51
    print(
        f"detail share of {patches} patches: {1e3 * fast:.1f} ms, patch by patch {1e3 * slow:.1f} ms ({slow / fast:.0f} times)"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
