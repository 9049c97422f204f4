"""Which photo goes to which file, settled and checked before any work starts."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdposr import __version__
from gdposr.batch.headers import looked_at
from gdposr.console import UsageError, one_line

if TYPE_CHECKING:
    from runtime.bundle.reader import Bundle
    from runtime.folders import Entry

# Suffixes of pictures that cannot be written. An OUT with one of them is not meant as a folder.
NOT_WRITTEN = (".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg", ".tga")


@dataclass(frozen=True)
class Options:
    """What to make from each photo."""

    seed: int
    """Of the noise."""
    samples: int
    """Samples 0, 1, ... of the seed, so many, unless `only` names one."""
    select: str
    """all, sheet or best."""
    scale: float
    """Height and width of the output over those of the photo."""
    quality: int
    """1 to 100, for formats with losses."""
    digest: str
    """Of the bundle."""
    only: int | None = None
    """This sample alone, with the name that it has among many. None: samples 0, 1, ..."""
    max_pixels: int | None = None
    """Limit of an input. None: the reader's own limit."""
    compare: bool = False
    """Whether to write a page beside each output that shows before and after."""
    strip: bool = False
    """Whether outputs get no metadata, not even the notes on how they were made."""

    @property
    def numbers(self) -> list[int]:
        """The samples that are computed."""
        return list(range(self.samples)) if self.only is None else [self.only]

    @property
    def parts(self) -> list[str]:
        """Name parts that tell outputs of one photo apart: one per sample, or one for a sheet."""
        if self.select == "sheet":
            return ["_sheet"]
        alone = self.samples == 1 and self.only is None
        return [""] if alone else [f"_s{number}" for number in self.numbers]

    @property
    def pictures(self) -> int:
        """Files written per photo."""
        return len(self.numbers) if self.select == "all" else 1

    def described(self, bundle: "Bundle") -> dict[str, Any]:
        """The request's fields in a report."""
        from runtime.image.grain import NAME

        return {
            "version": __version__,
            "bundle": {"name": bundle.manifest.name, "path": str(bundle.path), "digest": bundle.digest},
            "seed": self.seed,
            "samples": len(self.numbers),
            "sample": self.only,  # null: all from 0
            "select": self.select,
            "score": NAME if self.select == "best" else None,
            "scale": self.scale,
        }


@dataclass
class Outcome:
    """The result of one photo. It is filled in during the work, so that an interrupted run can report it."""

    input: str
    """Path of the photo, or its label in messages."""
    status: str = "unfinished"
    """Then "ok", "skipped", "own" (written by gdposr itself, so left out) or "failed"."""
    outputs: list[dict[str, Any]] = field(default_factory=list)
    """The report's entry of each picture: path, sample, width, height, and fields that options add."""
    notes: list[str] = field(default_factory=list)
    """Losses and replacements, such as 16 bits in a JPEG."""
    error: str | None = None
    """Why it failed, in one line. None: it did not."""
    seconds: float = 0.0
    """From its start to its last file."""


@dataclass
class Task:
    """One photo of a run: its source, its outputs, and its progress."""

    source: Path
    """Path of the photo."""
    folder: Path
    """Of its pictures."""
    stem: str
    """The part of its pictures' names that all samples share."""
    exact: Path | None = None
    """The one output file the user named; None: names are made from `stem`."""
    pixels: int | None = None
    """From its header. None: not known."""
    begin: float = 0.0
    """Seconds of time.perf_counter, as `end`. 0: not begun in this run."""
    end: float = 0.0
    """Time of its last finished step; 0: no step has ended."""
    writes: list[tuple[Future[None], dict[str, Any]]] = field(default_factory=list)
    """Each write with its entry for the report."""
    error: Exception | None = None
    """Set before the run if it cannot be read, such as a folder without permission."""
    labels: dict[str, str] = field(default_factory=dict)
    """What messages say instead of a path, such as "stdin"."""
    computed: bool = False
    """Whether all its pictures are computed. Some may still be being written."""

    def __post_init__(self) -> None:
        self.outcome = Outcome(str(self.source))

    def worded(self, text: str) -> str:
        """A message with labels in place of paths."""
        for path, label in self.labels.items():
            text = text.replace(path, label)
        return text

    def target(self, part: str = "") -> Path:
        """The output file. `part` tells pictures of one photo apart, for example "_s2" or "_sheet"."""
        return self.exact if self.exact is not None else self.folder / f"{self.stem}{part}.png"

    def finished(self, options: Options) -> list[str]:
        """The name parts of the existing outputs if they are complete, otherwise empty."""
        there = [part for part in options.parts if os.path.isfile(self.target(part))]
        return there if len(there) >= options.pictures else []


