"""Which photo of an archive goes to which files, from local folders and from addresses. Names are those of the plain command.

Unlike `gdposr.batch.outputs` this opens no photo, so that a million of them are planned in minutes. A worker finds out whether gdposr
itself wrote a picture.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from gdposr.batch.headers import read_header, read_header_from
from gdposr.batch.outputs import input_is_output, names_of, path_key, refuse_clashes, sources_of
from gdposr.batch.task import Options, stem_of
from gdposr.console import UsageError, one_line
from gdposr.fleet.store import Found, Store, is_address, store_at

if TYPE_CHECKING:
    from runtime.folders import Entry


@dataclass(frozen=True, slots=True)
class ArchivePhoto:
    """One photo of a run."""

    number: int
    """Number in the order of the run, from 0."""
    source: str
    """Name in messages and the report."""
    path: str
    """Path of its file: absolute, or in the file system of its store."""
    address: str | None
    """Address of its store. None: a file here."""
    folder: str
    """Folder of its pictures, relative to the output folder; "" is that folder itself."""
    stem: str
    """The part of its pictures' names that all samples share."""
    named: bool = False
    """Whether the user named this very file. Then it is enlarged even if gdposr wrote it."""
    size: int | None = None
    """Size of its file in bytes. None: not known."""
    fault: str | None = None
    """Why it cannot be read. None: it can."""

    def outputs(self, options: Options) -> list[str]:
        """The paths that its pictures may have, relative to the output folder."""
        return [os.path.join(self.folder, f"{self.stem}{part}.png") for part in options.parts]

    def packed(self) -> str:
        """As JSON, which also keeps names that are not valid text."""
        return json.dumps(asdict(self))

    @classmethod
    def unpacked(cls, text: str) -> "ArchivePhoto":
        return cls(**json.loads(text))


class Target:
    """The output folder, local or at an address."""

    def __init__(self, out: str) -> None:
        self.out = out
        self.store = store_at(out) if is_address(out) else None

    def shown(self, name: str) -> str:
        """How messages and the report name a file in it."""
        if self.store is not None:
            return self.store.shown(self.store.below(name))
        return os.path.join(self.out, name)

    def present(self) -> Callable[[str], bool]:
        """A function that tells whether a file of this name is in the folder. A store is listed once."""
        if self.store is None:
            return lambda name: os.path.isfile(os.path.join(self.out, name))
        names = self.store.names()
        return lambda name: name in names

    def names_in(self, folder: str) -> list[str]:
        """The files of a sub-folder, sorted. Empty if there is no such folder."""
        if self.store is not None:
            return sorted(file.path.rpartition("/")[2] for file in self.store.files(folder))
        place = Path(self.out, folder)
        return sorted(os.listdir(place)) if place.is_dir() else []

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """A seekable stream that reads a file in it."""
        if self.store is not None:
            with self.store.opened(self.store.below(name)) as stream:
                yield stream
        else:
            with open(os.path.join(self.out, name), "rb") as stream:
                yield stream

    def put(self, source: Path, name: str) -> None:
        """Copy a file into it. The copy appears complete or not at all."""
        if self.store is not None:
            self.store.put(source, self.store.below(name))
            return
        from runtime.files import atomic_file, make_folder

        path = Path(self.out, name)
        make_folder(path.parent)
        with open(source, "rb") as file, atomic_file(path) as stream:
            shutil.copyfileobj(file, stream)

    def remove(self, name: str) -> None:
        """Remove a file in it. Failure is ignored."""
        if self.store is not None:
            self.store.remove(self.store.below(name))
            return
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.out, name))

    def remove_folder(self, name: str) -> None:
        """Remove an empty folder. Object stores have no folders."""
        if self.store is None:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(self.out, name))


def plan_photos(inputs: Sequence[str], target: Target, options: Options) -> list[ArchivePhoto]:
    """Files, folders, patterns and addresses -> photos, each once, and what may hide photos, with a `fault`.

    UsageError if nothing is found, two photos would go to one file, or an output would replace an input.
    """
    found = _found(inputs, target)
    stores = {id(entry): (address, file) for entry, address, file in found}

    def own(entry: "Entry") -> bool:
        address, file = stores[id(entry)]
        if address is None or file is None:
            return read_header(entry.path)[1]
        with store_at(address).opened(file.path) as stream:
            return read_header_from(stream)[1]

    photos = []
    names = names_of([entry for entry, _, _ in found], own)
    for number, ((entry, address, file), name) in enumerate(zip(found, names, strict=True)):
        folder = "" if entry.inside.parent == Path() else entry.inside.parent.as_posix()
        store = None if address is None else store_at(address)
        photos.append(
            ArchivePhoto(
                number,
                str(entry.path) if store is None or file is None else store.shown(file.path),
                os.path.abspath(entry.path) if file is None else file.path,
                address,
                folder,
                stem_of(name, options.scale, options.seed),
                entry.named,
                None if file is None else file.size,
                None if entry.fault is None else one_line(entry.fault),
            )
        )
    # refuse clashes
    key = path_key if target.store is None else str
    originals = {key(photo.source) for photo in photos if (photo.address is None) == (target.store is None)}
    readable = [photo for photo in photos if photo.fault is None]
    refuse_clashes(
        ((photo.source, target.shown(name)) for photo in readable for name in photo.outputs(options)),
        key,
        lambda shown: key(shown) in originals,
    )
    return photos


def finished(photo: ArchivePhoto, options: Options, present: Callable[[str], bool]) -> list[str]:
    """The names of its existing pictures if they are complete, otherwise empty."""
    there = [name for name in photo.outputs(options) if present(name)]
    return there if len(there) >= options.pictures else []


def _found(inputs: Sequence[str], target: Target) -> "list[tuple[Entry, str | None, Found | None]]":
    """Every photo once, with the address of its store and its entry there; both None for local files."""
    found: dict[str, tuple[Entry, str | None, Found | None]] = {}
    here = [item for item in inputs if not is_address(item)]
    if here:
        out = None if target.store is not None else Path(target.out)
        for entry in sources_of(here, out):
            found.setdefault(entry.key, (entry, None, None))
    for address in (item for item in inputs if is_address(item)):
        store = store_at(address)
        if target.store is not None and store.shown(store.root) == target.store.shown(target.store.root):
            raise input_is_output(target.out)
        listed = _listed(store, target)
        for entry, file in listed:
            found.setdefault(store.shown(file.path), (entry, address, file))
    return list(found.values())


def _listed(store: Store, target: Target) -> "list[tuple[Entry, Found]]":
    """UsageError if a store's folder holds no photo or cannot be listed."""
    shown = store.shown(store.root)
    try:
        listed = store.entries(target.store)
    except OSError as error:
        raise UsageError(
            f"{shown}: expected a folder that can be listed, got: {one_line(error)}; check its name and the keys in the environment"
        ) from error
    if not listed:
        raise UsageError(
            f"{shown}: expected a folder with photos, got none there: check the address; it names one folder or one photo, no pattern"
        )
    return listed
