"""OpenVINO beside ONNX Runtime: the same pictures, from verified bytes, without a word to anybody."""

import builtins
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.choice import open_backend, placement_note
from runtime.backends.onnx import OnnxBackend
from runtime.backends.openvino import OpenVinoBackend
from runtime.bundle.entries import Graph
from runtime.bundle.reader import Bundle
from runtime.errors import BundleError, DeviceError, SettingError
from runtime.noise import noise_field
from runtime.upscale.probe import run_probe
from runtime.upscale.upscaler import Upscaler

# Not pytest.importorskip: importing openvino here would load its telemetry, which the backend keeps out.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs the extra `openvino`"
)


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture(scope="module")
def fp32(bundle: Bundle) -> OpenVinoBackend:
    return OpenVinoBackend(bundle, "openvino", "fp32", threads=1)


def one_input(seed: int = 0, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(seed).random((count, 3, 10, 14), dtype=np.float32)
    return image, np.stack([noise_field(seed, k, 5, 7) for k in range(count)])


@pytest.mark.parametrize(("precision", "floor_db"), [("fp32", 100.0), ("int8", 40.0)])
def test_agrees_with_onnx_runtime(bundle: Bundle, precision: str, floor_db: float) -> None:
    backend = open_backend(bundle, "openvino", precision, 1)
    assert isinstance(backend, OpenVinoBackend)
    assert (backend.device, backend.precision) == ("openvino", precision)
    image, noise = one_input()
    features = backend.encode(image)
    assert {name: value.shape for name, value in features.items()} == {
        "features": (2, 4, 5, 7),
        "base": (2, 3, 10, 14),
    }
    came = backend.generate(features, noise)
    reference = OnnxBackend(bundle, "cpu", precision, 1)
    expected = reference.generate(reference.encode(image), noise)
    assert (came.shape, came.dtype) == (expected.shape, expected.dtype)
    error = np.abs(came - expected)
    psnr = -10 * np.log10(max(np.square(error).mean(), 1e-20))
    assert psnr > floor_db, f"{psnr:.1f} dB, max {error.max():.2e}, mean {error.mean():.2e}"


def test_either_backend_takes_the_other_ones_features(bundle: Bundle, fp32: OpenVinoBackend) -> None:
    """The features are channels-last in memory, and in the order of the contract all the same."""
    image, noise = one_input()
    other = OnnxBackend(bundle, "cpu", "fp32", 1)
    expected = other.generate(other.encode(image), noise)
    np.testing.assert_allclose(other.generate(fp32.encode(image), noise), expected, atol=1e-5)
    np.testing.assert_allclose(fp32.generate(other.encode(image), noise), expected, atol=1e-5)


def test_earlier_results_are_not_overwritten(fp32: OpenVinoBackend) -> None:
    """The arrays belong to the caller, though OpenVINO uses its own again and again."""
    (a, noise), (b, _) = one_input(0), one_input(1)
    features = fp32.encode(a)
    kept, first = {name: value.copy() for name, value in features.items()}, fp32.generate(features, noise)
    again = first.copy()
    fp32.generate(fp32.encode(b), noise)
    np.testing.assert_array_equal(first, again)
    for name, value in features.items():
        np.testing.assert_array_equal(value, kept[name])


def test_sizes_may_change_from_call_to_call(bundle: Bundle, fp32: OpenVinoBackend) -> None:
    reference = OnnxBackend(bundle, "cpu", "fp32", 1)
    for count, height, width in ((1, 8, 8), (1, 24, 10), (3, 8, 8), (1, 8, 8)):
        image = np.random.default_rng(height).random((count, 3, height, width), dtype=np.float32)
        noise = np.stack([noise_field(0, k, height // 2, width // 2) for k in range(count)])
        np.testing.assert_allclose(
            fp32.generate(fp32.encode(image), noise),
            reference.generate(reference.encode(image), noise),
            atol=1e-5,
        )


def test_threads_may_share_a_backend(fp32: OpenVinoBackend) -> None:
    jobs = [one_input(seed) for seed in range(8)] * 3
    alone = [fp32.generate(fp32.encode(image), noise) for image, noise in jobs]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda job: fp32.generate(fp32.encode(job[0]), job[1]), jobs))
    np.testing.assert_array_equal(together, alone)


def test_same_picture_for_every_tile_and_thread_count(bundle: Bundle, make_pixels: Callable) -> None:
    image = make_pixels(50, 70)
    for precision in ("fp32", "int8"):
        whole, tiled = (
            Upscaler(bundle, device="openvino", precision=precision, threads=threads, tile=tile).up(image)[0]
            for threads, tile in ((1, 4096), (2, 16))
        )
        np.testing.assert_array_equal(tiled, whole)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_passes_the_probe(bundle: Bundle, precision: str) -> None:
    result = run_probe(bundle, OpenVinoBackend(bundle, "openvino", precision))
    assert result.ok, f"{result.psnr_db:.1f} dB, floor {result.floor_db:.1f} dB"


def test_shipped_bundle_passes_its_probe_in_every_precision() -> None:
    bundle = Bundle.open()
    for precision in bundle.manifest.graphs:
        result = run_probe(bundle, OpenVinoBackend(bundle, "openvino", precision))
        assert result.ok, f"{precision}: {result.psnr_db:.1f} dB, floor {result.floor_db:.1f} dB"


def test_nodes_are_counted(fp32: OpenVinoBackend) -> None:
    assert set(fp32.placement) == {"OpenVINO"}
    assert 5 < fp32.placement["OpenVINO"] < 100
    assert placement_note(fp32) is None


def test_bad_threads(bundle: Bundle) -> None:
    with pytest.raises(SettingError, match="threads"):
        OpenVinoBackend(bundle, "openvino", "fp32", 0)
    assert OpenVinoBackend(bundle, "openvino", "fp32", 3).threads == 3


def test_unknown_precision(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="expected one of fp32, int8"):
        OpenVinoBackend(bundle, "openvino", "int4")


def test_failing_run_is_a_device_error(fp32: OpenVinoBackend) -> None:
    with pytest.raises(DeviceError, match=r"openvino \(fp32\) failed on inputs \{'image': \(1, 5, 8, 8\)\}"):
        fp32.encode(np.zeros((1, 5, 8, 8), np.float32))
    assert fp32.encode(np.zeros((1, 3, 8, 8), np.float32))["base"].shape == (1, 3, 8, 8)


def test_graph_with_other_names(toy_copy: Path) -> None:
    bundle = Bundle.open(toy_copy)
    pair = bundle.manifest.graphs["fp32"]
    pair["encoder"], pair["generator"] = pair["generator"], pair["encoder"]
    with pytest.raises(BundleError, match=r"the fp32 encoder: expected inputs .*image"):
        OpenVinoBackend(bundle, "openvino", "fp32")


def test_graph_that_is_no_onnx(toy_copy: Path) -> None:
    bundle = Bundle.open(toy_copy)
    bundle.manifest.graphs["fp32"]["encoder"] = Graph(**vars(bundle.manifest.probe.input))
    with pytest.raises(BundleError, match=r"probe\.png: expected an ONNX graph"):
        OpenVinoBackend(bundle, "openvino", "fp32")


def test_graphs_come_from_verified_bytes(toy_copy: Path) -> None:
    upscaler = Upscaler(toy_copy, device="openvino")
    shutil.rmtree(toy_copy)
    assert upscaler.up(np.zeros((4, 4, 3), np.uint8))[0].shape == (16, 16, 3)


@pytest.mark.parametrize("named", [True, False])
def test_weights_beside_a_graph_are_refused(
    toy_copy: Path, need: Callable, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """OpenVINO would open a file of that name in the working folder, whether the manifest names and hashes it or not."""
    need("onnx")
    import hashlib

    import onnx

    model = onnx.load(toy_copy / "encoder.fp32.onnx")
    path = toy_copy / "encoder.fp32.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)
    data = toy_copy / "weights.data"
    manifest = json.loads((toy_copy / "manifest.json").read_text())

    def entry(path: Path) -> dict[str, Any]:
        content = path.read_bytes()
        return {
            "file": path.name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }

    manifest["graphs"]["fp32"]["encoder"] = entry(path) | ({"data": entry(data)} if named else {})
    (toy_copy / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(toy_copy)
    kind, message = (DeviceError, "use the device cpu") if named else (BundleError, "nothing was opened")
    with pytest.raises(kind, match=message):
        OpenVinoBackend(Bundle.open(toy_copy), "openvino", "fp32")


def test_package_that_cannot_be_imported(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *rest: Any) -> Any:
        if name == "openvino":
            raise ImportError("libopenvino.so is damaged")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(DeviceError, match=r"libopenvino\.so is damaged; run: pip install --force-reinstall"):
        OpenVinoBackend(bundle, "openvino", "fp32")


def test_the_package_stays_as_it_is_for_others(bundle: Bundle) -> None:
    OpenVinoBackend(bundle, "openvino", "fp32", 1)
    assert sys.modules.get("openvino_telemetry", "absent") is not None
