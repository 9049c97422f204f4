"""Threads that read ahead and write behind: bounded, in order, with every error where it belongs."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gdposr.batch.overlap import Reader, Writer
from runtime.image.bands import Abandoned, Passage, Strips

ROW = np.zeros((1, 100), np.uint8)


def strips(rows: int, each: Any = None) -> Strips:
    def bands() -> Iterator[np.ndarray]:
        for row in range(rows):
            if each is not None:
                each(row)
            yield np.full((1, 100), row, np.uint8)

    return Strips((rows, 100), np.dtype(np.uint8), bands())


def test_passage_holds_no_more_than_its_limit() -> None:
    passage, most, put = Passage(limit=250), [0], [0]

    def make() -> None:
        for _ in range(20):
            passage.put(ROW)
            put[0] += 1
        passage.end()

    thread = threading.Thread(target=make)
    thread.start()
    taken = 0
    for _ in passage.bands():
        time.sleep(0.002)
        taken += 1
        most[0] = max(most[0], put[0] - taken)
    thread.join()
    assert taken == 20
    assert most[0] <= 3, "two bands of 100 bytes wait, one more is let in as one is taken"


def test_band_larger_than_the_limit_passes() -> None:
    passage = Passage(limit=10)
    assert passage.put(ROW)
    passage.end()
    assert [band.shape for band in passage.bands()] == [(1, 100)]


def test_stopped_passage_tells_both_ends() -> None:
    passage = Passage()
    passage.put(ROW)
    passage.stop()
    assert not passage.put(ROW)
    with pytest.raises(Abandoned):
        list(passage.bands())
    complete = Passage()
    complete.put(ROW)
    complete.end()
    complete.stop()
    assert len(list(complete.bands())) == 1, "a complete picture is still written"


@pytest.mark.parametrize("overlap", [True, False])
def test_writer_gets_the_same_rows_in_order(overlap: bool) -> None:
    written: list[np.ndarray] = []
    with Writer(overlap) as writer:
        futures = [
            writer.stream(strips(5), lambda s: written.append(s.array()), lambda: None) for _ in range(3)
        ]
    assert all(future.done() for future in futures)
    assert [picture[:, 0].tolist() for picture in written] == [[0, 1, 2, 3, 4]] * 3


def test_one_picture_is_behind_at_most() -> None:
    """The third picture is begun only when the first is written."""
    events: list[str] = []

    def save(arriving: Strips, name: str) -> None:
        arriving.array()
        time.sleep(0.03)
        events.append(f"{name} written")

    with Writer() as writer:
        for name in "abcd":
            begin = strips(1, lambda _, name=name: events.append(f"{name} begun"))  # type: ignore[misc]
            writer.stream(begin, lambda s, name=name: save(s, name), lambda: None)  # type: ignore[misc]
    assert events.index("a written") < events.index("c begun")
    assert events.index("b begun") < events.index("a written"), "it does overlap"
    assert events.index("b written") < events.index("d begun")


def test_error_of_the_computation_is_raised_and_its_picture_given_up() -> None:
    def fail(row: int) -> None:
        if row == 2:
            raise ValueError("no result")

    seen: list[BaseException] = []

    def save(arriving: Strips) -> None:
        try:
            arriving.array()
        except BaseException as error:
            seen.append(error)
            raise

    with Writer() as writer, pytest.raises(ValueError, match="no result"):
        writer.stream(strips(4, fail), save, lambda: None)
    assert [type(error) for error in seen] == [Abandoned]


def test_error_of_the_writer_stops_the_computation() -> None:
    rows: list[int] = []

    def slow(row: int) -> None:
        rows.append(row)
        time.sleep(0.005)

    def save(_: Strips) -> None:
        raise OSError("disk full")

    with Writer() as writer:
        with pytest.raises(OSError, match="disk full"):
            writer.stream(strips(200, slow), save, lambda: None)
        assert len(rows) < 200
        future = writer.whole(lambda: save(strips(1)))
    assert isinstance(future.exception(), OSError)


@pytest.mark.parametrize("ahead", [True, False])
def test_reader_is_one_ahead_at_most_and_keeps_errors_apart(ahead: bool) -> None:
    reads: list[int] = []

    def read(number: int) -> int:
        reads.append(number)
        if number == 2:
            raise ValueError("damaged")
        return number

    with Reader(5, read, lambda _: ahead) as reader:
        for number in range(5):
            if number == 2:
                with pytest.raises(ValueError, match="damaged"):
                    reader.take(number)
            else:
                assert reader.take(number) == number
            time.sleep(0.02)
            assert reads == list(range(min(5, number + 1 + ahead)))
