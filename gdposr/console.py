"""Output of the command: messages and progress on stderr, results on stdout, errors as one line."""

import contextlib
import json
import math
import os
import re
import signal
import sys
import threading
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Exit codes. The last two are 128 and the number of the signal, as shells have it.
OK, FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

# Number, letter of a power of 1024, and the i of MiB.
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?)(I?)B?", re.IGNORECASE)

# Done, total, text (None: the description).
Update = Callable[[int, int, str | None], None]


class UsageError(Exception):
    """The command cannot start as asked: what was expected, what it got, the remedy. Exit code 2."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came: work ends as cleanly as at Ctrl-C. Exit code 143."""


def say(message: str) -> None:
    """Print a message on stderr, so that stdout holds only the result. Without a stderr it is dropped."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, broken, or None
        sys.stderr.write(f"gdposr: {printable(message)}\n")
        sys.stderr.flush()


def printable(text: object) -> str:
    """`runtime.text.printable`: a text in which control characters are escaped."""
    from runtime.text import printable

    return printable(text)


def on_terminal() -> bool:
    """Whether stderr is a terminal."""
    try:
        return sys.stderr.isatty()
    except (ValueError, AttributeError):  # closed, or None
        return False


def emit(result: object) -> None:
    """Print a result as JSON on stdout, in UTF-8. Infinity and NaN become null, since JSON lacks them."""
    from runtime.text import finite

    _print_json(json.dumps(finite(result), indent=2, ensure_ascii=False, allow_nan=False))


def emit_line(result: object) -> None:
    """As `emit`, on one line of its own (JSON Lines)."""
    from runtime.text import finite

    _print_json(json.dumps(finite(result), ensure_ascii=False, allow_nan=False))


def _print_json(text: str) -> None:
    """Print a JSON text as UTF-8 in any locale. JSON's own escapes replace what `printable` would escape, so that no name is lost.

    An invalid byte becomes a lone surrogate such as \\udcd5, which Python's json reads back as a name for `os.fsencode`.
    """
    from runtime.text import is_hidden

    if not (text.isascii() and text.replace("\n", "").isprintable()):
        text = "".join(
            json.dumps(character)[1:-1] if is_hidden(character) and character != "\n" else character
            for character in text
        )
    if sys.stdout is None:
        return
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    print(text, flush=True)


@contextmanager
def terminable() -> Iterator[None]:
    """Inside this block SIGTERM raises `Terminated`, as Ctrl-C raises KeyboardInterrupt. No effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Terminated

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if former is None else former)


def one_line(error: BaseException) -> str:
    """An exception as one line. The type of a foreign exception is named, since its text alone often says little."""
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    known = isinstance(error, UsageError) or type(error).__module__.startswith("runtime.")
    return text if known else f"{type(error).__name__}: {text}"


def debugging() -> bool:
    """GDPOSR_DEBUG=1 shows tracebacks instead of one-line errors."""
    return os.environ.get("GDPOSR_DEBUG", "") not in ("", "0")


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows of text as columns. The first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


@contextmanager
def progress_bar(description: str, enabled: bool = True) -> Iterator[Update]:
    """A progress bar on stderr. The value is its `Update`. Silent if stderr is no terminal."""
    if not (enabled and on_terminal()):
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(description, total=None)

        def update(done: int, total: int, text: str | None = None) -> None:
            bar.update(task, completed=done, total=total, description=text or description)

        yield update


def _silent(done: int, total: int, text: str | None = None) -> None:
    """An `Update` without a terminal."""


def add_bundle(parser: ArgumentParser, name: str = "bundle") -> None:
    """The argument `bundle`, which may be left out, or the option of that name."""
    count = None if name.startswith("-") else "?"
    parser.add_argument(
        name, nargs=count, type=Path, help="a bundle folder or zip (default: the built-in one)"
    )


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer within [low, high]."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if value < low or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ArgumentTypeError(f"expected a whole number {bounds}, got {text}")
        return value

    return parse


def scale_factor(text: str) -> float:
    """An argparse type: a factor in (0, 4]."""
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a number above 0 and up to 4, got {text!r}") from None
    if not 0 < value <= 4:  # also refuses nan
        raise ArgumentTypeError(f"expected a number above 0 and up to 4, got {text}")
    return value


def pixel_limit(text: str) -> int:
    """An argparse type: megapixels -> pixels, at least 1."""
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a number of megapixels, got {text!r}") from None
    if not 1e-6 <= value < 1e9:  # also refuses nan
        raise ArgumentTypeError(f"expected megapixels from 0.000001 to 1e9, got {text}")
    return round(value * 1e6)


def memory_size(text: str) -> int:
    """An argparse type: bytes of a text such as "900M", "1.5G" or "2 GiB". K, M, G and T are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    value = 0
    if match is not None and (match[2] or not match[3]):
        value = math.floor(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
    if value < 1:
        raise ArgumentTypeError(f"expected a number with K, M or G such as 1.5G, got {text!r}")
    return value
