"""Chooses and opens the backend for a bundle: the precisions that a device offers, and the choice of "auto".

A device that is asked for by name is used or refused. Only "auto" chooses, and the choice is reported.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ..bundle.reader import Bundle
from ..errors import BundleError
from . import devices
from .devices import CORE_ML_REMEDY, DEVICE_TABLE, Backend, device_spec


def available_devices() -> tuple[str, ...]:
    """The devices whose package and provider are installed, in the order in which "auto" tries them."""
    providers = devices.onnx_runtime().get_available_providers()
    packages = devices.core_ml_here()
    return tuple(d.name for d in DEVICE_TABLE if devices.installed(d, providers) or (packages and d.units))


def offered(bundle: Bundle, device: str = "auto") -> tuple[str, ...]:
    """The precisions of a bundle on a device here: variants of Core ML packages first, then precisions of ONNX graphs.

    Empty if the bundle has nothing for the device. DeviceError if the device itself is missing.
    """
    if device == "auto":
        return tuple(dict.fromkeys(p for name in available_devices() for p in _runs(bundle, name)))
    found, spec = _runs(bundle, device), device_spec(device)
    if not found and (bundle.manifest.graphs or spec.units is None):
        devices.require(spec)
    return found


def choices(bundle: Bundle, device: str = "auto", precision: str = "auto") -> list[tuple[str, str]]:
    """(device, precision) pairs that satisfy the request, best first. With "auto" there may be several."""
    if device == "auto":
        there = {name: _runs(bundle, name) for name in available_devices()}
    else:
        there = {device: offered(bundle, device)}
    known = tuple(dict.fromkeys(p for precisions in there.values() for p in precisions))
    if not known:
        raise BundleError(
            f"{bundle.path}: expected ONNX graphs, got a bundle with Core ML packages only ({', '.join(bundle.manifest.coreml)}): "
            f"they run on the devices {devices.list_core_ml()}, {CORE_ML_REMEDY}; or export it again with --targets onnx,coreml "
            "to run it anywhere"
        )
    if precision != "auto":
        devices.check_precision(bundle, precision, known)
        return [(name, precision) for name, precisions in there.items() if precision in precisions]
    return [(name, p) for name, precisions in there.items() for p in _preferred(bundle, name, precisions)]


def resolve(bundle: Bundle, device: str = "auto", precision: str = "auto") -> tuple[str, str, list[str]]:
    """The best (device, precision) for a request, and notes that the user should see."""
    name, kind = choices(bundle, device, precision)[0]
    notes = []
    if device == "auto" and name == "cpu" and _has_nvidia_gpu():
        notes.append(f"using the CPU although an NVIDIA GPU is here; to use it, {device_spec('cuda').remedy}")
    if device_spec(name).units is not None and bundle.manifest.coreml and not devices.core_ml_here():
        notes.append(
            f"{name} runs the ONNX graphs through ONNX Runtime; the bundle also has Core ML packages "
            f"({', '.join(bundle.manifest.coreml)}); to run these, {CORE_ML_REMEDY}"
        )
    return name, kind, notes


def open_backend(bundle: Bundle, device: str, precision: str, threads: int | None = None) -> Backend:
    """Load a bundle's graphs.

    bundle: with the graphs or Core ML packages.
    device: its name, not "auto".
    precision: its name, or that of a variant of Core ML packages; not "auto".
    threads: None: all processors that this process may use.
    """
    # imported here to load no library that is not used
    if devices.core_ml_packages(bundle, device, precision) is not None:
        from .coreml import CoreMLBackend

        return CoreMLBackend(bundle, device, precision, threads)
    if device_spec(device).package == "openvino":
        from .openvino import OpenVinoBackend

        return OpenVinoBackend(bundle, device, precision, threads)
    from .onnx import OnnxBackend

    return OnnxBackend(bundle, device, precision, threads)


def placement_note(backend: Backend) -> str | None:
    """A message for the user if a device runs less than half of the graphs' nodes. None: it runs more."""
    placement = backend.placement
    if not placement:
        return None
    own = sum(placement.get(place, 0) for place in device_spec(backend.device).places)
    total = sum(placement.values())
    if 2 * own >= total:
        return None
    rest = ", ".join(f"{count} by {name}" for name, count in sorted(placement.items()))
    return (
        f"only {own} of {total} graph nodes of {backend.precision} run on {backend.device} ({rest}); "
        "the device cpu or another precision may be faster"
    )


def _runs(bundle: Bundle, device: str) -> tuple[str, ...]:
    """As `offered` for one device. Empty if that is missing."""
    spec, manifest = device_spec(device), bundle.manifest
    packages = manifest.coreml if spec.units is not None and devices.core_ml_here() else {}
    graphs = (
        manifest.graphs if devices.installed(spec, devices.onnx_runtime().get_available_providers()) else {}
    )
    return tuple(dict.fromkeys([*packages, *graphs]))


def _preferred(bundle: Bundle, device: str, precisions: tuple[str, ...]) -> list[str]:
    """The manifest's choice for a device, then fp32 as the fallback."""
    packages = [name for name in precisions if devices.core_ml_packages(bundle, device, name)]
    wanted = bundle.manifest.default_precision.get(device, "")
    usual = "fp16" if packages else "fp32"
    first = next((name for name in (wanted, usual) if name in (packages or precisions)), None)
    found = [first] if first is not None else [*(packages or precisions)][:1]
    return found if found == ["fp32"] or "fp32" not in precisions else [*found, "fp32"]


def _has_nvidia_gpu() -> bool:
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
