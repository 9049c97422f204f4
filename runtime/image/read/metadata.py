"""Reads the metadata of a file. Damage never stops a photo: an entry that cannot be read is left out with a message."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ..exif import EXIF_HEADER, IPTC, XMP, exif_dpi, is_sound, orientation_of, tiff_exif, upright_exif
from ..jpeg_segments import jpeg_metadata
from ..png_chunks import PngMetadata
from ..xmp import xmp_orientation


def metadata(
    path: Path, data: bytes, image: Image.Image, png: PngMetadata | None, tell: Callable[[str], None]
) -> tuple[dict[str, Any], int]:
    """The fields of `Photo` besides pixels and profile, and the orientation, 1 to 8, that the file states.

    path: names the picture in messages.
    data: the content of the file.
    image: opened by Pillow.
    png: metadata of a PNG's chunks. None: the file is no PNG.
    tell: called with a message for each entry that is left out.
    Raises nothing: an entry that cannot be read is left out.
    """
    fields: dict[str, Any] = {}
    orientation, lost = 1, list[str]()
    if png is not None:
        exif, lost = png.exif, list(png.lost)
        fields |= {"xmp": png.xmp, "text": png.text, "coding": png.coding, "dpi": png.dpi}
    elif image.format == "TIFF":
        tags = image.getexif()
        orientation = orientation_of(image)
        exif, whole = tiff_exif(tags)
        lost += [] if whole else ["EXIF tags that cannot be read"]
        fields |= {"xmp": _tag(tags, XMP), "iptc": _tag(tags, IPTC)}
    else:
        exif = image.info.get("exif")
        fields["xmp"] = image.info.get("xmp")
    if exif is not None and image.format != "TIFF":
        exif, orientation = upright_exif(EXIF_HEADER + bytes(exif).removeprefix(EXIF_HEADER))
        if not is_sound(exif):
            tell(f"{path}: the EXIF block is damaged and dropped")
            exif = None
    elif exif is None and png is None:
        orientation = orientation_of(image)
    elif exif is None and png is not None and png.xmp is not None:
        orientation = xmp_orientation(png.xmp)
    fields["exif"] = exif
    if image.format in ("JPEG", "MPO"):
        found = jpeg_metadata(data)
        lost += found.lost
        fields |= {"xmp": found.xmp, "iptc": found.iptc, "comment": found.comment}
    if fields.get("dpi") is None:
        fields["dpi"] = image.info.get("dpi")
    fields["dpi"] = _dpi(fields["dpi"]) or (exif_dpi(exif) if exif is not None else None)
    if lost:
        tell(f"{path}: not carried over: {', '.join(dict.fromkeys(lost))}")
    return fields, orientation


def _tag(tags: Image.Exif, number: int) -> bytes | None:
    """A TIFF tag of bytes. None if it is missing or of another type."""
    try:
        value = tags.get(number)
    except Exception:  # struct.error, TypeError and others, depending on the damage
        return None
    return value if isinstance(value, bytes) and value else None


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        x, y = float(value[0]), float(value[1])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None
