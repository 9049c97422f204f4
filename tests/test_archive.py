"""Bundles in archives: whole, damaged, and made to do harm."""

import random
import shutil
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from runtime.bundle.archive import MAX_DIRECTORY_BYTES, MAX_ENTRIES, SMALL_BYTES
from runtime.bundle.reader import Bundle
from runtime.errors import BundleError


def zipped(folder: Path, target: Path, prefix: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(target, "w", method) as archive:
        for path in sorted(folder.iterdir()):
            archive.writestr(zipfile.ZipInfo(prefix + path.name), path.read_bytes(), method)
    return target


@pytest.fixture
def archive(toy_copy: Path, tmp_path: Path) -> Path:
    """The toy bundle as .zip; the test may add to it."""
    return zipped(toy_copy, tmp_path / "toy.zip")


@pytest.mark.parametrize(
    "name",
    [
        "../escape.txt", "a/../../escape.txt", "/etc/escape.txt", "C:/escape.txt", "c:escape.txt", "..\\escape.txt",
        "\\\\server\\share", "a\\b.txt", "..", "a/..", "a//b.txt", "../", "//",
    ],
)  # fmt: skip
def test_archive_with_a_name_that_climbs_out_is_refused_whole(archive: Path, name: str) -> None:
    """Nothing would be extracted; but whoever packed that meant harm."""
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(BundleError, match="expected names inside the bundle, got the entry"):
        Bundle.open(archive)


def test_name_that_ends_early_in_some_readers_is_refused(archive: Path) -> None:
    """Python ends a name at its first zero byte, other readers do not."""
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr("probe.pngXa", "x")
    archive.write_bytes(archive.read_bytes().replace(b"probe.pngXa", b"probe.png\0a"))
    with pytest.raises(BundleError, match="expected names inside the bundle"):
        Bundle.open(archive)


@pytest.mark.parametrize(
    "name", ["LICENSE", "__MACOSX/._manifest.json", ".DS_Store", "notes..txt", "./x", "a.b/", "a/b/c/d"]
)
def test_harmless_entries_besides_are_left_alone(archive: Path, name: str) -> None:
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr(name, b"" if name.endswith("/") else b"x")
    Bundle.open(archive).verify()


@pytest.mark.parametrize("prefix", ["", "./", "toy.gdposr/"])
def test_places_of_a_bundle_in_an_archive(toy_copy: Path, tmp_path: Path, prefix: str) -> None:
    Bundle.open(zipped(toy_copy, tmp_path / "a.zip", prefix)).verify()


def test_bundle_deeper_in_an_archive_is_not_looked_for(toy_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"expected one manifest\.json at the top or in one folder, got 0"):
        Bundle.open(zipped(toy_copy, tmp_path / "a.zip", "a/b/"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
@pytest.mark.parametrize("name", ["probe.png", "extra"])
def test_link_or_device_in_an_archive(toy_copy: Path, tmp_path: Path, kind: int, name: str) -> None:
    (toy_copy / "probe.png").unlink()
    path = zipped(toy_copy, tmp_path / "a.zip")
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(path, "a") as more:
        more.writestr(entry, "/etc/passwd")
    with pytest.raises(BundleError, match="expected plain files and folders, got the entry"):
        Bundle.open(path)


def test_entry_with_a_password(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # flags of local headers, and of the list
        where = content.find(mark)
        while where >= 0:
            content[where + at] |= 1
            where = content.find(mark, where + 1)
    archive.write_bytes(content)
    with pytest.raises(BundleError, match="without a password"):
        Bundle.open(archive)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_may_take_gigabytes_to_undo(toy_copy: Path, tmp_path: Path, method: int) -> None:
    with pytest.raises(BundleError, match="stored or deflated"):
        Bundle.open(zipped(toy_copy, tmp_path / "a.zip", method=method))


def test_unknown_compression(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[content.find(b"PK\x01\x02") + 10] = 99
    archive.write_bytes(content)
    with pytest.raises(BundleError, match="compression method 99"):
        Bundle.open(archive)


def test_bomb_that_the_manifest_agrees_with(toy_copy: Path, tmp_path: Path) -> None:
    """Name, size and hash are as stated; no honest file shrinks to a thousandth."""
    (toy_copy / "probe.png").write_bytes(b"\0" * (SMALL_BYTES + 1))
    archive = zipped(toy_copy, tmp_path / "a.zip")
    with pytest.raises(BundleError, match=r"expected at most 100 times the packed size, got 'probe\.png'"):
        Bundle.open(archive)
    Bundle.open(
        zipped(toy_copy, tmp_path / "b.zip", method=zipfile.ZIP_STORED)
    )  # plain, it is only a wrong file


def test_packed_size_that_lies_does_not_hide_a_bomb(toy_copy: Path, tmp_path: Path) -> None:
    """The whole archive bounds what an entry of it can have been packed to."""
    (toy_copy / "probe.png").write_bytes(b"\0" * (2 * SMALL_BYTES))
    archive = zipped(toy_copy, tmp_path / "a.zip")
    content = bytearray(archive.read_bytes())
    where = content.rfind(b"probe.png") - 46  # its entry in the list, or of probe_expected.png behind it
    while bytes(content[where : where + 4]) != b"PK\x01\x02" or content[where + 28] != len("probe.png"):
        where = content.rfind(b"probe.png", 0, where + 46) - 46
    struct.pack_into("<I", content, where + 20, 1 << 30)
    archive.write_bytes(content)
    with pytest.raises(BundleError, match=f"from {len(content)}"):
        Bundle.open(archive)


def test_bomb_in_the_place_of_the_manifest(toy_copy: Path, tmp_path: Path) -> None:
    (toy_copy / "manifest.json").write_bytes(b" " * (8 << 20))
    with pytest.raises(BundleError, match=r"manifest\.json: expected at most 1048576 bytes, got 8388608"):
        Bundle.open(zipped(toy_copy, tmp_path / "a.zip"))


def test_thousands_of_entries(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as more:
        for number in range(MAX_ENTRIES):
            more.writestr(f"x{number}", b"")
    with pytest.raises(BundleError, match=f"expected at most {MAX_ENTRIES} entries"):
        Bundle.open(archive)


def test_list_of_entries_that_would_fill_the_memory_is_not_read(archive: Path) -> None:
    """A million entries take half a gigabyte and seconds in Python's reader, before it hands out the first."""
    content = archive.read_bytes()
    end = content.rfind(b"PK\x05\x06")
    start = int.from_bytes(content[end + 16 : end + 20], "little")
    first = content[start : content.find(b"PK\x01\x02", start + 1)]
    listed = first * (MAX_DIRECTORY_BYTES // len(first) + 1)
    last = bytearray(content[end:])
    struct.pack_into("<II", last, 12, len(listed), start)
    archive.write_bytes(content[:start] + listed + last)
    with pytest.raises(BundleError, match="a list of entries of more than"):
        Bundle.open(archive)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_name_twice_anywhere_is_refused(archive: Path) -> None:
    """Readers differ in which of the two they take, so that a check of the one says nothing about the other."""
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr("readme", "a")
        more.writestr("readme", "b")
    with pytest.raises(BundleError, match="expected one entry 'readme', got 2"):
        Bundle.open(archive)


def test_archive_of_a_large_bundle_needs_no_more_than_one_file_at_a_time(
    toy_copy: Path, tmp_path: Path
) -> None:
    """More than 1 MB of incompressible weights is read in one piece once the list of entries is known."""
    noise = random.Random(0).randbytes(MAX_DIRECTORY_BYTES + 5)
    (toy_copy / "probe.png").write_bytes(noise)
    bundle = Bundle.open(zipped(toy_copy, tmp_path / "a.zip", method=zipfile.ZIP_STORED))
    assert bundle._read("probe.png", len(noise)) == noise
    shutil.rmtree(toy_copy)


def test_zip_bomb_is_not_unpacked(toy_copy: Path, tmp_path: Path) -> None:
    """An entry that unpacks to more than the manifest says is refused before it is read."""
    (toy_copy / "probe.png").write_bytes(b"\0" * (64 << 20))
    archive = zipped(toy_copy, tmp_path / "a.zip")
    assert archive.stat().st_size < 1 << 20
    with pytest.raises(BundleError, match=r"probe\.png.*bytes"):
        Bundle.open(archive).verify()


def test_zip_entry_that_lies_about_its_size(toy_copy: Path, tmp_path: Path) -> None:
    archive = zipped(toy_copy, tmp_path / "a.zip", method=zipfile.ZIP_DEFLATED)
    size = (toy_copy / "probe.png").stat().st_size
    (toy_copy / "probe.png").write_bytes(b"\0" * (1 << 20))
    archive = zipped(toy_copy, tmp_path / "b.zip", method=zipfile.ZIP_DEFLATED)
    content = archive.read_bytes()
    archive.write_bytes(content.replace((1 << 20).to_bytes(4, "little"), size.to_bytes(4, "little")))
    with pytest.raises(BundleError):
        Bundle.open(archive).verify()


def test_zip_with_two_bundles(toy_copy: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as two:
        for folder in ("one/", "two/"):
            for path in toy_copy.iterdir():
                two.write(path, folder + path.name)
    with pytest.raises(BundleError, match="got 2"):
        Bundle.open(tmp_path / "b.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_an_entry_twice(toy_copy: Path, tmp_path: Path) -> None:
    archive = zipped(toy_copy, tmp_path / "a.zip")
    with zipfile.ZipFile(archive, "a") as more:
        more.write(toy_copy / "probe.png", "probe.png")
    with pytest.raises(BundleError, match="got 2"):
        Bundle.open(archive).verify()


def test_zip_damaged_inside(toy_copy: Path, tmp_path: Path) -> None:
    archive = zipped(toy_copy, tmp_path / "a.zip", method=zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    where = content.find((toy_copy / "probe.png").read_bytes()[40:60])
    content[where] ^= 1
    archive.write_bytes(content)
    with pytest.raises(BundleError):
        Bundle.open(archive).verify()


def test_truncated_zip(toy_copy: Path, tmp_path: Path) -> None:
    archive = zipped(toy_copy, tmp_path / "a.zip")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(BundleError, match=r"expected a bundle as \.zip"):
        Bundle.open(archive)
