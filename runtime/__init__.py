"""Runs a gdposr bundle: seeded noise, tiles, colour, pictures in and out. Needs numpy, Pillow and ONNX Runtime only.

Imports inside this folder are relative, so that it can be copied into another program as it is. The names below are imported
at first use, so that `import runtime` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import BundleError, DeviceError, GdposrError, ImageError, OutOfMemory, SettingError

if TYPE_CHECKING:
    from .backends.choice import available_devices
    from .bundle.manifest import Manifest
    from .bundle.reader import Bundle
    from .noise import noise_field
    from .upscale.upscaler import Upscaler

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
    "Bundle": "bundle.reader",
    "Manifest": "bundle.manifest",
    "Upscaler": "upscale.upscaler",
    "available_devices": "backends.choice",
    "noise_field": "noise",
}


if not TYPE_CHECKING:  # so that a mistyped name is an error there

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
