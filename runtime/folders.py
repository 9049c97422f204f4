"""Finds photos in folders and by patterns: each once, through links too. A folder that cannot be read becomes an entry with a fault."""

import fnmatch
import glob
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import ImageError
from .files import SUFFIXES

# The end of a file's name. Other names may be those of folders, such as "2019" or "St. Ives".
_FILE_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}")


@dataclass(frozen=True)
class Entry:
    """A photo that was found, or something that may hide photos, with a fault."""

    path: Path
    """Where it lies, as reached from the item that the caller named."""
    inside: Path
    """The path inside the folder that was named, or below the fixed front part of a pattern."""
    named: bool
    """Whether the caller named this very file."""
    fault: ImageError | None = None
    """Why it cannot be read. None: no reason is known."""

    @property
    def key(self) -> str:
        """Equal for two paths of one photo. Two broken links are two faults, even if they name the same place."""
        return os.path.realpath(self.path) if self.fault is None else os.path.abspath(self.path)


def find_entries(
    item: str | os.PathLike[str], *, recursive: bool = True, exclude: Iterable[str | os.PathLike[str]] = ()
) -> list[Entry]:
    """A file, a folder or a pattern -> its photos, sorted, and an entry with a fault for each thing that hides photos.

    A folder gives its files with a known suffix, except hidden ones. Linked folders are followed. Each folder is read once, and a real
    folder goes before a link to it. A named file is kept whatever its suffix, also if it does not exist.
    exclude: folders to leave out, such as the output folder.
    """
    path, text = Path(item), os.fspath(item)
    excluded = {os.path.realpath(folder) for folder in exclude}
    if os.path.isdir(path):
        pairs = _below(path, recursive, excluded)
        return _entries(pairs, path)
    if os.path.lexists(path) or not glob.has_magic(text):
        return [Entry(path, Path(path.name), True)]
    parts = path.parts
    fixed = next(k for k in range(len(parts)) if _is_pattern(Path(*parts[:k]), parts[k]))
    root = Path(*parts[:fixed])
    found = _entries(_matches(root, parts[fixed:], excluded), root)
    if found:
        return found
    remedy = "; brackets stand for one of the characters in them, [[] for a bracket" if "[" in text else ""
    fault = ImageError(
        f"{path}: no photo matches this pattern: check the spelling, or name the folder{remedy}"
    )
    return [Entry(path, Path(path.name), True, fault)]


def find_photos(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    recursive: bool = True,
    exclude: Sequence[str | os.PathLike[str]] = (),
) -> list[Path]:
    """As `find_entries` for several inputs: one sorted list without duplicates. Reading an entry with a fault reports it."""
    found: dict[str, Path] = {}
    for item in inputs:
        for entry in find_entries(item, recursive=recursive, exclude=exclude):
            found.setdefault(entry.key, entry.path)
    return sorted(found.values())


def _entries(pairs: Iterable[tuple[Path, ImageError | None]], root: Path) -> list[Entry]:
    found: dict[Path, Entry] = {}
    for path, fault in pairs:
        found.setdefault(path, Entry(path, path.relative_to(root), False, fault))
    return [found[path] for path in sorted(found)]


def _below(top: Path, recursive: bool, excluded: set[str]) -> Iterator[tuple[Path, ImageError | None]]:
    """Photos below a folder, and faults of what may hide some."""
    for here, entries, fault in _walk(top, recursive, excluded):
        if fault is not None:
            yield here, fault
        for entry in entries:
            if _is_folder(entry):
                continue
            if _is_link(entry) and not os.path.exists(entry.path):
                if is_photo_name(entry.name) or not _FILE_SUFFIX.fullmatch(Path(entry.name).suffix):
                    yield here / entry.name, _nowhere(here / entry.name)
            elif is_photo_name(entry.name):
                yield here / entry.name, None


def _matches(
    base: Path, parts: Sequence[str], excluded: set[str]
) -> Iterator[tuple[Path, ImageError | None]]:
    """Photos below base whose path matches the parts of a pattern, one folder deep each, `**` any number."""
    if not parts:
        if is_photo_name(base.name) and not os.path.isdir(base):
            yield base, _nowhere(base) if not os.path.exists(base) else None
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        for folder, _, fault in _walk(base, True, excluded) if os.path.isdir(base) else ():
            if fault is not None:
                yield folder, fault
            else:
                yield from _matches(folder, rest or ["*"], excluded)
        return
    if not _is_pattern(base, part):
        if os.path.lexists(base / part):
            yield from _matches(base / part, rest, excluded)
        return
    try:
        with os.scandir(base) as listing:
            names = sorted(entry.name for entry in listing)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        yield base, _closed(base, error)
        return
    for name in names:
        if fnmatch.fnmatch(name, part) and (part.startswith(".") or not name.startswith(".")):
            yield from _matches(base / name, rest, excluded)


def _walk(
    top: Path, recursive: bool, excluded: set[str]
) -> Iterator[tuple[Path, list[os.DirEntry[str]], ImageError | None]]:
    """A folder and all folders below it, each once, with its entries that are not hidden, or with a fault if it cannot be read.

    Links to folders come after all real folders, so that loops and second paths end there.
    """
    seen, folders, links = set(excluded), [top], deque[Path]()
    while folders or links:
        here = folders.pop() if folders else links.popleft()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(here) as listing:
                entries = sorted(
                    (e for e in listing if not e.name.startswith(".")), key=lambda entry: entry.name
                )
        except OSError as error:
            yield here, [], _closed(here, error)
            continue
        yield here, entries, None
        for entry in entries:
            if recursive and _is_folder(entry):
                (links if _is_link(entry) else folders).append(here / entry.name)


def is_photo_name(name: str) -> bool:
    """Whether a name has the suffix of a format that can be read."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _is_pattern(base: Path, part: str) -> bool:
    """Whether a part of a path is a pattern: it has a wildcard, and nothing has this very name, as "photos [2019]" may."""
    return glob.has_magic(part) and not os.path.lexists(base / part)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a closed folder
        return False


def _is_link(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink()
    except OSError:
        return False


def _closed(folder: Path, error: OSError) -> ImageError:
    return ImageError(
        f"{folder}: the folder cannot be looked into ({error.strerror or error}): check its permissions"
    )


def _nowhere(link: Path) -> ImageError:
    return ImageError(
        f"{link}: a link that leads nowhere, to itself or into a closed folder: mend or remove it"
    )
