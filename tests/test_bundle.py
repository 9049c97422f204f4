"""Bundles from folders and archives, whole and damaged."""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.onnx import OnnxBackend
from runtime.bundle.entries import MAX_MANIFEST_BYTES
from runtime.bundle.reader import DEFAULT_BUNDLE, MAX_LEAST_SIDE, Bundle
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["manifest.json", "bundle.zip"])
def test_pipe_in_place_of_a_manifest_or_an_archive_does_not_block(toy_copy: Path, name: str) -> None:
    (toy_copy / name).unlink(missing_ok=True)
    os.mkfifo(toy_copy / name)
    with pytest.raises(
        BundleError, match="plain file" if name == "manifest.json" else "got a pipe or device"
    ):
        Bundle.open(toy_copy if name == "manifest.json" else toy_copy / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_that_takes_the_place_of_a_checked_file_does_not_block(
    toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at a file and its opening somebody may put a pipe there; opening that one would wait for ever."""
    bundle = Bundle.open(toy_copy)
    plain = os.stat(toy_copy / "manifest.json")
    (toy_copy / "probe.png").unlink()
    os.mkfifo(toy_copy / "probe.png")
    monkeypatch.setattr("runtime.bundle.entries.os.stat", lambda path: plain)
    with pytest.raises(BundleError, match="plain file"):
        bundle.read(bundle.manifest.probe.input)


def test_device_in_place_of_a_file(toy_copy: Path) -> None:
    with pytest.raises(BundleError, match="got a pipe or device"):
        Bundle.open(os.devnull)
    (toy_copy / "manifest.json").unlink()
    (toy_copy / "manifest.json").symlink_to(os.devnull)
    with pytest.raises(BundleError, match="link out of it"):
        Bundle.open(toy_copy)


def test_file_that_is_exchanged_after_its_hash_was_taken_is_not_used(toy_copy: Path) -> None:
    """A session is made from the bytes that were hashed; the file on the disk is not opened again."""
    first = OnnxBackend(Bundle.open(toy_copy), "cpu", "fp32", threads=1)
    bundle, pair = Bundle.open(toy_copy), Bundle.open(toy_copy).manifest.graphs
    names = [pair[kind][role].file for kind in ("fp32", "int8") for role in ("encoder", "generator")]
    read = bundle._read

    def read_then_exchange(name: str, expected: int | None) -> bytes:
        content = read(name, expected)
        if name in names:
            (toy_copy / name).write_bytes(b"another model")
        return content

    bundle._read = read_then_exchange
    image = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    second = OnnxBackend(bundle, "cpu", "fp32", threads=1)
    for name, value in first.encode(image).items():
        np.testing.assert_array_equal(second.encode(image)[name], value)
    with pytest.raises(BundleError, match="bytes"):
        OnnxBackend(bundle, "cpu", "fp32", threads=1)


def test_context_that_would_compute_the_photo_for_every_tile_again(edit: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match="at most 4 times the tile of 2, got 10"):
        Bundle.open(edit(lambda data: data["size"].update(tile=2, context=10)))
    Bundle.open(edit(lambda data: data["size"].update(context=8)))


def test_the_least_picture_a_bundle_may_ask_for_is_bounded(edit: Callable[..., Path]) -> None:
    """A photo of one pixel is padded to the minimum: 65,536 pixels a side would take 51 GB."""
    with pytest.raises(BundleError, match="none below 65536"):
        Bundle.open(edit(lambda data: data["size"].update(minimum=65536)))
    edit(lambda data: data["size"].update(minimum=MAX_LEAST_SIDE - 1))
    assert Bundle.open(edit(lambda data: None)).manifest.size.minimum == MAX_LEAST_SIDE - 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a\x1b[2J", "control characters"),
        ("\ud800", "control characters"),
        ("abc\u202egpj.exe", "control characters"),
        ({"a\nb": 1}, "a key that is long or has control characters"),
        ({"k" * 300: 1}, "a key that is long"),
        (10**30, "too large for 64 bits"),
        (1e200, "too large for 64 bits"),
    ],
)
def test_texts_and_numbers_that_are_unsafe_to_pass_on(
    edit: Callable[..., Path], value: object, message: str
) -> None:
    """Provenance and accuracy are free, but `gdposr info` prints them and `--json` writes them again."""
    with pytest.raises(BundleError, match=message):
        Bundle.open(edit(lambda data: data["provenance"].update(note=[{"deep": value}])))


def test_free_texts_may_have_lines_and_any_script(edit: Callable[..., Path]) -> None:
    note = "a\tb\nc, Grüße, 写真, \u00a0, \u200d"
    bundle = Bundle.open(edit(lambda data: data["provenance"].update(note=note, seed=2**64 - 1)))
    assert bundle.manifest.provenance["note"] == note


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 5000, "1" * 4000])
def test_numbers_beyond_every_type(toy_copy: Path, number: str) -> None:
    path = toy_copy / "manifest.json"
    path.write_text(path.read_text().replace('"scale": 4,', f'"scale": {number},').replace('"accuracy": {}',
                    f'"accuracy": {{"x": {number}}}'))  # fmt: skip
    with pytest.raises(BundleError):
        Bundle.open(toy_copy)


@pytest.mark.parametrize("depth", [31, 40, 900, 100_000])
def test_nesting_that_would_exhaust_the_stack_of_whoever_follows_it(toy_copy: Path, depth: int) -> None:
    path = toy_copy / "manifest.json"
    deep = "[" * (depth - 2) + "]" * (depth - 2)
    path.write_text(path.read_text().replace('"accuracy": {}', f'"accuracy": {{"x": {deep}}}'))
    if depth <= 32:
        assert Bundle.open(toy_copy).manifest.to_dict()["accuracy"]
    else:
        with pytest.raises(BundleError, match=r"levels of objects and lists|recursion"):
            Bundle.open(toy_copy)


@pytest.mark.parametrize("name", ["toy\x1b]0;x\x07", "", "x" * 257, "a\nb"])
def test_name_that_a_terminal_would_obey(edit: Callable[..., Path], name: str) -> None:
    with pytest.raises(BundleError, match="control character"):
        Bundle.open(edit(lambda data: data.update(name=name)))


def test_messages_stay_short_whatever_the_manifest_holds(edit: Callable[..., Path]) -> None:
    for change in (
        {"x" * 250: 1},
        {"name": "x" * 100_000},
        {"scale": "x" * 100_000},
        {"graphs": {"x" * 250: {}}},
        {"color_fix": ["x"] * 100_000},
    ):
        with pytest.raises(BundleError) as caught:
            Bundle.open(edit(lambda data, change=change: data.update(change)))
        assert len(str(caught.value)) < 1500


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


def test_bundle_that_vanishes(toy_copy: Path) -> None:
    bundle = Bundle.open(toy_copy)
    shutil.rmtree(toy_copy)
    with pytest.raises(BundleError):
        bundle.verify()
