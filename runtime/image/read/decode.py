"""From the bytes of a picture file to upright pixels, 8 or 16 bits per channel as the file has them.

A colour profile (ICC) is kept where it fits the pixels, and used where the colours must be converted.
"""

import importlib
import io
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ...errors import ImageError
from ..arrays import to_array, without_limit
from .deep import keyed, png_depth, read_deep_png, read_deep_ppm, scaled
from .deep_tiff import Tags, is_deep_tiff, opened_as_8_bit, read_deep_tiff, tiff_tags

# Nothing else is tried: some of Pillow's readers start other programs. JPEG includes MPO, HEIF comes with pillow-heif.
READ_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "AVIF", "HEIF")
STACKED_FORMATS = ("MPO", "HEIF")  # a photo with a preview or further views behind it: the first is the photo
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_PROFILE_HEADER: Final = 128  # bytes
_PROFILE_SPACES: Final = {1: b"GRAY", 2: b"GRAY", 3: b"RGB ", 4: b"RGB "}  # by the channels of the pixels
Tell = Callable[[str], None]


def open_image(data: bytes) -> Image.Image:
    """Parse the header, whatever size it states."""
    with without_limit():
        Image.init()  # Pillow looks up named formats without loading their plugins first
        return Image.open(io.BytesIO(data), formats=[name for name in READ_FORMATS if name in Image.OPEN])


def open_photo(path: Path, data: bytes) -> Image.Image:
    """`open_image` for whole files: brings in the HEIF reader, and opens kinds of TIFF whose pixels Pillow cannot read."""
    family = media_family(data)
    if family == "HEIF":
        register_heif(path)
    if family == "AVIF" and not _reads("AVIF"):
        raise ImageError(
            f"{path}: this Pillow reads no AVIF: install Pillow 11.3 or newer, or convert it to PNG"
        )
    tags = _tiff_tags(data)
    return open_image(opened_as_8_bit(data, tags) if tags is not None and is_deep_tiff(tags) else data)


def media_family(data: bytes) -> str | None:
    """ "AVIF" or "HEIF" by the brands of an ISO media file (ISO 23008-12, annex B); None for any other file."""
    if data[4:8] != b"ftyp":
        return None
    box = data[8 : min(int.from_bytes(data[:4]), 256)]
    brands = [box[:4], *(box[start : start + 4] for start in range(8, len(box), 4))]
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    return "HEIF" if any(brand in _HEIF_BRANDS for brand in brands) else None


def register_heif(path: Path) -> None:
    """Teach Pillow HEIC and HEIF by the package pillow-heif, which is no dependency: HEVC is under patents."""
    if _reads("HEIF"):
        return
    try:
        reader = importlib.import_module("pillow_heif")
    except ImportError:
        raise ImageError(
            f"{path}: HEIC is read by the package pillow-heif, which is not installed: "
            "run `pip install pillow-heif`, or convert the photo to JPEG or PNG first"
        ) from None
    reader.register_heif_opener()


def check_still(path: Path, image: Image.Image, max_pixels: int) -> None:
    """Refuse more than max_pixels and more than one frame."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width}x{height} is more than the limit of {max_pixels / 1e6:g} megapixels: scale or crop it "
            f"first, or raise the limit (--max-pixels {math.ceil(width * height / 1e6)}, in Python max_pixels={width * height})"
        )
    frames = 1 if image.format in STACKED_FORMATS else getattr(image, "n_frames", 1)
    if frames > 1:
        kind = "pages" if image.format == "TIFF" else "frames"
        raise ImageError(
            f"{path}: expected a still picture, got {frames} {kind}: extract the one you want first"
        )


def decoded(path: Path, data: bytes, image: Image.Image, tell: Tell) -> tuple[NDArray[Any], bytes | None]:
    """Pixels (H, W, 1..4) uint8 or uint16 as the file stores them, and the profile that is right for them."""
    icc = image.info.get("icc_profile") or None
    pixels = _deep(path, data, image, tell)
    if pixels is None:
        image.load()
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            pixels = _deep_gray(data, image)
        else:
            image, icc = to_mode(path, image, icc, tell)
            pixels = to_array(image)
    fault = None if icc is None else _profile_fault(icc, pixels.shape[2])
    if fault is not None:
        tell(f"{path}: the colour profile {fault}; it is dropped and the colours are taken as sRGB")
        icc = None
    return pixels, icc


def to_mode(
    path: Path, image: Image.Image, icc: bytes | None, tell: Tell
) -> tuple[Image.Image, bytes | None]:
    """Any Pillow mode of 8 bits -> L, LA, RGB or RGBA, and the profile that is right for the result."""
    mode, has_key = image.mode, "transparency" in image.info
    if mode in ("LA", "RGBA") or (mode in ("L", "RGB") and not has_key):
        return image, icc
    if mode in ("1", "L"):
        return image.convert("LA" if has_key else "L"), icc
    if mode == "CMYK":
        return _cmyk_to_rgb(path, image, icc, tell), None
    if mode in ("P", "PA", "La", "RGBa", "RGBX", "RGB", "YCbCr"):
        alpha = has_key or mode in ("PA", "La", "RGBa")
        return image.convert("RGBA" if alpha else "RGB"), icc
    raise ImageError(
        f"{path}: pixels of kind {mode!r} are not supported: convert it to RGB or gray of 8 or 16 bits first"
    )


def _profile_fault(icc: bytes, channels: int) -> str | None:
    """Why a profile cannot belong to pixels of 1..4 channels (gray, with alpha, RGB, with alpha); None: it can.

    Looks at the header alone (ICC.1:2022, Sec. 7.2): size, colour space, signature.
    """
    if (
        len(icc) < _PROFILE_HEADER
        or icc[36:40] != b"acsp"
        or not _PROFILE_HEADER <= int.from_bytes(icc[:4]) <= len(icc)
    ):
        return "is damaged"
    space = icc[16:20]
    if space != _PROFILE_SPACES[channels]:
        names = [name.decode("latin-1").strip() for name in (space, _PROFILE_SPACES[channels])]
        return f"is for {names[0]} and the pixels are {names[1]}"
    return None


def _cmyk_to_rgb(path: Path, image: Image.Image, icc: bytes | None, tell: Tell) -> Image.Image:
    """CMYK -> sRGB through the embedded profile where there is one; else by Pillow's plain formula."""
    if icc is not None:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ImportError):
            tell(f"{path}: the CMYK profile cannot be used; colours are converted without it")
    return image.convert("RGB")


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(H, W, C) as stored -> as shown, by EXIF's orientation 1..8; any other number is taken as 1."""
    turned = pixels.transpose(1, 0, 2) if orientation in (5, 6, 7, 8) else pixels
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(turned[rows, columns])


