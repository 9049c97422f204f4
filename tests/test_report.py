"""The HTML report: self-contained, complete, its crops cut at the same place in every row, hostile names harmless."""

import base64
import dataclasses
import io
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="needs the extra `report`")
pytest.importorskip("jinja2", reason="needs the extra `report`")

from calibration.measure.accuracy import AccuracyReport, ImageScore, Row
from calibration.measure.gates import GateResult
from calibration.measure.intervals import Difference, Interval
from calibration.report.accuracy import CropCollector, render, table_rows, write_report
from calibration.report.crops import busiest_box, judged_rows, shown_pictures, strip_order
from calibration.sensitivity import LayerNoise
from runtime.errors import ImageError

Pixels = Callable[..., np.ndarray]
PICTURES = [f"p{k}" for k in range(6)]
VOID = {"meta", "br", "img", "input"}
HOSTILE = "<img src=x onerror=\"alert('1')\">&\a\udcff"  # the last is a byte of a file name that is no UTF-8


def scored(name: str, psnr: float, niqe: float, sqf: float | None) -> ImageScore:
    return ImageScore(name, psnr, 0.75, sqf, niqe, (0.1, -0.2, 0.3), 0.4, {"lpips": 0.25})


def make_row(name: str, kind: str, sqf: float | None = 0.5, loss: float = 0.0) -> Row:
    images = tuple(
        scored(p, 25.0 + k - loss * (k == 2), 5.0 + (k == 4), None if sqf is None else sqf + (k == 3))
        for k, p in enumerate(PICTURES)
    )
    return Row(
        name, kind, 27.5, 0.75, sqf, 5.2, (0.1, -0.2, 0.3), 0.2, 0.4, 3.25 if kind == "model" else None,
        3_600_000, 4_100_000, "cpu", ("a note",), images,
        target="onnx" if kind == "model" else "", seam=1.04 if kind == "model" else None, extra={"lpips": 0.25},
        intervals={"psnr": Interval(26.25, 28.75), "diversity": Interval(3.05, 3.45)}, milliseconds=42.0,
    )  # fmt: skip


