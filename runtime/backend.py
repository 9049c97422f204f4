"""Where a bundle's graphs run. One table says which ONNX Runtime provider stands behind each device name.

A device that is asked for by name is used or refused with the remedy; only "auto" chooses, and says what it chose.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .checks import setting
from .errors import BundleError, DeviceError
from .files import Graph
from .manifest import GraphSpec, TensorSpec

Floats = NDArray[np.float32]
_CPU_PROVIDER: Final = "CPUExecutionProvider"


@dataclass(frozen=True)
class Device:
    """A device name, the ONNX Runtime provider behind it with its options, and what to do where it is missing."""

    name: str
    provider: str
    remedy: str
    options: dict[str, str] = field(default_factory=dict)


DEVICE_TABLE: Final = (  # in the order in which "auto" tries them
    Device(
        "cuda",
        "CUDAExecutionProvider",
        'on a machine with an NVIDIA GPU: pip install "gdposr[cuda]" && '
        "pip install --force-reinstall --no-deps onnxruntime-gpu",
        # The default search times every algorithm for every new tile shape; TF32 rounds to 10 bits.
        {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"},
    ),
    Device(
        "ane",
        "CoreMLExecutionProvider",
        "needs macOS 12 or later on Apple silicon, where pip install onnxruntime brings it",
        {"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndNeuralEngine"},
    ),
    Device(
        "openvino",
        "OpenVINOExecutionProvider",
        'on an Intel machine: pip install "gdposr[openvino]" && '
        "pip install --force-reinstall --no-deps onnxruntime-openvino",
        {"device_type": "CPU"},
    ),
    Device("cpu", _CPU_PROVIDER, "install ONNX Runtime again: pip install --force-reinstall onnxruntime"),
)
DEVICES: Final = ("auto", "cpu", *(device.name for device in DEVICE_TABLE if device.name != "cpu"))


class Backend(Protocol):
    """Runs the two graphs of one bundle. Safe to call from several threads."""

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...

    def encode(self, image: Floats) -> dict[str, Floats]:
        """image: (n, 3, h, w) RGB in [0, 1], h and w multiples of `multiple_of` -> features by name."""
        ...

    def generate(self, features: dict[str, Floats], noise: Floats) -> Floats:
        """features of `encode`, noise (n, c, h', w') -> (n, 3, scale h, scale w), nominally in [0, 1]."""
        ...


class OnnxBackend:
    """The graphs in ONNX Runtime, loaded from verified bytes. threads: None = all processors this process may use."""

    def __init__(self, bundle: Bundle, device: str, precision: str, threads: int | None = None) -> None:
        self.threads = usable_processors() if threads is None else setting("threads", threads, 1)
        spec = device_spec(device)
        _require(spec)
        pair = bundle.manifest.graphs[check_precision(bundle, precision)]
        self.device, self.precision = spec.name, precision
        encoder, generator = bundle.manifest.encoder, bundle.manifest.generator
        self._image, self._noise = bundle.manifest.image.name, bundle.manifest.noise_input.name
        self._features = [tensor.name for tensor in encoder.outputs]
        self._inputs = [tensor.name for tensor in generator.inputs if tensor.name != self._noise]
        self._output = bundle.manifest.output.name
        self._encoder = _session(bundle, "encoder", pair["encoder"], encoder, spec, self)
        self._generator = _session(bundle, "generator", pair["generator"], generator, spec, self)

    def encode(self, image: Floats) -> dict[str, Floats]:
        values = self._run(self._encoder, self._features, {self._image: image})
        return dict(zip(self._features, values, strict=True))

    def generate(self, features: dict[str, Floats], noise: Floats) -> Floats:
        feeds = {name: features[name] for name in self._inputs}
        return self._run(self._generator, [self._output], {**feeds, self._noise: noise})[0]

    def _run(self, session: Any, outputs: list[str], feeds: dict[str, Floats]) -> list[Floats]:
        try:
            return session.run(outputs, {name: np.ascontiguousarray(v) for name, v in feeds.items()})
        except Exception as error:  # ONNX Runtime's exceptions have no common base but this
            shapes = {name: value.shape for name, value in feeds.items()}
            raise DeviceError(
                f"{self.device} ({self.precision}) failed on inputs {shapes}: {_first_line(error)}; "
                "try a smaller tile, another precision or the device cpu"
            ) from error


def device_spec(name: str) -> Device:
    """The table's row of a device name; DeviceError for a name it does not hold."""
    for device in DEVICE_TABLE:
        if device.name == name:
            return device
    raise DeviceError(f"device: expected one of {', '.join(DEVICES)}, came {name!r}; choose one of these")


