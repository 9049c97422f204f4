"""Colour profiles (ICC): kept as they are where they fit the pixels, used where the colours must be converted."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Final

from PIL import Image, ImageCms

_SPACES: Final = {1: b"GRAY", 2: b"GRAY", 3: b"RGB ", 4: b"RGB "}
_HEADER_BYTES: Final = 128


def profile_fault(icc: bytes, channels: int) -> str | None:
    """Why a profile cannot belong to pixels of 1..4 channels (gray, with alpha, RGB, with alpha); None: it can.

    Looks at the header alone (ICC.1:2022, Sec. 7.2): size, colour space, signature.
    """
    if (
        len(icc) < _HEADER_BYTES
        or icc[36:40] != b"acsp"
        or not _HEADER_BYTES <= int.from_bytes(icc[:4]) <= len(icc)
    ):
        return "is damaged"
    space = icc[16:20]
    if space != _SPACES[channels]:
        names = [name.decode("latin-1").strip() for name in (space, _SPACES[channels])]
        return f"is for {names[0]} and the pixels are {names[1]}"
    return None


def cmyk_to_rgb(
    path: Path, image: Image.Image, icc: bytes | None, tell: Callable[[str], None]
) -> Image.Image:
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
