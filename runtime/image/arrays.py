"""Pictures as arrays: seen as planes of float32 rows for the model, and back."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ImageError
from .bands import Floats, spans
from .exif import orientation_of

# The value of full intensity.
LEVELS: Final = {"uint8": 255, "uint16": 65535, "float32": 1}
# Rows rounded at a time, so that they stay in the processor's cache.
_STORE_ROWS: Final = 64
# Bytes of pixels converted at a time, so that a conversion takes little memory.
_BAND_BYTES: Final = 1 << 22
# Rows checked at a time, so that a check of a large picture takes little memory.
_CHECK_ROWS: Final = 256
# Held while Pillow's global limit of pixels is changed.
_LIMIT_LOCK: Final = threading.Lock()


@dataclass(frozen=True, eq=False)
class Picture:
    """A checked input, in the caller's dtype."""

    color: NDArray[Any]
    """Gray or RGB, (h, w, 1 or 3)."""
    alpha: NDArray[Any] | None
    """Alpha, (h, w). None: every pixel is opaque."""
    flat: bool
    """Whether the caller's array had no axis of channels."""

    @property
    def height(self) -> int:
        return self.color.shape[0]

    @property
    def width(self) -> int:
        return self.color.shape[1]

    @property
    def level(self) -> np.float32:
        return np.float32(LEVELS[self.color.dtype.name])

    def rgb(self, y0: int, y1: int, x0: int = 0, x1: int | None = None) -> Floats:
        """A window as (3, h, w) float32 in [0, 1]; gray is repeated.

        y0, y1: its first row, and the row after the last.
        x0, x1: its first column, and the column after the last. None: the picture's width.
        """
        window = self.color[y0:y1, x0:x1]
        planes = np.empty((3, *window.shape[:2]), np.float32)
        for channel in range(3):
            source = window[..., min(channel, window.shape[2] - 1)]
            np.divide(source, self.level, out=planes[channel], dtype=np.float32)
        return np.clip(planes, 0.0, 1.0, out=planes)

    def alpha_rows(self, y0: int, y1: int) -> Floats:
        """Rows of the alpha channel as (1, h, w) float32 in [0, 1]."""
        assert self.alpha is not None
        return np.clip(self.alpha[None, y0:y1].astype(np.float32) / self.level, 0.0, 1.0)

    def empty(self, height: int, width: int) -> NDArray[Any]:
        """An uninitialised (height, width, C) array of this picture's kind."""
        channels = self.color.shape[2] + (self.alpha is not None)
        return np.empty((height, width, channels), self.color.dtype)

    def store(self, target: NDArray[Any], rgb: Floats, alpha: Floats | None) -> bool:
        """Write float32 rows (3, n, W), and (1, n, W) alpha, into rows of `empty`: averaged for gray, clipped, rounded.

        Returns False if a value was not finite. Then target is only partly written.
        """
        if self.color.shape[2] == 1:
            rgb = ((rgb[0] + rgb[1] + rgb[2]) / np.float32(3))[None]
        planes = [*rgb, *(() if alpha is None else alpha)]
        level = None if self.color.dtype == np.float32 else self.level
        scratch = np.empty((min(_STORE_ROWS, target.shape[0]), target.shape[1]), np.float32)
        for top, bottom in spans(len(target), _STORE_ROWS):
            rows = target[top:bottom]
            block = scratch[: len(rows)]
            for channel, plane in enumerate(planes):
                values = plane[top:bottom]
                low, high = float(values.min()), float(values.max())  # either is NaN where a value is
                if not math.isfinite(low + high):
                    return False
                if low < 0.0 or high > 1.0:
                    values = np.clip(values, 0.0, 1.0, out=block)
                if level is not None:
                    values = np.multiply(values, level, out=block)
                    values += np.float32(0.5)
                np.copyto(rows[..., channel], values, casting="unsafe")
        return True


def as_picture(image: NDArray[Any] | Image.Image) -> Picture:
    """Check an array (h, w) or (h, w, 1..4) of uint8, uint16 or float32 in [0, 1], or a Pillow image. Alpha is split off."""
    pixels = _from_pillow(image) if isinstance(image, Image.Image) else image
    if not isinstance(pixels, np.ndarray):
        raise ImageError(
            f"expected a numpy array or a Pillow image, got {type(image).__name__}; read files with read_photo"
        )
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or (pixels.ndim == 3 and pixels.shape[2] > 4):
        raise ImageError(
            f"expected an image (h, w) or (h, w, 1..4) with at least one pixel, got shape {pixels.shape}; "
            "pass one image at a time, channels last"
        )
    if pixels.dtype.name not in LEVELS:
        raise ImageError(
            f"expected uint8, uint16 or float32, got {pixels.dtype}; convert it, for example with .astype(np.float32)"
        )
    if not pixels.dtype.isnative:
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    if pixels.dtype == np.float32:
        _check_range(pixels)
    flat = pixels.ndim == 2
    planes = pixels[..., None] if flat else pixels
    if planes.shape[2] in (1, 3):
        return Picture(planes, None, flat)
    color, alpha = planes[..., :-1], planes[..., -1]
    return Picture(fill_transparent(color, alpha), alpha, flat)


def without_opaque_alpha(pixels: NDArray[Any]) -> NDArray[Any]:
    """(H, W, 2 or 4) -> (H, W, 1 or 3) if every pixel is opaque; any other picture as it is."""
    if pixels.ndim != 3 or pixels.shape[2] not in (2, 4):
        return pixels
    top = LEVELS[pixels.dtype.name]
    for start, end in spans(len(pixels), _CHECK_ROWS):
        if (pixels[start:end, :, -1] < top).any():
            return pixels
    return np.ascontiguousarray(pixels[..., :-1])


