"""Runs a gdposr bundle: seeded noise, tiles, colour, pictures in and out. Needs numpy, Pillow and ONNX Runtime only.

Imports inside this folder are relative, so that it can be copied into another program as it is. The names below are imported
when they are first used, so that `import runtime` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import BundleError, DeviceError, GdposrError, ImageError, OutOfMemory, SettingError

if TYPE_CHECKING:
    from .bundle import Bundle
    from .devices import available_devices
    from .manifest import Manifest
    from .noise import noise_field
    from .upscaler import Upscaler

__all__ = [
    "Bundle",
    "BundleError",
    "DeviceError",
    "GdposrError",
    "ImageError",
    "Manifest",
    "OutOfMemory",
    "SettingError",
    "Upscaler",
    "available_devices",
    "noise_field",
]

_HOMES = {
    "Bundle": "bundle",
    "Manifest": "manifest",
    "Upscaler": "upscaler",
    "available_devices": "devices",
    "noise_field": "noise",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
