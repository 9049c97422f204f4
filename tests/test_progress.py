"""The time left over a folder, and how often it is said."""

from pathlib import Path

import pytest

import gdposr.batch.progress as progress
from gdposr.batch.headers import read_header
from gdposr.batch.progress import FIXED_PIXELS, Meter, duration, occasional_lines


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_time_left_is_weighted_by_pixels() -> None:
    shown: list[tuple[str, float, str]] = []
    clock, size = Clock(), 1_000_000 - FIXED_PIXELS
    meter = Meter([size, size * 3 + 2 * FIXED_PIXELS, None], lambda *each: shown.append(each), clock)
    meter.start("a.png")
    assert shown[-1] == ("1/3 a.png", 0.0, "")
    clock.now += 10
    meter.part(1, 2)
    assert shown[-1][1] == pytest.approx(0.5 / 4.02)
    assert shown[-1][2] == "1 min left"  # 10 s for an eighth
    meter.start("b.png")
    clock.now += 10
    meter.part(2, 3)
    name, share, left = shown[-1]
    assert (name, left) == ("2/3 b.png", "7 s left")
    assert share == pytest.approx(3 / 4.02)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (59, "59 s"), (59.7, "1 min"), (100, "2 min"), (3600, "1 h 00 min"), (4000, "1 h 07 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_are_rare(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    show = occasional_lines(clock)
    for _ in range(100):
        clock.now += 1
        show("3/9 a.png", 0.25, "2 min left")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["gdposr: 3/9 a.png, 25% of all done, 2 min left"] * 3


def test_short_runs_say_nothing_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.photo_progress([100, 100]) as meter:
        meter.start("a.png")
        meter.part(1, 2)
    assert capsys.readouterr().err == ""


def test_pixels_by_the_header(make_photo, tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.tif", "a.webp"):
        assert read_header(make_photo(name, 20, 30))[0] == 600
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert read_header(tmp_path / "b.png")[0] is None
    assert read_header(tmp_path / "missing.png")[0] is None
