"""Reading photos: from a file to upright pixels, with 8 or 16 bits per channel as the file has them.

Formats: PNG, JPEG (and MPO), TIFF, WebP, BMP, GIF, PPM and PGM, AVIF with a Pillow that reads it, HEIC with the package pillow-heif.
PNG, TIFF and binary PPM are read at 16 bits per channel. Metadata is kept: EXIF, XMP, IPTC, comment, texts, colour profile,
resolution. It never costs pixels: what cannot be read is left out. The orientation that EXIF states is applied to the pixels once.
A loss on the way, such as a damaged tag or 12 bits read as 8, is announced through `notify`, never silent.
"""

import contextlib
import importlib
import io
import math
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from ...errors import ImageError
from ...files import SUFFIXES
from ..arrays import to_array, upright, without_limit
from ..photo import Photo
from ..png_chunks import SIGNATURE, PngMetadata, pixels_alone
from .metadata import metadata
from .sixteen_bit import DEEP_READ, deep_gray, deep_pixels
from .sixteen_bit_tiff import SIGNATURES, is_deep_tiff, opened_as_8_bit, tags_if_sound

# Pixels of the largest photo that is read if the caller names no limit. They take at most 800 MB.
MAX_PIXELS: Final = 100_000_000
# Pillow may try these formats and no others: some of its readers start other programs. JPEG includes MPO, HEIF needs pillow-heif.
READ_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "AVIF", "HEIF")
# A file of these formats may hold a preview or further views. The first picture is the photo.
STACKED_FORMATS = ("MPO", "HEIF")
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
# Bytes of a colour profile's header.
_PROFILE_HEADER: Final = 128
# The colour space that a profile's header must state, by the number of channels.
_PROFILE_SPACES: Final = {1: b"GRAY", 2: b"GRAY", 3: b"RGB ", 4: b"RGB "}
# Bytes of a file besides its pixels. Pixels take at most 8 bytes each.
_MOST_METADATA: Final = 256 << 20
Tell = Callable[[str], None]


def read_photo(
    path: str | os.PathLike[str],
    max_pixels: int = MAX_PIXELS,
    *,
    notify: Callable[[str], None] | None = None,
) -> Photo:
    """Decode one still picture.

    max_pixels: a larger picture is refused.
    notify: called with a message for each loss, by default `warnings.warn`.

    Raises ImageError for a missing, empty, truncated, animated or too large file, and for a file that is not a picture.
    """
    path = Path(path)
    tell = notify or (lambda message: warnings.warn(message, stacklevel=3))
    with _readable(path):
        data, png = _pixels_alone(_content(path, max_pixels))
        with open_photo(path, data) as image:
            check_still(path, image, max_pixels)
            profile = image.info.get("icc_profile") if png is None else png.icc
            pixels, icc = decoded(path, data, image, profile or None, tell)
            fields, orientation = metadata(path, data, image, png, tell)
    return Photo(upright(pixels, orientation), icc=icc, **fields)


def check_photo(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> None:
    """ImageError for a file that `read_photo` would refuse by its header. Pixels are not decoded."""
    path = Path(path)
    with _readable(path):
        data, _ = _pixels_alone(_content(path, max_pixels))
        with open_photo(path, data) as image:
            check_still(path, image, max_pixels)


def _pixels_alone(data: bytes) -> tuple[bytes, PngMetadata | None]:
    """A PNG reduced to its pixel chunks, and its metadata. Any other file unchanged, and None."""
    return pixels_alone(data) if data.startswith(SIGNATURE) else (data, None)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns every error of a decoder into ImageError."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"{path}: expected a picture ({', '.join(SUFFIXES)}), got something else or a damaged header: "
            "convert it to PNG or JPEG first"
        ) from None
    except MemoryError:
        raise ImageError(f"{path}: not enough memory to decode it: use a smaller picture") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and others
        raise ImageError(f"{path}: damaged or cut off ({error}): copy it again from its source") from error


def _content(path: Path, max_pixels: int) -> bytes:
    """The bytes of a regular file that is not larger than a picture of max_pixels can be."""
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            check_size(path, status.st_size, max_pixels)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{path}: expected a picture, got a device or a pipe: save it as a file first")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file: check the spelling") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: expected a picture, got a folder: name the files in it") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}): check its permissions") from error
    if not data:
        raise ImageError(
            f"{path}: expected a picture, got an empty file (0 bytes): copy it again from its source"
        )
    return data


def check_size(name: str | os.PathLike[str], size: int, max_pixels: int) -> None:
    """ImageError for a file of more bytes than a picture of max_pixels can take."""
    if size > 8 * max_pixels + _MOST_METADATA:
        raise ImageError(
            f"{name}: {size / 1e6:.0f} MB are more than a picture of {max_pixels / 1e6:g} megapixels takes: "
            "scale or crop it first, or raise the limit (--max-pixels, in Python max_pixels)"
        )


def open_image(data: bytes) -> Image.Image:
    """Parse the header of a file. Pillow's own limit of pixels is lifted for it."""
    with without_limit():
        Image.init()  # Pillow looks up named formats without loading their plugins first
        return Image.open(io.BytesIO(data), formats=[name for name in READ_FORMATS if name in Image.OPEN])


def open_photo(path: Path, data: bytes) -> Image.Image:
    """`open_image`, also for HEIF, and for kinds of TIFF with pixels that Pillow cannot read."""
    family = media_family(data)
    if family == "HEIF":
        register_heif(path)
    if family == "AVIF" and not _reads("AVIF"):
        raise ImageError(
            f"{path}: this Pillow reads no AVIF: install Pillow 11.3 or newer, or convert it to PNG"
        )
    tags = tags_if_sound(data) if data[:4] in SIGNATURES else None
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
    """Teach Pillow HEIC and HEIF through the package pillow-heif. It is not a dependency, because HEVC is under patents."""
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


def decoded(
    path: Path, data: bytes, image: Image.Image, icc: bytes | None, tell: Tell
) -> tuple[NDArray[Any], bytes | None]:
    """Pixels (H, W, 1..4) uint8 or uint16 as the file stores them, and the profile that is right for them.

    path: names the photo in messages.
    data: the file.
    image: opened by Pillow from data, not yet loaded.
    icc: the file's profile.
    tell: called with a message for each loss.
    """
    pixels = deep_pixels(path, data, image, tell, open_image) if image.format in DEEP_READ else None
    if pixels is None:
        image.load()
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            pixels = deep_gray(data, image)
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
    """Any Pillow mode of 8 bits -> L, LA, RGB or RGBA, and the profile that is right for the result.

    path: names the photo in messages.
    image: loaded.
    icc: the file's profile.
    tell: called with a message for each loss.
    ImageError for another mode.
    """
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
    """Why a profile does not fit pixels of 1 to 4 channels (gray, gray with alpha, RGB, RGB with alpha). None: it fits.

    Only the header is checked (ICC.1:2022, Sec. 7.2): size, colour space, signature.
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
    """CMYK -> sRGB through the embedded profile, or by Pillow's plain formula if there is none or it is unusable."""
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


def _reads(file_format: str) -> bool:
    Image.init()
    return file_format in Image.OPEN
