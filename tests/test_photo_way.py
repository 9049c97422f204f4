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
MOST_OF_COMMAND = 28  # finding photos, opening and probing the bundle, names for messages besides


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
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    exif = Image.Exif()
    exif[0x010F] = "maker"
    Image.fromarray(pixels).save(path, **({"exif": exif} if path.suffix == ".jpg" else {}))
    return path


def of_photo(source: Path) -> Way:
    """From file to PNG, through an Upscaler that is open."""
    from gdposr import Upscaler, read_photo, write_photo

    upscaler = Upscaler(threads=1)

    def run() -> None:
        for photo in upscaler.up_photo(read_photo(source)):
            write_photo(source.with_name("out.png"), photo)

    run()  # what the first photo loads is no part of the way
    return Way(run)


def of_command(source: Path) -> Way:
    """All of `gdposr upscale`, with opening the bundle."""
    from gdposr.cli import main

    words = ["upscale", str(source), "-o", str(source.with_name("out.png")), "--threads", "1"]
    return Way(lambda: main(words))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize(("measured", "most"), [(of_photo, MOST_MODULES), (of_command, MOST_OF_COMMAND)])
def test_few_modules_and_no_way_back(
    measured: Callable[[Path], Way], most: int, name: str, tmp_path: Path
) -> None:
    way = measured(make_photo(tmp_path / name))
    assert str(Path("upscale/rendering")) in way.modules, "the way has been seen"
    assert len(way.modules) <= most, way.modules
    assert not way.returns, way.modules


if __name__ == "__main__":
    sys.path.insert(0, str(RUNTIME.parent))
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("png", "jpg"):
            for what in (of_command, of_photo):
                found = what(make_photo(Path(folder) / f"a.{suffix}"))
                print(
                    f"{what.__doc__} {suffix}: {len(found.modules)} modules, {len(found.returns)} returns {found.returns}"
                )
                print("  " + ", ".join(found.modules))
