"""A worker's task: from the file of a photo to the file of the answer, by the steps of `gdposr upscale` and with the same bytes."""

import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gdposr.batch.library_warnings import about
from gdposr.batch.run import ATTEMPTS, notes_of
from gdposr.server.jobs import Job
from gdposr.server.order import Order

if TYPE_CHECKING:
    from runtime.image.photo import Photo
    from runtime.upscale.rendering import Rendering
    from runtime.upscale.upscaler import Upscaler

# The name of the uploaded file.
PHOTO = "photo"
ARCHIVE = "photo.zip"


@dataclass(frozen=True)
class Errand:
    """A photo and the order for it."""

    folder: Path
    """The request's own, with the file PHOTO in it. Everything else is written there too."""
    order: Order
    """The pictures to make."""

    @property
    def source(self) -> Path:
        return self.folder / PHOTO

    def worded(self, text: str) -> str:
        """A message without the folder's name, which the client must not see."""
        return text.replace(f"{self.folder}{os.sep}", "")


@dataclass
class Answer:
    """The result of an errand."""

    path: Path
    """A picture, or a zip of several."""
    pixels: int
    """Of the photo."""
    notes: list[str] = field(default_factory=list)
    """Losses, such as 16 bits in a JPEG."""


class Work:
    """Enlarges photos with one Upscaler. It is the work of a `JobQueue` and may be called from several threads."""

    def __init__(self, upscaler: "Upscaler", max_pixels: int) -> None:
        self._upscaler, self._max_pixels = upscaler, max_pixels

    def __call__(self, job: Job[Errand, Answer]) -> Answer:
        """ImageError if the photo cannot be read or written as asked, Stopped soon after the job was given up."""
        from runtime.image.read.decode import read_photo
        from runtime.image.write.encode import fitting

        errand, order = job.wanted, job.wanted.order
        notes: list[str] = []

        def note(text: str) -> None:
            if (told := errand.worded(text)) not in notes:
                notes.append(told)

        with about(str(errand.source), note):
            # read
            photo = read_photo(errand.source, self._max_pixels, notify=note)
            job.check()
            targets = {number: errand.folder / order.name(number) for number in order.numbers}
            photo = fitting(next(iter(targets.values())), photo)
            # pad, encode, sample, crop, colour: by rows, while they are written
            rendering = self._upscaler.picture(
                photo.pixels,
                seed=order.seed,
                scale=order.scale,
                samples=len(targets),
                progress=job.check,
            )
            # write
            for number, target in targets.items():
                self._write(order, photo, rendering, number, target, note)
                job.check()
        pixels = photo.pixels.shape[0] * photo.pixels.shape[1]
        paths = list(targets.values())
        return Answer(
            paths[0] if order.samples == 1 else packed(errand.folder / ARCHIVE, paths), pixels, notes
        )

    def _write(
        self,
        order: Order,
        photo: "Photo",
        rendering: "Rendering",
        number: int,
        target: Path,
        note: Callable[[str], None],
    ) -> None:
        """Compute and write one version. If memory runs out, begin again with smaller tiles."""
        from runtime.errors import OutOfMemory
        from runtime.image.write.encode import write_photo

        text = notes_of(order.seed, str(number), self._upscaler.bundle.digest, self._upscaler.precision)
        if order.strip:
            photo, text = photo.stripped(), {}
        for attempt in range(ATTEMPTS):
            enlarged = photo.with_pixels(rendering.strips(number))
            try:
                write_photo(target, enlarged, quality=order.quality, text=text, notify=note)
                return
            except OutOfMemory:
                if attempt + 1 == ATTEMPTS:
                    raise


def packed(archive: Path, paths: list[Path]) -> Path:
    """Files moved into a new zip, stored as they are, without times: the same files give the same bytes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as pack:
        for path in paths:
            entry = zipfile.ZipInfo(path.name)
            entry.file_size = path.stat().st_size  # a large one needs a zip64 header
            with path.open("rb") as source, pack.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            path.unlink()
    return archive
