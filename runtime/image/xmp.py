"""XMP packets: size and orientation are corrected for the enlarged picture. The rest stays byte for byte."""

import re
from typing import Final

# Statements of the size, as attributes or elements (XMP specification, part 2, Sec. 2).
_SIZES: Final = {
    b"tiff:ImageWidth": 0,
    b"exif:PixelXDimension": 0,
    b"tiff:ImageLength": 1,
    b"exif:PixelYDimension": 1,
}
_ORIENTATION: Final = re.compile(rb"(tiff:Orientation\s{0,9}(?:=\s{0,9}[\"']|>))([1-8])")
# Elements that are no longer true: small copies of the old picture; the directory and the settings of an Ultra-HDR picture's gain map,
# which is a second picture in the file.
_STALE: Final = tuple(
    name.encode("ascii")
    for name in (
        "xmp:Thumbnails", "Container:Directory", "hdrgm:GainMapMin", "hdrgm:GainMapMax", "hdrgm:Gamma", "hdrgm:OffsetSDR",
        "hdrgm:OffsetHDR",
    )
)  # fmt: skip
_GAIN_MAP: Final = re.compile(rb"\shdrgm:\w{1,40}=(?:\"[^\"]{0,99}\"|'[^']{0,99}')")


def xmp_orientation(xmp: bytes) -> int:
    """EXIF's orientation, 1 to 8, as a packet states it. 1 if it states none."""
    found = _ORIENTATION.search(xmp)
    return int(found[2]) if found else 1


def names_gain_map(xmp: bytes) -> bool:
    """Whether a packet belongs to a picture with a gain map (Ultra HDR)."""
    return b"hdrgm:" in xmp


def revised_xmp(xmp: bytes, width: int, height: int) -> bytes:
    """The packet of the enlarged picture: upright, of the new size, without thumbnails and without a gain map."""
    xmp = _ORIENTATION.sub(rb"\g<1>1", xmp)
    for name, axis in _SIZES.items():
        number = str((width, height)[axis]).encode("ascii")
        xmp = re.sub(rb"(" + name + rb"\s{0,9}(?:=\s{0,9}[\"']|>))\d+", rb"\g<1>" + number, xmp)
    for name in _STALE:
        xmp = _without(xmp, name)
    return _GAIN_MAP.sub(b"", xmp)


def _without(xmp: bytes, name: bytes) -> bytes:
    """The packet without its elements of a name. An element without an end stays. The time is always proportional to the length."""
    kept, position = list[bytes](), 0
    while (start := xmp.find(b"<" + name, position)) >= 0:
        end = xmp.find(b"</" + name + b">", start)
        if end < 0:
            break
        kept.append(xmp[position:start])
        position = end + len(name) + 3
    return b"".join([*kept, xmp[position:]])
