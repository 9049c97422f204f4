"""The degradations of `training.data.everyday` and `training.data.degradation` in batches on a device, with the same
distributions as on the CPU.

Parameters are drawn on the CPU, picture by picture (`training.data.device.parameters`). Pixels are computed together on the
device. Both are functions of (seed, item), so a resumed run gets the same. Other batches give the same pictures up to
rounding, which JPEG and Poisson noise make large in single pictures.

Differences from the CPU: the random numbers, which also depend on the type of device; JPEG in float32 instead of
libjpeg's integers (`training.data.device.jpeg`); and Pillow's filters in float32 instead of fixed point, which sometimes
differ by a level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.device import jpeg as device_jpeg
from training.data.device.parameters import (
    Chain,
    Compression,
    Mixture,
    Order,
    Plan,
    Reduced,
    Screenshot,
    SensorNoise,
    draw,
)
from training.data.device.resize import Stack, resize
from training.data.kernels import gaussian_kernel
from training.metrics.luma import FULL_RANGE
from training.pixels import rounded
from training.randomness import generator

T = TypeVar("T")
# Sigma of the sharpening after noise, in LR pixels, as in `training.data.everyday`.
GRAIN_SHARPENING = 0.8


@torch.no_grad()
def degrade_batch(hr: Tensor, seed: int, items: Sequence[int], kind: str | Mixture | None = None) -> Tensor:
    """LR pictures of a batch, (n, 3, H/4, W/4) in multiples of 1/255.

    hr: (n, 3, H, W) float32 in [0, 1]; H and W are multiples of 4.
    seed: of the run.
    items: numbers of the n pairs.
    kind: one of `training.data.everyday.KINDS`, or "plain", for all; a mixture of the paper's degradation with mild
        and plain ones; None draws one of `KINDS` for each."""
    n, _, height, width = hr.shape
    if len(items) != n:
        raise ValueError(f"expected as many item numbers as pictures, got {len(items)} for {n}")
    kinds = [kind.kind(seed, item) if isinstance(kind, Mixture) else kind for item in items]
    plans = [draw(seed, item, (height, width), each) for item, each in zip(items, kinds, strict=True)]
    return carried_out(hr.contiguous(), seed, plans)


def carried_out(hr: Tensor, seed: int, plans: Sequence[Plan]) -> Tensor:
    """`degrade_batch` with plans that are already drawn."""
    n, _, height, width = hr.shape
    lr = hr.new_empty(n, 3, height // 4, width // 4)
    noise = Noise(seed, hr.device)
    for form in (Reduced, Screenshot, Chain):
        places = [k for k, plan in enumerate(plans) if isinstance(plan, form)]
        if places:
            found = _FUNCTIONS[form](hr[places], [plans[k] for k in places], noise)
            lr[places] = rounded(found)
    return lr


class Noise:
    """Random pixels of each item, from the device's own generator."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.generator = torch.Generator(device)

    def of(self, item: int, stream: str) -> torch.Generator:
        """The generator at the start of an item's stream."""
        self.generator.manual_seed(int(generator(self.seed, item, f"pixels {stream}").integers(1 << 62)))
        return self.generator


# ---------------------------------------------------------------------------------------------- the three kinds of plan


