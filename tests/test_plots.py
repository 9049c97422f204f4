"""Plots: valid XML, colours of the page, everything inside the frame, labels apart, the frontier right, odd values harmless."""

import math
import re
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="needs the extra `report`")
pytest.importorskip("jinja2", reason="needs the extra `report`")

from calibration.report.labels import overlap, shorten, text_box
from calibration.report.plots import (
    Bar,
    Point,
    bar_plot,
    difference_plot,
    frontier,
    pareto_plot,
    scatter_plot,
    time_plot,
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


def drawn(svg: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    """Groups whose class begins so, in the order in which they are drawn."""
    return [group for group in svg.iter("g") if group.get("class", "").startswith(kind)]


def written(group: ElementTree.Element) -> str:
    """What is written, without the hover text."""
    (text,) = group.iter("text")
    return text.text or ""


def places(group: ElementTree.Element) -> list[tuple[float, float]]:
    """Of marks and dots."""
    return [(float(use.get("x", "")), float(use.get("y", ""))) for use in group.iter("use")]


def extent(group: ElementTree.Element) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a bar, a line or a band."""
    numbers = [float(n) for path in group.iter("path") for n in re.findall(r"-?[\d.]+", path.get("d", ""))]
    x, y = numbers[::2], numbers[1::2]
    return min(x), min(y), max(x), max(y)


def text_boxes(svg: ElementTree.Element, kind: str) -> dict[str, tuple[float, float, float, float]]:
    found = {}
    for group in drawn(svg, kind):
        (text,) = group.iter("text")
        style = text.get("style", "")
        anchor = re.search(r"text-anchor: (\w+)", style)
        x, y = (float(text.get(key, "")) for key in ("x", "y"))
        found[written(group)] = text_box(x, y, written(group), 12, anchor[1] if anchor else "start")
    return found


def check_inside(svg: ElementTree.Element) -> None:
    """Every mark, line and text within the view box, every coordinate a finite number, every colour the page's."""
    _, _, width, height = (float(value) for value in svg.get("viewBox", "").split())
    for element in svg.iter():
        assert not re.search(r"#[0-9a-f]{6}|nan|inf|url|DejaVu", "".join(element.attrib.values())), (
            element.attrib
        )
        if element.tag in ("use", "text"):
            x, y = float(element.get("x", "")), float(element.get("y", ""))
            assert -0.01 <= x <= width + 0.01, (element.tag, x)
            assert -0.01 <= y <= height + 0.01, (element.tag, y)
    for group in svg.iter("g"):
        if group.get("class", "").startswith(("series", "band", "mean", "equal", "frontier", "reference")):
            left, top, right, bottom = extent(group)
            assert min(left, top) >= -0.01
            assert right <= width + 0.01
            assert bottom <= height + 0.01
    for kind in ("label", "layer", "amount"):
        for text, box in text_boxes(svg, kind).items():
            assert box[0] >= -6, text
            assert box[2] <= width + 30, text


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
        heights = {
            (mark.findtext("title") or "").partition(":")[0]: places(mark)[0][1]
            for mark in drawn(svg, "mark")
        }
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
    kinds = [mark.get("class") for mark in drawn(svg, "mark")]
    assert kinds == ["mark model"] * 3 + ["mark peer", "mark folder"]
    titles = [title.text for title in svg.iter("title")]
    assert "fp32: 0.488 at 48 (95 %: 0.470 to 0.500)" in titles
    assert "RealESRGAN_General_x4_v3 (ncnn)" in titles  # in full, where the label is shortened


def test_one_point_has_room_around_it() -> None:
    svg = pareto([POINTS[0]], [])
    check_inside(svg)
    assert len(list(svg.iter("text"))) >= 4 + 3  # ticks beside a label and the names of both axes


def test_what_has_no_finite_quality_or_no_cost_is_left_out() -> None:
    odd = [Point("perfect", "folder", 5.0, math.inf), Point("free", "bicubic", 0.0, 0.5), POINTS[0]]
    svg = pareto(odd, [("infinite", math.inf)])
    check_inside(svg)
    assert set(text_boxes(svg, "label")) == {"fp32"}


def test_names_are_escaped() -> None:
    svg = pareto([Point('<b>&"', "model", 3.0, 0.5)], [("</svg>", 0.4)])
    assert set(text_boxes(svg, "label")) == {'<b>&"', "</svg>"}
    assert drawn(scatter([("<i>", 1.0, 2.0)]), "dot")[0].findtext("title") == "<i>: 1.00 and 2.00"
    assert "<&>, s: 1.0 dB" in [title.text for title in bars({("<&>", "s"): 1.0}).iter("title")]


# ---- picture against picture


def test_equal_values_lie_on_the_line() -> None:
    svg = scatter([("a", 20.0, 20.0), ("b", 30.0, 30.0), ("c", 22.0, 29.0)])
    check_inside(svg)
    (line,) = drawn(svg, "equal")
    left, top, right, bottom = extent(line)
    dots = [place for group in drawn(svg, "dot same") for place in places(group)]
    assert len(dots) == 2
    for x, y in dots:
        assert y == pytest.approx(bottom - (x - left) / (right - left) * (bottom - top), abs=0.2)


def test_dots_are_coloured_by_the_side_they_fall_on() -> None:
    svg = scatter([("a", 1, 2), ("b", 2, 1), ("c", 1, 1), ("d", 1, 3)])
    titles = {dots.get("class"): [title.text for title in dots.iter("title")] for dots in drawn(svg, "dot")}
    assert titles == {
        "dot better": ["a: 1.00 and 2.00", "d: 1.00 and 3.00"], "dot worse": ["b: 2.00 and 1.00"], "dot same": ["c: 1.00 and 1.00"]
    }  # fmt: skip
    low = scatter_plot([("a", 1, 2)], x_label="", y_label="", higher=False)
    assert "dot worse" in low


def test_infinite_psnr_is_left_out_and_nothing_at_all_is_no_error() -> None:
    pairs = [*PAIRS, ("same", math.inf, math.inf), ("half", 20.0, math.inf)]
    for draw in (scatter, difference):
        assert sum(len(places(dots)) for dots in drawn(draw(pairs), "dot")) == len(PAIRS)
        check_inside(draw(pairs))
        check_inside(draw([]))
        check_inside(draw([("one", 25.0, 25.0)]))


def test_small_differences_look_small() -> None:
    def spread(least: float) -> float:
        dots = drawn(difference(PAIRS, least=least), "dot")
        heights = [y for group in dots for _, y in places(group)]
        return max(heights) - min(heights)

    assert spread(1.0) < 5
    assert spread(0.0) > 150


def test_the_band_is_the_interval_of_the_mean() -> None:
    svg = difference(PAIRS, (0.002, -0.004, 0.008))
    check_inside(svg)
    (band,), (mean,) = drawn(svg, "band"), drawn(svg, "mean")
    _, top, _, bottom = extent(band)
    assert top < extent(mean)[1] < bottom
    assert extent(mean)[1] == pytest.approx((top + bottom) / 2, abs=0.2)
    assert "mean +0.002 (95 %: \N{MINUS SIGN}0.004 to +0.008)" in [title.text for title in svg.iter("title")]


# ---- bars


def test_bars_are_as_long_as_their_values_and_keep_order_and_colour() -> None:
    svg = bars({("b", "4 bits"): 30.0, ("b", "8 bits"): 50.0, ("a", "4 bits"): 40.0})
    check_inside(svg)
    rows = drawn(svg, "series")
    assert [bar.get("class") for bar in rows] == ["series s0", "series s1", "series s0"]
    short, long, middle = (extent(bar)[2] for bar in rows)
    assert middle - short == pytest.approx(long - middle, abs=0.2)
    assert [written(name) for name in drawn(svg, "layer")] == ["b", "a"]


def test_one_bar_and_infinite_ones_are_drawn() -> None:
    check_inside(bars({("only", "8 bits"): 47.3}))
    svg = bars({("a", "8 bits"): math.inf, ("b", "8 bits"): 40.0, ("c" * 90, "8 bits"): 42.0})
    check_inside(svg)
    assert "\N{INFINITY}" in [written(amount) for amount in drawn(svg, "amount")]
    widths = [extent(bar)[2] for bar in drawn(svg, "series")]
    assert widths[0] > widths[2] > widths[1]
    check_inside(bars({("a", "8 bits"): math.inf}))


def test_times_are_as_long_as_their_logarithms() -> None:
    times = {
        name: {"median": ms, "low": ms, "high": ms}
        for name, ms in (("a & b", 10.0), ("b", 100.0), ("c", 1000.0))
    }
    svg = ElementTree.fromstring(time_plot(times, ["a & b"], "times"))
    check_inside(svg)
    bars = drawn(svg, "series")
    ends = [extent(bar)[2] for bar in bars]
    assert ends[1] - ends[0] == pytest.approx(ends[2] - ends[1], abs=0.2)
    assert [bar.get("class") for bar in bars] == ["series s1", "series s0", "series s0"]
    assert [written(name) for name in drawn(svg, "layer")] == ["a & b", "b", "c"]


@pytest.mark.parametrize(("low", "high"), [(30, 320), (0.9e6, 3.1e6), (1, 1e9), (47, 49)])
def test_ticks_of_costs_are_few(low: float, high: float) -> None:
    svg = pareto([Point("a", "model", low, 0.5), Point("b", "model", high, 0.6)], [])
    across = [text for text in svg.iter("text") if abs(float(text.get("y", "0")) - 304) < 6]
    assert 1 <= len(across) <= 7


def test_long_names_are_shortened_in_the_middle_or_at_the_front() -> None:
    assert shorten("abc", 3) == "abc"
    assert shorten("abcdef", 4) == "ab\N{HORIZONTAL ELLIPSIS}f"
    assert shorten("abcdef", 4, front=True) == "\N{HORIZONTAL ELLIPSIS}def"
    assert all(len(shorten("x" * 40, most)) == most for most in range(1, 41))
