"""Measures the speed of the training data and of the vectorised reward weights on this machine, with one thread.

gdposr train bench --data DIR [--device cuda]"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.text import print_error
from training.data.device.degradation import degrade_batch
from training.data.device.pairs import hr_pairs
from training.data.everyday import degrade_everyday
from training.data.photos import CropParams, PairDataset, PhotoSet, find_images
from training.devices import torch_device
from training.metrics.attributes import (
    BINS,
    PATCH,
    THRESHOLD,
    TOP,
    detail_share,
    published_share,
    sobel_magnitude,
)
from training.metrics.luma import gray_levels
from training.model.pocket import PocketShape, build_vae


def seconds_per_pair(photos: PhotoSet, crop: int, mild_share: float, pairs: int) -> float:
    """Mean time of one pair in this process: crop, augmentation, degradation.

    photos: to cut from.
    crop: side in HR pixels.
    mild_share: share of pairs with the mild degradation.
    pairs: number to average over."""
    dataset = PairDataset(photos, CropParams(crop), mild_share=mild_share)
    began = time.perf_counter()
    for k in range(pairs):
        dataset[k]
    return (time.perf_counter() - began) / pairs


def seconds_per_everyday_pair(photos: PhotoSet, crop: int, pairs: int) -> tuple[float, float]:
    """Mean time of a pair with everyday degradation in this process, and of its HR picture alone."""
    whole = PairDataset(photos, CropParams(crop), reduce=degrade_everyday)
    large = hr_pairs(photos, CropParams(crop))
    times = []
    for dataset in (whole, large):
        began = time.perf_counter()
        for k in range(pairs):
            dataset[k]
        times.append((time.perf_counter() - began) / pairs)
    return times[0], times[1]


def seconds_per_degradation(photos: PhotoSet, crop: int, device: str, batch: int, batches: int = 5) -> float:
    """Mean time per picture of degrading a batch on a device, including drawing the parameters.

    photos: to cut from.
    crop: side in HR pixels.
    device: that degrades.
    batch: pictures at once.
    batches: number to average over."""
    pairs = hr_pairs(photos, CropParams(crop))
    hr = torch.stack([pairs[k][1] for k in range(batch)]).to(device)
    degrade_batch(hr, 0, range(batch))  # to warm up
    began = time.perf_counter()
    for k in range(1, batches + 1):
        degrade_batch(hr, 0, range(k * batch, (k + 1) * batch)).cpu()
    return (time.perf_counter() - began) / (batches * batch)


def seconds_per_step(device: str, memory_format: torch.memory_format) -> float:
    """CPU time of a forward and backward pass of the pocket VAE on 2 pictures of 128 pixels, least of 5; on a GPU its own time."""
    vae: Any = build_vae(PocketShape().vae, 0)
    vae.to(device, memory_format=memory_format)
    pictures = torch.rand(2, 3, 128, 128, device=device).contiguous(memory_format=memory_format)
    gpu = torch.device(device).type == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    times = []
    for _ in range(6):  # the first to warm up
        began = clock()
        vae.decode(vae.encode(pictures).latents).sample.square().mean().backward()
        if gpu:
            torch.cuda.synchronize()
        times.append(clock() - began)
    return min(times[1:])


def mean_shares(photos: PhotoSet, crop: int, pairs: int) -> tuple[float, float]:
    """rho_d by `detail_share` and by `published_share`, each a mean over the same random crops.

    photos: to cut from.
    crop: side in HR pixels.
    pairs: number of crops."""
    large = hr_pairs(photos, CropParams(crop))
    crops = [large[k][1][None] for k in range(pairs)]
    ours, published = (
        float(torch.cat([f(hr) for hr in crops]).mean()) for f in (detail_share, published_share)
    )
    return ours, published


def detail_share_by_loop(hr: Tensor) -> Tensor:
    """`detail_share` in the straightforward way, patch by patch with numpy. Sizes must be multiples of the patch."""
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
    """Median time of a call after a warm-up call."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table. Exit code 0 on success, 2 if there are no photos."""
    parser = argparse.ArgumentParser(
        prog="gdposr train bench", description="Time the parts of training that prepare pictures and rewards."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, searched recursively")
    parser.add_argument("--pairs", type=int, default=200, help="pairs to make for each row")
    parser.add_argument(
        "--device",
        default="auto",
        help="device that degrades batches: auto (a GPU if there is one), cpu, cuda",
    )
    parser.add_argument("--batch", type=int, default=64, help="pictures that the device degrades at once")
    args = parser.parse_args(argv)
    # photos: decoded once
    torch.set_num_threads(1)
    try:
        device = torch_device(args.device)
        began = time.perf_counter()
        photos = PhotoSet(find_images(args.data))
        decoding = time.perf_counter() - began
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    print(f"decoding {len(photos)} photos once: {1e3 * decoding / len(photos):.1f} ms each")
    # share of detail
    ours, published = mean_shares(photos, 512, args.pairs)
    print(
        f"share of detail, mean over {args.pairs} crops of 512 HR pixels: {ours:.2f}, as published {published:.2f}"
    )
    # pairs: the published degradation, in the loader
    for crop in (128, 192, 512):
        for mild_share, name in ((0.0, "the paper's"), (1.0, "mild")):
            each = seconds_per_pair(
                photos, crop, mild_share, args.pairs if crop < 512 else max(1, args.pairs // 4)
            )
            print(
                f"pair of {crop} HR pixels, {name} degradation: {1e3 * each:.1f} ms, {1 / each:.0f} a second"
            )
    # pairs: the everyday degradation, in the loader and on the device
    crop = 160
    whole, large = seconds_per_everyday_pair(photos, crop, args.pairs)
    degraded = seconds_per_degradation(photos, crop, device, args.batch)
    print(f"pair of {crop} HR pixels, everyday degradation: {1e3 * whole:.1f} ms, {1 / whole:.0f} a second")
    print(f"its HR picture alone: {1e3 * large:.1f} ms, {1 / large:.0f} a second ({whole / large:.1f} times)")
    print(
        f"its degradation on {device}, {args.batch} together: {1e3 * degraded:.2f} ms, {1 / degraded:.0f} a second "
        f"({(whole - large) / degraded:.1f} times the CPU's, one by one)"
    )
    # step of the VAE, by memory format
    formats = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    steps = {name: 1e3 * seconds_per_step(device, each) for name, each in formats.items()}
    print(
        f"step of the pocket VAE on {device}: {', '.join(f'{name} {ms:.0f} ms' for name, ms in steps.items())}"
    )
    # share of detail, at once and patch by patch
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
