"""Devices: chosen, refused with a remedy, and never replaced in silence."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from runtime.backends import choice
from runtime.backends import devices as module
from runtime.backends.choice import available_devices, choices, open_backend, resolve
from runtime.backends.devices import DEVICE_TABLE, DEVICES, Features
from runtime.backends.onnx import OnnxBackend
from runtime.bundle.reader import Bundle
from runtime.errors import BundleError, DeviceError
from runtime.upscale.probe import run_probe
from runtime.upscale.upscaler import Upscaler


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """providers("CUDAExecutionProvider", ..., openvino=False): ONNX Runtime claims these besides the CPU, and the package openvino is
    there or not, whatever is installed here."""
    real = importlib.util.find_spec

    def claim(*names: str, openvino: bool = False) -> None:
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*names, "CPUExecutionProvider"])

        def find_spec(name: str, package: str | None = None) -> Any:
            if name != "openvino":
                return real(name, package)
            return importlib.util.spec_from_loader(name, None) if openvino else None

        monkeypatch.setattr(module.importlib.util, "find_spec", find_spec)

    claim()
    return claim


class Wrong:
    """A device that computes something else: the right backend with its output darkened."""

    def __init__(self, *arguments: Any) -> None:
        self._right = OnnxBackend(arguments[0], "cpu", *arguments[2:])
        self.device, self.precision, self.placement = arguments[1], arguments[2], None
        self.largest = None

    def encode(self, image: np.ndarray) -> Features:
        return self._right.encode(image)

    def generate(self, features: Features, noise: np.ndarray) -> np.ndarray:
        return self._right.generate(features, noise) * np.float32(0.8)


def test_table() -> None:
    assert DEVICES[:2] == ("auto", "cpu")
    assert {"cuda", "ane", "openvino", "coreml-gpu", "coreml-all"} < set(DEVICES)
    assert len(set(DEVICES)) == len(DEVICES) == len(DEVICE_TABLE) + 1
    assert all(device.remedy for device in DEVICE_TABLE)
    assert all(device.provider in device.places for device in DEVICE_TABLE)
    assert next(device for device in DEVICE_TABLE if device.units).units == "CPU_AND_NE", (
        "the first that auto tries"
    )
    assert "cpu" in available_devices()


def test_unknown_device_lists_the_known(bundle: Bundle) -> None:
    for call in (lambda: open_backend(bundle, "tpu", "fp32"), lambda: resolve(bundle, "tpu")):
        with pytest.raises(DeviceError, match=r"expected one of auto, cpu, cuda.*got 'tpu'"):
            call()


@pytest.mark.parametrize(
    ("device", "remedy"),
    [
        ("cuda", r'pip install "gdposr\[cuda\]" && pip install --force-reinstall --no-deps onnxruntime-gpu'),
        ("ane", "macOS"),
        ("coreml-gpu", r'pip install "gdposr\[coreml\]"'),
        ("coreml-all", "macOS"),
        ("openvino", r'pip install "gdposr\[openvino\]"'),
    ],
)
def test_missing_device_names_the_remedy(
    bundle: Bundle, providers: Callable[..., None], device: str, remedy: str
) -> None:
    for call in (
        lambda: resolve(bundle, device),
        lambda: open_backend(bundle, device, "fp32"),
        lambda: Upscaler(bundle, device=device),
    ):
        with pytest.raises(DeviceError, match=remedy):
            call()


def test_auto_takes_the_best_installed(bundle: Bundle, providers: Callable[..., None]) -> None:
    assert resolve(bundle)[:2] == ("cpu", "int8"), "the bundle's precision for the CPU"
    providers("CoreMLExecutionProvider", "CUDAExecutionProvider", openvino=True)
    assert available_devices() == ("cuda", "ane", "cpu", "openvino", "coreml-gpu", "coreml-all")
    assert resolve(bundle)[:2] == ("cuda", "fp32"), "fp32 where the bundle names none"
    providers("CUDAExecutionProvider")
    assert available_devices() == ("cuda", "cpu")
    assert choices(bundle) == [("cuda", "fp32"), ("cpu", "int8"), ("cpu", "fp32")]
    assert choices(bundle, precision="int8") == [("cuda", "int8"), ("cpu", "int8")]
    assert choices(bundle, "cpu", "fp32") == [("cpu", "fp32")]


def test_installing_openvino_does_not_change_what_auto_takes(
    bundle: Bundle, providers: Callable[..., None]
) -> None:
    providers(openvino=True)
    assert resolve(bundle)[:2] == ("cpu", "int8")
    assert resolve(bundle, "openvino", "int8")[:2] == ("openvino", "int8")


def test_looking_for_devices_does_not_import_openvino(run_python: Callable) -> None:
    code = "import sys; from runtime import available_devices; available_devices(); sys.exit('openvino' in sys.modules)"
    assert run_python("-c", code).returncode == 0


def test_unused_gpu_is_mentioned(bundle: Bundle, providers: Callable[..., None], monkeypatch: Any) -> None:
    monkeypatch.setattr(choice, "_has_nvidia_gpu", lambda: True)
    assert "gdposr[cuda]" in resolve(bundle)[2][0]
    assert resolve(bundle, "cpu")[2] == [], "who asks for the CPU knows"
    notes: list[str] = []
    with Upscaler(bundle, notify=notes.append) as upscaler:
        assert upscaler.notes == tuple(notes)
        assert len(notes) == 1


def test_unknown_precision(bundle: Bundle) -> None:
    for call in (lambda: resolve(bundle, "cpu", "fp16"), lambda: open_backend(bundle, "cpu", "int4")):
        with pytest.raises(BundleError, match="expected one of fp32, int8"):
            call()


def test_silent_fallback_of_the_library_is_an_error(
    bundle: Bundle, providers: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime with a broken CUDA installation warns and computes on the CPU; here that is an error or a note."""
    providers("CUDAExecutionProvider")
    real = onnxruntime.InferenceSession

    def session(content: bytes, options: Any, providers: list[Any]) -> Any:
        return real(content, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(DeviceError, match="expected to run on cuda, got another device"):
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


def test_device_that_computes_something_else(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run_probe(bundle, Wrong(bundle, "cpu", "fp32")).ok

    def build(bundle: Bundle, device: str, precision: str, threads: int | None) -> Any:
        kind = Wrong if precision == "int8" else OnnxBackend
        return kind(bundle, device, precision, threads)

    monkeypatch.setattr("runtime.upscale.upscaler.open_backend", build)
    with pytest.raises(DeviceError, match=r"cpu int8 does not compute the model rightly.*35\.0 dB"):
        Upscaler(bundle, device="cpu", precision="int8")
    upscaler = Upscaler(bundle, device="cpu")
    assert upscaler.precision == "fp32"
    assert "using cpu fp32 instead" in upscaler.notes[-1]
    unchecked = Upscaler(bundle, precision="int8", check=False)
    assert (unchecked.precision, unchecked.notes) == ("int8", ())


# --- no word to anybody -----------------------------------------------------------------------------------------------------


QUIET = """
import sys
import numpy as np
from runtime.upscale.upscaler import Upscaler
with Upscaler(sys.argv[1], device=sys.argv[2]) as upscaler:
    upscaler.up(np.zeros((8, 8, 3), np.uint8))
assert ("openvino" in sys.modules) == (sys.argv[2] == "openvino")
telemetry = [name for name in sys.modules if "telemetry" in name and not name.startswith("openvino.tools")]
sys.exit(f"loaded {telemetry}" if telemetry else 0)
"""


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_nothing_is_reported_or_written(
    run_python: Callable, need: Callable, root: Path, toy_bundle: Path, tmp_path: Path, device: str
) -> None:
    """Left alone, ONNX Runtime and OpenVINO report their use to web services, and keep what they tell in the home folder."""
    need(*(["openvino"] if device == "openvino" else []))
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(root)}
    result = run_python("-c", QUIET, toy_bundle, device, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.rglob("*")), "something was written into the home folder"


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_package_installed_in_part_is_a_device_error(
    tmp_path: Path, run_python: Callable[..., Any], make_photo: Any, root: Path, toy_bundle: Path, name: str
) -> None:
    """A folder without __init__.py, as an interrupted `pip install` leaves it, can be imported and holds nothing."""
    if name == "openvino" and importlib.util.find_spec(name) is None:
        pytest.skip("needs openvino: pip install openvino")
    code = (
        "import importlib.machinery, importlib.util, sys\n"
        f"spec = importlib.machinery.ModuleSpec({name!r}, None, is_package=True)\n"
        f"sys.modules[{name!r}] = importlib.util.module_from_spec(spec)\n"
        "from gdposr.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    device = "cpu" if name == "onnxruntime" else name
    words = [
        "upscale",
        make_photo("a.png"),
        "-o",
        tmp_path / "big.png",
        "--bundle",
        toy_bundle,
        "--device",
        device,
    ]
    result = run_python("-c", code, *words)
    assert result.returncode == 2, result.stderr
    assert "installed in part; run: pip install --force-reinstall" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "big.png").exists()
