"""The parameters of a picture's degradation on a device: all of `training.data.everyday`, without pixels.

They are drawn as on the CPU, from the same ranges. A plan is a pure function of (seed, item), so it does not depend
on batches or resumed runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.data import everyday
from training.data.degradation import (
    FILTERS,
    MILD,
    PAPER,
    PLAIN_JPEG_PROB,
    PLAIN_JPEG_RANGE,
    RESIZE_MODES,
    DegradationParams,
    StageParams,
    random_resize_factor,
)
from training.data.device.resize import SUPPORT
from training.data.everyday import KINDS
from training.data.kernels import gaussian_kernel, random_kernel, sinc_kernel
from training.randomness import generator

# Kind of `training.data.degradation.reduce_plainly`, besides the everyday kinds.
PLAIN = "plain"
# Names of Pillow's filters, in the order of `FILTERS`.
PILLOW = tuple(SUPPORT)
# Probability of JPEG for the kinds blur and sensor, as in `training.data.everyday`.
COMPRESSED_PROB = 0.6
# Antialiased filter for each of `RESIZE_MODES`.
ANTIALIASED = {"area": "area", "bilinear": "triangle", "bicubic": "cubic"}
assert len(PILLOW) == len(FILTERS)

Size = tuple[int, int]


@dataclass(frozen=True)
class Compression:
    """JPEG once, or twice with different grids of blocks."""

    quality: int
    """JPEG quality."""
    earlier: tuple[int, int, int] | None
    """Rows and columns by which the picture is rolled for an earlier compression, and that quality; None for a single compression."""


@dataclass(frozen=True)
class SensorNoise:
    """Parameters of `training.data.everyday.sensor_noise`, and of `raw_noise`, whose chroma is sqrt(3)."""

    shot: float
    """Variance of the shot noise at full brightness."""
    read: float
    """Standard deviation of the read noise, for pixels in [0, 1]."""
    grain: np.ndarray | None
    """Kernel (5, 5) that makes the noise coarse; None for white noise."""
    chroma: float
    """Share of the noise that remains in the colours."""
    sharpen: float | None
    """Amount of the unsharp mask; None for none."""


@dataclass(frozen=True)
class Reduced:
    """The kinds clean, jpeg, blur, sensor, raw and plain."""

    kind: str
    """One of `KINDS`, or plain."""
    item: int
    """Number of the pair."""
    filter: str
    """Filter that makes the LR picture."""
    kernel: np.ndarray | None
    """Blur kernel; None for none."""
    noise: SensorNoise | None
    """Sensor noise; None for none."""
    compression: Compression | None
    """JPEG; None for none."""


@dataclass(frozen=True)
class Screenshot:
    """The kind screenshot."""

    item: int
    """Number of the pair."""
    size: Size
    """Height and width on the screen, in pixels."""
    filter: str
    """Filter from the screen to the LR picture."""
    compression: Compression | None
    """JPEG; None for none."""
    kind: str = "screenshot"
    """One of `KINDS`."""


@dataclass(frozen=True)
class StageNoise:
    """Noise of one order of the published degradation."""

    gaussian: bool
    """Gaussian noise, else Poisson noise."""
    gray: bool
    """The same noise in all channels."""
    strength: float
    """Standard deviation in levels of 1/255, or the factor on Poisson noise."""


@dataclass(frozen=True)
class Order:
    """One order of the published degradation."""

    kernel: np.ndarray | None
    """Blur kernel; None for none."""
    size: Size
    """Height and width after the resize."""
    filter: str
    """Filter of the resize."""
    noise: StageNoise
    """Noise after the resize."""
    quality: int
    """JPEG quality."""


@dataclass(frozen=True)
class Chain:
    """The kinds camera and heavy: `training.data.degradation.degrade`."""

    kind: str
    """One of `KINDS`."""
    item: int
    """Number of the pair."""
    first: Order
    """First order."""
    second: Order
    """Second order."""
    sharpen: tuple[float, float] | None
    """Sigma and amount of the unsharp mask; None for none."""
    jpeg_first: bool
    """Whether the second compression comes before the last resize."""
    last_filter: str
    """Filter of the last resize."""
    sinc: np.ndarray | None
    """Final sinc kernel; None for none."""


Plan = Reduced | Screenshot | Chain


def draw(seed: int, item: int, size: Size, kind: str | None = None) -> Plan:
    """The plan of an item. Raises ValueError if size or kind is wrong.

    seed: of the run.
    item: number of the pair.
    size: height and width of the HR picture.
    kind: one of `KINDS`, or plain; None draws one of `KINDS`."""
    rng = generator(seed, item, "degradation")
    kind = kind or KINDS[int(rng.integers(len(KINDS)))]
    if kind not in (*KINDS, PLAIN):
        raise ValueError(f"kind must be one of {', '.join((*KINDS, PLAIN))}, got {kind!r}")
    if size[0] % 4 or size[1] % 4:
        raise ValueError(f"HR size must be a multiple of 4, got {size}")
    if kind in ("camera", "heavy"):
        return _chain(rng, kind, item, size, MILD if kind == "camera" else PAPER)
    if kind == "screenshot":
        return _screenshot(rng, item, (size[0] // 4, size[1] // 4))
    name = PILLOW[int(rng.integers(len(PILLOW)))]
    if kind == PLAIN:
        low, high = PLAIN_JPEG_RANGE
        once = Compression(int(rng.integers(low, high + 1)), None) if rng.random() < PLAIN_JPEG_PROB else None
        return Reduced(kind, item, name, None, None, once)
    kernel = _soft(rng) if kind == "blur" else None
    noise = _sensor(rng) if kind == "sensor" else _raw(rng) if kind == "raw" else None
    packed = kind == "jpeg" or (kind in ("blur", "sensor") and rng.random() < COMPRESSED_PROB)
    return Reduced(kind, item, name, kernel, noise, _compression(rng) if packed else None)


@dataclass(frozen=True)
class Mixture:
    """Shares of the degradations of a `PairDataset`, 0 to 1. The rest is the paper's."""

    mild: float
    """Share of the milder chain, "camera" in `draw`."""
    plain: float
    """Share of plain reduction, `PLAIN` in `draw`."""

    def kind(self, seed: int, item: int) -> str:
        """The kind of an item, as `draw` names it."""
        at = generator(seed, item, "mixture").random()
        return "camera" if at < self.mild else PLAIN if at < self.mild + self.plain else "heavy"


