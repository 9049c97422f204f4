"""Progress of a run over photos: a bar with the time left on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from gdposr.batch.task import Outcome
from gdposr.console import on_terminal, printable, say

# The photo at work, share of all work in [0, 1], time left as text.
Show = Callable[[str, float, str], None]
# Time between two lines if stderr is no terminal.
LINE_SECONDS = 30.0
# Opening and closing a file takes as long as so many pixels.
FIXED_PIXELS = 20_000


class Meter:
    """Progress over photos of different sizes. The time left assumes that the work is proportional to the pixels.

    pixels: of each photo; None: not known. show: called at every change. clock: seconds, only differences count.
    """

    def __init__(
        self, pixels: Sequence[int | None], show: Show, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._weights = [FIXED_PIXELS + (count or 0) for count in pixels]
        self._show, self._clock, self._begin = show, clock, clock()
        self._index, self._name = -1, ""

    def start(self, name: str) -> None:
        """Begin the next photo."""
        self._index += 1
        self._name = name
        self.part(0, 1)

    def part(self, done: int, total: int) -> None:
        """Set how many steps of this photo are done."""
        weights = self._weights
        share = (sum(weights[: self._index]) + weights[self._index] * done / total) / sum(weights)
        spent = self._clock() - self._begin
        left = f"{duration(spent * (1 - share) / share)} left" if share > 0 and spent >= 1 else ""
        self._show(f"{self._index + 1}/{len(weights)} {self._name}", share, left)


def duration(seconds: float) -> str:
    """40 -> "40 s", 100 -> "2 min", 4000 -> "1 h 07 min"."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def occasional_lines(clock: Callable[[], float] = time.monotonic) -> Show:
    """A `Show` that prints a line every LINE_SECONDS at most, and none before."""
    last = clock()

    def show(name: str, share: float, left: str) -> None:
        nonlocal last
        now = clock()
        if now - last >= LINE_SECONDS:
            last = now
            say(f"{name}, {share:.0%} of all done{', ' if left else ''}{left}")

    return show


@contextmanager
def photo_progress(pixels: Sequence[int | None]) -> Iterator[Meter]:
    """A `Meter` that shows itself on stderr."""
    if not on_terminal():
        yield Meter(pixels, occasional_lines())
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[left]}"),
    )
    # rich must not redirect stdout: lines of JSON would go to the terminal instead of down the pipe
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=1.0, left="")

        def show(name: str, share: float, left: str) -> None:
            bar.update(task, completed=share, description=printable(name), left=left)

        yield Meter(pixels, show)


def say_failed(outcome: Outcome) -> None:
    """Print the error of a failed photo, with its name."""
    error = outcome.error or ""
    say(f"failed: {error if outcome.input in error else f'{outcome.input}: {error}'}")


def summary(counts: dict[str, int], total: int, seconds: float) -> str:
    """The counts in one line."""
    words = {
        "ok": "done",
        "skipped": "skipped, their outputs exist",
        "own": "left out, written by gdposr; name such a file itself to enlarge it again",
        "failed": "failed",
    }
    parts = [f"{counts[status]} {word}" for status, word in words.items() if counts[status]]
    return f"{total} photos: {'; '.join(parts) or 'none done'} ({seconds:.1f} s)"
