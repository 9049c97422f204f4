"""Reads and packs the metadata of a JPEG that Pillow does not fully give: XMP, IPTC, a comment, and whether there is a gain map."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from .xmp import names_gain_map

XMP_HEADER: Final = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENDED_XMP: Final = b"http://ns.adobe.com/xmp/extension/\0"
PHOTOSHOP_HEADER: Final = b"Photoshop 3.0\0"
# Photoshop's number of the resource that holds IPTC records.
IPTC_RESOURCE: Final = 0x0404
# ISO 21496-1, the gain map of an HDR picture.
_GAIN_MAP: Final = b"urn:iso:std:iso:ts:21496:-1"
# Most bytes of a segment's content: its length has 16 bits and counts itself.
_MOST: Final = 65533
# Markers of segments (ITU-T T.81, table B.1).
_APP1, _APP2, _APP13, _COMMENT, _SCAN = 0xE1, 0xE2, 0xED, 0xFE, 0xDA


@dataclass
class JpegMetadata:
    """The metadata of a JPEG besides EXIF and profile."""

    xmp: bytes | None = None
    """XMP packet, only the part in its first segment."""
    iptc: bytes | None = None
    """IPTC-IIM records."""
    comment: bytes | None = None
    """The first comment, as bytes."""
    lost: list[str] = field(default_factory=list)
    """Parts that are not carried over, in words for a message."""


def jpeg_metadata(data: bytes) -> JpegMetadata:
    """The metadata in the segments before the pixels. Stops at damage."""
    found, gain_map, extended = JpegMetadata(), False, False
    for marker, content in _segments(data):
        if marker == _APP1 and content.startswith(XMP_HEADER) and found.xmp is None:
            found.xmp = content.removeprefix(XMP_HEADER)
            gain_map |= names_gain_map(found.xmp)
        elif marker == _APP1 and content.startswith(_EXTENDED_XMP):
            extended = True
        elif marker == _APP2 and content.startswith(_GAIN_MAP):
            gain_map = True
        elif marker == _APP13 and content.startswith(PHOTOSHOP_HEADER):
            found.iptc = found.iptc or _resource(content.removeprefix(PHOTOSHOP_HEADER), IPTC_RESOURCE)
        elif marker == _COMMENT and found.comment is None:
            found.comment = content
    if gain_map:
        found.lost.append("the gain map (the brighter rendering for HDR screens)")
    if extended:
        found.lost.append("XMP beyond 64 kB")
    return found


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, content) of the segments before the first scan (ITU-T T.81, annex B)."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == _SCAN:
            return
        length = struct.unpack_from(">H", data, position + 2)[0]
        if length < 2 or position + 2 + length > len(data):
            return
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + length


def _resource(content: bytes, wanted: int) -> bytes | None:
    """One of Photoshop's image resources: "8BIM", number, name, length, content, each at an even offset."""
    position = 0
    while content[position : position + 4] == b"8BIM" and position + 12 <= len(content):
        number = struct.unpack_from(">H", content, position + 4)[0]
        name = 1 + content[position + 6]
        position += 6 + name + name % 2
        if position + 4 > len(content):
            return None
        length = struct.unpack_from(">I", content, position)[0]
        position += 4
        if number == wanted:
            return content[position : position + length] or None
        position += length + length % 2
    return None


def packed_segments(
    xmp: bytes | None, iptc: bytes | None, comment: bytes | None
) -> tuple[bytes, tuple[str, ...]]:
    """Segments for the beginning of a JPEG, and the names of entries that are too long for one."""
    resource = b""
    if iptc is not None:
        resource = b"8BIM" + struct.pack(">HHI", IPTC_RESOURCE, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)
    packed, too_long = b"", []
    for name, marker, header, content in (
        ("XMP", _APP1, XMP_HEADER, xmp or b""),
        ("IPTC", _APP13, PHOTOSHOP_HEADER, resource),
        ("the comment", _COMMENT, b"", comment or b""),
    ):
        if len(header) + len(content) > _MOST:
            too_long.append(name)
        elif content:
            packed += struct.pack(">BBH", 0xFF, marker, 2 + len(header) + len(content)) + header + content
    return packed, tuple(too_long)
