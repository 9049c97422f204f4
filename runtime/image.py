"""Photos in and out: decoding with clear errors, metadata kept, files written atomically.

Pixels are (H, W, C) uint8 or uint16 with C = 1 gray, 2 gray + alpha, 3 RGB, 4 RGB + alpha. What is read: PNG,
JPEG (and MPO), TIFF, WebP, BMP, GIF, PPM/PGM and, where Pillow has it, AVIF. What is kept: EXIF, ICC profile,
dpi. Orientation is applied to the pixels once and the tag reset. 16-bit gray is read and written at full
depth; 16-bit *colour* is not: Pillow reduces it to 8 bits in silence, so `read_photo` finds it in the file
header and says so through `notify`, and `write_photo` refuses it.
"""

import contextlib
import glob
import io
import os
import secrets
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from .decode import check_still, is_deep_colour, open_image, to_mode
from .errors import ImageError
from .exif import EXIF_HEADER, ORIENTATION, PIXEL_HEIGHT, PIXEL_WIDTH, patch_exif, read_tag, tiff_exif

SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jpe", ".jpeg", ".jpg",
    ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
WRITE_FORMATS = {
    ".bmp": "BMP", ".jpe": "JPEG", ".jpeg": "JPEG", ".jpg": "JPEG",
    ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
TRANSPOSES = {  # EXIF orientation -> the operation that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, eq=False)
class Photo:
    """Pixels with the metadata that belongs to them.

    pixels: (H, W, C) uint8 or uint16, C in 1..4. exif: EXIF block or None. icc: colour profile of these
    pixels; None means sRGB. dpi: horizontal and vertical resolution or None.
    """

    pixels: np.ndarray
    exif: bytes | None = None
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or shape[2] not in MODES or 0 in shape or dtype not in (np.uint8, np.uint16):
            raise ImageError(
                f"a photo needs pixels (H, W, 1..4) of uint8 or uint16, got shape {shape} of {dtype}: "
                "add the channel axis or convert the type first"
            )


def read_photo(
    path: str | os.PathLike[str],
    max_pixels: int = 100_000_000,
    *,
    notify: Callable[[str], None] | None = None,
) -> Photo:
    """Decode one still picture. Whatever is lost on the way is announced through `notify` (default:
    `warnings.warn`).

    Raises ImageError for a missing, empty, truncated, animated or too large file and for one that is no
    picture.
    """
    path = Path(path)
    tell = notify or (lambda message: warnings.warn(message, stacklevel=3))
    try:
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
    try:
        with open_image(data) as image:
            check_still(path, image, max_pixels)
            image.load()
            return _to_photo(path, data, image, tell)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"{path}: expected a picture ({', '.join(SUFFIXES)}), got something else or a damaged header: "
            "convert it to PNG or JPEG first"
        ) from None
    except MemoryError:
        raise ImageError(f"{path}: not enough memory to decode it: use a smaller picture") from None
    except (
        Exception
    ) as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ... for a damaged file
        raise ImageError(f"{path}: damaged or cut off ({error}): copy it again from its source") from error


def write_photo(
    path: str | os.PathLike[str], photo: Photo, quality: int = 95, text: dict[str, str] | None = None
) -> None:
    """Write a photo in the format of the suffix; the file appears complete or not at all.

    quality: 1..100, for JPEG and WebP. text: notes such as the seed, kept by PNG (text chunks), JPEG
    (comment) and TIFF (ImageDescription); the other formats have no place for them.
    """
    path = Path(path)
    file_format = WRITE_FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise ImageError(
            f"{path}: cannot write {path.suffix or 'a name without suffix'}: use {', '.join(WRITE_FORMATS)}"
        )
    channels, deep = photo.pixels.shape[2], photo.pixels.dtype == np.uint16
    if deep and (channels > 1 or file_format not in ("PNG", "TIFF")):
        raise ImageError(
            f"{path}: 16 bits are written for gray PNG and TIFF only: convert the pixels to uint8 first"
        )
    if channels in (2, 4) and file_format in ("JPEG", "BMP"):
        raise ImageError(f"{path}: {file_format} cannot hold transparency: write .png, .tif or .webp")
    image = Image.fromarray(photo.pixels[..., 0] if channels == 1 else photo.pixels)
    options = _save_options(file_format, photo, quality, text or {})
    with atomic_file(path) as stream:
        try:
            image.save(stream, file_format, **options)
        except (ValueError, RuntimeError, struct.error) as error:
            raise ImageError(
                f"{path}: {file_format} cannot hold this picture ({error}): write .png"
            ) from error
        except OSError as error:
            if error.errno is not None:
                raise  # a full or broken disk, reported by atomic_file
            raise ImageError(
                f"{path}: {file_format} cannot hold this picture ({error}): write .png"
            ) from error


def find_photos(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    recursive: bool = True,
    exclude: Sequence[str | os.PathLike[str]] = (),
) -> list[Path]:
    """Files, folders and glob patterns -> sorted list of files without duplicates.

    A folder gives its files with a known suffix, hidden ones left out; `exclude` names folders to leave out
    (the output folder). A file named outright is kept whatever its suffix, and a name that matches nothing is
    kept too, so that reading it reports it.
    """
    excluded = [Path(folder).resolve() for folder in exclude]
    found: dict[Path, Path] = {}
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            matches = list(_photos_in(path, recursive, excluded))
        elif path.exists():
            matches = [path]
        else:
            hits = (
                [Path(name) for name in glob.glob(str(item), recursive=True)]
                if glob.has_magic(str(item))
                else []
            )
            matches = [hit for hit in hits if hit.is_file() and hit.suffix.lower() in SUFFIXES] or [path]
        for match in matches:
            found.setdefault(match.resolve(), match)
    return sorted(found.values())


def _photos_in(folder: Path, recursive: bool, excluded: list[Path]) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(
            name
            for name in folders
            if recursive and not name.startswith(".") and (here / name).resolve() not in excluded
        )
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield here / name


def _to_photo(path: Path, data: bytes, image: Image.Image, tell: Callable[[str], None]) -> Photo:
    file_format = image.format
    exif = tiff_exif(image.getexif()) if file_format == "TIFF" else image.info.get("exif")
    orientation = (
        image.getexif().get(ORIENTATION, 1) if file_format == "TIFF" or exif is None else read_tag(exif)
    )
    if exif is not None:
        exif = EXIF_HEADER + bytes(exif).removeprefix(EXIF_HEADER)
        exif = patch_exif(exif, {ORIENTATION: 1})
    icc, dpi = image.info.get("icc_profile") or None, _dpi(image.info.get("dpi"))
    if is_deep_colour(data, image):
        tell(f"{path}: 16-bit colour is read with 8 bits per channel; only plain 16-bit gray keeps its depth")
        if file_format == "PNG" and data[25] == 4:  # gray + alpha, handed out as RGBA
            image = image.convert("LA")
    image, icc = to_mode(path, image, icc, tell)
    if orientation in TRANSPOSES:
        image = image.transpose(TRANSPOSES[orientation])
    pixels = np.array(image)
    if pixels.dtype != np.uint8:
        pixels = np.clip(pixels, 0, 65535).astype(np.uint16)
    return Photo(pixels.reshape(*pixels.shape[:2], -1), exif, icc, dpi)


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        x, y = float(value[0]), float(value[1])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None


def _save_options(file_format: str, photo: Photo, quality: int, text: dict[str, str]) -> dict[str, Any]:
    height, width = photo.pixels.shape[:2]
    options: dict[str, Any] = {}
    if photo.dpi is not None and file_format in ("PNG", "JPEG", "TIFF", "BMP"):
        options["dpi"] = photo.dpi
    if file_format == "BMP":
        return options
    if photo.icc is not None:
        options["icc_profile"] = photo.icc
    if photo.exif is not None:
        options["exif"] = patch_exif(photo.exif, {PIXEL_WIDTH: width, PIXEL_HEIGHT: height})
    lines = "\n".join(f"{key}: {value}" for key, value in text.items())
    if file_format == "PNG":
        chunks = PngImagePlugin.PngInfo()
        for key, value in text.items():
            chunks.add_text(key, value)
        options |= {"pnginfo": chunks, "compress_level": 6}
    elif file_format == "JPEG":
        options |= {"quality": quality, "subsampling": 0 if quality >= 90 else 2, "optimize": False}
        options |= {"comment": lines.encode()} if lines else {}
    elif file_format == "WEBP":
        options |= {"quality": quality, "method": 4}
    elif file_format == "TIFF":
        # Pillow's compressing writer (libtiff) fails on nested EXIF directories, its plain one does not.
        options |= {"compression": "tiff_adobe_deflate" if photo.exif is None else "raw"}
        options |= {"description": lines} if lines else {}
    return options


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[io.BufferedWriter]:
    """A stream into a temporary file of the same folder: moved onto `path` at the end, removed on failure."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be written ({error.strerror or error}): check folder, permissions and free space"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
