"""Writing photos to files with their metadata. What a format cannot hold is found before anything is computed.

PNG and TIFF are written with 8 or 16 bits per channel, as the pixels have. The other formats hold 8 bits. Every loss is announced
through `notify`.
"""

import os
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import ImageError
from ...files import atomic_file
from ..arrays import without_opaque_alpha
from ..bands import Strips, block_rows, row_blocks
from ..exif import revised_exif
from ..jpeg_segments import packed_segments
from ..photo import Levels, Photo
from ..xmp import revised_xmp
from .png import write_png
from .tiff import LARGEST_FILE, raw_bytes, write_tiff

WRITE_FORMATS = {
    ".avif": "AVIF", ".bmp": "BMP", ".jpe": "JPEG", ".jpeg": "JPEG", ".jpg": "JPEG",
    ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip
OPAQUE_FORMATS: Final = ("JPEG", "BMP")
# Pixels of the longer side: limits of libjpeg, of WebP and of AVIF decoders. Numbers in a PNG have 31 bits.
LARGEST_SIDE: Final = {
    "JPEG": 65500,
    "WEBP": 16383,
    "AVIF": 32768,
    "BMP": 2**31 - 1,
    "PNG": 2**31 - 1,
    "TIFF": 2**31 - 1,
}
# Bytes of pixels in a BMP.
_BMP_LARGEST: Final = 2**32 - 1024
# Bytes of a JPEG segment.
_JPEG_EXIF: Final = 65533
# Colour chunks of an sRGB PNG: cICP's code points, gAMA and cHRM in units of 1/100000 (PNG, third edition, Sec. 11.3.2). Other formats
# are read as sRGB, so these may be dropped.
_SRGB_CODING: Final = {
    "cICP": bytes((1, 13, 0, 1)),
    "gAMA": struct.pack(">I", 45455),
    "cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
}
# Pillow's mode by the number of channels.
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
Tell = Callable[[str], None]


def write_photo(
    path: str | os.PathLike[str],
    photo: Photo[Levels | Strips],
    quality: int = 95,
    text: dict[str, str] | None = None,
    *,
    notify: Callable[[str], None] | None = None,
) -> None:
    """Write a photo in the format of the suffix. The file appears complete or not at all.

    path: of the file; its suffix names the format.
    photo: pixels with metadata.
    quality: 1 to 100, for JPEG, WebP and AVIF.
    text: notes such as the seed. PNG keeps them as text chunks. JPEG, TIFF, WebP and AVIF keep "Software" in the EXIF tag of that
        name and the others in UserComment. BMP cannot hold them.
    notify: called with a message for each loss, such as 16 bits in a JPEG. By default `warnings.warn`.
    """
    path = Path(path)
    if not isinstance(photo.pixels, Strips):
        photo = fitting(path, photo.with_pixels(photo.pixels))
    tell = notify or (lambda message: warnings.warn(message, stacklevel=3))
    check_output(path, photo.pixels.shape, photo.pixels.dtype)  # before anything is computed or created
    with atomic_file(path) as stream:
        encode(path, stream, photo, quality, text or {}, tell)


def fitting(path: Path, photo: Photo) -> Photo:
    """The photo without its alpha channel, if path's format cannot hold one and every pixel is opaque.

    The pixels of `Strips` are not known yet, so call this with their source before it is enlarged.
    """
    if WRITE_FORMATS.get(path.suffix.lower()) not in OPAQUE_FORMATS:
        return photo
    return photo.with_pixels(without_opaque_alpha(photo.pixels))


def check_output(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    """The format that a path's suffix names. ImageError if it cannot hold a picture of this shape (H, W, C) and dtype.

    It needs no pixels, so it can be called before they are computed.
    """
    file_format = WRITE_FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise ImageError(
            f"{path}: cannot write {path.suffix or 'a name without suffix'}: use {', '.join(WRITE_FORMATS)}"
        )
    if file_format == "AVIF":
        Image.init()
        if "AVIF" not in Image.SAVE:
            raise ImageError(
                f"{path}: this Pillow writes no AVIF: install Pillow 11.3 or newer, or write .png"
            )
    height, width = shape[:2]
    channels = shape[2] if len(shape) == 3 else 1
    if channels in (2, 4) and file_format in OPAQUE_FORMATS:
        raise ImageError(f"{path}: {file_format} cannot hold transparency: write .png, .tif or .webp")
    side = LARGEST_SIDE[file_format]
    if max(height, width) > side:
        raise ImageError(
            f"{path}: {file_format} cannot hold {width}x{height} pixels, its limit is {side} a side: write .png"
        )
    most = LARGEST_FILE - (64 << 20)  # the rest is left for profile and EXIF
    if file_format == "TIFF" and (size := raw_bytes(shape, dtype)) > most:
        raise ImageError(
            f"{path}: TIFF cannot hold {size / 1e9:.1f} GB of pixels, its limit is {most / 1e9:.1f} GB: write .png"
        )
    if file_format == "BMP" and (width * 3 + 3) * height > _BMP_LARGEST:
        raise ImageError(f"{path}: BMP cannot hold {width}x{height} pixels, its limit is 4 GB: write .png")
    return file_format


def encode(
    path: Path,
    stream: IO[bytes],
    photo: Photo[Levels | Strips],
    quality: int,
    text: Mapping[str, str],
    tell: Tell,
) -> None:
    """Write a photo to a seekable stream, in the format of path's suffix.

    path: names the format by its suffix, and the picture in messages.
    stream: at its beginning.
    photo: rows of its pixels are taken once, from top to bottom.
    quality, text: as for `write_photo`.
    tell: called with a message for each loss.
    """
    pixels, icc, dpi = photo.pixels, photo.icc, photo.dpi
    file_format = check_output(path, pixels.shape, pixels.dtype)
    # metadata of the enlarged picture, in the places that the format has
    height, width = pixels.shape[:2]
    exif, text_in_exif = photo.exif, {} if file_format == "PNG" else text
    dpi_in_exif = dpi if file_format in ("WEBP", "AVIF") else None  # the only place for it in these formats
    if exif is not None or text_in_exif or dpi_in_exif is not None:
        exif = revised_exif(exif, width, height, text_in_exif, dpi_in_exif)
    xmp = None if photo.xmp is None else revised_xmp(photo.xmp, width, height)
    lost = _lost(file_format, photo, text)
    if lost:
        tell(f"{path}: {file_format} has no place for {', '.join(lost)}, which is left out")
    # PNG and TIFF: written here, in 8 and 16 bits
    if file_format == "PNG":
        said = {"Comment": photo.comment.decode("utf-8", "replace")} if photo.comment else {}
        write_png(
            stream, pixels, icc=icc, exif=exif, dpi=dpi, xmp=xmp, coding=photo.coding,
            text={**said, **photo.text, **text},
        )  # fmt: skip
        return
    if file_format == "TIFF":
        write_tiff(stream, pixels, icc=icc, exif=exif, dpi=dpi, xmp=xmp, iptc=photo.iptc)
        return
    # the other formats hold 8 bits and are written by Pillow
    if file_format == "JPEG" and exif is not None and len(exif) > _JPEG_EXIF:
        tell(f"{path}: the EXIF block of {len(exif)} bytes is too long for JPEG and is left out")
        exif = revised_exif(None, width, height, text)
    if pixels.dtype == np.uint16:
        tell(
            f"{path}: {file_format} holds 8 bits per channel, the picture has 16: write .png or .tif to keep them"
        )
    image = _filled(pixels)
    options = _save_options(file_format, exif, icc, dpi, quality)
    if file_format == "JPEG":
        comment = photo.comment or photo.text.get("Comment", "").encode() or None
        options["extra"], too_long = packed_segments(xmp, photo.iptc, comment)
        for name in too_long:
            tell(f"{path}: {name} is too long for JPEG and is left out")
    elif file_format in ("WEBP", "AVIF") and xmp is not None:
        options["xmp"] = xmp
    # write: Pillow's errors become ImageError
    try:
        image.save(stream, file_format, **options)
    except (ValueError, RuntimeError, struct.error) as error:
        raise ImageError(f"{path}: {file_format} cannot hold this picture ({error}): write .png") from error
    except OSError as error:
        if error.errno is not None:
            raise  # a full or broken disk: `atomic_file` reports it
        raise ImageError(f"{path}: {file_format} cannot hold this picture ({error}): write .png") from error


def _lost(file_format: str, photo: Photo[Levels | Strips], text: Mapping[str, str]) -> list[str]:
    """The metadata of a photo that a format cannot hold, in words. Notes that are written anew are not lost."""
    lost = []
    if photo.xmp is not None and file_format == "BMP":
        lost.append("XMP")
    if photo.iptc is not None and file_format not in ("JPEG", "TIFF"):
        lost.append("IPTC")
    if photo.comment is not None and file_format not in ("JPEG", "PNG"):
        lost.append("the comment")
    if file_format != "PNG":
        held = {"Software", *text, *(("Comment",) if file_format == "JPEG" else ())}
        names = [name for name in photo.text if name not in held]
        lost += [f"text ({', '.join(map(repr, names))})"] if names else []
        colours = {name: value for name, value in photo.coding.items() if value != _SRGB_CODING[name]}
        if colours and photo.icc is None:
            lost.append(f"what {', '.join(colours)} say of the colours")
    return lost


def _filled(pixels: NDArray[Any] | Strips) -> Image.Image:
    """A Pillow image of 8 bits, filled block by block, because Pillow's own copy takes 4 bytes a pixel for colour."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if len(pixels.shape) == 3 else 1
    image = Image.new(MODES[channels], (width, height))
    top = 0
    for block in row_blocks(pixels, block_rows(width, channels * pixels.dtype.itemsize)):
        rows = to_8_bits(block) if block.dtype == np.uint16 else np.ascontiguousarray(block)
        image.paste(Image.fromarray(rows[..., 0] if channels == 1 else rows), (0, top))
        top += len(rows)
    return image


def _save_options(
    file_format: str, exif: bytes | None, icc: bytes | None, dpi: tuple[float, float] | None, quality: int
) -> dict[str, Any]:
    """Pillow's options for JPEG, WebP, AVIF or BMP, without those that the format cannot hold."""
    options: dict[str, Any] = {}
    if dpi is not None and file_format in ("JPEG", "BMP"):
        options["dpi"] = dpi
    if file_format == "BMP":
        return options
    options |= {"quality": quality} | ({"icc_profile": icc} if icc is not None else {})
    options |= {"exif": exif} if exif is not None else {}
    if file_format == "JPEG":
        options |= {"subsampling": 0 if quality >= 90 else 2, "optimize": False}
    elif file_format == "WEBP":
        options |= {"method": 4}
    else:
        options |= {"subsampling": "4:4:4" if quality >= 90 else "4:2:0"}
    return options


def to_8_bits(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Levels 0..65535 -> 0..255, rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
