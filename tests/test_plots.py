"""Plots: valid XML, everything inside the frame, labels apart, the frontier right, odd values harmless."""

import math
import re
from xml.etree import ElementTree

import pytest

from calibration.report.labels import Axis, axis_over, overlap, shorten, text_box, tick_text
from calibration.report.plots import (
    Bar,
    Point,
    bar_plot,
    difference_plot,
    frontier,
    pareto_plot,
    scatter_plot,
)

POINTS = [
    Point("fp32", "model", 48.0, 0.488, 0.47, 0.50),
    Point("fp16", "model", 50.0, 0.488),
    Point("int8", "model", 31.0, 0.491),
    Point("RealESRGAN_General_x4_v3 (ncnn)", "peer", 299.0, 0.518),
    Point("another", "folder", 30.0, 0.530),
]
LINES = [("bicubic", 0.563), ("OSEDiff", 0.4885)]
PAIRS = [(f"p{k}", 20.0 + k, 20.0 + k + 0.01 * (-1) ** k) for k in range(12)]


def pareto(points: list[Point], lines: list[tuple[str, float]], higher: bool = False) -> ElementTree.Element:
    return ElementTree.fromstring(
        pareto_plot(
            points, lines, cost_label="ms", quality_label="SQF", higher=higher, cost_format=lambda ms: f"{ms:g}"
        )
    )  # fmt: skip


def scatter(pairs: list[tuple[str, float, float]]) -> ElementTree.Element:
    return ElementTree.fromstring(scatter_plot(pairs, x_label="fp32", y_label="int8", higher=True))


def difference(
    pairs: list[tuple[str, float, float]], band: tuple[float, float, float] | None = None, least: float = 0.02
) -> ElementTree.Element:
    plot = difference_plot(pairs, band, x_label="fp32", y_label="int8 - fp32", higher=True, least=least)
    return ElementTree.fromstring(plot)


def bars(values: dict[tuple[str, str], float]) -> ElementTree.Element:
    rows = [Bar(group, series, value) for (group, series), value in values.items()]
    series = sorted({row.series for row in rows})
    return ElementTree.fromstring(
        bar_plot(rows, series=series, span=list(values.values()), label="x", unit="dB")
    )


def own_text(element: ElementTree.Element) -> str:
    """What is written, without the hover text inside it."""
    return (element.text or "") + "".join(child.tail or "" for child in element)


def text_boxes(svg: ElementTree.Element, kind: str) -> dict[str, tuple[float, float, float, float]]:
    return {
        own_text(text): text_box(float(text.get("x", "")), float(text.get("y", "")), own_text(text), 12,
                                 text.get("text-anchor", "start"))
        for text in svg.iter("text")
        if kind in text.get("class", "").split()
    }  # fmt: skip


def check_inside(svg: ElementTree.Element) -> None:
    """Every mark and upright text within the view box, every coordinate a finite number."""
    _, _, width, height = (float(value) for value in svg.get("viewBox", "").split())
    for element in svg.iter():
        for key in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
            if key in element.attrib:
                value = float(element.get(key, ""))
                limit = width if key in ("x", "x1", "x2", "cx", "width") else height
                assert -0.01 <= value <= limit + 0.01, (element.tag, key, value)
        for number in re.findall(r"-?[\d.]+|nan|inf", element.get("points", "") + element.get("d", "")):
            assert -8 <= float(number) <= max(width, height)
    for text in svg.iter("text"):
        if text.get("transform") is None:
            x, y, anchor = (
                float(text.get("x", "")),
                float(text.get("y", "")),
                text.get("text-anchor", "start"),
            )
            box = text_box(x, y, own_text(text), 11, anchor)
            assert box[0] >= -6, own_text(text)
            assert box[2] <= width + 6, own_text(text)
            assert box[1] >= -2
            assert box[3] <= height + 2


# ---- quality against cost


def test_the_frontier_keeps_what_nothing_else_beats() -> None:
    assert [p.label for p in frontier(POINTS, higher=False)] == ["another", "int8", "fp32"]
    assert [p.label for p in frontier(POINTS, higher=True)] == ["another"]
    twins = [Point("b", "model", 1, 2), Point("a", "model", 1, 3)]
    assert [p.label for p in frontier(twins, higher=True)] == ["a"]
    assert frontier([], higher=True) == []


