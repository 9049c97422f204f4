"""A worker's task: from the file of a photo to the file of the answer, by the steps of `gdposr upscale` and with the same bytes."""

import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gdposr.batch.headers import notes_of
from gdposr.batch.library_warnings import name_warnings
from gdposr.batch.run import retry_out_of_memory
from gdposr.server.jobs import Job
from gdposr.server.order import Order

if TYPE_CHECKING:
    from runtime.image.photo import Photo
    from runtime.upscale.rendering import Rendering
    from runtime.upscale.upscaler import Upscaler

# Names of the uploaded file, and of an answer with several pictures.
PHOTO = "photo"
ARCHIVE = "photo.zip"


@dataclass(frozen=True)
class PhotoRequest:
    """A photo and the order for it."""

    folder: Path
    """Folder of this request alone, with the file PHOTO in it. Everything else is written there too."""
    order: Order
    """The pictures to make."""

    @property
    def source(self) -> Path:
        return self.folder / PHOTO

    def without_folder(self, text: str) -> str:
        """A message without the folder's name, which the client must not see."""
        return text.replace(f"{self.folder}{os.sep}", "")


@dataclass
class Answer:
    """The result of a request."""

    path: Path
    """A picture, or a zip of several."""
    pixels: int
    """Number of pixels of the photo."""
    notes: list[str] = field(default_factory=list)
    """Losses, such as 16 bits in a JPEG."""


class Work:
    """Enlarges photos with one Upscaler. It is the work of a `JobQueue` and may be called from several threads."""

    def __init__(self, upscaler: "Upscaler", max_pixels: int) -> None:
        self._upscaler, self._max_pixels = upscaler, max_pixels

    def __call__(self, job: Job[PhotoRequest, Answer]) -> Answer:
        """ImageError if the photo cannot be read or written as asked, Stopped soon after the job was given up."""
        from runtime.image.read.decode import read_photo
        from runtime.image.write.encode import fitting

        photo_request, order = job.wanted, job.wanted.order
        notes: list[str] = []

        def note(text: str) -> None:
            if (told := photo_request.without_folder(text)) not in notes:
                notes.append(told)

        with name_warnings(str(photo_request.source), note):
            # read
            photo = read_photo(photo_request.source, self._max_pixels, notify=note)
            job.check()
            targets = {number: photo_request.folder / order.name(number) for number in order.numbers}
            photo = fitting(next(iter(targets.values())), photo)
            # pad, encode, sample, crop, colour: by rows, while they are written
            rendering = self._upscaler.picture(
                photo.pixels,
                seed=order.seed,
                scale=order.scale,
                samples=len(targets),
                progress=job.check,
                temperature=order.temperature,
            )
            # write
            for number, target in targets.items():
                self._write(order, photo, rendering, number, target, note)
                job.check()
        pixels = photo.pixels.shape[0] * photo.pixels.shape[1]
        paths = list(targets.values())
        return Answer(
            paths[0] if order.samples == 1 else packed(photo_request.folder / ARCHIVE, paths), pixels, notes
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
        """Compute and write one version.

        order: the pictures to make.
        photo: with the metadata that the picture gets.
        rendering: of the photo.
        number: of the version.
        target: the picture's file.
        note: called with each loss.
        """
        from runtime.image.write.encode import write_photo

        bundle, precision = self._upscaler.bundle, self._upscaler.precision
        text = notes_of(order.seed, str(number), bundle.digest, precision, order.temperature)
        if order.strip:
            photo, text = photo.stripped(), {}

        def write() -> None:
            enlarged = photo.with_pixels(rendering.strips(number))
            write_photo(target, enlarged, quality=order.quality, text=text, notify=note)

        retry_out_of_memory(write)


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
