"""Temporary files of killed runs: the next run into the same folder removes them, but never those of a living run.

Every run holds a shared lock on its output folder, which the system releases when the process ends. A run that gets the exclusive lock
is alone, and removes at once the temporary files of its own outputs' names. Without locks, it removes only files unchanged for a day.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gdposr.console import say

# Seconds without a change after which a file is removed without a lock.
OLD = 24 * 3600.0
# Tries to get the shared lock, and seconds between them.
TRIES, PAUSE = 20, 0.05


@contextmanager
def claimed(folder: Path, targets: Iterable[Path]) -> Iterator[int]:
    """Hold the folder while outputs are written there. The value is the number of old temporary files that were removed and told of."""
    with contextlib.ExitStack() as stack:
        descriptor = _opened(folder)
        if descriptor is not None:
            stack.callback(os.close, descriptor)
        alone = _lock(descriptor, exclusive=True)
        removed = _remove(targets, 0.0 if alone else OLD)
        for _ in range(TRIES if descriptor is not None else 0):
            if _lock(descriptor, exclusive=False):
                break
            # another run holds the exclusive lock while it looks for old files
            time.sleep(PAUSE)
        if removed:
            say(f"removed {removed} temporary file{'s' * (removed > 1)} of a killed run")
        yield removed


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder of this process, so that `remove_abandoned` keeps it."""
    descriptor = _opened(folder)
    try:
        _lock(descriptor, exclusive=True)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the folders with this prefix that no living process holds."""
    for folder in parent.glob(f"{prefix}*"):
        descriptor = _opened(folder)
        if descriptor is not None:
            try:
                if _lock(descriptor, exclusive=True):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _remove(targets: Iterable[Path], age: float) -> int:
    from runtime.files import TEMPORARY, name_mark

    marks: dict[Path, set[str]] = {}
    for target in targets:
        marks.setdefault(target.parent, set()).add(name_mark(target.name))
    removed = 0
    for folder, wanted in marks.items():
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                match = TEMPORARY.fullmatch(entry.name)
                if match is None or match["mark"] not in wanted:
                    continue
                # it may be gone, or belong to another user
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if time.time() - status.st_mtime >= age:
                        os.unlink(entry.path)
                        removed += 1
    return removed


def _opened(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_RDONLY)
    except OSError:  # no such folder yet, or a system that cannot open folders
        return None


def _lock(descriptor: int | None, *, exclusive: bool) -> bool:
    """Take or change the lock without waiting. False if that is impossible."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    if descriptor is None:
        return False
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
