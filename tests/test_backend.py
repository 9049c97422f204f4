"""The graphs in ONNX Runtime: run by the contract, from verified bytes, and counted where they were placed."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from upscaling import placement_known

from runtime.backends import devices
from runtime.backends.choice import available_devices, open_backend, placement_note
from runtime.backends.devices import DEVICE_TABLE, usable_processors
from runtime.backends.onnx import OnnxBackend
from runtime.bundle.entries import Graph
from runtime.bundle.reader import Bundle
from runtime.errors import BundleError, DeviceError, SettingError
from runtime.noise import noise_field
from runtime.upscale.probe import IDENTICAL_DB, psnr_db, read_rgb, run_probe
from runtime.upscale.upscaler import Upscaler


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


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


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_bad_threads(bundle: Bundle, threads: Any) -> None:
    with pytest.raises(SettingError, match="threads"):
        OnnxBackend(bundle, "cpu", "fp32", threads)


def test_thread_count(bundle: Bundle) -> None:
    assert OnnxBackend(bundle, "cpu", "fp32", 3).threads == 3
    assert OnnxBackend(bundle, "cpu", "fp32").threads == usable_processors() >= 1


def test_probe_passes_on_the_cpu(bundle: Bundle) -> None:
    for precision in ("fp32", "int8"):
        result = run_probe(bundle, OnnxBackend(bundle, "cpu", precision))
        assert result.ok
        assert result.psnr_db >= result.floor_db == bundle.manifest.probe.floor_db[precision]


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
    with pytest.raises(BundleError, match=r"probe\.png: expected an ONNX graph"):
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


# --- features in the device's memory ----------------------------------------------------------------------------------------


@pytest.fixture
def cpu_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as if it were a card: features stay in tensors of ONNX Runtime."""
    rows = tuple(dataclasses.replace(row, memory="cpu") if row.name == "cpu" else row for row in DEVICE_TABLE)
    monkeypatch.setattr(devices, "DEVICE_TABLE", rows)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_bound_tensors_give_the_same_result(
    bundle: Bundle, request: pytest.FixtureRequest, precision: str
) -> None:
    plain = OnnxBackend(bundle, "cpu", precision)
    request.getfixturevalue("cpu_memory")
    bound = OnnxBackend(bundle, "cpu", precision)
    image = np.random.default_rng(0).random((2, 10, 14, 3), dtype=np.float32).transpose(0, 3, 1, 2)
    noise = np.stack([noise_field(0, k, 5, 7) for k in range(2)])
    features = bound.encode(image)
    assert all(isinstance(value, onnxruntime.OrtValue) for value in features.values())
    expected = plain.generate(plain.encode(image), noise)
    for _ in range(2):  # the features serve any number of samples
        output = bound.generate(features, noise)
        assert isinstance(output, np.ndarray)
        np.testing.assert_array_equal(output, expected)
    np.testing.assert_array_equal(bound.generate(plain.encode(image), noise), expected)
    with pytest.raises(DeviceError, match=rf"cpu \({precision}\) failed on inputs .*\(2, 4, 5, 7\)"):
        bound.generate(features, noise[:, :, :3])


def test_upscaler_takes_bound_tensors(bundle: Bundle, request: pytest.FixtureRequest) -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    plain = Upscaler(bundle, device="cpu", precision="fp32", tile=16).up(image, samples=2)
    request.getfixturevalue("cpu_memory")
    bound = Upscaler(bundle, device="cpu", precision="fp32", tile=16).up(image, samples=2)
    np.testing.assert_array_equal(bound, plain)


class Card:
    """A session of a card that notes what is bound where, and computes on the CPU."""

    log: tuple[tuple[str, ...], ...] = ()

    def __init__(self, content: bytes, options: Any, providers: list[Any]) -> None:
        self._real = REAL_SESSION(content, options, providers=["CPUExecutionProvider"])
        self.providers = [name for name, *_ in (p if isinstance(p, tuple) else (p,) for p in providers)]

    def get_providers(self) -> list[str]:
        return self.providers

    def get_inputs(self) -> Any:
        return self._real.get_inputs()

    def get_outputs(self) -> Any:
        return self._real.get_outputs()

    def get_provider_graph_assignment_info(self) -> list[Any]:
        on_card = SimpleNamespace(ep_name="CUDAExecutionProvider", get_nodes=lambda: ["Conv", "Add", "Relu"])
        on_cpu = SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: ["Shape"])
        return [on_card, on_cpu]

    def io_binding(self) -> "CardBinding":
        return CardBinding(self._real.io_binding())

    def run_with_iobinding(self, binding: "CardBinding") -> None:
        Card.log += (("run",),)
        self._real.run_with_iobinding(binding.real)


