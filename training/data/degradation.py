"""Second-order degradation of Real-ESRGAN (Wang et al. 2021) with the milder parameters of OSEDiff and GDPO-SR, and plain downscaling.

Images are float32 tensors (3, h, w), RGB in [0, 1]. Every random choice is drawn from the `numpy.random.Generator`
that is passed in, so a picture and a seed give one LR picture. Each step is a function; `degrade` chains them."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from training.data.kernels import KernelParams, gaussian_kernel, random_kernel, sinc_kernel
from training.metrics.luma import FULL_RANGE
from training.pixels import from_pixels, rounded, to_pixels

RESIZE_MODES = ("area", "bilinear", "bicubic")
FILTERS = (
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)
# Probability of JPEG in `reduce_plainly`.
PLAIN_JPEG_PROB = 0.7
# JPEG quality in `reduce_plainly`, inclusive.
PLAIN_JPEG_RANGE = (50, 96)


@dataclass(frozen=True)
class StageParams:
    """One order of the degradation: blur, resize, noise, JPEG."""

    kernel: KernelParams
    """Distribution of the blur kernel."""
    blur_prob: float
    """Probability of blur."""
    resize_prob: tuple[float, float, float]
    """Probabilities of enlarging, shrinking and keeping the size."""
    resize_range: tuple[float, float]
    """Bounds (low, high) of the factor: shrink by low to 1, enlarge by 1 to high."""
    gaussian_prob: float
    """Probability of Gaussian noise, else Poisson noise."""
    noise_range: tuple[float, float]
    """Standard deviation of Gaussian noise in levels of 1/255."""
    poisson_range: tuple[float, float]
    """Factor on Poisson noise."""
    gray_noise_prob: float
    """Probability of the same noise in all channels."""
    jpeg_range: tuple[int, int]
    """JPEG quality, inclusive."""


@dataclass(frozen=True)
class DegradationParams:
    """Two orders and the final sinc filter."""

    first: StageParams
    """The first order, at about HR size."""
    second: StageParams
    """The second order, at about LR size."""
    final_sinc_prob: float
    """Probability of the final sinc filter."""
    final_kernel_size: int = 21
    """Side of the sinc kernel in pixels."""
    scale: int = 4
    """HR pixels per LR pixel."""
    antialias: bool = False
    """Whether bilinear and bicubic resizes are antialiased; as published they are not."""
    sharpen_prob: float = 0.0
    """Probability of a camera's sharpening before the last compression; not in the published method."""
    sharpen_sigma: tuple[float, float] = (0.7, 1.6)
    """Sigma of the unsharp mask in LR pixels."""
    sharpen_amount: tuple[float, float] = (0.2, 1.6)
    """Amount of the unsharp mask."""


# The published parameters.
PAPER = DegradationParams(
    first=StageParams(
        kernel=KernelParams(size_range=(3, 21), sigma_range=(0.2, 3.0), sinc_prob=0.1),
        blur_prob=1.0,
        resize_prob=(0.2, 0.7, 0.1),
        resize_range=(0.3, 1.5),
        gaussian_prob=0.5,
        noise_range=(1.0, 15.0),
        poisson_range=(0.05, 2.0),
        gray_noise_prob=0.4,
        jpeg_range=(60, 95),
    ),
    second=StageParams(
        kernel=KernelParams(size_range=(3, 11), sigma_range=(0.2, 1.5), sinc_prob=0.1),
        blur_prob=0.5,
        resize_prob=(0.3, 0.4, 0.3),
        resize_range=(0.6, 1.2),
        gaussian_prob=0.5,
        noise_range=(1.0, 12.0),
        poisson_range=(0.05, 1.0),
        gray_noise_prob=0.4,
        jpeg_range=(60, 100),
    ),
    final_sinc_prob=0.8,
)