@pytest.fixture
def report() -> AccuracyReport:
    changes = {"psnr": Difference(-0.0185, -0.021, -0.016), "niqe": Difference(-0.05, -0.06, -0.04),
               "ssim": Difference(0.001, -0.002, 0.004)}  # fmt: skip
    int8 = dataclasses.replace(make_row("int8", "model", loss=0.5), differences=changes)
    rows = (make_row("bicubic", "bicubic"), make_row("<peer>", "peer"), make_row("fp32", "model"), int8)
    gates = (
        GateResult("int8", "max_psnr_loss", 0.1, 0.0185, True),
        GateResult("int8", "max_sqf_rise", 0.01, None, False),
    )
    return AccuracyReport(
        {"name": "pocket", "digest": "0" * 16}, 4, "six <photos>", 6, 6, 0, 6, 4, None, 5.9, -0.3, rows, gates,
        extra_metrics=("lpips",),
        budgets={"int8": {"max_psnr_loss": 0.1, "max_sqf_rise": 0.01, "max_seam": 1.25}},
        sensitivity={"onnx": tuple(LayerNoise(f"layer{k}", 8, 40.0 + k, 10.0) for k in range(20))},
        machine={"cpu": "a processor"}, versions={"numpy": "2.4.0"},
    )  # fmt: skip


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
    """Tags closed in order; what is loaded, and attributes that would run a script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.events: list[str] = []
        self.images: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        named = {key: value or "" for key, value in attrs}
        self.links += [named[key] for key in ("src", "href", "srcset", "xlink:href") if key in named]
        self.events += [key for key in named if key.startswith("on")]
        if tag == "img":
            self.images.append((named["alt"], named["src"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def plots(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def section(page: str, heading: str) -> str:
    return page.partition(f"<h2>{heading}")[2].partition("<h2>")[0]


# ---- the page


def test_the_page_is_well_formed_and_needs_nothing_else(report: AccuracyReport, crops: CropCollector) -> None:
    page = render(report, crops)
    checker = Checker(page)
    assert checker.open == []
    assert checker.links
    assert all(
        link.startswith(("data:image/png;base64,", "#")) for link in checker.links
    )  # or a mark of this page
    assert checker.events == []
    text = re.sub(r"data:image/png;base64,[^\"]+", "", page)
    assert not re.search(r"https?:|url\(|@import|fetch\(|<link|<iframe|[\"'(]//", text)
    assert "default-src 'none'" in text


def test_every_section_stands_on_it_in_order(report: AccuracyReport, crops: CropCollector) -> None:
    headings = re.findall(r"<h2>(.*?)</h2>", render(report, crops))
    assert headings == [
        "Summary", "Gates: not all passed", "Quality against speed and size", "Picture by picture", "Worst pictures",
        "Sensitivity of the layers", "Every picture", "Machine and versions",
    ]  # fmt: skip


def test_what_was_not_measured_leaves_no_empty_section(report: AccuracyReport) -> None:
    bare = dataclasses.replace(
        report,
        rows=(dataclasses.replace(make_row("fp32", "model", sqf=None), milliseconds=None, bytes=None, seam=None),),
        gates=(), budgets={}, sensitivity={}, machine={}, versions={}, extra_metrics=(), sqf_note="no weights",
    )  # fmt: skip
    page = render(bare)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Summary", "Every picture"]
    assert "no SQF: no weights" in page
    assert "no gates were set" in page
    assert ">seam<" not in page
    assert "<script" not in page
    Checker(page)


def test_every_row_and_figure_is_in_the_summary(report: AccuracyReport) -> None:
    page = render(report)
    table = section(page, "Summary")
    for row in ("bicubic", "&lt;peer&gt;", "fp32", "int8"):
        assert f'<th scope="row">{row}<small>' in table, row
    for text in ("27.50", "26.25\N{EN DASH}28.75", "3.05\N{EN DASH}3.45", "0.5000", "0.250", "3,600,000", "3.60 M", "4.1 MB", "42.0",
                 "1.04", "onnx", "+0.10 \N{MINUS SIGN}0.20 +0.30", "a note"):  # fmt: skip
        assert text in table, text
    assert "6 pictures: six &lt;photos&gt;; 4x; seed 0" in page
    assert "diversity: 4 samples of 6 pictures, spread evenly" in page
    assert "no SQF: " in render(dataclasses.replace(report, sqf_note="no SqueezeNet weights given"))


def test_a_difference_is_marked_by_its_side_only_where_it_is_real(report: AccuracyReport) -> None:
    table = section(render(report), "Summary")
    assert re.search(r'class="worse" title="worse than fp32: [^"]*">\S \N{MINUS SIGN}0\.0\d+<', table)
    assert re.search(r'class="better" title="better than fp32: [^"]*">\S \N{MINUS SIGN}0\.050<', table)
    (same,) = re.findall(r'<small class="same" title="([^"]*)">=</small>', table)
    assert "no difference to fp32" in same
    assert "+0.0010 (95 %: \N{MINUS SIGN}0.0020 to +0.0040)" in same


def test_a_real_difference_below_the_last_digit_is_not_written_as_zero(report: AccuracyReport) -> None:
    tiny = dataclasses.replace(report.rows[-1], differences={"ssim": Difference(-9e-6, -1e-5, -8e-6)})
    table = section(render(dataclasses.replace(report, rows=(*report.rows[:-1], tiny))), "Summary")
    assert "\N{MINUS SIGN}9e\N{MINUS SIGN}06" in table


def test_the_page_says_what_its_intervals_are_worth(report: AccuracyReport) -> None:
    table = section(render(report), "Summary")
    assert "The intervals are over 6 pictures: too few to trust, take 10 or more." in table
    assert "comparisons are not corrected for" in table
    many = section(render(dataclasses.replace(report, groups=10)), "Summary")
    assert "too few" not in many
    assert "comparisons are not corrected for" in many


# ---- gates


def test_a_broken_gate_is_visible_at_the_top_in_the_row_and_in_the_table(report: AccuracyReport) -> None:
    page = render(report)
    head = page.partition("<h2>")[0]
    assert "1 of 2 gates broken" in head
    assert "int8: SQF rise not measured, at most 0.01" in head
    assert '<abbr class="fail" title="SQF rise: not measured, at most 0.01">' in section(page, "Summary")
    assert '<abbr class="pass" title="PSNR loss: 0.0185, at most 0.1">' in section(page, "Summary")
    assert section(page, "Gates").count("FAIL") == 1


def test_a_budget_that_was_not_checked_is_listed(report: AccuracyReport) -> None:
    table = section(render(report), "Gates")
    rows = re.findall(r"<tr>(.*?)</tr>", table.partition("<tbody>")[2])
    assert len(rows) == 3
    assert "seam" in rows[2]
    assert "not checked" in rows[2]


def test_all_gates_passed_is_said(report: AccuracyReport) -> None:
    passed = report.gates[0]
    page = render(dataclasses.replace(report, gates=(passed, passed)))
    assert "all 2 gates passed" in page
    assert "<h2>Gates: all passed" in page
    assert "FAIL" not in page


# ---- crops


def test_the_worst_pictures_are_shown_first_and_none_twice(report: AccuracyReport) -> None:
    shown = dict(shown_pictures(report))
    assert next(iter(shown)) == "p2"
    assert shown["p2"] == "int8 loses most PSNR against fp32"
    assert "lowest PSNR of int8" in shown["p0"]
    assert "highest SQF of int8" in shown["p3"]
    assert "highest NIQE of int8" in shown["p4"]
    assert len(shown_pictures(report)) == len(shown)


def test_the_worst_pictures_are_int8_s_and_those_of_the_row_nearest_its_limit(report: AccuracyReport) -> None:
    """Not those of the last row, which keeps its limit by far."""
    nearest, easy = (
        dataclasses.replace(report.rows[-1], name=name, images=tuple(reversed(report.rows[-1].images)))
        for name in ("coreml w8a8", "coreml fp16")
    )
    gates = tuple(
        GateResult(name, "max_psnr_loss", 0.1, value, True)
        for name, value in (("int8", 0.05), ("coreml w8a8", 0.09), ("coreml fp16", 0.001))
    )
    several = dataclasses.replace(report, rows=(*report.rows, nearest, easy), gates=gates)
    assert [row.name for row in judged_rows(several)] == ["int8", "coreml w8a8"]
    reasons = "; ".join(reason for _, reason in shown_pictures(several))
    assert "int8 loses most PSNR" in reasons
    assert "coreml w8a8 loses most PSNR" in reasons
    assert "coreml fp16" not in reasons
    usual = tuple(GateResult(gate.row, "min_diversity_ratio", 0.95, 0.999, True) for gate in gates)
    kept = dataclasses.replace(several, gates=(*usual, *gates))
    assert [row.name for row in judged_rows(kept)] == ["int8", "coreml w8a8"]
    diversity = GateResult("coreml fp16", "min_diversity_ratio", 0.95, 0.9, False)
    broken = dataclasses.replace(several, gates=(*gates, diversity))
    assert [row.name for row in judged_rows(broken)] == ["int8", "coreml fp16"]
    rows = tuple(row for row in several.rows if row.name != "int8")
    assert [row.name for row in judged_rows(dataclasses.replace(several, rows=rows))] == ["coreml w8a8"]
    assert [row.name for row in judged_rows(dataclasses.replace(several, rows=rows, gates=()))] == [
        "coreml fp16"
    ]


def test_pictures_equal_to_hr_can_be_ranked(report: AccuracyReport) -> None:
    images = tuple(dataclasses.replace(image, psnr=math.inf) for image in report.rows[2].images)
    rows = tuple(dataclasses.replace(row, images=images, psnr=math.inf) for row in report.rows)
    page = render(dataclasses.replace(report, rows=rows))
    assert "\N{INFINITY}" in page
    assert not re.search(r"\b(nan|inf)\b", page.partition("<body>")[2])


def test_every_row_has_a_crop_of_the_same_place(report: AccuracyReport, crops: CropCollector) -> None:
    images = Checker(render(report, crops)).images
    pictures = {
        name: np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
        for name, source in images[:6]
    }
    assert list(pictures) == strip_order(report.rows) == ["LR", "bicubic", "fp32", "int8", "HR", "<peer>"]
    assert pictures["HR"].shape == (64, 64, 3)
    assert pictures["LR"].shape == (16, 16, 3)
    np.testing.assert_array_equal(pictures["HR"], pictures["int8"])
    np.testing.assert_array_equal(pictures["HR"][::4, ::4], pictures["LR"])


def test_the_comparison_embeds_no_image_of_its_own(report: AccuracyReport, crops: CropCollector) -> None:
    page = render(report, crops)
    shown = len(shown_pictures(report))
    assert page.count('<section class="picture">') == shown
    assert page.count("data:image/png") == shown * (len(report.rows) + 2)
    template = re.findall(r"<template.*?</template>", page, re.DOTALL)
    assert len(template) == 1
    assert 'data-left="fp32" data-right="int8"' in template[0]
    assert template[0].count("<select aria-label") == 2
    assert 'type="range"' in template[0]
    assert 'aria-pressed="false">flicker' in template[0]


def test_a_hundred_pictures_stay_below_ten_megabytes(report: AccuracyReport) -> None:
    names = [f"picture {k}" for k in range(100)]
    images = tuple(scored(name, 25 + k % 7, 5, 0.5) for k, name in enumerate(names))
    rows = tuple(dataclasses.replace(report.rows[-1], name=f"row {k}", images=images) for k in range(8))
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)  # the worst for PNG
    collector = CropCollector()
    collector.crops = {name: {row.name: noise for row in rows} for name in names}
    assert len(render(dataclasses.replace(report, rows=rows), collector)) < 10e6


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


# ---- plots on the page


def test_the_plots_are_valid_xml_and_their_dots_named(report: AccuracyReport) -> None:
    page = render(report)
    drawn = plots(page)
    assert (
        len(drawn) == 2 + 4 + 2
    )  # trade-offs, one other precision twice in two metrics, two parts of the layers
    titles = {title.text for svg in drawn for title in svg.iter("title")}
    assert "<peer>: 0.5000 at 42" in titles
    assert "p2: 27.00 and 26.50" in titles
    assert "layer3, 8 bits: 43.0 dB, cost 10" in titles
    assert "5 less sensitive layers" not in page
    assert "6 less sensitive layers" in page


def test_without_sqf_the_plots_show_psnr(report: AccuracyReport) -> None:
    rows = tuple(
        dataclasses.replace(row, sqf=None, images=tuple(dataclasses.replace(i, sqf=None) for i in row.images))
        for row in report.rows
    )
    page = render(dataclasses.replace(report, rows=rows))
    assert "PSNR-Y against milliseconds" in page
    assert "SQF" not in section(page, "Picture by picture")
    assert ">SQF<" not in section(page, "Summary")


def test_a_model_without_a_time_is_neither_point_nor_level_line(report: AccuracyReport) -> None:
    rows = (*report.rows[:3], dataclasses.replace(report.rows[3], milliseconds=None))
    drawn = plots(section(render(dataclasses.replace(report, rows=rows)), "Quality"))
    labels = [
        {group.findtext("title") for group in svg.iter("g") if "label" in group.get("class", "")}
        for svg in drawn
    ]
    assert labels == [{"bicubic", "<peer>", "fp32"}, {"bicubic", "<peer>", "fp32", "int8"}]


# ---- hostile names, the terminal, the file


def test_hostile_names_stay_text(report: AccuracyReport, make_pixels: Pixels, tmp_path: Path) -> None:
    images = (scored(HOSTILE, 25, 5, 0.5), scored("other", 26, 5, 0.5))
    rows = tuple(
        dataclasses.replace(row, name=name, kind="model", images=images, notes=(HOSTILE,), device=HOSTILE, target=HOSTILE)
        for row, name in zip(report.rows, (HOSTILE, "x", "fp32", HOSTILE + "2"), strict=True)
    )  # fmt: skip
    collector = CropCollector(32)
    for name in ("HR", "LR", *(row.name for row in rows)):
        collector(name, HOSTILE, make_pixels(64, 64))
    hostile = dataclasses.replace(
        report, bundle={"name": HOSTILE, "digest": HOSTILE}, rows=rows, sqf_note=HOSTILE, extra_metrics=(HOSTILE, "lpips"),
        gates=(GateResult(HOSTILE, HOSTILE, 1.0, 2.0, False),), budgets={HOSTILE: {"max_" + HOSTILE: 1.0}},
        sensitivity={HOSTILE: (LayerNoise(HOSTILE, 8, math.inf, 1.0),)}, machine={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE},
    )  # fmt: skip
    page = render(hostile, collector, title=HOSTILE)
    checker = Checker(page)
    assert checker.open == []
    assert checker.events == []
    assert "<img src=x" not in page
    assert all(
        link.startswith(("data:image/png;base64,", "#")) for link in checker.links
    )  # or a mark of this page
    assert plots(page)
    write_report(tmp_path / "r.html", hostile, collector)


def test_the_terminal_table_has_a_dash_for_what_is_missing(report: AccuracyReport) -> None:
    rows = table_rows(
        dataclasses.replace(report, rows=(make_row("fp32", "model", sqf=None),), extra_metrics=())
    )
    assert rows[0] == [
        "method", "PSNR-Y", "SSIM", "SQF", "NIQE", "diversity", "seam", "colour shift", "checkerboard", "parameters", "size", "ms"
    ]  # fmt: skip
    assert rows[1][6::5] == ["1.04", "42.0"]
    assert rows[1][3] == "-"
    assert len(rows[0]) == len(rows[1])


def test_the_terminal_table_has_no_column_of_what_no_row_has(report: AccuracyReport) -> None:
    rows = tuple(dataclasses.replace(row, seam=None, milliseconds=None) for row in report.rows)
    table = table_rows(dataclasses.replace(report, rows=rows))
    assert {"seam", "ms"}.isdisjoint(table[0])
    assert len({len(line) for line in table}) == 1


def test_the_terminal_table_has_a_column_for_each_learned_metric(report: AccuracyReport) -> None:
    rows = table_rows(report)
    assert rows[0][5] == "LPIPS"
    assert [row[5] for row in rows[1:]] == ["0.250"] * 4


def test_it_is_written_whole_or_not_at_all(report: AccuracyReport, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", report)
    assert (tmp_path / "r.html").read_text().endswith("</html>\n")
    with pytest.raises(ImageError, match="cannot be written"):
        write_report(tmp_path / "none" / "r.html", report)
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.html"]
