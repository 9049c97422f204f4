"""Devices: chosen, refused with a remedy, and never replaced in silence."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from runtime import backend as module
from runtime.backend import (
    DEVICE_TABLE,
    DEVICES,
    OnnxBackend,
    available_devices,
    choices,
    resolve,
    usable_processors,
)
from runtime.bundle import Bundle
from runtime.errors import BundleError, DeviceError, SettingError
from runtime.files import Graph
from runtime.noise import noise_field
from runtime.probe import IDENTICAL_DB, psnr_db, read_rgb, run_probe
from runtime.upscaler import Upscaler


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """providers("CUDAExecutionProvider", ...) lets ONNX Runtime claim these besides the CPU."""

    def claim(*names: str) -> None:
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*names, "CPUExecutionProvider"])

    claim()
    return claim


class Wrong:
    """A device that computes something else: the right backend with its output darkened."""

    def __init__(self, *arguments: Any) -> None:
        self._right = OnnxBackend(arguments[0], "cpu", *arguments[2:])
        self.device, self.precision = arguments[1], arguments[2]

    def encode(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return self._right.encode(image)

    def generate(self, features: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        return self._right.generate(features, noise) * np.float32(0.8)


def test_table() -> None:
    assert DEVICES[:2] == ("auto", "cpu")
    assert {"cuda", "ane", "openvino"} < set(DEVICES)
    assert len(set(DEVICES)) == len(DEVICES) == len(DEVICE_TABLE) + 1
    assert DEVICE_TABLE[-1].name == "cpu", "auto tries the CPU last"
    assert all(device.remedy for device in DEVICE_TABLE)
    assert "cpu" in available_devices()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_runs_by_the_contract(bundle: Bundle, precision: str) -> None:
    backend = OnnxBackend(bundle, "cpu", precision)
    image = np.random.default_rng(0).random((2, 3, 10, 14), dtype=np.float32)
    features = backend.encode(image)
    assert {name: value.shape for name, value in features.items()} == {
        "features": (2, 4, 5, 7),
        "base": (2, 3, 10, 14),
    }
    output = backend.generate(features, np.stack([noise_field(0, k, 5, 7) for k in range(2)]))
    assert output.shape == (2, 3, 40, 56)
    assert output.dtype == np.float32
    assert 0 <= output.min() < output.max() <= 1


def test_views_need_not_be_contiguous(bundle: Bundle) -> None:
    backend = OnnxBackend(bundle, "cpu", "fp32")
    image = np.random.default_rng(0).random((1, 10, 14, 3), dtype=np.float32).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(
        backend.encode(image)["features"], backend.encode(np.ascontiguousarray(image))["features"]
    )


def test_unknown_device_lists_the_known(bundle: Bundle) -> None:
    for call in (lambda: OnnxBackend(bundle, "tpu", "fp32"), lambda: resolve(bundle, "tpu")):
        with pytest.raises(DeviceError, match=r"expected one of auto, cpu, cuda.*came 'tpu'"):
            call()


@pytest.mark.parametrize(
    ("device", "remedy"),
    [
        ("cuda", r'pip install "gdposr\[cuda\]" && pip install --force-reinstall --no-deps onnxruntime-gpu'),
        ("ane", "macOS"),
        ("openvino", "onnxruntime-openvino"),
    ],
)
def test_missing_device_names_the_remedy(
    bundle: Bundle, providers: Callable[..., None], device: str, remedy: str
) -> None:
    for call in (
        lambda: resolve(bundle, device),
        lambda: OnnxBackend(bundle, device, "fp32"),
        lambda: Upscaler(bundle, device=device),
    ):
        with pytest.raises(DeviceError, match=remedy):
            call()


def test_auto_takes_the_best_installed(bundle: Bundle, providers: Callable[..., None]) -> None:
    assert resolve(bundle)[:2] == ("cpu", "int8"), "the bundle's precision for the CPU"
    providers("OpenVINOExecutionProvider", "CUDAExecutionProvider")
    assert available_devices() == ("cuda", "openvino", "cpu")
    assert resolve(bundle)[:2] == ("cuda", "fp32"), "fp32 where the bundle names none"
    assert choices(bundle) == [("cuda", "fp32"), ("openvino", "fp32"), ("cpu", "int8"), ("cpu", "fp32")]
    assert choices(bundle, precision="int8") == [("cuda", "int8"), ("openvino", "int8"), ("cpu", "int8")]
    assert choices(bundle, "cpu", "fp32") == [("cpu", "fp32")]


def test_unused_gpu_is_mentioned(bundle: Bundle, providers: Callable[..., None], monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_has_nvidia_gpu", lambda: True)
    assert "gdposr[cuda]" in resolve(bundle)[2][0]
    assert resolve(bundle, "cpu")[2] == [], "who asks for the CPU knows"
    notes: list[str] = []
    with Upscaler(bundle, notify=notes.append) as upscaler:
        assert upscaler.notes == tuple(notes)
        assert len(notes) == 1


def test_unknown_precision(bundle: Bundle) -> None:
    for call in (lambda: resolve(bundle, "cpu", "fp16"), lambda: OnnxBackend(bundle, "cpu", "int4")):
        with pytest.raises(BundleError, match="expected one of fp32, int8"):
            call()


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_bad_threads(bundle: Bundle, threads: Any) -> None:
    with pytest.raises(SettingError, match="threads"):
        OnnxBackend(bundle, "cpu", "fp32", threads)


def test_thread_count(bundle: Bundle) -> None:
    assert OnnxBackend(bundle, "cpu", "fp32", 3).threads == 3
    assert OnnxBackend(bundle, "cpu", "fp32").threads == usable_processors() >= 1


def test_silent_fallback_of_the_library_is_an_error(
    bundle: Bundle, providers: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime with a broken CUDA installation warns and computes on the CPU; here that is an error or a note."""
    providers("CUDAExecutionProvider")
    real = onnxruntime.InferenceSession

    def session(content: bytes, options: Any, providers: list[Any]) -> Any:
        return real(content, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(DeviceError, match="expected to run on cuda, came to run elsewhere"):
        Upscaler(bundle, device="cuda")
    notes: list[str] = []
    upscaler = Upscaler(bundle, notify=notes.append)
    assert (upscaler.device, upscaler.precision) == ("cpu", "int8")
    assert "using cpu int8 instead" in notes[-1]


def test_device_that_fails_to_load(
    bundle: Bundle, providers: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    providers("CUDAExecutionProvider")
    real = onnxruntime.InferenceSession

    def session(content: bytes, options: Any, providers: list[Any]) -> Any:
        if providers[0][0] == "CUDAExecutionProvider":
            raise RuntimeError("no driver\nmore lines")
        return real(content, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(DeviceError, match="no driver; upgrade"):
        Upscaler(bundle, device="cuda")
    assert "no driver" in Upscaler(bundle).notes[-1]


def test_probe_passes_on_the_cpu(bundle: Bundle) -> None:
    for precision in ("fp32", "int8"):
        result = run_probe(bundle, OnnxBackend(bundle, "cpu", precision))
        assert result.ok
        assert result.psnr_db >= result.floor_db == bundle.manifest.probe.floor_db[precision]


def test_device_that_computes_something_else(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run_probe(bundle, Wrong(bundle, "cpu", "fp32")).ok

    def build(bundle: Bundle, device: str, precision: str, threads: int | None) -> Any:
        kind = Wrong if precision == "int8" else OnnxBackend
        return kind(bundle, device, precision, threads)

    monkeypatch.setattr("runtime.upscaler.OnnxBackend", build)
    with pytest.raises(DeviceError, match=r"cpu int8 does not compute the model rightly.*35\.0 dB"):
        Upscaler(bundle, device="cpu", precision="int8")
    upscaler = Upscaler(bundle, device="cpu")
    assert upscaler.precision == "fp32"
    assert "using cpu fp32 instead" in upscaler.notes[-1]
    unchecked = Upscaler(bundle, precision="int8", check=False)
    assert (unchecked.precision, unchecked.notes) == ("int8", ())


def test_psnr() -> None:
    a = np.full((4, 4, 3), 100, np.uint8)
    assert psnr_db(a, a) == IDENTICAL_DB
    assert psnr_db(a, a + 1) == pytest.approx(48.13, abs=0.01)
    assert psnr_db(a, np.full_like(a, 0)) == psnr_db(np.full_like(a, 0), a)


def test_probe_picture_must_be_a_small_rgb_png(bundle: Bundle) -> None:
    graph = bundle.manifest.graphs["fp32"]["encoder"]
    with pytest.raises(BundleError, match="expected a PNG"):
        read_rgb(bundle, graph)
    assert read_rgb(bundle, bundle.manifest.probe.input).shape == (24, 20, 3)


def test_graph_with_other_names(toy_copy: Path) -> None:
    """Graphs that do not fit the manifest are found at load: here encoder and generator are exchanged."""
    bundle = Bundle.open(toy_copy)
    pair = bundle.manifest.graphs["fp32"]
    pair["encoder"], pair["generator"] = pair["generator"], pair["encoder"]
    with pytest.raises(BundleError, match=r"the fp32 encoder: expected inputs .*image"):
        OnnxBackend(bundle, "cpu", "fp32")


def test_graph_that_is_no_onnx(toy_copy: Path) -> None:
    bundle = Bundle.open(toy_copy)
    bundle.manifest.graphs["fp32"]["encoder"] = Graph(**vars(bundle.manifest.probe.input))
    with pytest.raises(DeviceError, match="the fp32 encoder cannot be loaded on cpu"):
        OnnxBackend(bundle, "cpu", "fp32")


def test_altered_graph_is_not_replaced_by_another_precision(toy_copy: Path) -> None:
    path = toy_copy / "encoder.int8.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError):
        Upscaler(toy_copy)


def test_graphs_come_from_verified_bytes(toy_copy: Path) -> None:
    """Nothing is read from the bundle after it has been loaded."""
    upscaler = Upscaler(toy_copy)
    shutil.rmtree(toy_copy)
    assert upscaler.up(np.zeros((4, 4, 3), np.uint8))[0].shape == (16, 16, 3)


def test_failing_run_is_a_device_error(bundle: Bundle) -> None:
    backend = OnnxBackend(bundle, "cpu", "fp32")
    with pytest.raises(DeviceError, match=r"cpu \(fp32\) failed on inputs"):
        backend.encode(np.zeros((1, 5, 8, 8), np.float32))


@pytest.mark.gpu
def test_cuda(bundle: Bundle) -> None:
    if "cuda" not in available_devices():
        pytest.skip("needs onnxruntime-gpu")
    assert run_probe(bundle, OnnxBackend(bundle, "cuda", "fp32")).ok
