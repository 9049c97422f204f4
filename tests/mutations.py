"""Small valid picture files, and damage to files, always the same for the same seed. For the fuzz tests."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, features

EDGES = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
PNG_START = b"\x89PNG\r\n\x1a\n"


def pictures() -> dict[str, bytes]:
    """File name -> content: every format that is read, in its kinds, 12x9 pixels."""
    found = {name: _saved(mode, **options) for name, mode, options in _KINDS}
    if features.check("avif"):
        found["rgb.avif"] = _saved("RGB", format="AVIF")
    frames = [_image("P"), _image("P").rotate(180)]
    found["animated.gif"] = _saved("P", format="GIF", save_all=True, append_images=frames[1:])
    found["pages.tif"] = _saved("RGB", format="TIFF", save_all=True, append_images=[_image("RGB")])
    found["film.webp"] = _saved(
        "RGB", format="WEBP", save_all=True, append_images=[_image("RGB").rotate(180)]
    )
    found["film.png"] = _saved("RGB", format="PNG", save_all=True, append_images=[_image("RGB").rotate(180)])
    for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        found[f"deep{channels}.png"] = deep_png(colour, channels)
    found["deep.ppm"] = b"P6 12 9 65535\n" + _values(12 * 9 * 6)
    found["deep.tif"] = deep_tiff()
    found["text.pgm"] = b"P2\n# words\n3 2 255\n0 1 2\n3 4 255\n"
    return found


def damage(content: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """One to three mutations of a file. others: files to splice pieces from."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        draw.choice(_DAMAGES)(data, draw, others)
    # Half of the damaged PNG files get right checksums again, so that what is behind them is reached.
    return repaired(bytes(data)) if data.startswith(PNG_START) and draw.random() < 0.5 else bytes(data)


def repaired(content: bytes) -> bytes:
    """A PNG with the right checksum in every chunk that is whole."""
    data, at = bytearray(content), len(PNG_START)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(data)


def deep_png(colour: int, channels: int) -> bytes:
    """A PNG with 16 bits per channel, which Pillow cannot write."""
    rows = b"".join(bytes([row % 5]) + _values(12 * channels * 2) for row in range(9))
    header = struct.pack(">IIBBBBB", 12, 9, 16, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"pHYs", struct.pack(">IIB", 2835, 2835, 1))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return png(*chunks)


def deep_tiff() -> bytes:
    """A little-endian RGB TIFF with 16 bits per channel, in one strip behind its directory."""
    tags = ((256, 3, 1, 12), (257, 3, 1, 9), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 206), (277, 3, 1, 3),
            (278, 3, 1, 9), (279, 4, 1, 12 * 9 * 6), (284, 3, 1, 1))  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    head = b"II*\0" + struct.pack("<I", 8) + directory
    return head.ljust(200, b"\0") + struct.pack("<3H", 16, 16, 16) + _values(12 * 9 * 6)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of (kind, body) chunks, with their lengths and checksums."""
    return PNG_START + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks
    )


def _values(count: int) -> bytes:
    return random.Random(count).randbytes(count)


def _image(mode: str) -> Image.Image:
    y, x = np.mgrid[:9, :12]
    planes = [20 * x + y, 9 * y + x, 255 - 10 * x, 100 + 12 * y]
    if mode == "I;16":
        return Image.fromarray((planes[0] * 200).astype(np.uint16))
    if mode in ("P", "1"):
        return Image.fromarray(planes[0].astype(np.uint8)).convert(mode)
    count = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = np.stack(planes[:count], 2).astype(np.uint8)
    return Image.frombytes(mode, (12, 9), pixels.tobytes())


def _saved(mode: str, **options: object) -> bytes:
    stream = io.BytesIO()
    _image(mode).save(stream, **options)
    return stream.getvalue()


def _exif() -> bytes:
    tags = Image.Exif()
    tags[0x0112], tags[0x010E], tags[0x011A] = 6, "a photo", 72.0
    tags.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0note"
    return tags.tobytes()


def _icc() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _kinds() -> list[tuple[str, str, dict[str, object]]]:
    meta: dict[str, object] = {"exif": _exif(), "icc_profile": _icc()}
    return [
        ("l.png", "L", {"format": "PNG"}),
        ("la.png", "LA", {"format": "PNG"}),
        ("rgb.png", "RGB", {"format": "PNG", **meta}),
        ("rgba.png", "RGBA", {"format": "PNG", "dpi": (300, 300)}),
        ("p.png", "P", {"format": "PNG", "transparency": 3}),
        ("1.png", "1", {"format": "PNG"}),
        ("l.jpg", "L", {"format": "JPEG"}),
        ("rgb.jpg", "RGB", {"format": "JPEG", **meta}),
        ("progressive.jpg", "RGB", {"format": "JPEG", "progressive": True, "comment": b"words"}),
        ("cmyk.jpg", "CMYK", {"format": "JPEG"}),
        ("lossy.webp", "RGB", {"format": "WEBP", **meta}),
        ("lossless.webp", "RGBA", {"format": "WEBP", "lossless": True}),
        ("raw.tif", "RGB", {"format": "TIFF", **meta}),
        ("deflate.tif", "RGBA", {"format": "TIFF", "compression": "tiff_adobe_deflate"}),
        ("lzw.tif", "L", {"format": "TIFF", "compression": "tiff_lzw"}),
        ("jpeg.tif", "RGB", {"format": "TIFF", "compression": "jpeg"}),
        ("gray16.tif", "I;16", {"format": "TIFF"}),
        ("gray16.png", "I;16", {"format": "PNG"}),
        ("rgb.bmp", "RGB", {"format": "BMP"}),
        ("p.bmp", "P", {"format": "BMP"}),
        ("p.gif", "P", {"format": "GIF", "transparency": 2}),
        ("rgb.ppm", "RGB", {"format": "PPM"}),
        ("l.pgm", "L", {"format": "PPM"}),
    ]


def _flip(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    for _ in range(draw.randint(1, 8) if data else 0):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _scribble(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    """Random bytes into the first hundred, where headers stand."""
    for _ in range(draw.randint(1, 6) if data else 0):
        data[draw.randrange(min(100, len(data)))] = draw.randrange(256)


def _cut(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    del data[draw.randrange(len(data) + 1) :]


def _grow(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    data += draw.randbytes(draw.choice((1, 10, 1000)))


def _splice(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    other = draw.choice(others)
    start, at = draw.randrange(len(other)), draw.randrange(len(data) + 1)
    piece = other[start : start + draw.choice((4, 30, 300))]
    data[at : at + draw.choice((0, len(piece)))] = piece


def _drop(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    at = draw.randrange(len(data) + 1)
    del data[at : at + draw.choice((1, 4, 12, 50))]


def _repeat(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    at = draw.randrange(len(data) + 1)
    piece = data[at : at + draw.choice((1, 12, 200))]
    data[at:at] = piece * draw.choice((1, 3, 50))


def _number(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    """A number at the edge of its type, where a length, a count, a width or an offset may stand."""
    size, order = draw.choice((1, 2, 4)), draw.choice(("little", "big"))
    at = draw.randrange(max(1, min(len(data), draw.choice((40, 200, 10_000)))))
    data[at : at + size] = (draw.choice(EDGES) & (1 << 8 * size) - 1).to_bytes(size, order)


_Damage = Callable[[bytearray, random.Random, list[bytes]], None]
_DAMAGES: tuple[_Damage, ...] = (_flip, _scribble, _cut, _grow, _splice, _drop, _repeat, _number, _number)
_KINDS = _kinds()