def _deep(path: Path, data: bytes, image: Image.Image, tell: Tell) -> NDArray[Any] | None:
    """Pixels of a 16-bit picture that Pillow would reduce; None for any other."""
    tags = _tiff_tags(data) if image.format == "TIFF" else None
    reason = ""
    if image.format == "PNG" and png_depth(data)[0] == 16 and png_depth(data)[1] != 0:
        pixels = read_deep_png(data, image)
        key = image.info.get("transparency")
        return pixels if key is None else keyed(pixels, key)
    if tags is not None and is_deep_tiff(tags):
        deep, reason = read_deep_tiff(data, tags, open_image)
        if deep is not None:
            return deep
        if tags.get(258) == (16, 16):
            raise ImageError(f"{path}: a 16-bit TIFF with {reason} is not supported: convert it to PNG first")
    if image.format == "PPM":
        deep = read_deep_ppm(data)
        if deep is not None:
            return deep
    bits = hidden_depth(data, image, lambda: 8 if tags is None else max(tags.get(258, (8,))))
    if bits > 8:
        because = f" ({reason})" if reason else ""
        tell(
            f"{path}: {bits} bits per channel are read as 8{because}: convert it to a 16-bit PNG to keep them"
        )
    return None


def _deep_gray(data: bytes, image: Image.Image) -> NDArray[Any]:
    """16-bit gray as Pillow reads it, with alpha where a value stands for transparency."""
    pixels = to_array(image)
    if image.format == "TIFF" and tiff_tags(data).get(258) == (12,):
        return scaled(pixels, 4095)
    key = image.info.get("transparency")
    return pixels if key is None else keyed(pixels, key)


def _tiff_tags(data: bytes) -> Tags | None:
    """Tags of a TIFF, None where there are none to be had; what is wrong with the file is Pillow's to say."""
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        return tiff_tags(data)
    except (struct.error, SyntaxError):
        return None


def _reads(file_format: str) -> bool:
    Image.init()
    return file_format in Image.OPEN


def hidden_depth(data: bytes, image: Image.Image, tiff_bits: Callable[[], int]) -> int:
    """Bits per channel of the file where Pillow hands out 8 and nothing here reads more; else 8."""
    if image.mode not in ("RGB", "RGBA", "LA", "CMYK", "L"):
        return 8
    if image.format == "TIFF":
        return tiff_bits()
    if image.format == "PPM":
        return 16 if _maxval(data) > 255 else 8
    if image.format == "AVIF":
        place = data.find(
            b"av1C"
        )  # AV1 in ISO media, Sec. 2.3: the third byte holds high_bitdepth and twelve_bit
        flags = data[place + 6] if 0 <= place < len(data) - 6 else 0
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    if image.format == "HEIF":
        place = data.find(b"hvcC")  # ISO 14496-15, Sec. 8.3.3: byte 17 ends in the luma depth less 8
        return 8 + (data[place + 21] & 7) if 0 <= place < len(data) - 21 else 8
    return 8


def _maxval(data: bytes) -> int:
    """Largest value stated in a PPM header (comments left out); 255 where it cannot be found."""
    words = b" ".join(line.split(b"#")[0] for line in data[:512].splitlines()).split()
    return int(words[3]) if len(words) > 3 and words[3].isdigit() else 255
