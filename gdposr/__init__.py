"""On-device generative super-resolution: a low-resolution photo in, sharp and believable 4x versions out.

    from gdposr import Upscaler
    with Upscaler() as upscaler:
        pictures = upscaler.up(image, seed=0, samples=3)

The names below are resolved at first use, so that `import gdposr` (and with it the start of the command)
loads neither numpy nor an inference library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "BundleError",
    "DeviceError",
    "GdposrError",
    "ImageError",
    "OutOfMemory",
    "Photo",
    "SettingError",
    "Upscaler",
    "__version__",
    "read_photo",
    "write_photo",
]

if TYPE_CHECKING:
    from runtime.bundle.reader import Bundle
    from runtime.errors import BundleError, DeviceError, GdposrError, ImageError, OutOfMemory, SettingError
    from runtime.image.photo import Photo
    from runtime.image.read.decode import read_photo
    from runtime.image.write.encode import write_photo
    from runtime.upscale.upscaler import Upscaler

# Public name -> the module that has it, imported at the name's first use.
_HOME = {
    "Bundle": "runtime.bundle.reader",
    "BundleError": "runtime.errors",
    "DeviceError": "runtime.errors",
    "GdposrError": "runtime.errors",
    "ImageError": "runtime.errors",
    "OutOfMemory": "runtime.errors",
    "Photo": "runtime.image.photo",
    "SettingError": "runtime.errors",
    "Upscaler": "runtime.upscale.upscaler",
    "read_photo": "runtime.image.read.decode",
    "write_photo": "runtime.image.write.encode",
}


if not TYPE_CHECKING:  # so that a mistyped name is an error there

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module 'gdposr' has no attribute {name!r}")
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