# A good camera far from its subject: lens blur, no aliasing, little noise, sharpening, light compression.
MILD = DegradationParams(
    first=StageParams(
        kernel=KernelParams(size_range=(13, 21), sigma_range=(0.8, 5.0), sinc_prob=0.05),
        blur_prob=1.0,
        resize_prob=(0.0, 0.3, 0.7),
        resize_range=(0.7, 1.2),
        gaussian_prob=0.5,
        noise_range=(0.5, 4.0),
        poisson_range=(0.02, 0.2),
        gray_noise_prob=0.4,
        jpeg_range=(92, 100),
    ),
    second=StageParams(
        kernel=KernelParams(size_range=(3, 11), sigma_range=(0.2, 0.8), sinc_prob=0.1),
        blur_prob=0.2,
        resize_prob=(0.1, 0.1, 0.8),
        resize_range=(0.9, 1.1),
        gaussian_prob=0.5,
        noise_range=(0.0, 1.0),
        poisson_range=(0.0, 0.05),
        gray_noise_prob=0.4,
        jpeg_range=(92, 100),
    ),
    final_sinc_prob=0.2,
    antialias=True,
    sharpen_prob=0.6,
)


def blur(image: Tensor, kernel: np.ndarray) -> Tensor:
    """Convolve each channel of (3, h, w) with one odd-sized kernel (k, k). Borders are replicated."""
    k = kernel.shape[0] // 2
    weight = torch.from_numpy(kernel).to(image.dtype)[None, None]  # (1, 1, k, k)
    padded = F.pad(image[:, None], (k, k, k, k), mode="replicate")  # (3, 1, h + 2k, w + 2k)
    return F.conv2d(padded, weight)[:, 0]


def sharpen(image: Tensor, sigma: float, amount: float) -> Tensor:
    """Unsharp mask as in cameras: image + amount * (image - Gaussian blur). Not clipped.

    image: (3, h, w). sigma: of the Gaussian in pixels."""
    size = 2 * max(1, round(3 * sigma)) + 1
    return image + amount * (image - blur(image, gaussian_kernel(size, sigma)))


def resize(image: Tensor, height: int, width: int, mode: str, antialias: bool = False) -> Tensor:
    """Resize (3, h, w) to (3, height, width).

    image: the picture.
    height, width: new size in pixels.
    mode: one of `RESIZE_MODES`.
    antialias: average over the source pixels when shrinking by "bilinear" or "bicubic". The published method does
        not; "area" always does."""
    if mode not in RESIZE_MODES:
        raise ValueError(f"resize mode must be one of {RESIZE_MODES}, got {mode!r}")
    align = None if mode == "area" else False
    return F.interpolate(
        image[None],
        size=(height, width),
        mode=mode,
        align_corners=align,
        antialias=antialias and mode != "area",
    )[0]


def random_resize_factor(
    rng: np.random.Generator, prob: tuple[float, float, float], bounds: tuple[float, float]
) -> float:
    """Factor of enlarging (1, high), shrinking (low, 1) or keeping the size."""
    branch = rng.choice(3, p=prob)
    if branch == 0:
        return float(rng.uniform(1.0, bounds[1]))
    return float(rng.uniform(bounds[0], 1.0)) if branch == 1 else 1.0


def gaussian_noise(image: Tensor, rng: np.random.Generator, sigma: float, gray: bool) -> Tensor:
    """Add white Gaussian noise. Not clipped.

    image: (3, h, w).
    rng: source of the noise.
    sigma: standard deviation in levels of 1/255.
    gray: the same noise in all channels."""
    shape = (1 if gray else image.shape[0], *image.shape[1:])
    noise = rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma / 255.0)
    return image + torch.from_numpy(noise)


def poisson_noise(image: Tensor, rng: np.random.Generator, scale: float, gray: bool) -> Tensor:
    """Add signal-dependent Poisson noise. Not clipped.

    image: (3, h, w).
    rng: source of the noise.
    scale: factor on the noise.
    gray: draw the noise from the luma, the same in all channels.

    As in Real-ESRGAN, the photon count at full brightness is the smallest power of two not below the image's number of levels."""
    source = image.clamp(0, 1)
    if gray:
        source = source.mul(torch.tensor(FULL_RANGE)[:, None, None]).sum(0, keepdim=True)
    levels = (source.numpy() * 255.0).round() / 255.0
    peak = 2.0 ** np.ceil(np.log2(len(np.unique(levels))))
    noise = rng.poisson(levels * peak) / peak - levels
    return image + torch.from_numpy((noise * scale).astype(np.float32))


