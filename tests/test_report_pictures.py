"""Pictures of the HTML report: which are shown and where they are cut, the same place in every row; and its plots."""

import base64
import dataclasses
import io
import math
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="needs the extra `report`")
pytest.importorskip("jinja2", reason="needs the extra `report`")

import report_cases
from report_cases import Checker, plots, scored, section

from calibration.measure.accuracy import AccuracyReport
from calibration.measure.gates import GateResult
from calibration.report.accuracy import CropCollector, render
from calibration.report.crops import busiest_box, judged_rows, shown_pictures, strip_order

report, crops = report_cases.report, report_cases.crops  # fixtures


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