def test_better_is_up_whichever_way_the_metric_runs() -> None:
    for higher, top in ((False, "fp32"), (True, "another")):
        svg = pareto(POINTS, [], higher)
        heights = {}
        for mark in svg.iter():
            if mark.get("class", "").startswith("mark"):
                title = mark.findtext("title") or ""
                points = [float(pair.split(",")[1]) for pair in mark.get("points", "").split()]
                heights[title.partition(":")[0]] = float(mark.get("cy") or sum(points) / len(points))
        assert heights[top] == min(heights.values())


def test_labels_lie_inside_and_on_nothing() -> None:
    svg = pareto(POINTS, LINES)
    check_inside(svg)
    boxes = text_boxes(svg, "label")
    assert len(boxes) == len(POINTS) + len(LINES)
    for name, box in boxes.items():
        for other, second in boxes.items():
            assert name == other or overlap(box, second) == 0, (name, other)


def test_a_crowd_of_equal_points_keeps_its_labels_apart() -> None:
    svg = pareto([Point(f"coreml {k}", "model", 1000 + k, 0.5) for k in range(6)], [("bicubic", 0.6)])
    check_inside(svg)
    boxes = list(text_boxes(svg, "label").values())
    assert len(boxes) == 7
    assert all(overlap(a, b) == 0 for k, a in enumerate(boxes) for b in boxes[:k])


def test_each_kind_of_method_has_its_mark_and_hover_text() -> None:
    svg = pareto(POINTS, LINES)
    kinds = [mark.get("class") for mark in svg.iter() if mark.get("class", "").startswith("mark")]
    assert kinds == ["mark model"] * 3 + ["mark peer", "mark folder"]
    titles = [title.text for title in svg.iter("title")]
    assert "fp32: 0.488 at 48 (95 %: 0.470 to 0.500)" in titles
    assert "RealESRGAN_General_x4_v3 (ncnn)" in titles  # in full, where the label is shortened


def test_one_point_has_room_around_it() -> None:
    svg = pareto([POINTS[0]], [])
    check_inside(svg)
    assert len(text_boxes(svg, "tick")) >= 4


def test_what_has_no_finite_quality_or_no_cost_is_left_out() -> None:
    odd = [Point("perfect", "folder", 5.0, math.inf), Point("free", "bicubic", 0.0, 0.5), POINTS[0]]
    svg = pareto(odd, [("infinite", math.inf)])
    check_inside(svg)
    assert set(text_boxes(svg, "label")) == {"fp32"}


def test_names_are_escaped() -> None:
    svg = pareto([Point('<b>&"', "model", 3.0, 0.5)], [("</svg>", 0.4)])
    assert set(text_boxes(svg, "label")) == {'<b>&"', "</svg>"}
    assert scatter([("<i>", 1.0, 2.0)]).findtext(".//circle/title") == "<i>: 1.00 and 2.00"
    assert "<&>, s: 1.0 dB" in [title.text for title in bars({("<&>", "s"): 1.0}).iter("title")]


# ---- picture against picture


def test_equal_values_lie_on_the_line() -> None:
    svg = scatter([("a", 20.0, 20.0), ("b", 30.0, 30.0), ("c", 22.0, 29.0)])
    check_inside(svg)
    (line,) = (line for line in svg.iter("line") if line.get("class") == "equal")
    x1, y1, x2, y2 = (float(line.get(key, "")) for key in ("x1", "y1", "x2", "y2"))
    for dot in list(svg.iter("circle"))[:2]:
        share = (float(dot.get("cx", "")) - x1) / (x2 - x1)
        assert float(dot.get("cy", "")) == pytest.approx(y1 + share * (y2 - y1), abs=0.2)


def test_dots_are_coloured_by_the_side_they_fall_on() -> None:
    classes = [dot.get("class") for dot in scatter([("a", 1, 2), ("b", 2, 1), ("c", 1, 1)]).iter("circle")]
    assert classes == ["dot better", "dot worse", "dot same"]
    low = scatter_plot([("a", 1, 2)], x_label="", y_label="", higher=False)
    assert "dot worse" in low


def test_infinite_psnr_is_left_out_and_nothing_at_all_is_no_error() -> None:
    pairs = [*PAIRS, ("same", math.inf, math.inf), ("half", 20.0, math.inf)]
    for draw in (scatter, difference):
        assert len(list(draw(pairs).iter("circle"))) == len(PAIRS)
        check_inside(draw(pairs))
        check_inside(draw([]))
        check_inside(draw([("one", 25.0, 25.0)]))


