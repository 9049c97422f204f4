"""What a node of the cluster does: enlarge photo by photo, by the steps of the plain command and with the same bytes.

The rows that go through Ray hold only names and outcomes. A worker reads the bytes of a photo itself, so that Ray never holds them, and
computes one photo at a time, so that it needs the memory of its largest photo.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdposr import __version__
from gdposr.batch.headers import read_header
from gdposr.batch.progress import Meter
from gdposr.batch.run import Batch
from gdposr.batch.task import Options, Outcome, Task
from gdposr.batch.temporary import held, remove_abandoned
from gdposr.console import UsageError, one_line
from gdposr.fleet.photos import ArchivePhoto, Target
from gdposr.fleet.store import store_at

if TYPE_CHECKING:
    from runtime.upscale.upscaler import Upscaler

# Errors of a node, not of a photo: another node may succeed.
NODE_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EROFS)
# Prefix of the temporary folders for copies from and to stores.
SCRATCH = "gdposr-ray-"


@dataclass(frozen=True)
class Settings:
    """The settings of all workers. They are the same for each, so that all photos are enlarged alike."""

    options: Options
    """What to make from each photo."""
    out: str
    """The output folder: an absolute path, or an address."""
    shown_out: str
    """Name of the output folder in messages and the report."""
    bundle: str | None
    """Path of the bundle, the same on each node. None: the built-in model."""
    device: str
    """Device as `Upscaler` takes it; each node decides what "auto" is."""
    precision: str
    """Precision as `Upscaler` takes it."""
    threads: int
    """CPU threads of each worker."""
    tile: int | None
    """Side of a tile in LR pixels. None: the model's own."""
    color_fix: str | None
    """Colour fix. None: the model's own."""
    max_memory: int | None
    """Bytes that a worker may take. None: no limit."""
    temperature: float = 1.0
    """Standard deviation of the noise, 0 to 2."""
    version: str = __version__
    """Version of the driver, which every node must have."""

    def open(self) -> "Upscaler":
        """UsageError if this node has another model or version than the driver. DeviceError, BundleError: see `Upscaler`."""
        from runtime.upscale.upscaler import Upscaler

        upscaler = Upscaler(
            self.bundle,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            tile=self.tile,
            color_fix=self.color_fix,
            temperature=self.temperature,
            max_memory=self.max_memory,
        )
        found = (__version__, upscaler.bundle.digest)
        expected = (self.version, self.options.digest)
        if found != expected:
            raise UsageError(
                f"expected gdposr {expected[0]} with the bundle {expected[1]} on each node, got {found[0]} with {found[1]} on "
                f"{os.uname().nodename}: install the same version and put the same bundle in the same place"
            )
        return upscaler


@dataclass
class Result:
    """A worker's result for one photo."""

    number: int
    """Number of the photo."""
    outcome: Outcome
    """Outcome as in the report of the plain command."""
    milliseconds: float
    """Time from its turn to its last file, copies from and to a store included."""
    sha256: list[str] = field(default_factory=list)
    """Hash of each picture, hexadecimal, in the order of the outcome's outputs."""
    node: str | None = None
    """Ray's name of the node. None: no worker finished it."""
    node_fault: bool = False
    """Whether it failed for a reason of the node, such as a full disk."""

    def packed(self) -> str:
        """As JSON, which also keeps names that are not valid text."""
        return json.dumps(asdict(self))

    @classmethod
    def unpacked(cls, text: str) -> "Result":
        fields = json.loads(text)
        return cls(**fields | {"outcome": Outcome(**fields["outcome"])})


def facts_of(settings: Settings) -> dict[str, Any]:
    """What this node loads: device, precision, placement and notes, as in the reports of the plain command."""
    with settings.open() as upscaler:
        return {
            "device": upscaler.device,
            "precision": upscaler.precision,
            "placement": upscaler.placement,
            "notes": list(upscaler.notes),
        }


