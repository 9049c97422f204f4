"""Which photo goes to which file, settled and checked before any work starts."""

import glob
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
class Job:
    """One photo and where its pictures go. `stem` is the part of their names that all samples share."""

    source: Path
    folder: Path
    stem: str
    exact: Path | None = None  # the one output file the user named; None: names are made from `stem`

    def target(self, part: str = "") -> Path:
        """The output file; `part` tells pictures of one photo apart, for example "_s2" or "_sheet"."""
        return self.exact if self.exact is not None else self.folder / f"{self.stem}{part}.png"

    def finished(self, parts: Sequence[str], pictures: int) -> list[str]:
        """The parts whose files are there, if they are as many as `pictures`, the files to be written; otherwise none."""
        there = [part for part in parts if self.target(part).is_file()]
        return there if len(there) >= pictures else []


def plan_jobs(
    inputs: Sequence[str], out: Path, scale: float, seed: int, parts: Sequence[str] = ("",), pictures: int = 1
) -> list[Job]:
    """Inputs (files, folders, globs) -> jobs. parts: every name part that may be written; pictures: files per photo.

    OUT with the suffix of a picture is one file, otherwise a folder in which an input folder's tree is kept. Raises UsageError
    where two photos would get one name, an output would replace an input, or the request does not fit OUT.
    """
    from runtime.image.files import SUFFIXES, WRITE_FORMATS

    is_file = out.suffix.lower() in (*SUFFIXES, *WRITE_FORMATS, *NOT_WRITTEN) and not out.is_dir()
    if is_file and out.suffix.lower() not in WRITE_FORMATS:
        raise UsageError(
            f"cannot write {out.suffix}: use one of {', '.join(WRITE_FORMATS)}, or name a folder"
        )
    if not is_file and out.exists() and not out.is_dir():
        raise UsageError(f"{out} exists and is neither a picture's name nor a folder: name another output")
    found = _sources(inputs, None if is_file else out)
    if is_file:
        if len(found) != 1 or pictures != 1:
            many = f"{len(found)} photos" if len(found) != 1 else f"{pictures} samples of one photo"
            raise UsageError(
                f"{out} is one file, got {many}: name a folder, or use --select sheet or best for samples"
            )
        jobs = [Job(found[0][0], out.parent, out.stem, exact=out)]
    else:
        suffix = f"_x{scale:g}_seed{seed}"
        jobs = [
            Job(
                source,
                out / inside.parent,
                f"{inside.stem if inside.suffix.lower() in SUFFIXES else inside.name}{suffix}",
            )
            for source, inside in found
        ]
    _refuse_clashes(jobs, parts)
    return jobs


def _sources(inputs: Sequence[str], out: Path | None) -> list[tuple[Path, Path]]:
    """Every photo once, with its path inside the input it came from (the tree to keep)."""
    from runtime.image.files import find_photos

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


def _refuse_clashes(jobs: Sequence[Job], parts: Sequence[str]) -> None:
    inputs = {identity for job in jobs if (identity := _identity(job.source)) is not None}
    taken: dict[str, Job] = {}
    for job in jobs:
        for target in {job.target(part) for part in parts}:
            other = taken.setdefault(_key(target), job)
            if other is not job:
                raise UsageError(
                    f"{other.source} and {job.source} would both be written to {target}: upscale them into two folders"
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
