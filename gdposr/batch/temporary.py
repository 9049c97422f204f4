"""Temporary files that a killed run left behind: removed by the next run into the same folder, never while one is alive.

Every run holds a shared lock on its output folder; the system lets go of it when the process ends, however it ends. A run
that gets the folder for itself alone knows that no other is alive and removes at once what carries one of its own outputs'
names; where locks are not to be had, only what has lain untouched for a day.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

OLD = 24 * 3600.0  # seconds without a change
TRIES, PAUSE = 20, 0.05  # seconds between two tries for the shared lock


@contextmanager
def claimed(folder: Path, targets: Iterable[Path]) -> Iterator[int]:
    """Hold the folder while outputs are written there; the value is the number of old temporary files removed before."""
    with contextlib.ExitStack() as stack:
        descriptor = _opened(folder)
        if descriptor is not None:
            stack.callback(os.close, descriptor)
        alone = _lock(descriptor, exclusive=True)
        removed = _remove(targets, 0.0 if alone else OLD)
        for _ in range(TRIES if descriptor is not None else 0):
            if _lock(descriptor, exclusive=False):
                break
            time.sleep(
                PAUSE
            )  # another run has the folder alone, for as long as it takes to look for old files
        yield removed


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder that is for this process alone, so that `remove_abandoned` leaves it."""
    descriptor = _opened(folder)
    try:
        _lock(descriptor, exclusive=True)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the folders of this prefix that no living process holds."""
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
                with contextlib.suppress(
                    OSError
                ):  # gone meanwhile, or not ours to remove: no harm either way
                    status = entry.stat(follow_symlinks=False)
                    if time.time() - status.st_mtime >= age:
                        os.unlink(entry.path)
                        removed += 1
    return removed


def _opened(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_RDONLY)
    except OSError:  # not there yet, or a system that opens no folders
        return None


def _lock(descriptor: int | None, *, exclusive: bool) -> bool:
    """Take or change the lock without waiting; False where that is impossible."""
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
