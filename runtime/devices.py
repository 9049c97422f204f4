"""Devices by name: one table says which package and provider stand behind each and what to do where they are missing.

A device that is asked for by name is used or refused with the remedy; only "auto" chooses, and says what it chose.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .bundle import Bundle
from .errors import BundleError, DeviceError

CPU_PROVIDER: Final = "CPUExecutionProvider"


@dataclass(frozen=True)
class Device:
    """A device name, what computes behind it, and what to do where that is missing.

    provider: ONNX Runtime's name, with its options; for another package the name that reports carry. memory: ONNX Runtime's
    name of the memory in which features wait between the two graphs; None: numpy arrays.
    """

    name: str
    provider: str
    remedy: str
    options: dict[str, str] = field(default_factory=dict)
    package: str = "onnxruntime"
    memory: str | None = None


DEVICE_TABLE: Final = (  # in the order in which "auto" tries them
    Device(
        "cuda",
        "CUDAExecutionProvider",
        'on a machine with an NVIDIA GPU: pip install "gdposr[cuda]" && '
        "pip install --force-reinstall --no-deps onnxruntime-gpu",
        # The default search times every algorithm for every new tile shape; TF32 rounds to 10 bits.
        {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"},
        memory="cuda",
    ),
    Device(
        "ane",
        "CoreMLExecutionProvider",
        "needs macOS 12 or later on Apple silicon, where pip install onnxruntime brings it",
        {"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndNeuralEngine"},
    ),
    Device("cpu", CPU_PROVIDER, "install ONNX Runtime again: pip install --force-reinstall onnxruntime"),
    # Behind the CPU of ONNX Runtime 1.32, since OpenVINO 2026.4 measured slower there: on an AMD EPYC with AVX-512 VNNI, 128->512,
    # one and two threads, 1.3 to 1.7 times its time in INT8 and 1.0 to 1.3 times in fp32, 175 MB of memory against 100.
    # `gdposr bench --device cpu --device openvino` tells whether another processor is better served by name.
    Device("openvino", "OpenVINO", 'pip install "gdposr[openvino]"', package="openvino"),
)
DEVICES: Final = ("auto", "cpu", *(device.name for device in DEVICE_TABLE if device.name != "cpu"))


def device_spec(name: str) -> Device:
    """The table's row of a device name; DeviceError for a name it does not hold."""
    for device in DEVICE_TABLE:
        if device.name == name:
            return device
    raise DeviceError(f"device: expected one of {', '.join(DEVICES)}, came {name!r}; choose one of these")


def available_devices() -> tuple[str, ...]:
    """The devices whose package and provider are installed, in the order in which "auto" tries them."""
    providers = onnx_runtime().get_available_providers()
    return tuple(device.name for device in DEVICE_TABLE if _installed(device, providers))


def require(device: Device) -> None:
    """DeviceError with the remedy where a device is not at hand."""
    providers = onnx_runtime().get_available_providers()
    if _installed(device, providers):
        return
    if device.package != "onnxruntime":
        raise DeviceError(
            f"device {device.name}: expected the package {device.package}, came none; {device.remedy}"
        )
    raise DeviceError(
        f"device {device.name}: expected ONNX Runtime with {device.provider}, came one with "
        f"{', '.join(providers)}; {device.remedy}"
    )


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
        require(device_spec(device))
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


def onnx_runtime() -> Any:
    """The module onnxruntime, whichever of its distributions is installed. Every import of it in the runtime is this one."""
    # Official builds since 1.32 report the use of every model to a web service and keep a file about it in the home folder,
    # unless this is set before the first import. Who sets it to something else has chosen.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(
            f"expected the package onnxruntime, came: {error}; run: pip install --force-reinstall onnxruntime"
        ) from error
    return onnxruntime


def _installed(device: Device, providers: list[str]) -> bool:
    if device.package == "onnxruntime":
        return device.provider in providers
    return importlib.util.find_spec(device.package) is not None  # only looked for: importing takes a while


def _precisions(bundle: Bundle, device: str) -> list[str]:
    """The manifest's choice for a device, then the reference fp32 to fall back on."""
    manifest = bundle.manifest
    first = manifest.default_precision.get(
        device, "fp32" if "fp32" in manifest.graphs else next(iter(manifest.graphs))
    )
    return [first] if first == "fp32" or "fp32" not in manifest.graphs else [first, "fp32"]


def _has_nvidia_gpu() -> bool:
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
