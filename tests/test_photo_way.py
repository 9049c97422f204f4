"""The way of a photo through `runtime/`: few modules, and no folder that it has left is entered again.

`python tests/test_photo_way.py` prints the way; run it from the root of a clone.
"""

import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image

RUNTIME = Path(__file__).parents[1] / "runtime"
MOST_MODULES = 20
# Ten more than the 18 of a plain photo: finding photos, opening, checking and probing the bundle, names for messages.
MOST_OF_COMMAND = 28
# Source, target, colour fix. A file deep.* has 16 bits per channel.
PLAIN = [("a.png", "out.png", "none"), ("a.jpg", "out.png", "none"), ("a.jpg", "out.jpg", "none")]
LONG = [
    ("a.jpg", "out.png", "wavelet"),
    ("deep.png", "out.tif", "adain"),
    ("deep.tif", "out.png", "none"),
    ("deep.tif", "out.tif", "wavelet"),
]


class Way:
    """The modules of `runtime/` in the order of their first call. What runs at import time does not count.

    A return: a module is called for the first time, of a folder that was entered before and that no caller on the stack belongs to,
    itself or in a folder inside of it.
    Modules at the top of `runtime/`, such as `noise.py`, serve everybody and belong to no folder.
    """

    def __init__(self, run: Callable[[], object]) -> None:
        self.modules: list[str] = []
        self.returns: list[str] = []
        self._folders: set[str] = set()
        self._last = ""
        self._seen: set[CodeType] = set()
        threading.setprofile(self._called)
        sys.setprofile(self._called)
        try:
            run()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        name = _module(frame.f_code)
        if event != "call" or not name or frame.f_code in self._seen:
            return
        stack, caller = set(), frame.f_back
        while caller is not None:
            if _module(caller.f_code):
                stack.add(_folder(_module(caller.f_code)))
                if caller.f_code.co_name == "<module>":
                    return
            caller = caller.f_back
        if frame.f_code.co_name == "<module>":
            return
        self._seen.add(frame.f_code)
        if name in self.modules:
            return
        self.modules.append(name)
        folder = _folder(name)
        stack |= {str(parent) for caller_folder in stack for parent in Path(caller_folder).parents}
        if folder and folder != self._last and folder in self._folders and folder not in stack:
            self.returns.append(name)
        self._folders.add(folder)
        self._last = folder or self._last


def _module(code: CodeType) -> str:
    """The name of a module of `runtime/`, such as image/bands; empty for any other."""
    prefix = str(RUNTIME) + os.sep
    return code.co_filename[len(prefix) : -len(".py")] if code.co_filename.startswith(prefix) else ""


def _folder(module: str) -> str:
    return module.rpartition(os.sep)[0]


def make_photo(path: Path) -> Path:
    """A file of 40x50 pixels. A JPEG has EXIF, a file deep.* has 16 bits per channel."""
    from runtime.image.photo import Photo
    from runtime.image.write.encode import write_photo

    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    if path.stem == "deep":
        write_photo(path, Photo(pixels.astype(np.uint16) * 257))
        return path
    exif = Image.Exif()
    exif[0x010F] = "maker"
    Image.fromarray(pixels).save(path, **({"exif": exif} if path.suffix == ".jpg" else {}))
    return path


def of_photo(source: Path, target: str, color_fix: str) -> Way:
    """From file to file, through an Upscaler that is open."""
    from gdposr import Upscaler, read_photo, write_photo

    upscaler = Upscaler(threads=1, color_fix=color_fix)

    def run() -> None:
        for photo in upscaler.up_photo(read_photo(source)):
            write_photo(source.with_name(target), photo)

    run()  # what the first photo loads is no part of the way
    return Way(run)


def of_command(source: Path, target: str, color_fix: str) -> Way:
    """All of `gdposr upscale`, with opening the bundle."""
    from gdposr.cli import main

    words = ["--color-fix", color_fix, "--threads", "1"]
    return Way(lambda: main(["upscale", str(source), "-o", str(source.with_name(target)), *words]))


@pytest.mark.parametrize(
    ("measured", "case", "most"),
    [
        *((of_photo, case, MOST_MODULES) for case in (*PLAIN, *LONG)),
        *((of_command, case, MOST_OF_COMMAND) for case in PLAIN),
        # one more for 16 bits in a TIFF, and one for the colour fix
        (of_command, LONG[-1], MOST_OF_COMMAND + 2),
    ],
)
def test_few_modules_and_no_way_back(
    measured: Callable[[Path, str, str], Way], case: tuple[str, str, str], most: int, tmp_path: Path
) -> None:
    source, target, color_fix = case
    way = measured(make_photo(tmp_path / source), target, color_fix)
    assert str(Path("upscale/rendering")) in way.modules, "the way has been seen"
    assert len(way.modules) <= most, way.modules
    assert not way.returns, way.modules


if __name__ == "__main__":
    sys.path.insert(0, str(RUNTIME.parent))
    with tempfile.TemporaryDirectory() as folder:
        for case in (*PLAIN, *LONG):
            for what in (of_command, of_photo):
                found = what(make_photo(Path(folder) / case[0]), *case[1:])
                print(f"{what.__doc__} {case}: {len(found.modules)} modules, returns: {found.returns}")
                print("  " + ", ".join(found.modules))