def random_noise(image: Tensor, rng: np.random.Generator, stage: StageParams) -> Tensor:
    """Add Gaussian or Poisson noise of random strength, clipped to [0, 1]."""
    gaussian = rng.random() < stage.gaussian_prob
    gray = rng.random() < stage.gray_noise_prob
    if gaussian:
        return gaussian_noise(image, rng, rng.uniform(*stage.noise_range), gray).clamp(0, 1)
    return poisson_noise(image, rng, rng.uniform(*stage.poisson_range), gray).clamp(0, 1)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """Encode and decode (3, h, w) as JPEG (4:2:0). quality: 1 to 100."""
    buffer = io.BytesIO()
    to_picture(image).save(buffer, format="JPEG", quality=int(quality))
    return from_picture(Image.open(buffer)).to(image.dtype)


def random_jpeg(image: Tensor, rng: np.random.Generator, stage: StageParams) -> Tensor:
    low, high = stage.jpeg_range
    return jpeg(image, int(rng.integers(low, high + 1)))


def degrade(hr: Tensor, rng: np.random.Generator, params: DegradationParams = PAPER) -> Tensor:
    """The LR picture of an HR picture.

    hr: (3, H, W) float32 in [0, 1]; H and W are multiples of params.scale.
    Returns (3, H/scale, W/scale) in multiples of 1/255."""
    height, width = hr.shape[1] // params.scale, hr.shape[2] // params.scale
    if (height * params.scale, width * params.scale) != tuple(hr.shape[1:]):
        raise ValueError(f"HR size must be a multiple of {params.scale}, got {tuple(hr.shape[1:])}")
    first, second = params.first, params.second

    # first order: blur, resize, noise, JPEG
    image = hr
    if rng.random() < first.blur_prob:
        image = blur(image, random_kernel(rng, first.kernel))
    factor = random_resize_factor(rng, first.resize_prob, first.resize_range)
    image = resize(
        image,
        max(1, int(hr.shape[1] * factor)),
        max(1, int(hr.shape[2] * factor)),
        str(rng.choice(RESIZE_MODES)),
        params.antialias,
    )
    image = random_noise(image, rng, first)
    image = random_jpeg(image, rng, first)

    # second order: blur, resize, noise
    if rng.random() < second.blur_prob:
        image = blur(image, random_kernel(rng, second.kernel))
    factor = random_resize_factor(rng, second.resize_prob, second.resize_range)
    image = resize(
        image,
        max(1, int(height * factor)),
        max(1, int(width * factor)),
        str(rng.choice(RESIZE_MODES)),
        params.antialias,
    )
    image = random_noise(image, rng, second)
    # sharpening, in milder settings
    if params.sharpen_prob > 0 and rng.random() < params.sharpen_prob:
        image = sharpen(image, rng.uniform(*params.sharpen_sigma), rng.uniform(*params.sharpen_amount))
        image = image.clamp(0, 1)

    # end: JPEG, the resize to LR and a sinc filter, in either order
    jpeg_first = rng.random() < 0.5  # the last JPEG comes before or after the last resize and sinc
    if jpeg_first:
        image = random_jpeg(image, rng, second)
    image = resize(image, height, width, str(rng.choice(RESIZE_MODES)), params.antialias)
    if rng.random() < params.final_sinc_prob:
        image = blur(image, sinc_kernel(params.final_kernel_size, rng.uniform(np.pi / 3, np.pi)))
    image = image.clamp(0, 1)
    if not jpeg_first:
        image = random_jpeg(image, rng, second)
    return rounded(image)


def reduce_plainly(hr: Tensor, rng: np.random.Generator, scale: int = 4) -> Tensor:
    """Downscale a sharp picture as programs do for thumbnails and the web: an antialiased filter, mostly JPEG, no blur, no noise.

    hr: (3, H, W) float32 in [0, 1]; H and W are multiples of scale.
    Returns (3, H/scale, W/scale) in multiples of 1/255."""
    _, height, width = hr.shape
    if height % scale or width % scale:
        raise ValueError(f"HR size must be a multiple of {scale}, got {tuple(hr.shape[1:])}")
    chosen = FILTERS[int(rng.integers(len(FILTERS)))]
    lr = from_picture(to_picture(hr).resize((width // scale, height // scale), chosen))
    if rng.random() < PLAIN_JPEG_PROB:
        low, high = PLAIN_JPEG_RANGE
        lr = jpeg(lr, int(rng.integers(low, high + 1)))
    return lr


def to_picture(image: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(to_pixels(image)))


def from_picture(picture: Image.Image) -> Tensor:
    return from_pixels(np.array(picture))
