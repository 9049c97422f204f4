"""Reading ahead and writing behind: while one photo is computed, the next is read and the last one written.

At most one photo is ahead and one picture behind. Pictures are written as bands of rows while they are computed (a `Passage`), in the
same order and with the same bytes as without threads.
"""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    from runtime.image.bands import Passage, Strips

T = TypeVar("T")


class Writer:
    """Writes pictures in the order they come in. overlap: in a thread of its own.

    Leaving its block waits for complete pictures and gives up an incomplete one.
    """

    def __init__(self, overlap: bool = True) -> None:
        self._pool = ThreadPoolExecutor(1, "gdposr-write") if overlap else None
        self._pending: set[Future[None]] = set()
        self._open: Passage | None = None  # of the picture being computed

    def stream(
        self, strips: "Strips", save: Callable[["Strips"], None], meanwhile: Callable[[], None]
    ) -> Future[None]:
        """Compute the bands of a picture in this thread while `save` writes them in the other. meanwhile: called here after each band.

        Errors of the computation are raised here. Errors of `save` are raised here if they come in time, else by the Future.
        """
        from runtime.image.bands import Passage, Strips

        if self._pool is None:
            return _done(lambda: save(strips))
        self._wait(1)
        self._open = passage = Passage()
        future = self._submit(lambda: save(Strips(strips.shape, strips.dtype, passage.bands())), passage)
        try:
            for band in strips.bands:
                if not passage.put(band):
                    future.result()
                    break
                meanwhile()
            else:
                passage.end()
        except BaseException:
            passage.stop()
            raise
        return future

    def whole(self, save: Callable[[], None]) -> Future[None]:
        """Run `save`, which holds a whole picture, after all earlier pictures are written."""
        if self._pool is None:
            return _done(save)
        self._wait(0)
        return self._submit(save, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.stop()
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _submit(self, save: Callable[[], None], passage: "Passage | None") -> Future[None]:
        def run() -> None:
            try:
                save()
            finally:
                if passage is not None:
                    passage.stop()  # tell the computing thread to stop

        assert self._pool is not None
        future = self._pool.submit(run)
        self._pending.add(future)
        return future

    def _wait(self, most: int) -> None:
        """Wait until at most that many pictures are unwritten."""
        self._pending = {future for future in self._pending if not future.done()}
        while len(self._pending) > most:
            self._pending = wait(self._pending, return_when=FIRST_COMPLETED).not_done


class Reader(Generic[T]):
    """Reads things in order, each while the one before it is worked on.

    read: called with the number of a thing, in another thread or in the caller's. ahead: whether a thing may be read early.
    """

    def __init__(self, count: int, read: Callable[[int], T], ahead: Callable[[int], bool]) -> None:
        self._count, self._read, self._may = count, read, ahead
        self._pool = ThreadPoolExecutor(1, "gdposr-read")
        self._next: Future[T] | None = None

    def take(self, number: int) -> T:
        """Returns or raises what read(number) does, and starts reading the next thing. Numbers must come in order."""
        early, self._next = self._next, None
        try:
            return self._read(number) if early is None else early.result()
        finally:
            if number + 1 < self._count and self._may(number + 1):
                self._next = self._pool.submit(self._read, number + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _done(action: Callable[[], None]) -> Future[None]:
    """Run the action now, in this thread, and return a finished Future. An error is raised at once."""
    action()
    future: Future[None] = Future()
    future.set_result(None)
    return future
