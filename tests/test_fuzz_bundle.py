"""Damaged archives and graphs: what the manifest names comes out whole, or a BundleError does.

Thousands of cases run in the nightly form: make test PYTEST_ARGS=
"""

import hashlib
import io
import random
import time
import zipfile
from pathlib import Path

import pytest
from mutations import damage

from runtime.bundle.external_data import external_data
from runtime.bundle.reader import Bundle
from runtime.errors import BundleError

SECONDS = 5.0  # of processor time for one archive of 30 kB
FAST, NIGHTLY = range(150), range(1000, 6000)
CASES = pytest.mark.parametrize(
    "cases", [FAST, pytest.param(NIGHTLY, marks=pytest.mark.nightly)], ids=["fast", "nightly"]
)


def packed(folder: Path, method: int, prefix: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for path in sorted(folder.iterdir()):
            archive.writestr(zipfile.ZipInfo(prefix + path.name), path.read_bytes(), method)
    return stream.getvalue()


def in_the_lists(content: bytes, draw: random.Random) -> bytes:
    """Damage where it hurts: in the headers and the list of entries, which are a small part of an archive."""
    data = bytearray(content)
    marks = [at for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06") for at in _positions(content, mark)]
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.choice(marks) + draw.randrange(46)
        if at < len(data):
            data[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    return bytes(data)


def _positions(content: bytes, mark: bytes) -> list[int]:
    return [at for at in range(len(content)) if content.startswith(mark, at)]


@CASES
def test_archives(toy_bundle: Path, tmp_path: Path, cases: range) -> None:
    """Every file that is read from a damaged archive has the content that its hash promises; memory and time are bounded."""
    archives = [
        packed(toy_bundle, method, prefix)
        for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED)
        for prefix in ("", "toy.gdposr/")
    ]
    path, opened, whole, longest = tmp_path / "a.zip", 0, 0, 0
    for number in cases:
        draw = random.Random(number)
        content = draw.choice(archives)
        content = in_the_lists(content, draw) if number % 2 else damage(content, draw, archives)
        path.write_bytes(content)
        start = time.process_time()
        try:
            bundle = Bundle.open(path)
            opened += 1
            for file in bundle.manifest.files:
                try:
                    read = bundle.read(file)
                except BundleError:
                    continue
                assert hashlib.sha256(read).hexdigest() == file.sha256
            bundle.verify()
            whole += 1
        except BundleError as error:
            longest = max(longest, len(str(error)))
        assert time.process_time() - start < SECONDS, f"case {number}"
    assert 0 < whole < opened < len(cases)
    assert longest < 1000  # no message repeats what the archive holds


@CASES
def test_graphs(toy_bundle: Path, cases: range) -> None:
    """The scanner ends with an answer or a BundleError on every damage."""
    graphs = [path.read_bytes() for path in sorted(toy_bundle.glob("*.onnx"))]
    refused = 0
    for number in cases:
        draw = random.Random(number)
        content = damage(draw.choice(graphs), draw, graphs)
        start = time.process_time()
        try:
            assert isinstance(external_data("g.onnx", content), tuple)
        except BundleError:
            refused += 1
        assert time.process_time() - start < SECONDS, f"case {number}"
    assert len(cases) * 0.3 < refused < len(cases)


@CASES
def test_scanner_sees_what_protobuf_sees(toy_bundle: Path, cases: range) -> None:
    """Where the package onnx can read a damaged graph and finds a file in it, the scanner finds it too or refuses the graph."""
    onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
    model = onnx.load(toy_bundle / "generator.fp32.onnx")
    for number, tensor in enumerate(model.graph.initializer):
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{number}.data")
        tensor.external_data.add(key="offset", value="0")
    content = model.SerializeToString()
    from google.protobuf.message import DecodeError

    agreed = 0
    for number in cases:
        draw = random.Random(number)
        damaged = damage(content, draw, [content])
        try:
            seen = {tensor.location for tensor in external_data("g.onnx", damaged)}
        except BundleError:
            continue
        try:
            graph = onnx.ModelProto.FromString(damaged).graph
        except DecodeError:
            continue
        named = {
            pair.value
            for tensor in graph.initializer
            for pair in tensor.external_data
            if pair.key == "location"
        }
        assert named <= seen, f"case {number}"
        agreed += 1
    assert agreed > len(cases) * 0.05