def _reduced(hr: Tensor, plans: Sequence[Reduced], noise: Noise) -> Tensor:
    n, _, height, width = hr.shape
    whole = Stack(hr, ((height, width),) * n)
    lr = resize(whole, [(height // 4, width // 4)] * n, [plan.filter for plan in plans], whole=True).pixels
    lr = where_given(lr, [plan.kernel for plan in plans], blur)
    items = [(plan.item, plan.noise) if plan.noise else None for plan in plans]
    lr = where_given(lr, items, lambda some, given: _sensor_noise(some, given, noise))
    return where_given(lr, [plan.compression for plan in plans], _compressed)


def _screenshot(hr: Tensor, plans: Sequence[Screenshot], noise: Noise) -> Tensor:
    n, _, height, width = hr.shape
    shown = resize(
        Stack(hr, ((height, width),) * n), [plan.size for plan in plans], ["lanczos"] * n, whole=True
    )
    lr = resize(shown, [(height // 4, width // 4)] * n, [plan.filter for plan in plans], whole=True).pixels
    return where_given(lr, [plan.compression for plan in plans], _compressed)


def _chain(hr: Tensor, plans: Sequence[Chain], noise: Noise) -> Tensor:
    n, _, height, width = hr.shape
    items = [plan.item for plan in plans]
    firsts, seconds = [plan.first for plan in plans], [plan.second for plan in plans]
    late = [not plan.jpeg_first for plan in plans]

    # first order, at about the size of the HR picture
    stack = _blurred_and_resized(Stack(hr, ((height, width),) * n), firsts)
    stack = stack.with_pixels(_stage_noise(stack, firsts, items, noise, "first"))
    stack = _packed(stack, [order.quality for order in firsts])

    # second order, at about the size of the LR picture
    stack = _blurred_and_resized(stack, seconds)
    pixels = _stage_noise(stack, seconds, items, noise, "second")
    pixels = where_given(stack.with_pixels(pixels).continued(), [plan.sharpen for plan in plans], _sharpened)
    early = [None if after else order.quality for after, order in zip(late, seconds, strict=True)]
    stack = _packed(stack.with_pixels(pixels), early)

    # last resize and sinc, and compression for pictures that get it last
    pixels = resize(stack, [(height // 4, width // 4)] * n, [plan.last_filter for plan in plans]).pixels
    pixels = where_given(pixels, [plan.sinc for plan in plans], blur).clamp(0, 1)
    left = [order.quality if after else None for after, order in zip(late, seconds, strict=True)]
    return where_given(pixels, left, _jpeg)


# ---------------------------------------------------------------------------------------------- steps


def where_given(
    images: Tensor, given: Sequence[T | None], function: Callable[[Tensor, list[T]], Tensor]
) -> Tensor:
    """Apply function(pictures, values) to the pictures with a value; the others stay as they are."""
    places = [k for k, value in enumerate(given) if value is not None]
    if not places:
        return images
    values = [value for value in given if value is not None]
    if len(places) == len(given):
        return function(images, values)
    images = images.clone()
    images[places] = function(images[places], values)
    return images


def blur(images: Tensor, kernels: Sequence[np.ndarray]) -> Tensor:
    """Convolve each of (n, 3, h, w) with its own odd-sized kernel. Borders are replicated."""
    n, channels, height, width = images.shape
    side = max(len(kernel) for kernel in kernels)
    wide = np.stack([np.pad(kernel, (side - len(kernel)) // 2) for kernel in kernels])
    weight = torch.from_numpy(wide).to(images).repeat_interleave(channels, 0)[:, None]  # (3n, 1, side, side)
    k = side // 2
    padded = F.pad(images, (k, k, k, k), mode="replicate").reshape(
        1, n * channels, height + 2 * k, width + 2 * k
    )
    return F.conv2d(padded, weight, groups=n * channels).reshape(images.shape)


def _sharpened(images: Tensor, given: Sequence[tuple[float, float]]) -> Tensor:
    """Unsharp masks with (sigma, amount), clipped."""
    kernels = [gaussian_kernel(2 * max(1, round(3 * sigma)) + 1, sigma) for sigma, _ in given]
    amounts = torch.tensor([amount for _, amount in given], device=images.device)[:, None, None, None]
    return (images + amounts * (images - blur(images, kernels))).clamp(0, 1)


def _jpeg(images: Tensor, qualities: Sequence[int]) -> Tensor:
    return device_jpeg.jpeg(images, torch.tensor(qualities, device=images.device))


def _packed(stack: Stack, qualities: Sequence[int | None]) -> Stack:
    """JPEG for the pictures with a quality."""
    return stack.with_pixels(where_given(stack.continued(), qualities, _jpeg))


def _compressed(lr: Tensor, given: Sequence[Compression]) -> Tensor:
    lr = where_given(lr, [compression.earlier for compression in given], _compressed_elsewhere)
    return _jpeg(lr, [compression.quality for compression in given])


def _compressed_elsewhere(lr: Tensor, given: Sequence[tuple[int, int, int]]) -> Tensor:
    """Compress with another grid of blocks: roll, compress, roll back."""
    shifts = torch.tensor([shift[:2] for shift in given], device=lr.device)
    return _rolled(_jpeg(_rolled(lr, shifts), [quality for _, _, quality in given]), -shifts)


def _rolled(images: Tensor, shifts: Tensor) -> Tensor:
    """`torch.roll` of each picture by its own rows and columns, (n, 2)."""
    n, channels, height, width = images.shape
    rows = (torch.arange(height, device=images.device) - shifts[:, :1]) % height  # (n, h)
    columns = (torch.arange(width, device=images.device) - shifts[:, 1:]) % width
    picture = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return images[picture, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _blurred_and_resized(stack: Stack, orders: Sequence[Order]) -> Stack:
    pixels = where_given(stack.continued(), [order.kernel for order in orders], blur)
    return resize(stack.with_pixels(pixels), [o.size for o in orders], [o.filter for o in orders])


def _stage_noise(
    stack: Stack, orders: Sequence[Order], items: Sequence[int], noise: Noise, stream: str
) -> Tensor:
    """Gaussian or Poisson noise as in `training.data.degradation`, clipped to [0, 1].

    stack: the pictures.
    orders: their parameters.
    items: numbers of the pairs.
    noise: source of random pixels.
    stream: name of the purpose."""
    pixels = stack.pixels
    added = torch.zeros_like(pixels)
    source, peaks = _photons(stack, [order.noise.gray for order in orders])
    for k, (order, item, (h, w)) in enumerate(zip(orders, items, stack.sizes, strict=True)):
        random = noise.of(item, stream)
        channels = 1 if order.noise.gray else 3
        if order.noise.gaussian:
            field = torch.randn(channels, h, w, device=pixels.device, generator=random)
            added[k, :, :h, :w] = field * (order.noise.strength / 255)
        else:
            level = source[k, :channels, :h, :w]
            counts = torch.poisson(level * peaks[k], generator=random)
            added[k, :, :h, :w] = (counts / peaks[k] - level) * order.noise.strength
    return (pixels + added).clamp(0, 1)


def _photons(stack: Stack, gray: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """The intensities for Poisson noise, (n, 3, h, w) rounded to levels, and the photon count at full brightness, (n,).

    gray: pictures whose luma is used for all channels. The photon count is the smallest power of two not below the
        picture's number of levels."""
    pixels = stack.continued().clamp(0, 1)
    luma = (pixels * torch.tensor(FULL_RANGE, device=pixels.device)[:, None, None]).sum(1, keepdim=True)
    chosen = torch.tensor(gray, device=pixels.device)[:, None, None, None]
    levels = (torch.where(chosen, luma, pixels) * 255).round()
    seen = torch.zeros(len(levels), 256, device=pixels.device)
    seen.scatter_(1, levels.long().flatten(1), 1.0)
    return levels / 255, 2.0 ** seen.sum(1).log2().ceil()


def _sensor_noise(lr: Tensor, given: Sequence[tuple[int, SensorNoise]], noise: Noise) -> Tensor:
    """`training.data.everyday.sensor_noise` for items with their parameters."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=lr.device)[:, None, None, None]

    parameters = [found for _, found in given]
    deviation = (column([p.shot for p in parameters]) * lr + column([p.read**2 for p in parameters])).sqrt()
    fields = [torch.randn(lr.shape[1:], device=lr.device, generator=noise.of(k, "sensor")) for k, _ in given]
    field = where_given(torch.stack(fields), [p.grain for p in parameters], _grainy)
    gray = field.mean(1, keepdim=True)
    mixed = gray * 3**0.5 + column([p.chroma for p in parameters]) * (field - gray)
    noisy = lr + deviation * mixed
    sharp = [None if p.sharpen is None else (GRAIN_SHARPENING, p.sharpen) for p in parameters]
    return where_given(noisy.clamp(0, 1), sharp, _sharpened)


def _grainy(field: Tensor, kernels: Sequence[np.ndarray]) -> Tensor:
    coarse = blur(field, kernels)
    return coarse / coarse.std((1, 2, 3), keepdim=True).clamp_min(1e-6)


_FUNCTIONS: dict[type, Callable[..., Tensor]] = {Reduced: _reduced, Screenshot: _screenshot, Chain: _chain}
