"""The HTML report: self-contained, complete, broken gates visible, hostile names harmless; and its table in the terminal."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the extra `report`")
pytest.importorskip("jinja2", reason="needs the extra `report`")

import report_cases
from report_cases import Checker, Pixels, make_row, plots, scored, section

from calibration.measure.accuracy import AccuracyReport
from calibration.measure.gates import GateResult
from calibration.measure.intervals import Difference
from calibration.report.accuracy import CropCollector, render, table_rows, write_report
from calibration.sensitivity import LayerNoise
from runtime.errors import ImageError

report, crops = report_cases.report, report_cases.crops  # fixtures

HOSTILE = "<img src=x onerror=\"alert('1')\">&\a\udcff"  # the last is a byte of a file name that is no UTF-8


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
