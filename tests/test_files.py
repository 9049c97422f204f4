"""Files of a bundle beyond plain graphs: weights beside a graph, and Core ML packages."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.choice import choices
from runtime.backends.onnx import OnnxBackend
from runtime.bundle.entries import MAX_WEIGHT_BYTES, Graph, GraphFile, WeightFile
from runtime.bundle.manifest import Manifest
from runtime.bundle.packages import PACKAGE_FILES, Package, PackageFile
from runtime.bundle.reader import Bundle
from runtime.errors import BundleError

HASH = "0" * 64


def entry(path: Path, name: str | None = None) -> dict[str, Any]:
    content = path.read_bytes()
    return {
        "file": name or path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def change(bundle: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Let edit change the manifest's JSON."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


@pytest.fixture
def with_packages(toy_copy: Path) -> Path:
    """The toy bundle with two packages; their content is not looked at here."""
    packages = {}
    for role in ("encoder", "generator"):
        folder = toy_copy / f"{role}.fp16.mlpackage"
        for name in PACKAGE_FILES:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{role} {name}")
        packages[role] = {
            "files": [entry(folder / name, f"{folder.name}/{name}") for name in PACKAGE_FILES],
            "height": 64,
            "width": 96,
            "target": "iOS17",
            "floor_db": 40.0,
        }
    change(toy_copy, lambda manifest: manifest.update(coreml={"fp16": packages}))
    return toy_copy


@pytest.fixture
def with_data(toy_copy: Path) -> Path:
    """The toy bundle with the fp32 encoder's weights beside its graph."""
    onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
    path = toy_copy / "encoder.fp32.onnx"
    model = onnx.load(path)
    path.unlink()
    onnx.save(model, path, save_as_external_data=True, location="encoder.fp32.onnx.data", size_threshold=0)
    data = entry(toy_copy / "encoder.fp32.onnx.data")
    change(toy_copy, lambda m: m["graphs"]["fp32"].update(encoder={**entry(path), "data": data}))
    return toy_copy


def test_packages_are_read_and_verified_file_by_file(with_packages: Path) -> None:
    bundle = Bundle.open(with_packages)
    bundle.verify()
    package = bundle.manifest.coreml["fp16"]["encoder"]
    assert (package.name, package.height, package.width) == ("encoder.fp16.mlpackage", 64, 96)
    assert package.total_bytes == sum(
        file.stat().st_size for file in (with_packages / package.name).rglob("*") if file.is_file()
    )
    assert Manifest.from_dict(bundle.manifest.to_dict()) == bundle.manifest
    (with_packages / package.files[1].file).write_text("something else")
    with pytest.raises(BundleError, match=r"model\.mlmodel"):
        Bundle.open(with_packages).verify()


def test_packages_in_a_zip(with_packages: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "bundle"), "zip", with_packages)
    Bundle.open(archive).verify()
    with zipfile.ZipFile(archive, "a") as bundle, pytest.warns(UserWarning, match="Duplicate name"):
        bundle.writestr("encoder.fp16.mlpackage/Manifest.json", "twice")
    with pytest.raises(BundleError, match="expected one entry"):
        Bundle.open(archive).verify()


def test_a_link_out_of_a_package_is_refused(with_packages: Path, tmp_path: Path) -> None:
    file = with_packages / "encoder.fp16.mlpackage" / PACKAGE_FILES[2]
    outside = tmp_path / "weight.bin"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(BundleError, match="a link out of it"):
        Bundle.open(with_packages).verify()


@pytest.mark.parametrize(
    "name",
    [
        "encoder.mlpackage/../manifest.json",
        "../encoder.mlpackage/Manifest.json",
        "encoder.mlpackage/other.txt",
        "encoder.mlpackage",
        "/encoder.mlpackage/Manifest.json",
        "encoder/Manifest.json",
        "a/encoder.mlpackage/Manifest.json",
    ],
)
def test_only_the_three_files_of_a_package_can_be_named(name: str) -> None:
    with pytest.raises(BundleError, match=r"NAME\.mlpackage/"):
        PackageFile(name, 1, HASH)


def test_a_package_is_one_folder_at_a_size_the_model_takes(with_packages: Path) -> None:
    files = tuple(PackageFile(f"a.mlpackage/{name}", 1, HASH) for name in PACKAGE_FILES)
    other = PackageFile("b.mlpackage/Manifest.json", 1, HASH)
    with pytest.raises(BundleError, match="different files of one package"):
        Package((*files, other), 64, 64, "iOS17", 40.0)
    with pytest.raises(BundleError, match="a system such as iOS17"):
        Package(files, 64, 64, "Android", 40.0)
    with pytest.raises(BundleError, match=r"also a\.mlpackage/Data/com\.apple\.CoreML/model\.mlmodel"):
        Package(files[:1], 64, 64, "iOS17", 40.0)
    with pytest.raises(BundleError, match="floor_db: expected a finite number"):
        Package(files, 64, 64, "iOS17", "high")  # type: ignore[arg-type]
    change(with_packages, lambda m: m["coreml"]["fp16"]["encoder"].update(height=32))
    with pytest.raises(BundleError, match="the same tile, system and kind in both roles"):
        Bundle.open(with_packages)
    change(with_packages, lambda m: [p.update(height=63) for p in m["coreml"]["fp16"].values()])
    with pytest.raises(BundleError, match="height and width: expected multiples of"):
        Bundle.open(with_packages)


