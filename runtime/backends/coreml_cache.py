"""Compiled Core ML models kept between runs. Compiling a package takes seconds to minutes, loading the compiled model a moment.

Each model has a folder, named by a hash of its source, with `model.mlmodelc` and an index of the size and SHA-256 of every file. An
entry appears whole or not at all. An entry that does not match its index is removed. This module does not use Core ML.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

MODEL: Final = "model.mlmodelc"
INDEX: Final = "index.json"
CACHE_VARIABLE: Final = "GDPOSR_CACHE"
# Bytes of all entries together. Above it the least recently used are removed.
MAX_BYTES: Final = 2 << 30
# Seconds since the last use before an entry may be removed, because a running program may still read it.
MIN_AGE: Final = 24 * 3600.0
# How the name of an unfinished entry begins.
_NEW = ".new-"


def cache_folder() -> Path:
    """The folder of compiled models: that of the environment variable, or the system's folder for caches."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path.home() / "Library" / "Caches" / "gdposr"


def key_of(*parts: str) -> str:
    """The name of an entry: 32 hex digits that depend on every part and on their order."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def find(key: str) -> Path | None:
    """The compiled model of a key, every byte as it was stored. None: there is none. An entry that changed is removed."""
    entry = cache_folder() / key
    try:
        index = json.loads((entry / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        index = None
    try:
        if index is None or index != _index(entry / MODEL):
            drop(key)
            return None
        os.utime(entry / INDEX)  # the time of its last use
    except OSError:
        return None
    return entry / MODEL


def store(key: str, compiled: Path) -> Path | None:
    """Keep a copy of a compiled model and return its path. None: nothing can be written, so the caller keeps its own."""
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=_NEW, dir=folder))
    except OSError:
        return None
    try:
        shutil.copytree(compiled, fresh / MODEL)
        (fresh / INDEX).write_text(json.dumps(_index(fresh / MODEL)), encoding="utf-8")
        drop(key)
        os.rename(fresh, folder / key)
    except OSError:  # a full disk, or another process has just stored the same model
        return find(key)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    _prune(folder, keep=key)
    return folder / key / MODEL


def drop(key: str) -> None:
    """Remove a compiled model."""
    shutil.rmtree(cache_folder() / key, ignore_errors=True)


def _index(model: Path) -> dict[str, list[int | str]]:
    """[bytes, SHA-256] of every file of a compiled model, by its path in it."""
    found: dict[str, list[int | str]] = {}
    for path in sorted(model.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(model).as_posix()] = [path.stat().st_size, digest]
    return found


def _prune(folder: Path, keep: str) -> None:
    """Remove the least recently used entries until the rest is small enough, and unfinished ones. keep: an entry that stays."""
    now, total = time.time(), 0
    used: list[tuple[float, Path, int]] = []
    for entry in folder.iterdir():
        try:
            index = entry / INDEX
            age = now - (index if index.exists() else entry).stat().st_mtime
            if entry.name.startswith(_NEW):
                if age > MIN_AGE:
                    shutil.rmtree(entry, ignore_errors=True)
            elif index.exists():
                size = sum(path.stat().st_size for path in entry.rglob("*") if path.is_file())
                used.append((age, entry, size))
                total += size
        except OSError:  # another process has removed it
            continue
    for age, entry, size in sorted(used, reverse=True):
        if total > MAX_BYTES and age > MIN_AGE and entry.name != keep:
            shutil.rmtree(entry, ignore_errors=True)
            total -= size