def _soft(rng: np.random.Generator) -> np.ndarray:
    first = rng.uniform(*everyday.BLUR_SIGMA)
    second = first if rng.random() < 0.5 else rng.uniform(0.3, first)
    return gaussian_kernel(11, first, second, rng.uniform(0, np.pi))


def _sensor(rng: np.random.Generator) -> SensorNoise:
    shot, read = everyday.noise_strength(rng)
    sigma = rng.uniform(*everyday.GRAIN_SIGMA)
    grain = gaussian_kernel(5, sigma) if sigma > 0.3 else None
    chroma = rng.uniform(*everyday.CHROMA_SHARE)
    return SensorNoise(shot, read, grain, chroma, rng.uniform(0.2, 1.0) if rng.random() < 0.3 else None)


def _raw(rng: np.random.Generator) -> SensorNoise:
    # a sensor's noise is sqrt(3) times the gray of white noise, and a share of its colour
    deviation = rng.uniform(*everyday.RAW_RANGE) / 255
    return SensorNoise(0.0, deviation / 3**0.5, None, 3**0.5, None)


def _compression(rng: np.random.Generator) -> Compression:
    low, high = everyday.JPEG_RANGE
    earlier = None
    if rng.random() < everyday.TWICE_PROB:
        dy, dx = (int(k) for k in rng.integers(0, 8, 2))
        earlier = (dy, dx, int(rng.integers(low, high + 1)))
    return Compression(int(rng.integers(low, high + 1)), earlier)


def _screenshot(rng: np.random.Generator, item: int, lr: Size) -> Screenshot:
    factor = rng.uniform(*everyday.SCREEN_RANGE)
    shown = (max(8, round(lr[0] * factor)), max(8, round(lr[1] * factor)))
    way = "triangle" if rng.random() < 0.5 else "cubic"
    return Screenshot(item, shown, way, _compression(rng) if rng.random() < 0.5 else None)


def _chain(rng: np.random.Generator, kind: str, item: int, hr: Size, params: DegradationParams) -> Chain:
    """Draw a chain of two degradations.

    rng: source of randomness.
    kind: name of the chain, "camera" or "heavy".
    item: number of the pair.
    hr: height and width of the photo in pixels.
    params: ranges and probabilities."""
    lr = (hr[0] // 4, hr[1] // 4)
    first = _order(rng, params.first, hr, params.antialias)
    second = _order(rng, params.second, lr, params.antialias)
    sharpen = None
    if params.sharpen_prob > 0 and rng.random() < params.sharpen_prob:
        sharpen = (rng.uniform(*params.sharpen_sigma), rng.uniform(*params.sharpen_amount))
    jpeg_first = bool(rng.random() < 0.5)
    last = _filter(rng, params.antialias)
    sinc = None
    if rng.random() < params.final_sinc_prob:
        sinc = sinc_kernel(params.final_kernel_size, rng.uniform(np.pi / 3, np.pi))
    return Chain(kind, item, first, second, sharpen, jpeg_first, last, sinc)


def _order(rng: np.random.Generator, stage: StageParams, size: Size, antialias: bool) -> Order:
    """Draw one of the two degradations of a chain.

    rng: source of randomness.
    stage: ranges and probabilities.
    size: height and width in pixels that its resize factor is relative to.
    antialias: whether it is resized with antialiasing."""
    kernel = random_kernel(rng, stage.kernel) if rng.random() < stage.blur_prob else None
    factor = random_resize_factor(rng, stage.resize_prob, stage.resize_range)
    smaller = (max(1, int(size[0] * factor)), max(1, int(size[1] * factor)))
    name = _filter(rng, antialias)
    gaussian = bool(rng.random() < stage.gaussian_prob)
    gray = bool(rng.random() < stage.gray_noise_prob)
    strength = rng.uniform(*(stage.noise_range if gaussian else stage.poisson_range))
    low, high = stage.jpeg_range
    quality = int(rng.integers(low, high + 1))
    return Order(kernel, smaller, name, StageNoise(gaussian, gray, strength), quality)


def _filter(rng: np.random.Generator, antialias: bool) -> str:
    name = RESIZE_MODES[int(rng.integers(len(RESIZE_MODES)))]
    return ANTIALIASED[name] if antialias else name