def test_both_roles_are_needed(with_packages: Path) -> None:
    change(with_packages, lambda m: m["coreml"]["fp16"].pop("generator"))
    with pytest.raises(BundleError, match="exactly the keys encoder and generator"):
        Bundle.open(with_packages)


def test_a_bundle_may_hold_packages_alone(with_packages: Path) -> None:
    change(with_packages, lambda m: m.update(graphs={}, default_precision={}))
    bundle = Bundle.open(with_packages)
    assert not bundle.manifest.graphs
    with pytest.raises(BundleError, match="Core ML packages only"):
        choices(bundle)
    change(with_packages, lambda m: m.update(coreml={}))
    with pytest.raises(BundleError, match="at least one precision, or Core ML packages"):
        Bundle.open(with_packages)


def test_weights_beside_a_graph_give_the_same_result(with_data: Path, toy_bundle: Path) -> None:
    image = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    bundle = Bundle.open(with_data)
    bundle.verify()
    graph = bundle.manifest.graphs["fp32"]["encoder"]
    assert graph.data is not None
    assert graph.total_bytes == graph.bytes + graph.data.bytes
    backend = OnnxBackend(bundle, "cpu", "fp32", threads=1)
    shutil.rmtree(with_data)  # everything was read, and verified, when the session was made
    came = backend.encode(image)
    expected = OnnxBackend(Bundle.open(toy_bundle), "cpu", "fp32", threads=1).encode(image)
    for name, value in expected.items():
        np.testing.assert_array_equal(came[name], value)


def test_altered_weights_beside_a_graph_are_refused(with_data: Path) -> None:
    path = with_data / "encoder.fp32.onnx.data"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"encoder\.fp32\.onnx\.data: expected sha256"):
        OnnxBackend(Bundle.open(with_data), "cpu", "fp32")


def test_weights_that_the_manifest_does_not_name_are_not_opened(with_data: Path) -> None:
    change(with_data, lambda m: m["graphs"]["fp32"]["encoder"].pop("data"))
    with pytest.raises(
        BundleError, match=r"values in the file 'encoder\.fp32\.onnx\.data'.*nothing was opened"
    ):
        OnnxBackend(Bundle.open(with_data), "cpu", "fp32")
    with pytest.raises(BundleError, match="nothing was opened"):
        Bundle.open(with_data).verify()


def test_weights_that_end_before_a_tensor_does_are_refused(with_data: Path) -> None:
    """Hash and size are right: the graph itself asks for bytes that are not there."""
    path = with_data / "encoder.fp32.onnx.data"
    path.write_bytes(path.read_bytes()[:100])
    change(with_data, lambda m: m["graphs"]["fp32"]["encoder"].update(data=entry(path)))
    with pytest.raises(
        BundleError, match=r"within the 100 bytes of encoder\.fp32\.onnx\.data, got bytes 0 to"
    ):
        OnnxBackend(Bundle.open(with_data), "cpu", "fp32")


@pytest.mark.parametrize(
    "name",
    [
        "con",
        "NUL.onnx",
        "Com1",
        "lpt9.data.onnx",
        "a.onnx.",
        "a.onnx..",
        "MANIFEST.json",
        "a:b",
        "a b",
        "a\n",
        "é.onnx",
    ],
)
def test_names_that_some_system_takes_for_another_file_are_refused(name: str) -> None:
    with pytest.raises(BundleError, match="file: expected a"):
        GraphFile(name, 1, HASH)


@pytest.mark.parametrize("name", ["console.onnx", "com10.onnx", "a..b", "nul_.png", "auxiliary"])
def test_names_that_only_look_like_devices_are_taken(name: str) -> None:
    assert GraphFile(name, 1, HASH).file == name


def test_no_file_is_larger_than_one_that_is_read_into_memory(with_packages: Path) -> None:
    for kind, name in ((WeightFile, "a.data"), (PackageFile, f"a.mlpackage/{PACKAGE_FILES[2]}")):
        with pytest.raises(BundleError, match=f"at most {MAX_WEIGHT_BYTES}"):
            kind(name, MAX_WEIGHT_BYTES + 1, HASH)


def test_a_sparse_file_of_the_stated_size_is_refused_or_read_never_a_crash(toy_copy: Path) -> None:
    """The size is compared before anything is read, so that the file on the disk may be of any size."""
    with open(toy_copy / "probe.png", "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match=r"probe\.png: expected 584 bytes, got 1099511627776"):
        Bundle.open(toy_copy).verify()


def test_a_graph_is_below_the_limit_of_a_protobuf_and_its_weights_need_not_be() -> None:
    big = 3 * 2**30
    with pytest.raises(BundleError, match="at most 2147483647"):
        GraphFile("a.onnx", big, HASH)
    graph = Graph("a.onnx", 1, HASH, WeightFile("a.onnx.data", big, HASH))
    assert Graph.from_dict(graph.to_dict()) == graph
    assert "data" not in Graph("a.onnx", 1, HASH).to_dict()
    with pytest.raises(BundleError, match="data: expected a file or nothing"):
        Graph("a.onnx", 1, HASH, "a.onnx.data")  # type: ignore[arg-type]