def fill_transparent(color: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """color (h, w, C), with the colour of fully transparent pixels replaced by the visible colours near them.

    The stored colour of such pixels is arbitrary, often black, and the model would smear it over the visible edge. Each is filled
    with an average over 2, 4, 8, ... pixels, weighted by alpha: the finest average that holds a visible pixel (pull-push).
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return color
    levels = [_first_level(color, alpha)]
    while max(levels[-1][1].shape) > 1:
        levels.append(_halved(*levels[-1]))
    weighted, weight = levels.pop()
    fill = weighted / weight[..., None]
    while levels:
        weighted, weight = levels.pop()
        height, width = weight.shape
        fill = fill.repeat(2, axis=0)[:height].repeat(2, axis=1)[:, :width]
        seen = weight > 0
        fill[seen] = weighted[seen] / weight[seen][:, None]
    filled = color.copy()
    for top, bottom in spans(len(color), _CHECK_ROWS):
        gaps = hidden[top:bottom]
        rows, columns = np.nonzero(gaps)
        values = fill[(top + rows) // 2, columns // 2]
        filled[top:bottom][gaps] = values if color.dtype == np.float32 else values + np.float32(0.5)
    return filled


def _first_level(color: NDArray[Any], alpha: NDArray[Any]) -> tuple[Floats, Floats]:
    """`_halved` of colours times alpha, (h, w, C), and of alpha, (h, w). Band by band, so that neither is whole in memory as floats."""
    height, width = ((length + 1) // 2 for length in alpha.shape)
    weighted, weight = (
        np.empty((height, width, color.shape[2]), np.float32),
        np.empty((height, width), np.float32),
    )
    for top, bottom in spans(len(color), _CHECK_ROWS):  # an even number of rows, so that pairs stay together
        band, half = slice(top, bottom), slice(top // 2, (bottom + 1) // 2)
        products = np.multiply(color[band], alpha[band, :, None], dtype=np.float32)
        weighted[half], weight[half] = _halved(products, alpha[band].astype(np.float32))
    return weighted, weight


def _halved(weighted: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Sums over 2x2 pixels of (h, w, C) and (h, w), times 1/4 against overflow. An odd last row or column is summed alone."""
    bottom, right = weight.shape[0] % 2, weight.shape[1] % 2
    weighted = np.pad(weighted, ((0, bottom), (0, right), (0, 0)))
    weight = np.pad(weight, ((0, bottom), (0, right)))
    weighted = (weighted[::2] + weighted[1::2]) * np.float32(0.25)
    weight = (weight[::2] + weight[1::2]) * np.float32(0.25)
    return weighted[:, ::2] + weighted[:, 1::2], weight[:, ::2] + weight[:, 1::2]


def _check_range(pixels: Floats) -> None:
    """ImageError unless floats lie in [0, 1]. A small overshoot, as resamplers make it, is allowed and clipped later."""
    for top, bottom in spans(len(pixels), _CHECK_ROWS):
        rows = pixels[top:bottom]
        low, high = float(rows.min()), float(rows.max())
        if not (low >= -0.1 and high <= 1.1):  # NaN fails too
            raise ImageError(
                f"expected float32 in [0, 1], got {low:g} to {high:g}; divide by the largest level first"
            )


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(H, W) or (H, W, C) as stored -> as shown, by EXIF's orientation 1..8. Any other number counts as 1."""
    turned = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(turned[rows, columns])


def _from_pillow(image: Image.Image) -> NDArray[Any]:
    """Pixels of a Pillow image, upright. Palettes, CMYK and 1-bit pictures are converted, 16-bit gray is kept."""
    try:
        image.load()
        orientation = orientation_of(image)
        if image.mode.startswith("I;16"):
            return upright(np.asarray(image).astype(np.uint16), orientation)
        if image.mode in ("I", "F"):
            raise ImageError(
                f"expected a Pillow image of 8 bits or mode I;16, got mode {image.mode}; pass an array of uint16 or float32"
            )
        if image.mode in ("1", "L", "LA", "RGB", "RGBA"):
            mode = "L" if image.mode == "1" else image.mode
        elif image.mode in ("La", "RGBa"):
            mode = image.mode.upper()
        elif image.mode in ("P", "PA") and (image.mode == "PA" or "transparency" in image.info):
            mode = "RGBA"
        else:
            mode = "RGB"
        return upright(np.array(image.convert(mode)), orientation)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and others
        raise ImageError(
            f"expected a readable picture, got: {error}; copy it again from its source"
        ) from error


@contextlib.contextmanager
def without_limit() -> Iterator[None]:
    """Lifts Pillow's limit of pixels meanwhile. It is global, and a program may have lowered it. Our limit is an argument."""
    with _LIMIT_LOCK:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def to_array(image: Image.Image) -> NDArray[Any]:
    """A decoded Pillow image -> (H, W, C) uint8, or uint16 if it has more than 8 bits. Converted band by band."""
    width, height = image.size
    channels = len(image.getbands())
    eight = image.mode in ("L", "LA", "RGB", "RGBA")
    result = np.empty((height, width, channels), np.uint8 if eight else np.uint16)
    for top, bottom in spans(height, band_rows(width)):
        band = image_rows(image, top, bottom).reshape(bottom - top, width, channels)
        result[top:bottom] = band if eight else np.clip(band, 0, 65535)
    return result


def image_rows(image: Image.Image, top: int, bottom: int) -> NDArray[Any]:
    """Rows of a decoded image. Older Pillow checks its limit of pixels even here."""
    with without_limit():
        return np.asarray(image.crop((0, top, image.width, bottom)))


def band_rows(width: int) -> int:
    """Rows of a decoded image of that width that are converted at a time."""
    return max(1, _BAND_BYTES // (4 * width))
