"""What the tests of the command share."""

from pathlib import Path


def files_in(folder: Path) -> list[str]:
    """Every file below a folder, hidden and temporary ones included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


def is_one_line(text: str) -> bool:
    return "Traceback" not in text and text.count("\n") == 1