class CardBinding:
    """An IO binding with a card's memory taken from the CPU."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        Card.log += (("from cpu", name),)
        self.real.bind_cpu_input(name, array)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        Card.log += (("stays", name),)
        self.real.bind_ortvalue_input(name, value)

    def bind_output(self, name: str, memory: str) -> None:
        Card.log += (("to", memory, name),)
        self.real.bind_output(name, "cpu")

    def get_outputs(self) -> Any:
        return self.real.get_outputs()


REAL_SESSION = onnxruntime.InferenceSession


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> type[Card]:
    """ONNX Runtime with a CUDA device that is a `Card`."""
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Card)
    monkeypatch.setattr(Card, "log", ())
    return Card


def test_features_stay_on_the_card(bundle: Bundle, card: type[Card]) -> None:
    backend = open_backend(bundle, "cuda", "fp32")
    image = np.random.default_rng(0).random((1, 3, 10, 14), dtype=np.float32)
    features = backend.encode(image)
    assert card.log == (
        ("from cpu", "image"), ("to", "cuda", "features"), ("to", "cuda", "base"), ("run",)
    )  # fmt: skip
    card.log = ()
    output = backend.generate(features, noise_field(0, 0, 5, 7)[None])
    assert card.log == (
        ("stays", "features"), ("stays", "base"), ("from cpu", "noise"), ("to", "cpu", "sr"), ("run",)
    )  # fmt: skip
    assert output.shape == (1, 3, 40, 56)


# --- placement --------------------------------------------------------------------------------------------------------------


@placement_known
def test_nodes_on_the_cpu_are_counted(bundle: Bundle) -> None:
    for precision in ("fp32", "int8"):
        backend = OnnxBackend(bundle, "cpu", precision)
        assert backend.largest is None
        assert backend.placement is not None
        assert set(backend.placement) == {"CPUExecutionProvider"}
        assert 10 < backend.placement["CPUExecutionProvider"] < 100
        assert placement_note(backend) is None
        assert Upscaler(bundle, device="cpu", precision=precision).placement == backend.placement


def test_nodes_of_both_graphs_are_counted(bundle: Bundle, card: type[Card]) -> None:
    backend = OnnxBackend(bundle, "cuda", "fp32")
    assert backend.placement == {"CUDAExecutionProvider": 6, "CPUExecutionProvider": 2}
    assert placement_note(backend) is None


def test_unknown_placement_is_none(bundle: Bundle, card: type[Card], monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime before 1.24 does not tell."""
    monkeypatch.delattr(card, "get_provider_graph_assignment_info")
    backend = OnnxBackend(bundle, "cuda", "fp32")
    assert backend.placement is None
    assert placement_note(backend) is None


def test_card_that_runs_little_is_noted(
    bundle: Bundle, card: type[Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = [
        SimpleNamespace(ep_name="CUDAExecutionProvider", get_nodes=lambda: ["Conv"]),
        SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: ["Add", "Relu"]),
    ]
    monkeypatch.setattr(card, "get_provider_graph_assignment_info", lambda _: info)
    notes: list[str] = []
    with Upscaler(bundle, device="cuda", precision="fp32", notify=notes.append) as upscaler:
        assert upscaler.placement == {"CUDAExecutionProvider": 2, "CPUExecutionProvider": 4}
        assert upscaler.notes == tuple(notes)
    assert "only 2 of 6 graph nodes of fp32 run on cuda" in notes[0]


@pytest.mark.gpu
def test_cuda(bundle: Bundle) -> None:
    if "cuda" not in available_devices():
        pytest.skip("needs onnxruntime-gpu")
    backend = OnnxBackend(bundle, "cuda", "fp32")
    assert run_probe(bundle, backend).ok
    features = backend.encode(np.zeros((1, 3, 8, 8), np.float32))
    assert {value.device_name() for value in features.values()} == {"cuda"}
    assert backend.placement is None or placement_note(backend) is None
