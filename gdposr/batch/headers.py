"""What the header of a photo tells before it is decoded: its size, and whether gdposr wrote it."""

import os
import stat
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

_SOFTWARE = 0x0131  # EXIF and TIFF


def looked_at(path: Path) -> tuple[int | None, bool]:
    """(pixels, whether gdposr wrote the picture). (None, False) where the header cannot be read; no pipe or device is opened."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None, False
    except (OSError, ValueError):
        return None, False
    return looked_into(path)


def looked_into(file: "Path | IO[bytes]") -> tuple[int | None, bool]:
    """As `looked_at`, for a regular file or a stream that can be rewound."""
    from PIL import Image

    from runtime.image.read.decode import READ_FORMATS

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's size limit; `read_photo` has its own
            Image.init()
            with Image.open(file, formats=[name for name in READ_FORMATS if name in Image.OPEN]) as image:
                return image.width * image.height, _is_own(image)
    # Pillow's readers raise what they like; the damage is reported when the photo's turn comes
    except Exception:
        return None, False


def _is_own(image: "Image.Image") -> bool:
    """By the notes that gdposr leaves in its outputs. BMP has no place for them."""
    if "gdposr-seed" in image.info:
        return True
    if image.format == "TIFF" or b"gdposr" in image.info.get("exif", b""):
        software = image.getexif().get(_SOFTWARE)
    else:
        return False
    return str(software).startswith("gdposr ")
