"""Photos in and out: decoding with clear errors, metadata kept, files written atomically.

Pixels are (H, W, C) uint8 or uint16 with C = 1 gray, 2 gray + alpha, 3 RGB, 4 RGB + alpha. What is read: PNG,
JPEG (and MPO), TIFF, WebP, BMP, GIF, PPM/PGM, AVIF where Pillow has it, HEIC where pillow-heif is installed.
What is kept: EXIF, ICC profile, dpi. Orientation is applied to the pixels once and the tag reset. PNG and TIFF
(and binary PPM) are read at 16 bits per channel, PNG and TIFF written so; whatever is reduced to 8 bits on the
way in or out is announced through `notify`, never in silence.
"""

import contextlib
import glob
import os
import secrets
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import ImageError
from .bands import Strips
from .exif import EXIF_HEADER, ORIENTATION, exif_dpi, is_sound, tiff_exif, upright_exif
from .read.decode import check_still, decoded, open_photo, upright
from .write.encode import MODES, WRITE_FORMATS, check_output, encode

__all__ = [
    "MAX_PIXELS", "SUFFIXES", "WRITE_FORMATS", "Photo", "atomic_file", "check_output", "find_photos", "read_photo", "write_photo",
]  # fmt: skip

SUFFIXES = (
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jpe", ".jpeg", ".jpg",
    ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
MAX_PIXELS: Final = 100_000_000
_MOST_METADATA: Final = 256 << 20  # bytes of a file beside its pixels, which take at most 8 bytes each


@dataclass(frozen=True, eq=False)
class Photo:
    """Pixels with the metadata that belongs to them.

    pixels: (H, W, C) uint8 or uint16, C in 1..4, as an array, or for writing as `Strips` of that shape, which are
    made while they are written. exif: EXIF block or None. icc: colour profile of these pixels; None means sRGB.
    dpi: horizontal and vertical resolution or None.
    """

    pixels: Any  # not a union: who reads a photo has an array, who writes one may have strips
    exif: bytes | None = None
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if isinstance(self.pixels, Strips) and len(shape) == 2:
            shape = (*shape, 1)
        if len(shape) != 3 or shape[2] not in MODES or 0 in shape or dtype not in (np.uint8, np.uint16):
            raise ImageError(
                f"a photo needs pixels (H, W, 1..4) of uint8 or uint16, got shape {shape} of {dtype}: "
                "add the channel axis or convert the type first"
            )


def read_photo(
    path: str | os.PathLike[str],
    max_pixels: int = MAX_PIXELS,
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
    data = _content(path, max_pixels)
    try:
        with open_photo(path, data) as image:
            check_still(path, image, max_pixels)
            pixels, icc = decoded(path, data, image, tell)
            exif, orientation = _exif(path, image, tell)
            dpi = _dpi(image.info.get("dpi")) or (exif_dpi(exif) if exif is not None else None)
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
    return Photo(upright(pixels, orientation), exif, icc, dpi)


def write_photo(
    path: str | os.PathLike[str],
    photo: Photo,
    quality: int = 95,
    text: dict[str, str] | None = None,
    *,
    notify: Callable[[str], None] | None = None,
) -> None:
    """Write a photo in the format of the suffix; the file appears complete or not at all.

    quality: 1..100, for JPEG, WebP and AVIF. text: notes such as the seed, kept in PNG's text chunks, in JPEG, TIFF,
    WebP and AVIF in EXIF: "Software" in the tag of that name, the others in UserComment; BMP has no place for them.
    What the format makes less of, such as 16 bits in a JPEG, is announced through `notify` (default: `warnings.warn`).
    """
    path = Path(path)
    tell = notify or (lambda message: warnings.warn(message, stacklevel=3))
    check_output(path, photo.pixels.shape, photo.pixels.dtype)  # before anything is computed or created
    with atomic_file(path) as stream:
        encode(
            path, stream, photo.pixels, exif=photo.exif, icc=photo.icc, dpi=photo.dpi, quality=quality, text=text or {}, tell=tell
        )  # fmt: skip


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


def _content(path: Path, max_pixels: int) -> bytes:
    """The bytes of a file, unless it is none, or larger than any picture within the limit can be."""
    limit = 8 * max_pixels + _MOST_METADATA
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size > limit:
            raise ImageError(
                f"{path}: {status.st_size / 1e6:.0f} MB are more than a picture of {max_pixels / 1e6:g} megapixels takes: "
                "scale or crop it first, or raise the limit (--max-pixels, in Python max_pixels)"
            )
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


def _exif(path: Path, image: Image.Image, tell: Callable[[str], None]) -> tuple[bytes | None, int]:
    """The EXIF block of an opened picture with orientation 1, and the orientation it had."""
    if image.format == "TIFF":
        tags = image.getexif()
        return tiff_exif(tags), tags.get(ORIENTATION, 1)
    stored = image.info.get("exif")
    if stored is None:
        return None, image.getexif().get(ORIENTATION, 1)
    exif, orientation = upright_exif(EXIF_HEADER + bytes(stored).removeprefix(EXIF_HEADER))
    if not is_sound(exif):
        tell(f"{path}: the EXIF block is damaged and dropped")
        return None, orientation
    return exif, orientation


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        x, y = float(value[0]), float(value[1])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
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