def plan_tasks(inputs: Sequence[str], out: Path, options: Options, skip_existing: bool = False) -> list[Task]:
    """Photos with their outputs. What may hide photos becomes a failed task.

    inputs: files, folders and globs. Pictures in folders that gdposr wrote itself get the status "own".
    out: with the suffix of a picture one file, otherwise a folder in which an input folder's tree is kept.
    options: what to make from each photo.
    skip_existing: whether photos whose outputs all exist get the status "skipped".

    UsageError if two photos of the same name would go to one folder, an output would replace an input, or the request does not fit
    out.
    """
    from runtime.files import SUFFIXES
    from runtime.image.write.encode import WRITE_FORMATS

    is_file = out.suffix.lower() in (*SUFFIXES, *WRITE_FORMATS, *NOT_WRITTEN) and not os.path.isdir(out)
    if is_file and out.suffix.lower() not in WRITE_FORMATS:
        raise UsageError(
            f"cannot write {out.suffix}: use one of {', '.join(WRITE_FORMATS)}, or name a folder"
        )
    if not is_file and os.path.exists(out) and not os.path.isdir(out):
        raise UsageError(f"{out} exists and is neither a picture's name nor a folder: name another output")
    suffix = f"_x{options.scale:g}_seed{options.seed}"
    tasks = []
    entries = sources_of(inputs, None if is_file else out)
    for entry, name in zip(entries, names_of(entries), strict=True):
        task = Task(entry.path, out / entry.inside.parent, f"{name}{suffix}", out if is_file else None)
        if is_file:
            task.folder, task.stem = out.parent, out.stem
        task.error = entry.fault
        if entry.fault is not None:
            task.outcome.status, task.outcome.error = "failed", one_line(entry.fault)
        elif not (skip_existing and not is_file and _skipped(task, options)):
            task.pixels, own = looked_at(task.source)
            if own and not entry.named:
                task.outcome.status = "own"
        tasks.append(task)
    photos = [task for task in tasks if task.outcome.status in ("unfinished", "skipped")]
    if is_file and (len(photos) > 1 or not tasks or options.pictures != 1):
        many = f"{options.pictures} samples of one photo" if len(photos) == 1 else f"{len(photos)} photos"
        raise UsageError(
            f"{out} is one file, got {many}: name a folder, or use --select sheet or best for samples"
        )
    if is_file and skip_existing:
        for task in photos:
            _skipped(task, options)
    _refuse_clashes(photos, options.parts)
    return tasks


def names_of(entries: "Sequence[Entry]", own: "Callable[[Entry], bool] | None" = None) -> list[str]:
    """How the names of each entry's outputs begin: "a" for a.jpg, but "a.jpg" if there is an a.png too.

    own: whether gdposr wrote a picture. None: read the headers of local files.
    """
    from runtime.folders import is_photo_name

    own = own or (lambda entry: looked_at(entry.path)[1])

    stems = [e.inside.stem if is_photo_name(e.inside.name) else e.inside.name for e in entries]
    keys = [path_key(entry.inside.parent / stem) for entry, stem in zip(entries, stems, strict=True)]
    uses = Counter(keys)
    for entry, key in zip(entries, keys, strict=True):
        if uses[key] > 1 and not entry.named and own(entry):
            uses[key] -= 1  # written by gdposr, so left out
    return [
        stem if uses[key] < 2 else entry.inside.name
        for entry, stem, key in zip(entries, stems, keys, strict=True)
    ]


def _skipped(task: Task, options: Options) -> bool:
    """Mark a photo whose outputs all exist."""
    there = task.finished(options)
    if there:
        task.outcome.status = "skipped"
        named = options.select == "all"
        samples = dict(zip(options.parts, options.numbers, strict=True)) if named else {}
        # a dictionary, since all parts share one file if the user named it
        found = {str(task.target(part)): samples.get(part) for part in there}
        task.outcome.outputs = [{"path": path, "sample": sample} for path, sample in found.items()]
    return bool(there)


def sources_of(inputs: Sequence[str], out: Path | None) -> "list[Entry]":
    """Every photo once, and what may hide photos. A folder without photos becomes a fault. UsageError if nothing is found."""
    from runtime.errors import ImageError
    from runtime.folders import Entry, find_entries

    found: dict[str, Entry] = {}
    empty: dict[str, Entry] = {}
    for item in inputs:
        path = Path(item)
        if out is not None and os.path.isdir(item) and _identity(path) == _identity(out):
            raise UsageError(
                f"{out} is an input and the output too: name another folder, so that photos and results stay apart"
            )
        entries = find_entries(item, exclude=[] if out is None else [out])
        for entry in entries:
            known = found.setdefault(entry.key, entry)
            if entry.named and not known.named:  # also found in a folder: that place in the tree is kept
                found[entry.key] = replace(known, named=True)
        if not entries:
            fault = ImageError(
                f"{item}: no photo found in this folder: name files, or a folder that holds pictures"
            )
            empty[item] = Entry(path, Path(path.name), True, fault)
    if not found:
        raise UsageError(str(next(iter(empty.values())).fault))
    return [*found.values(), *empty.values()]


def _refuse_clashes(tasks: Sequence[Task], parts: Sequence[str]) -> None:
    inputs = {identity for task in tasks if (identity := _identity(task.source)) is not None}
    taken: dict[str, Task] = {}
    for task in tasks:
        for target in {task.target(part) for part in parts}:
            other = taken.setdefault(path_key(target), task)
            if other is not task:
                raise UsageError(
                    f"{other.source} and {task.source} would both be written to {target}: upscale them into two folders"
                )
            if _identity(target) in inputs:
                raise UsageError(f"{target} is an input: name another output, so that the photo is not lost")


def _identity(path: Path) -> tuple[int, int] | None:
    """A key of the file itself, the same for all its names and links. None if there is no file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def path_key(path: Path) -> str:
    """A key of a path that is equal for paths of one file. macOS and Windows ignore case."""
    name = os.path.abspath(path)
    return name.casefold() if sys.platform in ("darwin", "win32") else name
