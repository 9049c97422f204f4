"""Which photo goes to which file, settled and checked before any work starts."""

import glob
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gdposr.console import UsageError

NOT_WRITTEN = (
    ".heic",
    ".heif",
    ".jp2",
    ".jxl",
    ".psd",
    ".svg",
    ".tga",
)  # meant as a picture, not as a folder's name


@dataclass(frozen=True)
class Options:
    """What is to be made of every photo."""

    seed: int
    samples: int
    select: str
    """all, sheet or best."""
    scale: float
    quality: int
    """1 to 100, for formats with losses."""
    digest: str
    """Of the bundle."""
    only: int | None = None
    """This one sample, named as in a run of many; None: samples 0, 1, ..."""
    max_pixels: int | None = None
    """Of an input; None: the reader's own limit."""

    @property
    def numbers(self) -> list[int]:
        """The samples that are computed."""
        return list(range(self.samples)) if self.only is None else [self.only]

    @property
    def parts(self) -> list[str]:
        """Every name part that an output may carry, one per sample unless they share a sheet."""
        if self.select == "sheet":
            return ["_sheet"]
        alone = self.samples == 1 and self.only is None
        return [""] if alone else [f"_s{number}" for number in self.numbers]

    @property
    def pictures(self) -> int:
        """Files written per photo."""
        return len(self.numbers) if self.select == "all" else 1


@dataclass
class Outcome:
    """What became of one photo; grows while it is worked on, so that an interrupted run can still tell."""

    input: str
    status: str = "unfinished"
    """Then "ok", "skipped" or "failed"."""
    outputs: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0
    """From taking it up to its last file."""


@dataclass
class Task:
    """One photo of a run: where it comes from, where its pictures go, how far it is."""

    source: Path
    folder: Path
    stem: str
    """The part of its pictures' names that all samples share."""
    exact: Path | None = None
    """The one output file the user named; None: names are made from `stem`."""
    pixels: int | None = None
    """By its header; None: not known."""
    begin: float = 0.0
    """Seconds of time.perf_counter, as `end`; 0: not taken up in this run."""
    end: float = 0.0
    writes: list[tuple[Future[None], dict[str, Any]]] = field(default_factory=list)
    """With the report's entries."""
    error: Exception | None = None
    computed: bool = False
    """Nothing but its last writes can still be missing."""

    def __post_init__(self) -> None:
        self.outcome = Outcome(str(self.source))

    def target(self, part: str = "") -> Path:
        """The output file; `part` tells pictures of one photo apart, for example "_s2" or "_sheet"."""
        return self.exact if self.exact is not None else self.folder / f"{self.stem}{part}.png"

    def finished(self, options: Options) -> list[str]:
        """The name parts whose files are there, if they are as many as will be written; otherwise none."""
        there = [part for part in options.parts if self.target(part).is_file()]
        return there if len(there) >= options.pictures else []


def plan_tasks(inputs: Sequence[str], out: Path, options: Options) -> list[Task]:
    """Inputs (files, folders, globs) -> photos with their outputs.

    OUT with the suffix of a picture is one file, otherwise a folder in which an input folder's tree is kept. Raises UsageError
    where two photos would get one name, an output would replace an input, or the request does not fit OUT.
    """
    from runtime.files import SUFFIXES
    from runtime.image.write.encode import WRITE_FORMATS

    is_file = out.suffix.lower() in (*SUFFIXES, *WRITE_FORMATS, *NOT_WRITTEN) and not out.is_dir()
    if is_file and out.suffix.lower() not in WRITE_FORMATS:
        raise UsageError(
            f"cannot write {out.suffix}: use one of {', '.join(WRITE_FORMATS)}, or name a folder"
        )
    if not is_file and out.exists() and not out.is_dir():
        raise UsageError(f"{out} exists and is neither a picture's name nor a folder: name another output")
    found = _sources(inputs, None if is_file else out)
    if is_file:
        if len(found) != 1 or options.pictures != 1:
            many = f"{len(found)} photos" if len(found) != 1 else f"{options.pictures} samples of one photo"
            raise UsageError(
                f"{out} is one file, got {many}: name a folder, or use --select sheet or best for samples"
            )
        tasks = [Task(found[0][0], out.parent, out.stem, exact=out)]
    else:
        suffix = f"_x{options.scale:g}_seed{options.seed}"
        tasks = [
            Task(
                source,
                out / inside.parent,
                f"{inside.stem if inside.suffix.lower() in SUFFIXES else inside.name}{suffix}",
            )
            for source, inside in found
        ]
    _refuse_clashes(tasks, options.parts)
    return tasks


def _sources(inputs: Sequence[str], out: Path | None) -> list[tuple[Path, Path]]:
    """Every photo once, with its path inside the input it came from (the tree to keep)."""
    from runtime.files import find_photos

    exclude = [] if out is None else [out]
    found: dict[Path, tuple[Path, Path]] = {}
    for item in inputs:
        root = _tree_root(item)
        if root is not None and out is not None and Path(item).is_dir() and _identity(root) == _identity(out):
            raise UsageError(
                f"{out} is an input and the output too: name another folder, so that photos and results stay apart"
            )
        photos = find_photos([item], exclude=exclude)
        if not photos:
            raise UsageError(
                f"{item}: no photo found in this folder: name files, or a folder that holds pictures"
            )
        for photo in photos:
            inside = (
                photo.relative_to(root)
                if root is not None and photo.is_relative_to(root)
                else Path(photo.name)
            )
            found.setdefault(photo.resolve(), (photo, inside))
    return list(found.values())


def _tree_root(item: str) -> Path | None:
    """The folder whose tree an input keeps: a folder itself, the fixed front part of a glob, None for a single file."""
    path = Path(item)
    if path.is_dir():
        return path
    if path.exists() or not glob.has_magic(item):
        return None
    fixed = []
    for part in path.parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _refuse_clashes(tasks: Sequence[Task], parts: Sequence[str]) -> None:
    inputs = {identity for task in tasks if (identity := _identity(task.source)) is not None}
    taken: dict[str, Task] = {}
    for task in tasks:
        for target in {task.target(part) for part in parts}:
            other = taken.setdefault(_key(target), task)
            if other is not task:
                raise UsageError(
                    f"{other.source} and {task.source} would both be written to {target}: upscale them into two folders"
                )
            if _identity(target) in inputs:
                raise UsageError(f"{target} is an input: name another output, so that the photo is not lost")


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from all others, whatever its name (links included); None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _key(path: Path) -> str:
    """Paths that are one file on this system compare equal; macOS and Windows do not tell upper from lower case."""
    name = os.path.abspath(path)
    return name.casefold() if sys.platform in ("darwin", "win32") else name
