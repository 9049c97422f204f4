"""The chunks of a PNG, also of one whose metadata is damaged.

Pillow refuses a picture for a wrong checksum after its pixels, for a missing end, and for text above a limit. So it gets only the
chunks of the pixels, and metadata is read here.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
# Chunks of the pixels. With the last three, Pillow counts the frames of an animation.
_PIXELS: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_FRAMES: Final = (b"acTL", b"fcTL", b"fdAT")
# Chunks that a viewer needs for the right colours, besides a profile: kind -> bytes (PNG, third edition, Sec. 11.3.2).
_COLOUR_BYTES: Final = {b"cICP": 4, b"gAMA": 4, b"cHRM": 32}
# Most bytes of metadata after decompression, of one chunk and in all.
_MOST_OF_ONE: Final = 8 << 20
_MOST_OF_ALL: Final = 64 << 20
XMP_KEYWORD: Final = "XML:com.adobe.xmp"
_RAW_EXIF: Final = ("Raw profile type exif", "Raw profile type APP1")
# An inch in metres.
INCH: Final = 0.0254


class Chunk(NamedTuple):
    """A chunk of the file."""

    kind: bytes
    """Its type, four letters such as IDAT."""
    content: bytes
    """Its data, without length, type and checksum."""
    sound: bool
    """Whether it is whole and its checksum is right."""
    cut: bool = False
    """Whether the file ends inside it."""


@dataclass
class PngMetadata:
    """The metadata of a PNG."""

    icc: bytes | None = None
    """Colour profile, decompressed."""
    exif: bytes | None = None
    """EXIF block, without the header that precedes it in a JPEG."""
    dpi: tuple[float, float] | None = None
    """Horizontal and vertical resolution. None: not stated, or without a unit."""
    xmp: bytes | None = None
    """XMP packet."""
    text: dict[str, str] = field(default_factory=dict)
    """Keyword -> text of the text chunks."""
    coding: dict[str, bytes] = field(default_factory=dict)
    """Content of the chunks cICP, gAMA and cHRM."""
    lost: list[str] = field(default_factory=list)
    """Parts that could not be read, in words for a message."""


def png_depth(data: bytes) -> tuple[int, int]:
    """(bits per value, colour type) of a PNG's header."""
    return data[24], data[25]


def png_chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks up to IEND or the end of the file. What is cut off is not sound."""
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        content = data[position + 8 : end]
        whole = len(data) >= end + 4
        sound = whole and zlib.crc32(content, zlib.crc32(kind)) == struct.unpack_from(">I", data, end)[0]
        yield Chunk(kind, content, sound, cut=not whole)
        if kind == b"IEND":
            return
        position = end + 4


def pixels_alone(data: bytes) -> tuple[bytes, PngMetadata]:
    """A PNG reduced to its pixel chunks, and the metadata of the others.

    Raises ValueError if a pixel chunk has a wrong checksum. If the file ends inside one, its part is kept, and the decoder finds out
    whether pixels are missing.
    """
    kept, others, broken = list[Chunk](), list[Chunk](), list[str]()
    for chunk in png_chunks(data):
        if chunk.kind in _PIXELS or chunk.kind in _FRAMES:
            if chunk.kind == b"IHDR" and kept:
                broken.append("a second header")
                continue
            if not chunk.sound and not chunk.cut:
                raise ValueError(f"the checksum of chunk {chunk.kind!r} is wrong")
            kept.append(chunk)
        elif chunk.sound:
            others.append(chunk)
        elif chunk.kind != b"IEND":
            broken.append(f"a damaged chunk {_printable(chunk.kind)}")
    parts = [SIGNATURE]
    for chunk in [*kept, Chunk(b"IEND", b"", True)]:
        parts += (struct.pack(">I", len(chunk.content)), chunk.kind, chunk.content)
        parts.append(struct.pack(">I", zlib.crc32(chunk.content, zlib.crc32(chunk.kind))))
    metadata = PngMetadata(lost=broken)
    left = _MOST_OF_ALL
    for chunk in others:
        try:
            left -= _read(chunk, metadata, min(left, _MOST_OF_ONE))
        except (ValueError, zlib.error, struct.error):
            metadata.lost.append(f"a damaged chunk {_printable(chunk.kind)}")
    _from_raw_profile(metadata)
    return b"".join(parts), metadata


def _read(chunk: Chunk, metadata: PngMetadata, most: int) -> int:
    """Read a chunk into metadata, and return its bytes after decompression. ValueError if it is damaged or has more than `most`."""
    kind, content = chunk.kind, chunk.content
    if kind in (b"tEXt", b"zTXt", b"iTXt"):
        keyword, text = _text(kind, content, most)
        if keyword == XMP_KEYWORD:
            metadata.xmp = text.encode()
        else:
            metadata.text.setdefault(keyword, text)
        return len(text)
    if kind == b"iCCP":
        _, _, packed = content.partition(b"\0")
        metadata.icc = _inflated(packed[1:], most)
        return len(metadata.icc)
    if kind == b"eXIf":
        metadata.exif = content
        return len(content)
    if kind == b"pHYs":
        x, y, unit = struct.unpack(">IIB", content)
        if unit == 1:
            metadata.dpi = (x * INCH, y * INCH)
    elif kind in _COLOUR_BYTES:
        if len(content) != _COLOUR_BYTES[kind]:
            raise ValueError("a wrong length")
        metadata.coding[kind.decode()] = content
    return 0


def _text(kind: bytes, content: bytes, most: int) -> tuple[str, str]:
    """(keyword, text) of a text chunk (Sec. 11.3.3)."""
    name, separator, rest = content.partition(b"\0")
    keyword = name.decode("latin-1")
    if not separator or not 1 <= len(keyword) <= 79:
        raise ValueError("no keyword")
    if kind == b"tEXt":
        packed, text = False, rest
    elif kind == b"zTXt":
        packed, text = True, rest[1:]
    else:
        packed = rest[:1] == b"\1"
        text = rest[2:].split(b"\0", 2)[2] if rest[2:].count(b"\0") >= 2 else b""
    text = _inflated(text, most) if packed else text
    if len(text) > most:
        raise ValueError("too much text")
    return keyword, text.decode("utf-8" if kind == b"iTXt" else "latin-1", "replace")


def _inflated(packed: bytes, most: int) -> bytes:
    """Decompressed bytes. ValueError if they are more than `most`."""
    stream = zlib.decompressobj()
    result = stream.decompress(packed, most + 1)
    if len(result) > most or not stream.eof:
        raise ValueError("damaged, or more than is read")
    return result


def _from_raw_profile(metadata: PngMetadata) -> None:
    """EXIF as ImageMagick writes it: a text with a length and hexadecimal digits."""
    for keyword in _RAW_EXIF:
        stored = metadata.text.pop(keyword, None)
        if stored is None or metadata.exif is not None:
            continue
        try:
            metadata.exif = bytes.fromhex("".join(stored.split()[2:])).removeprefix(b"Exif\0\0")
        except ValueError:
            metadata.lost.append("EXIF in a damaged text")


def _printable(kind: bytes) -> str:
    return kind.decode("ascii", "backslashreplace")
