"""Editing EXIF blocks. Parts that are not understood here, such as maker notes, stay byte for byte where they are.

An EXIF block is a small TIFF file after the header "Exif\\0\\0": a byte order mark, then directories of 12-byte entries (tag, type,
count, value). Offsets count from the byte order mark, so a maker note stays valid only if it does not move. Therefore a number that
fits is overwritten in its entry, and a directory that grows is written again at the end.

Not Pillow's Image.Exif: it rewrites the whole block, which moves maker notes, turns non-ASCII letters into question marks and loses
entries of unknown type. It also raises on damage (81 of 1000 blocks with wrong bytes or a cut end; Pillow 13.0).
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

from PIL import Image

EXIF_HEADER = b"Exif\0\0"
# Numbers of tags (CIPA DC-008, Exif 3.0, Sec. 4.6).
ORIENTATION = 0x0112
PIXEL_WIDTH, PIXEL_HEIGHT = 0xA002, 0xA003
IMAGE_WIDTH, IMAGE_HEIGHT = 0x0100, 0x0101
EXIF_DIRECTORY, GPS_DIRECTORY = 0x8769, 0x8825
# Tags not copied from a TIFF. The first is an offset into the file that it comes from.
_LEFT_OUT: Final = (0xA005, ORIENTATION)
SOFTWARE, USER_COMMENT = 0x0131, 0x9286
# Tags in the directory of a TIFF.
XMP, IPTC = 0x02BC, 0x83BB
# Tags copied from a TIFF: ImageDescription, Make, Model, Software, DateTime, Artist, Copyright.
TIFF_TAGS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
# Numbers of types, and bytes of a value by type (TIFF 6.0, Sec. 2).
BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
TYPE_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
# Tags of the offset and of the size of a thumbnail: as JPEG, as plain rows.
_THUMBNAIL_TAGS: Final = ((0x0201, 0x0202), (0x0111, 0x0117))
# The first 8 bytes of a UserComment.
_PLAIN_CODE, _WIDE_CODE = b"ASCII\0\0\0", b"UNICODE\0"
# A directory without entries.
_EMPTY_BODY: Final = b"II*\0\x08\0\0\0\0\0\0\0\0\0"


@dataclass(frozen=True)
class Entry:
    """One entry of a directory."""

    tag: int
    """Number of the tag, such as `ORIENTATION`."""
    kind: int
    """Type of the value, such as `SHORT`."""
    count: int
    """How many values of that type."""
    field: bytes
    """4 bytes: the value, or its offset if it is longer."""


def byte_order(body: bytes | bytearray) -> str | None:
    """ "<" or ">". None: the body begins with neither mark."""
    return {b"II": "<", b"MM": ">"}.get(bytes(body[:2])) if len(body) >= 8 else None


def directory(body: bytes | bytearray, start: int) -> tuple[list[Entry], int]:
    """Entries of the directory at `start`, and the offset of the next or 0. ValueError if it is cut off."""
    order = byte_order(body)
    if order is None or not 8 <= start <= len(body) - 2:
        raise ValueError("an EXIF directory lies outside its block")
    count = struct.unpack_from(order + "H", body, start)[0]
    end = start + 2 + 12 * count
    if end > len(body):
        raise ValueError("an EXIF directory is cut off")
    entries = [
        Entry(*struct.unpack_from(order + "HHI4s", body, position)) for position in range(start + 2, end, 12)
    ]
    following = struct.unpack_from(order + "I", body, end)[0] if end + 4 <= len(body) else 0
    return entries, following


def packed_directory(order: str, entries: Iterable[Entry]) -> bytes:
    """The bytes of a directory of these entries, sorted by tag. It is the last one of its block."""
    rows = sorted(entries, key=lambda entry: entry.tag)
    cells = (struct.pack(order + "HHI4s", row.tag, row.kind, row.count, row.field) for row in rows)
    return struct.pack(order + "H", len(rows)) + b"".join(cells) + bytes(4)


def is_sound(exif: bytes) -> bool:
    """Whether the first directory can be read."""
    body = exif.removeprefix(EXIF_HEADER)
    order = byte_order(body)
    if order is None:
        return False
    try:
        directory(body, struct.unpack_from(order + "I", body, 4)[0])
    except ValueError:
        return False
    return True


def upright_exif(exif: bytes) -> tuple[bytes, int]:
    """The same EXIF block with orientation 1, and the orientation that it stated. A damaged block is read as far as possible."""
    body = bytearray(exif.removeprefix(EXIF_HEADER))
    stated: list[int] = []
    for tag, kind, offset, order in _entries(bytes(body)):
        if tag == ORIENTATION and kind in (SHORT, LONG):
            number = struct.Struct(order + ("H" if kind == SHORT else "I"))
            stated += number.unpack_from(body, offset)
            number.pack_into(body, offset, 1)
    return exif[: len(exif) - len(body)] + bytes(body), (stated or [1])[0]


def orientation_of(image: Image.Image) -> int:
    """Orientation 1 to 8 that a Pillow image states. 1 if it states none, or none that can be read.

    Use this function only: Pillow's `exif_transpose` rewrites all tags and raises for a mistyped one.
    """
    try:
        stated = image.getexif().get(ORIENTATION, 1)
    except Exception:  # struct.error, TypeError, SyntaxError and others, depending on the damage
        stored = image.info.get("exif")
        stated = upright_exif(bytes(stored))[1] if isinstance(stored, bytes) else 1
    return stated if isinstance(stated, int) and 1 <= stated <= 8 else 1


def exif_dpi(exif: bytes) -> tuple[float, float] | None:
    """Horizontal and vertical resolution that the first directory states, in dots per inch."""
    body = exif.removeprefix(EXIF_HEADER)
    order = byte_order(body)
    assert order is not None
    tags = {entry.tag: entry for entry in directory(body, struct.unpack_from(order + "I", body, 4)[0])[0]}
    values = [_value(body, order, tags.get(tag)) for tag in (X_RESOLUTION, Y_RESOLUTION)]
    unit = tags.get(RESOLUTION_UNIT, Entry(0, SHORT, 1, struct.pack(order + "HH", 2, 0))).field
    factor = {2: 1.0, 3: 2.54}.get(struct.unpack_from(order + "H", unit)[0])  # per inch, per centimetre
    if factor is None or any(len(value) != 8 for value in values):
        return None
    (x, per_x), (y, per_y) = (struct.unpack(order + "II", value) for value in values)
    return (x / per_x * factor, y / per_y * factor) if x and y and per_x and per_y else None


def revised_exif(
    exif: bytes | None,
    width: int,
    height: int,
    text: Mapping[str, str],
    dpi: tuple[float, float] | None = None,
) -> bytes | None:
    """The EXIF block of the enlarged picture, without the thumbnail of the old one. None: there is nothing to state.

    exif: the old block. One that cannot be read is left out.
    width, height: of the enlarged picture. Size and orientation are corrected if the old block states them.
    text: "Software" becomes the tag of that name. Each other note becomes a line KEY=VALUE at the end of UserComment, and older lines
        with the same key are removed.
    dpi: the resolution to state. None: as it is.
    """
    notes = {key: value for key, value in text.items() if key != "Software"}
    if exif is None or not is_sound(exif):
        if not text and dpi is None:
            return None
        exif = _EMPTY_BODY
    body = bytearray(exif.removeprefix(EXIF_HEADER))
    order = byte_order(body)
    assert order is not None
    entries, following = directory(body, struct.unpack_from(order + "I", body, 4)[0])
    _drop_thumbnail(body, order, following)
    first = {entry.tag: entry for entry in entries}
    details = _details(body, order, first.get(EXIF_DIRECTORY))
    for group, tag, value in (
        (first, IMAGE_WIDTH, width), (first, IMAGE_HEIGHT, height), (details, PIXEL_WIDTH, width),
        (details, PIXEL_HEIGHT, height),
    ):  # fmt: skip
        if tag in group:
            group[tag] = Entry(tag, LONG, 1, struct.pack(order + "I", value))
    for group in (first, details):
        if ORIENTATION in group:  # the pixels are upright
            group[ORIENTATION] = Entry(ORIENTATION, SHORT, 1, struct.pack(order + "HH", 1, 0))
    for tag, resolution in zip((X_RESOLUTION, Y_RESOLUTION), dpi or (), strict=False):
        ratio = struct.pack(order + "II", *Fraction(resolution).limit_denominator(1000).as_integer_ratio())
        first[tag] = replace(_appended(body, order, tag, RATIONAL, ratio), count=1)
        first[RESOLUTION_UNIT] = Entry(RESOLUTION_UNIT, SHORT, 1, struct.pack(order + "HH", 2, 0))
    if "Software" in text:
        name = text["Software"].encode("ascii", "backslashreplace") + b"\0"
        first[SOFTWARE] = _appended(body, order, SOFTWARE, ASCII, name)
    if notes:
        comment = _comment(_value(body, order, details.get(USER_COMMENT)), notes, order)
        details[USER_COMMENT] = _appended(body, order, USER_COMMENT, UNDEFINED, comment)
    if details:
        offset = _append(body, packed_directory(order, details.values()))
        first[EXIF_DIRECTORY] = Entry(EXIF_DIRECTORY, LONG, 1, struct.pack(order + "I", offset))
    struct.pack_into(order + "I", body, 4, _append(body, packed_directory(order, first.values())))
    return EXIF_HEADER + bytes(body)


def tiff_exif(tags: Image.Exif) -> tuple[bytes | None, bool]:
    """The descriptive tags of a TIFF (camera, date, author, Exif and GPS directories) as an EXIF block, and whether all could be read.

    A tag that cannot be read, or not be written again, is left out. None: there is nothing.
    """
    kept, whole = Image.Exif(), True
    for tag in TIFF_TAGS:
        try:
            if tag in tags:
                # text in UTF-8 comes as Latin-1 letters, which Pillow would write as question marks
                value = tags[tag]
                whole &= _add(kept, tag, value.encode("latin-1") if isinstance(value, str) else value)
        except Exception:  # struct.error, TypeError, UnicodeError and others, depending on the damage
            whole = False
    for name in (EXIF_DIRECTORY, GPS_DIRECTORY):
        try:
            content = {tag: value for tag, value in tags.get_ifd(name).items() if tag not in _LEFT_OUT}
        except Exception:  # as above
            whole = False
            continue
        if content:
            whole &= _add(kept, name, content)
    return (kept.tobytes() if len(kept) else None), whole


def _add(block: Image.Exif, tag: int, value: Any) -> bool:
    """Add a tag, unless Pillow could not write it. Returns whether it was added."""
    block[tag] = value
    try:
        block.tobytes()
    except Exception:  # Pillow writes a value by its Python type and fails in as many ways
        del block[tag]
        return False
    return True


def _entries(body: bytes) -> Iterator[tuple[int, int, int, str]]:
    """(tag, type, offset of the value, byte order) of every entry of the first and the Exif directory. Stops at damage."""
    order = byte_order(body)
    if order is None:
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


def _details(body: bytes | bytearray, order: str, pointer: Entry | None) -> dict[int, Entry]:
    """Entries of the Exif directory by tag. Empty if there is no such directory or it cannot be read."""
    if pointer is None:
        return {}
    try:
        return {
            entry.tag: entry for entry in directory(body, struct.unpack(order + "I", pointer.field)[0])[0]
        }
    except ValueError:
        return {}


def _value(body: bytes | bytearray, order: str, entry: Entry | None) -> bytes:
    """The bytes of an entry's value. Empty if it is missing or lies outside the block."""
    if entry is None:
        return b""
    length = TYPE_BYTES.get(entry.kind, 1) * entry.count
    if length <= 4:
        return entry.field[:length]
    offset = struct.unpack(order + "I", entry.field)[0]
    return bytes(body[offset : offset + length]) if offset + length <= len(body) else b""


