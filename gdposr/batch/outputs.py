"""Which photo goes to which file, settled and checked before any work starts."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gdposr.batch.headers import read_header
from gdposr.batch.task import Options, Task, stem_of
from gdposr.console import UsageError, one_line

if TYPE_CHECKING:
    from runtime.folders import Entry

# Suffixes of pictures that cannot be written. An OUT with one of them is not meant as a folder.
NOT_WRITTEN = (".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg", ".tga")


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
    tasks = []
    entries = sources_of(inputs, None if is_file else out)
    for entry, name in zip(entries, names_of(entries), strict=True):
        stem = stem_of(name, options.scale, options.seed)
        task = Task(entry.path, out / entry.inside.parent, stem, out if is_file else None)
        if is_file:
            task.folder, task.stem = out.parent, out.stem
        task.error = entry.fault
        if entry.fault is not None:
            task.outcome.status, task.outcome.error = "failed", one_line(entry.fault)
        elif not (skip_existing and not is_file and _skipped(task, options)):
            task.pixels, own = read_header(task.source)
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
    originals = {identity for task in photos if (identity := _identity(task.source)) is not None}
    refuse_clashes(
        ((str(task.source), str(task.target(part))) for task in photos for part in options.parts),
        path_key,
        lambda target: _identity(target) in originals,
    )
    return tasks


def names_of(entries: "Sequence[Entry]", own: "Callable[[Entry], bool] | None" = None) -> list[str]:
    """How the names of each entry's outputs begin: "a" for a.jpg, but "a.jpg" if there is an a.png too.

    own: whether gdposr wrote a picture. None: read the headers of local files.
    """
    from runtime.folders import is_photo_name

    own = own or (lambda entry: read_header(entry.path)[1])

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
            raise input_is_output(out)
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


def input_is_output(out: object) -> UsageError:
    """The error for a folder that is both. out: its name."""
    return UsageError(
        f"{out} is an input and the output too: name another folder, so that photos and results stay apart"
    )


def refuse_clashes(
    pairs: Iterable[tuple[str, str]], key: Callable[[str], str], is_input: Callable[[str], bool]
) -> None:
    """UsageError if two photos would be written to one file, or an output would replace an input.

    pairs: (photo, output) for each output, by the names that messages give them.
    key: of an output, equal for all names of one file.
    is_input: whether an output is one of the photos.
    """
    taken: dict[str, str] = {}
    for source, target in pairs:
        other = taken.setdefault(key(target), source)
        if other != source:
            raise UsageError(
                f"{other} and {source} would both be written to {target}: upscale them into two folders"
            )
        if is_input(target):
            raise UsageError(f"{target} is an input: name another output, so that the photo is not lost")


def _identity(path: Path | str) -> tuple[int, int] | None:
    """A key of the file itself, the same for all its names and links. None if there is no file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def path_key(path: Path | str) -> str:
    """A key of a path that is equal for paths of one file. macOS and Windows ignore case."""
    name = os.path.abspath(path)
    return name.casefold() if sys.platform in ("darwin", "win32") else name
