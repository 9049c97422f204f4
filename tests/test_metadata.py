"""Metadata never costs pixels: what is odd is left out and said, what is still true of the larger picture is carried."""

import contextlib
import io
import random
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import ImageError
from runtime.image.arrays import as_picture
from runtime.image.photo import Photo
from runtime.image.png_chunks import SIGNATURE
from runtime.image.read.decode import check_photo, read_photo
from runtime.image.write.encode import write_photo
from runtime.image.xmp import revised_xmp

PIXELS = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" exif:PixelXDimension="40" tiff:ImageLength = \'30\' '
    b'dc:creator="somebody"><exif:PixelYDimension>30</exif:PixelYDimension><xmp:Thumbnails><a/></xmp:Thumbnails></rdf:Description>'
    b"</x:xmpmeta>"
)
IPTC = b"\x1c\x02\x78\x00\x05words"


def png(*chunks: tuple[bytes, bytes], depth: int = 8, end: bool = True) -> bytes:
    """A picture of PIXELS with further chunks in front of its pixels."""
    rows = PIXELS if depth == 8 else PIXELS.astype(">u2") * 257
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = (b"IHDR", struct.pack(">IIBBBBB", 40, 30, depth, 2, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", packed), *([(b"IEND", b"")] if end else [])]
    return SIGNATURE + b"".join(chunk(kind, content) for kind, content in parts)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def read(path: Path, data: bytes) -> tuple[Photo, list[str]]:
    path.write_bytes(data)
    said: list[str] = []
    return read_photo(path, notify=said.append), said


def as_8_bits(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else (pixels // 257).astype(np.uint8)


def jpeg(**options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


# ---------------------------------------------------------------------------------------------- pixels in spite of it


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(
    "make",
    [
        lambda depth: png(depth=depth, end=False),
        lambda depth: png(depth=depth)[:-5],
        lambda depth: png(depth=depth, end=False)[:-4],  # the last checksum of the pixels is missing
        lambda depth: png(depth=depth)[:-12] + chunk(b"tEXt", b"a\0b")[:-1] + b"!",  # behind the pixels
        lambda depth: png((b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 0, 0, 0, 0)), depth=depth),
        lambda depth: png((b"zTXt", b"k\0\0" + zlib.compress(bytes(20 << 20))), depth=depth),
        lambda depth: png((b"iCCP", b"x\0\0junk"), depth=depth),
        lambda depth: png((b"eXIf", b"no block"), depth=depth),
        lambda depth: png((b"pHYs", b"1"), depth=depth),
        lambda depth: png((b"gAMA", b"123"), (b"tEXt", b"\0no keyword"), depth=depth),
    ],
    ids=["no end", "cut end", "cut checksum", "wrong checksum", "two headers", "long text", "profile", "EXIF", "size", "short"],
)  # fmt: skip
def test_what_is_wrong_beside_the_pixels_of_a_png_costs_none(tmp_path: Path, make, depth: int) -> None:
    photo, _ = read(tmp_path / "a.png", make(depth))
    check_photo(tmp_path / "a.png")  # the header alone agrees
    assert np.array_equal(as_8_bits(photo.pixels), PIXELS)
    assert photo.pixels.dtype == (np.uint8 if depth == 8 else np.uint16)


def test_what_is_wrong_in_the_pixels_is_an_error(tmp_path: Path) -> None:
    data = bytearray(png())
    data[data.index(b"IDAT") + 500] ^= 1
    with pytest.raises(ImageError, match="damaged or cut off"):
        read(tmp_path / "a.png", bytes(data))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_tags_of_any_type_cost_no_pixels(tmp_path: Path, suffix: str) -> None:
    """Every tag gets every type and odd counts and values; the orientation stays what it is unless it is hit itself."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0128], exif[0x010F] = 6, 2, "maker"
    exif[0x011A], exif[0x011B] = 72.0, 72.0
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(
        stream, {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper()), exif=exif
    )
    data, draw = stream.getvalue(), random.Random(1)
    plain = read(tmp_path / f"plain{suffix}", data)[0].pixels.shape
    assert plain == (40, 30, 3)
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    start = max(0, data.find(block))  # a TIFF has no block of its own
    end = start + len(block) if start else len(data)
    places = [
        place
        for tag in (0x0128, 0x010F, 0x011A, 0x8769, 0x9003)
        for mark in ("<", ">")
        if (place := data.find(struct.pack(mark + "H", tag), start, end)) > 0
    ]
    assert places
    for place in places:
        for kind in [*range(15), 255, 65535]:
            changed = bytearray(data)
            changed[place + 2 : place + 4] = struct.pack(draw.choice("<>") + "H", kind)
            if draw.random() < 0.3:
                changed[place + 4 : place + 8] = draw.randbytes(4)
            path = tmp_path / f"odd{suffix}"
            path.write_bytes(_right_checksums(bytes(changed)) if suffix == ".png" else bytes(changed))
            try:
                photo = read_photo(path, notify=lambda message: None)
            except ImageError:
                assert suffix == ".tif"  # there, tags are also what the pixels are read by
                continue
            assert sorted(photo.pixels.shape) == [3, 30, 40]
            with Image.open(path) as image:
                assert sorted(as_picture(image).color.shape) == [3, 30, 40]


def _right_checksums(data: bytes) -> bytes:
    parts, position = [data[:8]], 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        parts.append(chunk(kind, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return b"".join(parts)


def test_a_pillow_image_is_turned_once(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(jpeg(exif=exif))
    with Image.open(tmp_path / "a.jpg") as image:
        assert np.array_equal(as_picture(image).color, read_photo(tmp_path / "a.jpg").pixels)


# ------------------------------------------------------------------------------------------------------------ carried


def test_png_to_png_carries_texts_colours_xmp(tmp_path: Path) -> None:
    chunks = (
        (b"cICP", b"\x09\x10\0\1"), (b"gAMA", struct.pack(">I", 100000)), (b"cHRM", bytes(range(32))),
        (b"tEXt", b"parameters\0a cat"), (b"iTXt", b"Title\0\0\0\0\0" + "雪".encode()),
        (b"zTXt", b"long\0\0" + zlib.compress(b"x" * 999)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    )  # fmt: skip
    photo, said = read(tmp_path / "a.png", png(*chunks))
    assert not said
    assert photo.pixels.shape == (40, 30, 3), "XMP says orientation 6"
    large = Photo(photo.pixels.repeat(2, 0).repeat(2, 1), xmp=photo.xmp, text=photo.text, coding=photo.coding)
    write_photo(tmp_path / "b.png", large, text={"seed": "7"}, notify=said.append)
    again, _ = read(tmp_path / "b.png", (tmp_path / "b.png").read_bytes())
    assert again.coding == {
        "cICP": b"\x09\x10\0\1",
        "gAMA": struct.pack(">I", 100000),
        "cHRM": bytes(range(32)),
    }
    assert again.text == {"parameters": "a cat", "Title": "雪", "long": "x" * 999, "seed": "7"}
    assert again.xmp is not None
    assert b'tiff:Orientation="1"' in again.xmp
    assert again.pixels.shape == large.pixels.shape, "not turned twice"
    assert not said


def test_jpeg_to_jpeg_carries_xmp_iptc_and_comment(tmp_path: Path) -> None:
    photo = Photo(PIXELS, xmp=XMP, iptc=IPTC, comment=b"by hand")
    write_photo(tmp_path / "a.jpg", photo)
    again = read_photo(tmp_path / "a.jpg")
    assert (again.iptc, again.comment) == (IPTC, b"by hand")
    assert again.xmp == revised_xmp(XMP, 40, 30)
    with Image.open(tmp_path / "a.jpg") as image:  # Pillow reads the same
        assert image.info["comment"] == b"by hand"
        assert image.info.get("xmp", again.xmp) == again.xmp  # Pillow before 10.4 does not look for it


@pytest.mark.parametrize(
    ("suffix", "kept", "lost"),
    [
        (".png", {"xmp", "text", "coding"}, ["IPTC"]),
        (".tif", {"xmp", "iptc"}, ["the comment", "'parameters'", "gAMA"]),
        (".webp", {"xmp"}, ["IPTC", "the comment", "'parameters'", "gAMA"]),
        (".bmp", set(), ["XMP", "IPTC", "the comment", "'parameters'", "gAMA"]),
    ],
)
def test_what_a_format_has_no_place_for_is_named(
    tmp_path: Path, suffix: str, kept: set[str], lost: list[str]
) -> None:
    photo = Photo(
        PIXELS, xmp=XMP, iptc=IPTC, comment=b"by hand", text={"parameters": "a cat"}, coding={"gAMA": struct.pack(">I", 100000)}
    )  # fmt: skip
    said: list[str] = []
    write_photo(tmp_path / f"a{suffix}", photo, notify=said.append)
    again = read_photo(tmp_path / f"a{suffix}", notify=said.append)
    for name in ("xmp", "iptc", "comment", "text", "coding"):
        assert bool(getattr(again, name)) == (name in kept), name
    assert len(said) == 1
    assert all(word in said[0] for word in lost)


def test_colours_of_srgb_are_no_loss(tmp_path: Path) -> None:
    said: list[str] = []
    write_photo(
        tmp_path / "a.jpg", Photo(PIXELS, coding={"gAMA": struct.pack(">I", 45455)}), notify=said.append
    )
    assert not said


def test_a_gain_map_is_named_and_no_longer_claimed(tmp_path: Path) -> None:
    """Ultra HDR: the map is a second picture in the file; XMP that speaks of it would be false of the result."""
    claim = b'<r xmlns:hdrgm="u" hdrgm:Version="1.0" dc:title="sea"><Container:Directory><li hdrgm:A="1"/></Container:Directory></r>'
    plain = jpeg()
    content = b"http://ns.adobe.com/xap/1.0/\0" + claim
    photo, said = read(
        tmp_path / "a.jpg",
        plain[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(content)) + content + plain[2:],
    )
    assert len(said) == 1
    assert "gain map" in said[0]
    write_photo(tmp_path / "b.jpg", photo)
    xmp = read_photo(tmp_path / "b.jpg", notify=said.append).xmp
    assert xmp is not None
    assert b'dc:title="sea"' in xmp
    assert b"Container:Directory" not in xmp
    assert b"hdrgm:Version" not in xmp
    assert len(said) == 1


def test_exif_as_a_text_of_imagemagick(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    block = exif.tobytes()
    text = f"\nexif\n {len(block)}\n{block.hex()}\n".encode()
    photo, said = read(tmp_path / "a.png", png((b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))))
    assert photo.pixels.shape == (40, 30, 3)
    assert photo.exif is not None
    assert b"maker" in photo.exif
    assert not photo.text
    assert not said


def test_what_is_too_long_for_a_jpeg_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    write_photo(
        tmp_path / "a.jpg", Photo(PIXELS, xmp=XMP + b" " * 70_000, comment=b"c" * 70_000), notify=said.append
    )
    assert [word in message for word, message in zip(("XMP", "the comment"), said, strict=True)] == [
        True,
        True,
    ]
    assert read_photo(tmp_path / "a.jpg").xmp is None


@pytest.mark.parametrize("seed", range(3))
def test_damaged_segments_and_resources_never_raise(tmp_path: Path, seed: int) -> None:
    write_photo(tmp_path / "a.jpg", Photo(PIXELS, xmp=XMP, iptc=IPTC, comment=b"by hand"))
    data, draw = (tmp_path / "a.jpg").read_bytes(), random.Random(seed)
    front = data.index(b"\xff\xdb")  # tables of the pixels
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(2, front)] = draw.randrange(256)
        with contextlib.suppress(ImageError):  # nothing else comes out
            read(tmp_path / "b.jpg", bytes(changed))


@pytest.mark.parametrize("strip", [False, True])
def test_strip_leaves_metadata_away_and_colours_right(gdposr, tmp_path: Path, strip: bool) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    colours = (b"gAMA", struct.pack(">I", 100000))
    data = png(colours, (b"tEXt", b"parameters\0a cat"), (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    (tmp_path / "a.png").write_bytes(data)
    words = (
        "upscale",
        tmp_path / "a.png",
        "-o",
        tmp_path / "b.png",
        "--device",
        "cpu",
        *(("--strip",) if strip else ()),
    )
    code, _, said = gdposr(*words)
    assert code == 0, said
    result = read_photo(tmp_path / "b.png")
    assert result.coding == {"gAMA": struct.pack(">I", 100000)}
    assert (result.exif is None, not result.text) == (strip, strip)
    assert strip or {"parameters", "gdposr-seed"} <= set(result.text)


def test_a_hostile_packet_takes_no_time() -> None:
    for part in (
        b" ",
        b"<hdrgm:GainMapMin ",
        b"<Container:Directory>",
        b" tiff:Orientation",
        b" hdrgm:",
        b"tiff:ImageWidth  ",
    ):
        begin = time.process_time()
        revised_xmp(part * (1_000_000 // len(part)), 10, 10)
        assert time.process_time() - begin < 2, part
