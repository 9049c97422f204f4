"""Bundles from folders and archives, whole and damaged."""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.bundle import DEFAULT_BUNDLE, MAX_MANIFEST_BYTES, Bundle
from runtime.errors import BundleError


def zipped(folder: Path, target: Path, prefix: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(target, "w", method) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, prefix + path.name)
    return target


@pytest.fixture(params=["folder", "zip", "zip with folder"])
def bundle(request: pytest.FixtureRequest, toy_copy: Path, tmp_path: Path) -> Bundle:
    if request.param == "folder":
        return Bundle.open(toy_copy)
    return Bundle.open(
        zipped(toy_copy, tmp_path / "toy.zip", "" if request.param == "zip" else "toy.gdposr/")
    )


@pytest.fixture
def edit(toy_copy: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """edit(change) lets change alter the manifest of a copy of the toy bundle."""

    def apply(change: Callable[[dict[str, Any]], object]) -> Path:
        path = toy_copy / "manifest.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        change(data)
        path.write_text(json.dumps(data), encoding="utf-8")
        return toy_copy

    return apply


def test_reads_and_verifies(bundle: Bundle, toy_bundle: Path) -> None:
    assert bundle.manifest.name == "toy"
    bundle.verify()
    for file in bundle.manifest.files:
        assert bundle.read(file) == (toy_bundle / file.file).read_bytes()
    assert bundle.digest == hashlib.sha256((toy_bundle / "manifest.json").read_bytes()).hexdigest()[:16]
    assert "toy" in repr(bundle)


def test_path_kinds(toy_bundle: Path) -> None:
    assert Bundle.open(str(toy_bundle)).path == Bundle.open(toy_bundle).path == toy_bundle
    assert DEFAULT_BUNDLE.parts[-3:] == ("runtime", "bundles", "pocket.gdposr")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="check the path"):
        Bundle.open(tmp_path / "none.gdposr")


def test_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json.*is this a bundle folder"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04broken", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_no_bundle(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.zip"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"expected a bundle as \.zip"):
        Bundle.open(path)


@pytest.mark.parametrize("position", [0, 700, -1])
def test_altered_byte(toy_copy: Path, position: int) -> None:
    path = toy_copy / "generator.fp32.onnx"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    bundle = Bundle.open(toy_copy)
    with pytest.raises(BundleError, match=r"generator\.fp32\.onnx.*sha256.*altered"):
        bundle.verify()
    with pytest.raises(BundleError, match="altered"):
        bundle.read(bundle.manifest.graphs["fp32"]["generator"])
    bundle.read(bundle.manifest.graphs["fp32"]["encoder"])  # the others still read


@pytest.mark.parametrize("change", [lambda c: c + b"x", lambda c: c[:-1], lambda c: b""])
def test_wrong_size(toy_copy: Path, change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = toy_copy / "probe.png"
    path.write_bytes(change(path.read_bytes()))
    for place in (toy_copy, zipped(toy_copy, tmp_path / "a.zip")):
        with pytest.raises(BundleError, match=r"probe\.png.*bytes"):
            Bundle.open(place).verify()


def test_missing_file(toy_copy: Path, tmp_path: Path) -> None:
    (toy_copy / "probe.png").unlink()
    for place in (toy_copy, zipped(toy_copy, tmp_path / "a.zip")):
        with pytest.raises(BundleError, match=r"probe\.png"):
            Bundle.open(place).verify()


def test_folder_in_place_of_a_file(toy_copy: Path) -> None:
    (toy_copy / "probe.png").unlink()
    (toy_copy / "probe.png").mkdir()
    with pytest.raises(BundleError, match="plain file"):
        Bundle.open(toy_copy).verify()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_does_not_block(toy_copy: Path) -> None:
    (toy_copy / "probe.png").unlink()
    os.mkfifo(toy_copy / "probe.png")
    with pytest.raises(BundleError, match="plain file"):
        Bundle.open(toy_copy).verify()


def test_link_out_of_the_folder(toy_copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    (toy_copy / "probe.png").rename(outside)
    (toy_copy / "probe.png").symlink_to(outside)
    with pytest.raises(BundleError, match="link out of it"):
        Bundle.open(toy_copy).verify()


def test_links_that_are_harmless(toy_copy: Path, tmp_path: Path) -> None:
    (toy_copy / "probe.png").rename(toy_copy / "real.png")
    (toy_copy / "probe.png").symlink_to("real.png")
    (tmp_path / "link.gdposr").symlink_to(toy_copy)
    Bundle.open(tmp_path / "link.gdposr").verify()


def test_loop_of_links(toy_copy: Path) -> None:
    (toy_copy / "probe.png").unlink()
    (toy_copy / "probe.png").symlink_to("probe.png")
    with pytest.raises(BundleError, match=r"probe\.png"):
        Bundle.open(toy_copy).verify()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "sub/x.png", ".x", "..\\x.png"])
def test_traversal_in_the_manifest(edit: Callable[..., Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")

    def change(data: dict[str, Any]) -> None:
        data["probe"]["input"] = {"file": name, "bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}

    with pytest.raises(BundleError, match="plain file name"):
        Bundle.open(edit(change))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"format_version": 1, "format_version": 1}', b'{"x": NaN}',
        b"[" * 200_000, b'{"format_version": 1}',
    ],
)  # fmt: skip
def test_manifest_that_is_none(toy_copy: Path, content: bytes) -> None:
    (toy_copy / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError):
        Bundle.open(toy_copy)


def test_huge_manifest(toy_copy: Path, tmp_path: Path) -> None:
    (toy_copy / "manifest.json").write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    for place in (toy_copy, zipped(toy_copy, tmp_path / "a.zip")):
        with pytest.raises(BundleError, match="at most"):
            Bundle.open(place)


def test_zip_bomb_is_not_unpacked(toy_copy: Path, tmp_path: Path, edit: Callable[..., Path]) -> None:
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


def test_zip_with_traversal_or_two_bundles(toy_copy: Path, tmp_path: Path) -> None:
    """Nothing is ever extracted, so an entry that climbs out is only one that is not found."""
    archive = zipped(toy_copy, tmp_path / "a.zip", prefix="../")
    with pytest.raises(BundleError, match=r"expected one manifest\.json"):
        Bundle.open(archive)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as two:
        for folder in ("one/", "two/"):
            for path in toy_copy.iterdir():
                two.write(path, folder + path.name)
    with pytest.raises(BundleError, match="came 2"):
        Bundle.open(tmp_path / "b.zip")
    extra = zipped(toy_copy, tmp_path / "c.zip")
    with zipfile.ZipFile(extra, "a") as more:
        more.writestr("../../escape.txt", "x")
    Bundle.open(extra).verify()
    assert not (tmp_path.parent / "escape.txt").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_an_entry_twice(toy_copy: Path, tmp_path: Path) -> None:
    archive = zipped(toy_copy, tmp_path / "a.zip")
    with zipfile.ZipFile(archive, "a") as more:
        more.write(toy_copy / "probe.png", "probe.png")
    with pytest.raises(BundleError, match="came 2"):
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


def test_bundle_that_vanishes(toy_copy: Path) -> None:
    bundle = Bundle.open(toy_copy)
    shutil.rmtree(toy_copy)
    with pytest.raises(BundleError):
        bundle.verify()
