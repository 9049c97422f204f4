"""What the tests of the command share."""

import os
import unicodedata
from pathlib import Path

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
