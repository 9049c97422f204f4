"""What the tests of the command share."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def files_in(folder: Path) -> list[str]:
    """Every file below a folder, hidden and temporary ones included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


def is_one_line(text: str) -> bool:
    return "Traceback" not in text and text.count("\n") == 1


def picture(path: bytes | Path, seed: int = 0) -> None:
    """A PNG of 8x6 pixels in one colour."""
    Image.new("RGB", (8, 6), (seed % 256, 90, 40)).save(os.fsencode(path), "PNG")


def check_shown(text: str) -> None:
    """No traceback, and no character that hides or steers what follows it."""
    assert "Traceback" not in text
    hidden = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\u200c\u200d"}
    assert not hidden, hidden


def write_pairs(make_pixels: Callable[..., np.ndarray], folder: Path) -> list[object]:
    """--lr and --hr with two pairs, LR 36x34 and 32x30."""
    for name, scale in (("lr", 1), ("hr", 4)):
        (folder / name).mkdir()
        for index, (height, width) in enumerate(((36, 34), (32, 30))):
            pixels = make_pixels(height * scale, width * scale, seed=index)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return ["--lr", folder / "lr", "--hr", folder / "hr"]
