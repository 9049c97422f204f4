"""Warnings of libraries, such as Pillow's about a photo's metadata, get the photo's name. Others are dropped."""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# By thread: `tell`, which gets the warnings of the innermost `name_warnings` block.
_HERE = threading.local()


@contextmanager
def route_warnings() -> Iterator[None]:
    """Inside this block every warning goes to the `name_warnings` block of its thread. Without one it is dropped."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning | RuntimeWarning):
            _tell(str(message))

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _tell(record.getMessage())

    log, handler = logging.getLogger("PIL"), Handler(logging.WARNING)
    propagate = log.propagate
    with warnings.catch_warnings():  # once for all threads: several of these would mix up their filters
        warnings.simplefilter("always")
        warnings.showwarning = show
        log.addHandler(handler)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.propagate = propagate


@contextmanager
def name_warnings(name: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Inside this block `tell` gets the warnings of this thread, with the photo's name."""
    former = getattr(_HERE, "tell", None)
    _HERE.tell = lambda text: tell(text if name in text else f"{name}: {text}")
    try:
        yield
    finally:
        _HERE.tell = former


def _tell(text: str) -> None:
    tell = getattr(_HERE, "tell", None)
    if tell is not None:
        tell(" ".join(text.split()))