def available_devices() -> tuple[str, ...]:
    """The devices whose ONNX Runtime provider is installed, in the order in which "auto" tries them."""
    installed = _runtime().get_available_providers()
    return tuple(device.name for device in DEVICE_TABLE if device.provider in installed)


def check_precision(bundle: Bundle, precision: str) -> str:
    """precision itself if the bundle has graphs of it, else BundleError."""
    if precision not in bundle.manifest.graphs:
        there = ", ".join(bundle.manifest.graphs)
        raise BundleError(
            f"{bundle.path}: precision: expected one of {there}, came {precision!r}; choose one of these or auto"
        )
    return precision


def choices(bundle: Bundle, device: str = "auto", precision: str = "auto") -> list[tuple[str, str]]:
    """(device, precision) pairs that satisfy the request, best first. Where "auto" leaves a choice there may be several."""
    if not bundle.manifest.graphs:
        raise BundleError(
            f"{bundle.path}: expected ONNX graphs, came a bundle with Core ML packages only: they are for an app on Apple's "
            "devices; export it again with --targets onnx,coreml to run it here"
        )
    if precision != "auto":
        check_precision(bundle, precision)
    if device == "auto":
        devices = available_devices()
    else:
        _require(device_spec(device))
        devices = (device,)
    return [
        (name, p)
        for name in devices
        for p in ([precision] if precision != "auto" else _precisions(bundle, name))
    ]


def resolve(bundle: Bundle, device: str = "auto", precision: str = "auto") -> tuple[str, str, list[str]]:
    """The best (device, precision) for a request, and notes that the user should see."""
    name, kind = choices(bundle, device, precision)[0]
    notes = []
    if device == "auto" and name == "cpu" and _has_nvidia_gpu():
        notes.append(f"using the CPU although an NVIDIA GPU is here; to use it, {device_spec('cuda').remedy}")
    return name, kind, notes


def usable_processors() -> int:
    """Processors this process may use, counting its affinity mask and its container's quota."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = min(count, len(os.sched_getaffinity(0)))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(count, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no such file, or quota "max"
        return count


def _precisions(bundle: Bundle, device: str) -> list[str]:
    """The manifest's choice for a device, then the reference fp32 to fall back on."""
    manifest = bundle.manifest
    first = manifest.default_precision.get(
        device, "fp32" if "fp32" in manifest.graphs else next(iter(manifest.graphs))
    )
    return [first] if first == "fp32" or "fp32" not in manifest.graphs else [first, "fp32"]


def _require(device: Device) -> None:
    if device.name not in available_devices():
        raise DeviceError(
            f"device {device.name}: expected ONNX Runtime with {device.provider}, came one with "
            f"{', '.join(_runtime().get_available_providers())}; {device.remedy}"
        )


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(
            f"expected the package onnxruntime, came: {error}; run: pip install --force-reinstall onnxruntime"
        ) from error
    return onnxruntime


def _session(
    bundle: Bundle, role: str, file: Graph, graph: GraphSpec, device: Device, backend: OnnxBackend
) -> Any:
    """An ONNX Runtime session that runs on this very device, with the inputs and outputs that the manifest names."""
    ort = _runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = backend.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only: warnings about partitioning mean nothing to a user
    # Each session has its own threads; those of the one must not spin while the other one computes.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers: list[Any] = [(device.provider, device.options)]
    if device.provider != _CPU_PROVIDER:
        providers.append(_CPU_PROVIDER)  # for single operators that the provider lacks
    if device.name == "cuda" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds the CUDA libraries that came as Python packages
    what = f"{bundle.path}: the {backend.precision} {role}"
    content = bundle.read(file)
    weights = b"" if file.data is None else bundle.read(file.data)
    try:
        if (
            file.data is not None
        ):  # from verified bytes too: ONNX Runtime then opens no file that the graph names
            options.add_external_initializers_from_files_in_memory(
                [file.data.file], [weights], [len(weights)]
            )
        session = ort.InferenceSession(content, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base but this
        raise DeviceError(
            f"{what} cannot be loaded on {device.name}: {_first_line(error)}; upgrade onnxruntime or use another device"
        ) from error
    if device.provider not in session.get_providers():  # ONNX Runtime itself falls back in silence
        raise DeviceError(f"{what}: expected to run on {device.name}, came to run elsewhere; {device.remedy}")
    _check_names(what, "inputs", graph.inputs, session.get_inputs())
    _check_names(what, "outputs", graph.outputs, session.get_outputs())
    return session


def _check_names(what: str, side: str, specs: tuple[TensorSpec, ...], found: Any) -> None:
    names = {value.name: value.type for value in found}
    wanted = {spec.name: "tensor(float)" for spec in specs}
    if names != wanted:
        raise BundleError(f"{what}: expected {side} {wanted}, came {names}; export the bundle again")


def _has_nvidia_gpu() -> bool:
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