def test_small_differences_look_small() -> None:
    def spread(least: float) -> float:
        heights = [float(dot.get("cy", "")) for dot in difference(PAIRS, least=least).iter("circle")]
        return max(heights) - min(heights)

    assert spread(1.0) < 5
    assert spread(0.0) > 150


def test_the_band_is_the_interval_of_the_mean() -> None:
    svg = difference(PAIRS, (0.002, -0.004, 0.008))
    check_inside(svg)
    (band,) = svg.iter("rect")
    (mean,) = (line for line in svg.iter("line") if line.get("class") == "mean")
    top, height = float(band.get("y", "")), float(band.get("height", ""))
    assert top < float(mean.get("y1", "")) < top + height
    assert float(mean.get("y1", "")) == pytest.approx(top + height / 2, abs=0.2)
    assert "mean +0.002 (95 %: \N{MINUS SIGN}0.004 to +0.008)" in [title.text for title in svg.iter("title")]


# ---- bars


def test_bars_are_as_long_as_their_values_and_keep_order_and_colour() -> None:
    svg = bars({("b", "4 bits"): 30.0, ("b", "8 bits"): 50.0, ("a", "4 bits"): 40.0})
    check_inside(svg)
    drawn = [(rect.get("class"), float(rect.get("width", ""))) for rect in svg.iter("rect")]
    assert [kind for kind, _ in drawn] == ["series s0", "series s1", "series s0"]
    short, long, middle = (width for _, width in drawn)
    assert middle - short == pytest.approx(long - middle, abs=0.2)
    assert [own_text(text) for text in svg.iter("text") if text.get("class") == "layer"] == ["b", "a"]


def test_one_bar_and_infinite_ones_are_drawn() -> None:
    check_inside(bars({("only", "8 bits"): 47.3}))
    svg = bars({("a", "8 bits"): math.inf, ("b", "8 bits"): 40.0, ("c" * 90, "8 bits"): 42.0})
    check_inside(svg)
    assert "\N{INFINITY}" in [own_text(text) for text in svg.iter("text")]
    widths = [float(rect.get("width", "")) for rect in svg.iter("rect")]
    assert widths[0] > widths[2] > widths[1]
    check_inside(bars({("a", "8 bits"): math.inf}))


# ---- axes


@pytest.mark.parametrize(("low", "high", "log"), [
    (0, 1, False), (24.98, 25.31, False), (-0.004, 0.0001, False), (1e-9, 2e-9, False), (30, 320, True), (0.9e6, 3.1e6, True),
    (1, 1e9, True), (47, 49, True), (-3e4, 9e6, False),
])  # fmt: skip
def test_ticks_are_few_round_and_inside(low: float, high: float, log: bool) -> None:
    ticks = Axis(low, high, 0, 100, log).ticks()
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(ticks)
    assert all(low - 1e-9 * abs(low) <= tick <= high + 1e-9 * abs(high) for tick in ticks)


def test_an_axis_maps_its_ends_and_refuses_impossible_ones() -> None:
    axis = Axis(1, 100, 10, 0, log=True)
    assert (axis.at(1), axis.at(100)) == (10, 0)
    assert axis.at(10) == pytest.approx(5)
    assert (axis.at(0.1), axis.at(math.inf)) == (10, 0)
    for low, high, log in ((1, 1, False), (0, 1, True), (math.nan, 1, False), (0, math.inf, False)):
        with pytest.raises(ValueError, match="axis needs"):
            Axis(low, high, 0, 1, log)


def test_an_axis_over_anything_holds_its_finite_values() -> None:
    for values in ([], [math.inf], [5.0], [5.0, 5.0], [0.0], [-1.0, 3.0, math.nan]):
        for log in (False, True):
            axis = axis_over(values, 0, 100, log=log)
            for value in values:
                if math.isfinite(value) and (value > 0 or not log):
                    assert axis.low < value < axis.high


def test_numbers_on_ticks_are_short() -> None:
    assert tick_text(0.30000000000000004, 0.1) == "0.3"
    assert tick_text(-0.0, 0.1) == "0.0"
    assert tick_text(-20.0, 20) == "\N{MINUS SIGN}20"
    assert tick_text(25.0, 5) == "25"


def test_long_names_are_shortened_in_the_middle_or_at_the_front() -> None:
    assert shorten("abc", 3) == "abc"
    assert shorten("abcdef", 4) == "ab\N{HORIZONTAL ELLIPSIS}f"
    assert shorten("abcdef", 4, front=True) == "\N{HORIZONTAL ELLIPSIS}def"
    assert all(len(shorten("x" * 40, most)) == most for most in range(1, 41))