class Worker:
    """An actor of Ray Data with one Upscaler. Several threads may call it: one computes while others copy from and to stores."""

    def __init__(self, settings: Settings) -> None:
        remove_abandoned(Path(tempfile.gettempdir()), SCRATCH)
        self._settings, self._upscaler = settings, settings.open()
        self._target = Target(settings.out)
        self._turn = threading.Lock()
        self._node = _node_id()

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """A row with a packed `ArchivePhoto` -> one with a packed `Result`, which also holds errors of the photo or the node."""
        return {"result": self.enlarge(ArchivePhoto.unpacked(row["photo"])).packed()}

    def enlarge(self, photo: ArchivePhoto) -> Result:
        begin = time.perf_counter()
        result = Result(photo.number, Outcome(photo.source), 0.0, node=self._node)
        try:
            with contextlib.ExitStack() as stack:
                self._enlarge(photo, result, stack)
        except Exception as error:
            outcome = result.outcome
            outcome.status, outcome.error, outcome.outputs = "failed", one_line(error), []
            result.sha256 = []
            # pyarrow's errors of stores have no errno
            result.node_fault = is_node_fault(error) or (isinstance(error, OSError) and error.errno is None)
        result.milliseconds = round((time.perf_counter() - begin) * 1000, 1)
        result.outcome.seconds = round(result.milliseconds / 1000, 3)
        return result

    def _enlarge(self, photo: ArchivePhoto, result: Result, stack: contextlib.ExitStack) -> None:
        from runtime.files import sha256_of

        store = self._target.store
        scratch = stack.enter_context(_scratch()) if photo.address or store else None
        # read: a local file directly, one of a store through a local copy
        source, labels = Path(photo.path), {photo.path: photo.source}
        if photo.address is not None:
            assert scratch is not None
            self._check_size(photo)
            source = scratch / f"photo{Path(photo.path).suffix}"
            store_at(photo.address).fetch(photo.path, source)
            labels = {str(source): photo.source}
        pixels, own = read_header(source)
        if own and not photo.named:
            result.outcome.status = "own"
            return
        # enlarge, by the plain command's own steps
        if store is None:
            folder = Path(self._settings.out, photo.folder)
            labels[self._settings.out + os.sep] = os.path.join(self._settings.shown_out, "")
        else:
            assert scratch is not None
            folder = scratch / "out"
        task = Task(source, folder, photo.stem, pixels=pixels, labels=labels)
        task.outcome = result.outcome
        with self._turn:
            Batch(
                self._settings.options,
                self._upscaler,
                Meter([pixels], lambda *_: None),
                lambda _: None,
                overlap=self._settings.max_memory is None,
            ).run([task])
        result.node_fault = task.error is not None and is_node_fault(task.error)
        if result.outcome.status != "ok":
            if store is not None:
                result.outcome.outputs = []  # some pictures may be finished, but none has been copied to the store
            return
        # write: a store gets complete files, and pages before pictures, since a picture marks the photo as done
        for output in result.outcome.outputs:
            result.sha256.append(sha256_of(Path(output["path"])))
        for output in result.outcome.outputs:
            for name in ("compare", "path"):
                if name in output:
                    output[name] = self._placed(photo, Path(output[name]))

    def _placed(self, photo: ArchivePhoto, path: Path) -> str:
        """Copy a finished file to its store, if there is one, and return its name for the report."""
        name = os.path.join(photo.folder, path.name)
        store = self._target.store
        if store is None:
            return os.path.join(self._settings.shown_out, name)
        store.put(path, store.below(name))
        return store.shown(store.below(name))

    def _check_size(self, photo: ArchivePhoto) -> None:
        """ImageError, before a file is copied, if it is too large for a photo within the pixel limit."""
        from runtime.image.read.decode import MAX_PIXELS, check_size

        check_size(photo.source, photo.size or 0, self._settings.options.max_pixels or MAX_PIXELS)


def is_node_fault(error: BaseException | None) -> bool:
    """Whether an error, or a cause of it, lies with this node or its network."""
    from runtime.errors import OutOfMemory

    while error is not None:
        if isinstance(error, MemoryError | OutOfMemory | ConnectionError | TimeoutError):
            return True
        if isinstance(error, OSError) and error.errno in NODE_ERRNO:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder for one photo. If the worker is killed, the next one on this node removes it."""
    made = Path(tempfile.mkdtemp(prefix=f"new-{SCRATCH}"))
    folder = made.with_name(made.name.removeprefix("new-"))
    try:
        with held(made):
            made.rename(folder)  # lock it before the rename, so that no cleanup removes it
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _node_id() -> str | None:
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else None