def _append(body: bytearray, content: bytes) -> int:
    """Add bytes at the end, on an even offset as TIFF demands. Returns the offset."""
    body += bytes(len(body) % 2)
    offset = len(body)
    body += content
    return offset


def _appended(body: bytearray, order: str, tag: int, kind: int, value: bytes) -> Entry:
    """An entry of a byte type. A value that does not fit the entry is added at the end of the block."""
    field = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(order + "I", _append(body, value))
    return Entry(tag, kind, len(value), field)


def _drop_thumbnail(body: bytearray, order: str, start: int) -> None:
    """Remove the thumbnail of the second directory, which shows the old photo: cut off at the end of the block, else blanked."""
    try:
        entries = {entry.tag: entry for entry in directory(body, start)[0]} if start else {}
    except ValueError:
        return
    for where, size in _THUMBNAIL_TAGS:
        if where not in entries or size not in entries or entries[where].count != 1:
            continue
        position, length = (struct.unpack(order + "I", entries[tag].field)[0] for tag in (where, size))
        if entries[size].kind == SHORT:
            length = struct.unpack(order + "H", entries[size].field[:2])[0]
        if 8 <= position <= position + length <= len(body):
            body[position : position + length] = b"" if position + length == len(body) else bytes(length)


def _comment(old: bytes, notes: Mapping[str, str], order: str) -> bytes:
    """A UserComment with its old text, and a line KEY=VALUE for each note behind it."""
    wide = old.startswith(_WIDE_CODE)
    # Latin-1 keeps any byte as it is
    encoding = ("utf-16-le" if order == "<" else "utf-16-be") if wide else "latin-1"
    said = old[8:].decode(encoding, "replace").rstrip("\0 \n")
    kept = [line for line in said.split("\n") if line.split("=")[0] not in notes] if said else []
    fresh = [f"{key}={value}" for key, value in notes.items()]
    lines = [*kept, *(line.encode("ascii", "backslashreplace").decode() for line in fresh)]
    return (old[:8] if said else _PLAIN_CODE) + "\n".join(lines).encode(encoding if said else "ascii")
