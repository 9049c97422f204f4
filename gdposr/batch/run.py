"""A run over many photos: each is read, computed and written. The error of one photo does not stop the others."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from gdposr.batch.headers import notes_of
from gdposr.batch.library_warnings import name_warnings, route_warnings
from gdposr.batch.overlap import Reader, Writer
from gdposr.batch.progress import Meter, say_failed
from gdposr.batch.task import Options, Outcome, Task
from gdposr.console import debugging, one_line, say

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gdposr.batch.compare import Preview
    from runtime.image.bands import Strips
    from runtime.image.photo import Levels, Photo
    from runtime.upscale.rendering import Rendering
    from runtime.upscale.upscaler import Upscaler


T = TypeVar("T")
# Attempts to make a picture when memory runs out.
ATTEMPTS = 3
# A photo of more pixels is not read ahead, so that memory holds one photo.
AHEAD_PIXELS = 25_000_000


def retry_out_of_memory(make: Callable[[], T]) -> T:
    """What `make` returns. If memory runs out, it is called again: the next attempt has smaller tiles."""
    from runtime.errors import OutOfMemory

    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(OutOfMemory):
            return make()
    return make()


class Batch:
    """Photos through one Upscaler.

    options: what to make from each.
    upscaler: loaded.
    meter: shows the progress.
    settled: called with each photo's outcome as soon as the photo is done, in the order of the tasks and in the thread of `run`.
    overlap: whether to read ahead and write behind. It does not change the files.
    """

    def __init__(
        self,
        options: Options,
        upscaler: "Upscaler",
        meter: Meter,
        settled: Callable[[Outcome], None],
        overlap: bool = True,
    ) -> None:
        self._options, self._upscaler, self._meter = options, upscaler, meter
        self._settled, self._overlap = settled, overlap
        self._behind: deque[Task] = deque()  # begun and not settled, the oldest first
        self._report_error: Exception | None = (
            None  # raised by `settled`, for example because stdout is closed
        )
        self._writer = Writer(overlap)

    def run(self, tasks: Sequence[Task]) -> None:
        """Enlarge every photo. An exception that ends the run, such as KeyboardInterrupt, is raised after the last write has ended."""

        def read(number: int) -> "Photo":
            return self._read(tasks[number])

        def ahead(number: int) -> bool:
            pixels = tasks[number].pixels
            return self._overlap and pixels is not None and pixels <= AHEAD_PIXELS

        try:
            with route_warnings(), Reader(len(tasks), read, ahead) as reader, self._writer:
                for number, task in enumerate(tasks):
                    task.begin = time.perf_counter()
                    self._behind.append(task)
                    self._attempt(task, lambda number=number: reader.take(number))  # type: ignore[misc]
                    self._settle()
                    if self._report_error is not None:
                        break
        finally:
            while self._behind:  # the writer has stopped
                self._close(self._behind.popleft())
        if self._report_error is not None:
            raise self._report_error

    def _read(self, task: Task) -> "Photo":
        from runtime.image.read.decode import read_photo

        limit = {} if self._options.max_pixels is None else {"max_pixels": self._options.max_pixels}

        def note(text: str) -> None:
            task.outcome.notes.append(task.with_labels(text))

        with name_warnings(str(task.source), note):
            return read_photo(task.source, **limit, notify=note)

    def _attempt(self, task: Task, take: "Callable[[], Photo]") -> None:
        """Enlarge one photo. An error is kept for its report."""
        self._meter.start(task.source.name)
        try:
            self._upscale(task, take)
        except Exception as error:
            if debugging():
                raise
            task.error = error
        task.end = time.perf_counter()
        task.computed = True

    def _upscale(self, task: Task, take: "Callable[[], Photo]") -> None:
        """Enlarge one photo, from its file to its pictures."""
        from runtime.image.write.encode import fitting

        options = self._options
        # read
        try:
            photo = take()
        finally:
            for note in task.outcome.notes:
                say(note)
        if task.exact is not None:
            photo = fitting(task.exact, photo)
        # pad, encode, sample, crop, colour: by rows, while they are written (`_enlarged` in runtime/upscale/rendering.py)
        rendering = self._upscaler.picture(
            photo.pixels,
            seed=options.seed,
            scale=options.scale,
            samples=len(options.numbers),
            progress=self._meter.part,
        )
        # write: samples while they are computed, a sheet or the best when all are
        if options.select == "all":
            for number in options.numbers:
                self._stream(task, photo, rendering, number)
        elif options.select == "best":
            from runtime.image.grain import NAME

            score, number, pixels = self._best(rendering)
            self._whole(task, photo.with_pixels(pixels), number, photo, **{NAME: round(score, 4)})
        else:
            from gdposr.batch.sheet import contact_sheet
            from runtime.image.photo import Photo

            labels = [f"seed {options.seed} sample {number}" for number in options.numbers]
            sheet = contact_sheet([rendering.sample(number) for number in options.numbers], labels)
            self._whole(task, Photo(sheet), None)

    def _best(self, rendering: "Rendering") -> tuple[float, int, "NDArray[Any]"]:
        """The first sample with the lowest score. No other is kept in memory."""
        from runtime.image.grain import score

        best: tuple[float, int, NDArray[Any]] | None = None
        for number in self._options.numbers:
            pixels = rendering.sample(number)
            value = score(pixels)
            if best is None or value < best[0]:
                best = value, number, pixels
            del pixels  # before the next one is made
            self._settle()
        assert best is not None
        return best

    def _stream(self, task: Task, photo: "Photo", rendering: "Rendering", number: int) -> None:
        """Write a sample while it is computed.

        task: its photo.
        photo: the input, with metadata.
        rendering: of the photo.
        number: of the sample.
        """
        from gdposr.batch.compare import Preview

        def save(arriving: "Strips") -> None:
            preview = Preview(arriving.shape) if self._options.compare else None
            passing = arriving if preview is None else preview.passing(arriving)
            self._save(task, photo.with_pixels(passing), number)
            if preview is not None:
                self._compare(task, photo, preview, number)

        def write() -> tuple[Future[None], tuple[int, ...]]:
            strips = rendering.strips(number)
            return self._writer.stream(strips, save, self._settle), strips.shape

        written, shape = retry_out_of_memory(write)  # memory may run out after rows that are already written
        task.writes.append((written, self._entry(task, shape, number)))

    def _whole(
        self,
        task: Task,
        photo: "Photo",
        number: int | None,
        before: "Photo | None" = None,
        **scores: float,
    ) -> None:
        """Write a computed picture.

        task: its photo.
        photo: the picture, with metadata.
        number: of the sample; None: a sheet of all samples.
        before: the input, for the page; None: no page.
        scores: for the report.
        """
        from gdposr.batch.compare import Preview
        from runtime.image.bands import HELD

        def save() -> None:
            self._save(task, photo, number)
            if self._options.compare and before is not None:
                preview = Preview(photo.pixels.shape)
                preview.take(photo.pixels)
                self._compare(task, before, preview, number)

        write = self._writer.whole(save)
        if photo.pixels.nbytes > HELD:
            write.result()  # memory must not hold it beside the next photo's
        task.writes.append((write, self._entry(task, photo.pixels.shape, number) | scores))

    def _save(self, task: Task, photo: "Photo[Levels | Strips]", number: int | None) -> None:
        """Write one picture with the notes on how it was made. Runs in the writer's thread."""
        from runtime.files import make_folder
        from runtime.image.write.encode import write_photo

        options = self._options
        target = task.target(options.part(number))
        make_folder(target.parent)
        sample = str(number) if number is not None else f"0-{options.samples - 1}"
        upscaler = self._upscaler
        text = notes_of(options.seed, sample, options.digest, upscaler.precision, upscaler.temperature)
        if options.strip:
            photo, text = photo.stripped(), {}

        def tell(note: str) -> None:
            task.outcome.notes.append(task.with_labels(note))
            say(task.with_labels(note))

        with name_warnings(str(target), tell):
            write_photo(target, photo, quality=options.quality, text=text, notify=tell)
        task.end = time.perf_counter()

    def _compare(self, task: Task, before: "Photo", preview: "Preview", number: int | None) -> None:
        """Write the page that shows before and after. Runs in the writer's thread.

        task: the photo.
        before: the input.
        preview: the picture, reduced.
        number: of the sample; None: a sheet.
        """
        from gdposr.batch.compare import page_path, write_page

        target = task.target(self._options.part(number))
        write_page(page_path(target), target.name, before, preview)

    def _entry(self, task: Task, shape: tuple[int, ...], number: int | None) -> dict[str, Any]:
        """The report's entry of a picture. shape: (height, width, ...). number: of the sample; None: a sheet."""
        from gdposr.batch.compare import page_path

        height, width = shape[:2]
        target = task.target(self._options.part(number))
        entry = {"path": str(target), "sample": number, "width": width, "height": height}
        if self._options.compare:
            entry["compare"] = str(page_path(target))
        return entry

    def _settle(self) -> None:
        """Close the oldest photos whose files are all written."""
        while self._behind and self._behind[0].computed:
            if not all(write.done() for write, _ in self._behind[0].writes):
                return
            self._close(self._behind.popleft())

    def _close(self, task: Task) -> None:
        outcome = task.outcome
        for write, entry in task.writes:
            failure = write.exception()
            if failure is None:
                outcome.outputs.append(entry)
            elif debugging():
                raise failure
            elif isinstance(failure, Exception):
                task.error = task.error or failure
        outcome.seconds = round((task.end or time.perf_counter()) - task.begin, 3)
        if task.error is not None:
            outcome.status, outcome.error = "failed", task.with_labels(one_line(task.error))
            say_failed(outcome)
        elif task.computed:
            outcome.status = "ok"
        try:
            if self._report_error is None:
                self._settled(outcome)
        except Exception as error:
            self._report_error = error
