"""The HTML report: self-contained, complete, its crops cut at the same place in every row."""

import base64
import dataclasses
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.accuracy import AccuracyReport, ImageScore, Row
from calibration.gates import GateResult
from calibration.report import CropCollector, busiest_box, render, shown_pictures, table_rows, write_report
from runtime.errors import ImageError

Pixels = Callable[..., np.ndarray]
PICTURES = [f"p{k}" for k in range(6)]
VOID = {"meta", "br", "img"}


def scored(name: str, psnr: float, niqe: float, sqf: float | None) -> ImageScore:
    return ImageScore(name, psnr, 0.75, sqf, niqe, (0.1, -0.2, 0.3), 0.4)


def make_row(name: str, kind: str, sqf: float | None = 0.5) -> Row:
    images = tuple(
        scored(p, 25.0 + k, 5.0 + (k == 4), None if sqf is None else sqf + (k == 3))
        for k, p in enumerate(PICTURES)
    )
    diversity = 3.25 if kind == "model" else None
    return Row(
        name,
        kind,
        27.5,
        0.75,
        sqf,
        5.2,
        (0.1, -0.2, 0.3),
        0.2,
        0.4,
        diversity,
        3_600_000,
        4_100_000,
        "cpu",
        ("a note",),
        images,
    )


@pytest.fixture
def report() -> AccuracyReport:
    rows = (make_row("bicubic", "bicubic"), make_row("<peer>", "peer"), make_row("int8", "model"))
    gates = (
        GateResult("int8", "max_psnr_loss", 0.1, 0.05, True),
        GateResult("int8", "max_sqf_rise", 0.01, None, False),
    )
    return AccuracyReport({"name": "pocket", "digest": "0" * 16}, 4, 6, 0, 6, 4, None, 5.9, -0.3, rows, gates)


@pytest.fixture
def crops(report: AccuracyReport, make_pixels: Pixels) -> CropCollector:
    collector = CropCollector(64)
    for seed, name in enumerate(PICTURES):
        hr = make_pixels(160, 200, seed=seed)
        collector("HR", name, hr)
        collector("LR", name, hr[::4, ::4])
        for row in report.rows:
            collector(row.name, name, hr)
    return collector


class Checker(HTMLParser):
    """Tags closed in order, nothing loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_else(report: AccuracyReport, crops: CropCollector) -> None:
    page = render(report, crops)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.links
    assert all(link.startswith("data:image/png;base64,") for link in checker.links)
    assert "<script" not in page
    assert "http" not in page
    assert "url(" not in page


def test_table_gates_and_conditions_are_on_it(report: AccuracyReport) -> None:
    page = render(report)
    for text in (
        "27.50",
        "0.5000",
        "3,600,000",
        "4.1 MB",
        "+0.10 -0.20 +0.30",
        "&lt;peer&gt;",
        "not all passed",
        "FAIL",
    ):
        assert text in page, text
    assert "<peer>" not in page
    assert "6 pictures; 4x; seed 0" in page
    assert "no SQF: " in render(dataclasses.replace(report, sqf_note="no SqueezeNet weights given"))


def test_the_worst_pictures_are_shown_first_and_none_twice(report: AccuracyReport) -> None:
    shown = dict(shown_pictures(report))
    assert shown["p0"] == "lowest PSNR of int8"
    assert shown["p3"] == "highest SQF of int8"
    assert shown["p4"] == "highest NIQE of int8"
    assert next(iter(shown)) == "p0"
    assert len(shown_pictures(report)) == len(shown)


def test_every_row_has_a_crop_of_the_same_place(report: AccuracyReport, crops: CropCollector) -> None:
    found = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)"', render(report, crops))
    pictures = {name: np.array(Image.open(io.BytesIO(base64.b64decode(data)))) for name, data in found[:5]}
    assert list(pictures) == ["LR", "bicubic", "&lt;peer&gt;", "int8", "HR"]
    assert pictures["HR"].shape == (64, 64, 3)
    assert pictures["LR"].shape == (16, 16, 3)
    np.testing.assert_array_equal(pictures["HR"], pictures["int8"])
    np.testing.assert_array_equal(pictures["HR"][::4, ::4], pictures["LR"])


def test_the_crop_lies_where_the_detail_is() -> None:
    picture = np.full((200, 240, 3), 100, np.uint8)
    picture[120:160, 160:200] = np.random.default_rng(0).integers(0, 256, (40, 40, 3))
    top, left, bottom, right = busiest_box(picture, 64)
    assert (bottom - top, right - left) == (64, 64)
    assert top <= 120
    assert bottom >= 160
    assert left <= 160
    assert right >= 200
    assert busiest_box(picture[:40, :30], 64) == (0, 0, 40, 30)


def test_the_terminal_table_has_a_dash_for_what_is_missing(report: AccuracyReport) -> None:
    rows = table_rows(dataclasses.replace(report, rows=(make_row("fp32", "model", sqf=None),)))
    assert rows[0][:5] == ["method", "PSNR-Y", "SSIM", "SQF", "NIQE"]
    assert rows[1][3] == "-"
    assert len(rows[0]) == len(rows[1])


def test_it_is_written_whole_or_not_at_all(report: AccuracyReport, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", report)
    assert (tmp_path / "r.html").read_text().endswith("</html>\n")
    with pytest.raises(ImageError, match="cannot be written"):
        write_report(tmp_path / "none" / "r.html", report)
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.html"]
