"""EXIF blocks edited in place, so that what we do not understand (maker notes, previews) stays byte for byte.

An EXIF block is a small TIFF file after the header "Exif\\0\\0": a byte order mark, then directories of
12-byte entries (tag, type, count, value). Numbers that fit are stored in the entry itself, so overwriting one
moves nothing.
"""

import struct
from collections.abc import Iterator

from PIL import Image

EXIF_HEADER = b"Exif\0\0"
ORIENTATION = 0x0112
PIXEL_WIDTH, PIXEL_HEIGHT = 0xA002, 0xA003
EXIF_DIRECTORY, GPS_DIRECTORY = 0x8769, 0x8825
# Worth carrying out of a TIFF: ImageDescription, Make, Model, Software, DateTime, Artist, Copyright.
TIFF_TAGS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)


def _entries(body: bytes) -> Iterator[tuple[int, int, int, str]]:
    """(tag, type, offset of the value, byte order) of every entry of the first and the Exif directory. Stops
    at damage.
    """
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    if order is None or len(body) < 8:
        return
    todo, seen = [struct.unpack_from(order + "I", body, 4)[0]], set()
    while todo:
        start = todo.pop()
        if start in seen or start + 2 > len(body):
            continue
        seen.add(start)
        count = struct.unpack_from(order + "H", body, start)[0]
        for position in range(start + 2, min(start + 2 + 12 * count, len(body) - 11), 12):
            tag, kind = struct.unpack_from(order + "HH", body, position)
            if tag == EXIF_DIRECTORY:
                todo.append(struct.unpack_from(order + "I", body, position + 8)[0])
            yield tag, kind, position + 8, order


def read_tag(exif: bytes, tag: int = ORIENTATION, default: int = 1) -> int:
    """Value of a SHORT or LONG tag of an EXIF block, `default` where it is missing or of another type."""
    body = exif.removeprefix(EXIF_HEADER)
    for found, kind, offset, order in _entries(body):
        if found == tag and kind in (3, 4):
            return int(struct.unpack_from(order + ("H" if kind == 3 else "I"), body, offset)[0])
    return default


def patch_exif(exif: bytes, values: dict[int, int]) -> bytes:
    """The same EXIF block with the named SHORT or LONG tags overwritten where they are present and wide
    enough.
    """
    body = bytearray(exif.removeprefix(EXIF_HEADER))
    for tag, kind, offset, order in list(_entries(bytes(body))):
        value = values.get(tag)
        if value is None or kind not in (3, 4) or (kind == 3 and value > 0xFFFF):
            continue
        struct.pack_into(order + ("H" if kind == 3 else "I"), body, offset, value)
    return exif[: len(exif) - len(body)] + bytes(body)


def tiff_exif(tags: Image.Exif) -> bytes | None:
    """The descriptive tags of a TIFF (camera, date, author, Exif and GPS directories) as an EXIF block; None
    where there are none.
    """
    kept = Image.Exif()
    for tag in TIFF_TAGS:
        if tag in tags:
            kept[tag] = tags[tag]
    for directory in (EXIF_DIRECTORY, GPS_DIRECTORY):
        content = tags.get_ifd(directory)
        if content:
            kept.get_ifd(directory).update(content)
            kept[directory] = kept.get_ifd(directory)
    return kept.tobytes() if len(kept) else None
