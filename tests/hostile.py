"""Picture files made to take memory or time: small files that ask for much. For the fuzz tests."""

import struct
import zlib

from mutations import deep_tiff, png

BOMB_BYTES = 256 << 20  # what the bombs unpack to; more than the tests leave a process

END = (b"IEND", b"")
PIXELS = (b"IDAT", zlib.compress(bytes(9 * 37)))  # of 12x9 RGB


def hostile() -> dict[str, bytes]:
    """File name -> content."""
    return _huge() | _bombs() | _long_lists() | _tiffs()


def _huge() -> dict[str, bytes]:
    """Headers that state more pixels than there are, up to what their fields can say."""
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    return {
        "huge.png": png(_header(2**31 - 1, 2**31 - 1), PIXELS, END),
        "deep_huge.png": png(_header(60_000, 60_000, 16), PIXELS, END),
        "line.png": png(_header(2**31 - 1, 1), PIXELS, END),
        "zero.png": png(_header(0, 9), PIXELS, END),
        "short.png": png(_header(1000, 1000), PIXELS, END),
        "deep_short.png": png(_header(400, 400, 16), PIXELS, END),
        "no_pixels.png": png(_header(12, 9), END),
        "deep_no_pixels.png": png(_header(12, 9, 16), END),
        "huge.bmp": _bmp(2**31 - 1, 2**31 - 1),
        "upside_down.bmp": _bmp(9, -(2**31)),
        "huge.ppm": b"P6 100000 100000 255\n" + bytes(10),
        "digits.ppm": b"P6 " + b"9" * 100_000 + b" 1 255\n",
        "comment.ppm": b"P6\n#" + b"x" * 300_000,
        "float.pfm": b"Pf 3 2 -1.0\n" + bytes(24),
        "huge.gif": gif + _frame(65535, 65535) + b";",
        "huge.webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6 + b"VP8 \0\0\0\0",
    }


def _bombs() -> dict[str, bytes]:
    """Few bytes that unpack to many."""
    packer, zeros = zlib.compressobj(1), bytes(1 << 20)
    bomb = b"".join(packer.compress(zeros) for _ in range(BOMB_BYTES >> 20)) + packer.flush()
    found = {
        "bomb.png": png(_header(12, 9), (b"IDAT", bomb), END),
        "deep_bomb.png": png(_header(12, 9, 16), (b"IDAT", bomb), END),
        "deep_interlaced.png": png(_header(12, 9, 16, 6, 1), (b"IDAT", bomb), END),
    }
    for kind, head in (("zTXt", b"k\0\0"), ("iTXt", b"k\0\1\0\0\0"), ("iCCP", b"k\0\0")):
        for depth in (8, 16):
            chunk = (kind.encode(), head + bomb)
            found[f"{kind}{depth}.png"] = png(_header(12, 9, depth), chunk, PIXELS, END)
    text = (
        b"zTXt",
        b"k\0\0" + zlib.compress(bytes(900_000)),
    )  # below what Pillow allows a text; not all together
    found["texts.png"] = png(_header(12, 9), *[text] * 200, PIXELS, END)
    tiff = _stated(_stated(deep_tiff(), 259, 8), 279, len(bomb))  # deflate
    found["deep_bomb.tif"] = tiff[:206] + bomb
    return found


def _long_lists() -> dict[str, bytes]:
    """Chunks, frames and markers without end."""
    gif = b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0, 0, 0)
    exif = b"\xff\xe1\xff\xffExif\0\0II*\0\x08\0\0\0" + bytes(65519)
    return {
        "many_chunks.png": png(_header(12, 9), *[(b"IDAT", b"")] * 20_000, PIXELS, END),
        "deep_many_chunks.png": png(_header(12, 9, 16), *[(b"IDAT", b"")] * 20_000, PIXELS, END),
        "many_headers.png": png(*[_header(12, 9)] * 1000, PIXELS, END),
        "film.png": png(_header(12, 9), (b"acTL", struct.pack(">II", 2**31 - 1, 0)), PIXELS, END),
        "film.gif": gif + _frame(2, 2) * 20_000 + b";",
        "exif.jpg": b"\xff\xd8" + exif * 4 + b"\xff\xd9",
        "markers.jpg": b"\xff\xd8" + b"\xff\xe0\x00\x02" * 50_000,
    }


def _tiffs() -> dict[str, bytes]:
    """Directories that lead to themselves or state counts that nothing follows."""
    head, most = b"II*\0" + struct.pack("<I", 8), 2**32 - 1
    width = struct.pack("<HHII", 256, 4, most, 26)
    found = {
        "loop.tif": head + struct.pack("<H", 1) + struct.pack("<HHIII", 256, 3, 1, 9, 8),
        "count.tif": head + struct.pack("<H", 65535) + bytes(200),
        "values.tif": head
        + struct.pack("<H", 2)
        + width
        + struct.pack("<HHII", 257, 4, 2**31, 26)
        + bytes(64),
    }
    for tag in (256, 257, 258, 273, 277, 278, 279):
        found[f"deep{tag}.tif"] = _stated(deep_tiff(), tag, most)
    return found


def _stated(tiff: bytes, tag: int, value: int) -> bytes:
    """`deep_tiff` with another value of one tag."""
    at = next(at for at in range(10, 130, 12) if tiff[at : at + 2] == struct.pack("<H", tag))
    return tiff[: at + 8] + struct.pack("<I", value) + tiff[at + 12 :]


def _header(
    width: int, height: int, depth: int = 8, colour: int = 2, interlaced: int = 0
) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)


def _bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IIIIiiHHIIiiII", 80, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + head + bytes(26)


def _frame(width: int, height: int) -> bytes:
    """A frame of a GIF, almost without pixels."""
    return b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00"
