"""The notes that gdposr writes into pictures, and what the header of a photo tells: its size, and whether those notes are in it."""

import os
import stat
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING

from gdposr import __version__

if TYPE_CHECKING:
    from PIL import Image

# A tag of EXIF and TIFF.
_SOFTWARE = 0x0131


def read_header(path: Path) -> tuple[int | None, bool]:
    """(pixels, whether gdposr wrote the picture). (None, False) if the header cannot be read, and for pipes and devices."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None, False
    except (OSError, ValueError):
        return None, False
    return read_header_from(path)


def read_header_from(file: "Path | IO[bytes]") -> tuple[int | None, bool]:
    """As `read_header`, of a regular file or a seekable stream."""
    from PIL import Image

    from runtime.image.read.decode import READ_FORMATS

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about Pillow's size limit; `read_photo` has its own
            Image.init()
            with Image.open(file, formats=[name for name in READ_FORMATS if name in Image.OPEN]) as image:
                return image.width * image.height, _is_own(image)
    # Pillow raises many kinds of errors. The photo is reported when it is read.
    except Exception:
        return None, False


def notes_of(seed: int, sample: str, digest: str, precision: str, temperature: float = 1.0) -> dict[str, str]:
    """The notes inside an output on how it was made.

    seed: of the noise.
    sample: one number, or the first and last of a sheet, "0-3".
    digest: of the bundle.
    precision: of the model.
    temperature: of the noise; noted unless it is 1.
    """
    return {
        "Software": f"gdposr {__version__}",
        "gdposr-seed": str(seed),
        "gdposr-sample": sample,
        "gdposr-bundle": digest,
        "gdposr-precision": precision,
        **({} if temperature == 1.0 else {"gdposr-temperature": f"{temperature:g}"}),
    }


def _is_own(image: "Image.Image") -> bool:
    """Whether gdposr's notes are in a picture. A BMP cannot hold them."""
    if "gdposr-seed" in image.info:
        return True
    if image.format == "TIFF" or b"gdposr" in image.info.get("exif", b""):
        software = image.getexif().get(_SOFTWARE)
    else:
        return False
    return str(software).startswith("gdposr ")
