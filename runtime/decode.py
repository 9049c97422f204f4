"""From the bytes of a picture file to a Pillow image of a mode that is kept: L, LA, RGB, RGBA or 16-bit gray."""

import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from .errors import ImageError

# Nothing else is tried: some of Pillow's readers start other programs. JPEG includes MPO.
READ_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "AVIF")
_OPEN_LOCK = threading.Lock()


def open_image(data: bytes) -> Image.Image:
    """Parse the header. Pillow's size limit is a global, ours an argument: Pillow's is lifted meanwhile."""
    with _OPEN_LOCK:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            Image.init()  # Pillow looks up named formats without loading their plugins first
            return Image.open(io.BytesIO(data), formats=[name for name in READ_FORMATS if name in Image.OPEN])
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def check_still(path: Path, image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width}x{height} is more than the limit of {max_pixels / 1e6:g} megapixels: "
            "scale or crop it first, or raise the limit"
        )
    # An MPO is a photo with a preview or a second view behind it: its first frame is the photo.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        kind = "pages" if image.format == "TIFF" else "frames"
        raise ImageError(
            f"{path}: expected a still picture, got {frames} {kind}: extract the one you want first"
        )


def to_mode(
    path: Path, image: Image.Image, icc: bytes | None, tell: Callable[[str], None]
) -> tuple[Image.Image, bytes | None]:
    """Any Pillow mode -> L, LA, RGB, RGBA or 16-bit gray, and the profile that is right for the result."""
    mode, keyed = image.mode, "transparency" in image.info
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        if keyed:
            tell(f"{path}: the transparent gray level of a 16-bit picture is dropped")
        return image, icc
    if mode in ("LA", "RGBA") or (mode in ("L", "RGB") and not keyed):
        return image, icc
    if mode in ("1", "L"):
        return image.convert("LA" if keyed else "L"), icc
    if mode == "CMYK":
        return _from_cmyk(path, image, icc, tell), None
    if mode in ("P", "PA", "La", "RGBa", "RGBX", "RGB", "YCbCr"):
        alpha = keyed or mode in ("PA", "La", "RGBa")
        return image.convert("RGBA" if alpha else "RGB"), icc
    raise ImageError(
        f"{path}: pixels of kind {mode!r} are not supported: convert it to 8-bit RGB or 16-bit gray first"
    )


def _from_cmyk(path: Path, image: Image.Image, icc: bytes | None, tell: Callable[[str], None]) -> Image.Image:
    """CMYK -> sRGB through the embedded profile where there is one; else by Pillow's plain formula."""
    if icc is not None:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ImportError):
            tell(f"{path}: the CMYK profile cannot be used; colours are converted without it")
    return image.convert("RGB")


def is_deep_colour(data: bytes, image: Image.Image) -> bool:
    """True where the file holds more than 8 bits per colour channel and Pillow hands out 8."""
    if image.mode not in ("RGB", "RGBA", "LA", "CMYK"):
        return False
    if image.format == "PNG":
        return data[24] == 16  # bit depth in IHDR
    if image.format == "TIFF":
        return max(np.atleast_1d(image.getexif().get(258, 8))) > 8  # BitsPerSample
    if image.format == "PPM":
        return _maxval(data) > 255
    return False


def _maxval(data: bytes) -> int:
    """Largest sample value stated in a PPM header (comments left out); 255 where it cannot be found."""
    words = b" ".join(line.split(b"#")[0] for line in data[:512].splitlines()).split()
    return int(words[3]) if len(words) > 3 and words[3].isdigit() else 255
