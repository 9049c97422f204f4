"""The plots of a report: quality against cost, picture against picture, sensitivity of layers, times.

Each function gives inline SVG in the page's colours. The meaning of a mark is shown on hover.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from calibration.report.canvas import COLOURS, TEXT, Canvas, Format
from calibration.report.labels import Box, place, shorten, spots_along, spots_around
from calibration.report.numbers import INFINITY, MINUS, signed

# Most characters of a label.
LONGEST = 26
# Size of a plot with a dot per picture, and its frame.
SQUARE = (312, 288, (68.0, 8.0, 304.0, 244.0))
# Mark and colour of each kind of method; the model's rows are circles, other kinds gray.
SHAPES = {"peer": "s", "folder": "^", "bicubic": "D"}
HUES = {"model": "blue", "peer": "orange", "folder": "green"}
# Colour of each series of bars.
SERIES = ("orange", "blue", "green", "pink", "yellow")


@dataclass(frozen=True)
class Point:
    """One method in a plot of quality against cost."""

    label: str
    """Name of the method."""
    kind: str
    """Kind of the row; it picks mark and colour."""
    cost: float
    """Milliseconds or bytes; drawn on a logarithmic axis, so 0 is left out."""
    quality: float
    """Value of the metric."""
    low: float | None = None
    """Lower end of the interval of the quality, for the hover text alone: over pictures it is far wider than the differences between
    methods on the same pictures."""
    high: float | None = None
    """Upper end of that interval."""


@dataclass(frozen=True)
class Bar:
    """One bar: the value of one series in one group."""

    group: str
    """Name of the group, such as a layer."""
    series: str
    """Name of the series, which has the colour."""
    value: float
    """Its length, in the unit of the plot."""
    note: str = ""
    """The end of its hover text."""


def frontier(points: Sequence[Point], higher: bool) -> list[Point]:
    """The points that no other one beats in cost and quality at once, by rising cost. higher: a larger quality is better."""
    ordered = sorted(points, key=lambda p: (p.cost, -p.quality if higher else p.quality))
    best: list[Point] = []
    for point in ordered:
        if not best or (point.quality > best[-1].quality if higher else point.quality < best[-1].quality):
            best.append(point)
    return best


def pareto_plot(
    points: Sequence[Point],
    references: Sequence[tuple[str, float]],
    *,
    cost_label: str,
    quality_label: str,
    higher: bool,
    cost_format: Format,
    digits: int = 3,
) -> Markup:
    """Quality against cost on a logarithmic axis; better is always up.

    points: one for each method.
    references: label and quality of methods without a cost; drawn as lines.
    cost_label, quality_label: of the axes.
    higher: whether a larger quality is better.
    cost_format: a cost as text.
    digits: of the quality in hover texts.
    """
    shown = [p for p in points if math.isfinite(p.quality) and math.isfinite(p.cost) and p.cost > 0]
    lines = [(name, value) for name, value in references if math.isfinite(value)]
    plot = Canvas(480, 340, (58.0, 14.0, 460.0, 292.0))
    plot.names(cost_label, quality_label)
    plot.scale([p.cost for p in shown], [p.quality for p in shown] + [value for _, value in lines], log=True)
    plot.axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: cost_format(value)))
    if not higher:
        plot.axes.invert_yaxis()
    for _, value in lines:
        plot.tip(plot.axes.axhline(value, color=COLOURS["gray"], ls=(0, (2, 4)), lw=1), "reference")
    best = frontier(shown, higher)
    if best:  # a staircase to the right edge: the best quality for each cost
        costs = [*(p.cost for p in best), plot.axes.get_xlim()[1]]
        levels = [*(p.quality for p in best), best[-1].quality]
        (steps,) = plot.axes.step(
            costs, levels, where="post", color=COLOURS["blue"], ls="--", lw=1.5, alpha=0.8
        )
        plot.tip(steps, "frontier", "Pareto frontier")
    for p in shown:
        text = f"{p.label}: {p.quality:.{digits}f} at {cost_format(p.cost)}"
        if p.low is not None and p.high is not None:
            text += f" (95 %: {p.low:.{digits}f} to {p.high:.{digits}f})"
        kind = p.kind if p.kind in SHAPES else "model"
        colour = COLOURS[HUES.get(kind, "gray")]
        (mark,) = plot.axes.plot(
            [p.cost], [p.quality], SHAPES.get(kind, "o"), ms=12, mfc=colour, mec=COLOURS["card"], mew=1.3
        )
        plot.tip(mark, f"mark {kind}", text)
    _labels(plot, shown, lines)
    return plot.svg(f"{quality_label} against {cost_label}")


def scatter_plot(
    pairs: Sequence[tuple[str, float, float]], *, x_label: str, y_label: str, higher: bool, digits: int = 2
) -> Markup:
    """One value against another per picture, with the line on which they are equal.

    pairs: name, first and second value of each picture; infinite ones are left out.
    x_label, y_label: of the axes.
    higher: whether a larger value is better.
    digits: of the values in hover texts.
    """
    known = _finite(pairs)
    values = [value for _, first, second in known for value in (first, second)]
    plot = Canvas(*SQUARE)
    plot.names(x_label, y_label)
    plot.scale(values, values, most=5)
    plot.tip(plot.axes.plot(*[plot.axes.get_xlim()] * 2, color=COLOURS["gray"], lw=1)[0], "equal")
    plot.dots([(a, b, b - a, f"{name}: {a:.{digits}f} and {b:.{digits}f}") for name, a, b in known], higher)
    return plot.svg(f"{y_label} against {x_label}")


def difference_plot(
    pairs: Sequence[tuple[str, float, float]],
    band: tuple[float, float, float] | None,
    *,
    x_label: str,
    y_label: str,
    higher: bool,
    least: float,
    digits: int = 2,
) -> Markup:
    """Second value minus first, against the first, per picture.

    pairs, higher, digits: as in `scatter_plot`.
    band: mean of the differences and both ends of its interval.
    x_label, y_label: of the axes.
    least: the axis reaches at least this far up and down, so that small differences look small.
    """
    known = _finite(pairs)
    plot = Canvas(*SQUARE)
    plot.names(x_label, y_label)
    plot.scale(
        [a for _, a, _ in known], [-least, least, *(band or ()), *(b - a for _, a, b in known)], most=5
    )
    if band:
        mean, low, high = band
        text = (
            f"mean {signed(mean, digits + 1)} (95 %: {signed(low, digits + 1)} to {signed(high, digits + 1)})"
        )
        plot.tip(plot.axes.axhspan(low, high, color=COLOURS["pink"], alpha=0.25), "band", text)
        plot.tip(plot.axes.axhline(mean, color=COLOURS["pink"], lw=2), "mean", text)
    plot.tip(plot.axes.axhline(0, color=COLOURS["gray"], lw=1), "equal")
    plot.dots(
        [
            (a, b - a, b - a, f"{name}: {signed(b - a, digits + 1)} from {a:.{digits}f}")
            for name, a, b in known
        ],
        higher,
    )
    return plot.svg(f"{y_label} against {x_label}")


def bar_plot(
    bars: Sequence[Bar], *, series: Sequence[str], span: Sequence[float], label: str, unit: str
) -> Markup:
    """Horizontal bars in the order given, each group under its name. An infinite bar fills the width.

    bars: those of a group one after the other.
    series: all names of series; each has its colour.
    span: values that the scale holds, at least those of the bars.
    label: describes the plot for screen readers.
    unit: of the values.
    """
    groups = list(dict.fromkeys(bar.group for bar in bars))
    thick, top = 11.0, 26.0
    height = top + 24 * len(groups) + thick * len(bars) + 4
    known = [value for value in span if math.isfinite(value)] or [0.0]
    step = 10.0 if max(known) - min(known) > 15 else 5.0
    low = math.floor(min(known) / step - 0.2) * step
    high = max(math.ceil(max(known) / step) * step, low + step)
    plot = Canvas(480, round(height), (24.0, top - 4, 430.0, height - 4))
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10])
    plot.bars(low, high, top - 4, height - 4, ticks, lambda value: f"{value:g} {unit}".replace("-", MINUS))
    y = top
    for group in groups:
        plot.text(
            24, y + 14, shorten(group, 60, front=True), "layer", group, color=COLOURS["ink"], fontsize=11.5
        )
        y += 19
        for bar in (bar for bar in bars if bar.group == group):
            reach = min(bar.value, high) if bar.value > low else low
            hue = series.index(bar.series) % len(SERIES)
            (drawn,) = plot.axes.barh(y + thick / 2, reach - low, thick - 2, low, color=COLOURS[SERIES[hue]])
            value = f"{bar.value:.1f}" if math.isfinite(bar.value) else INFINITY
            note = f", {bar.note}" if bar.note else ""
            plot.tip(drawn, f"series s{hue}", f"{bar.group}, {bar.series}: {value} {unit}{note}")
            end = plot.at(reach, y)[0] + 4
            plot.text(end, y + thick - 2, value, "amount", color=COLOURS["muted"], fontsize=10)
            y += thick
        y += 5
    return plot.svg(label)


def time_plot(ms: Mapping[str, Mapping[str, float]], ours: Sequence[str], label: str) -> Markup:
    """Horizontal bars on a logarithmic axis; shorter is faster.

    ms: name -> median, low and high in milliseconds.
    ours: the names drawn in blue.
    label: describes the plot for screen readers.
    """
    width, row, left = 760, 26, 250.0
    height = 30 + row * len(ms)
    plot = Canvas(width, height, (left, 20, width - 90, height))
    low = min(times["low"] for times in ms.values()) / 2
    high = max(times["high"] for times in ms.values()) * 1.1
    plot.axes.set_xscale("log")
    plot.bars(low, high, 20, height, LogLocator(numticks=8), lambda value: f"{value:g} ms")
    for index, (name, times) in enumerate(ms.items()):
        middle = 22 + row * (index + 0.5)
        kind, hue = ("series s1", "blue") if name in ours else ("series s0", "orange")
        (bar,) = plot.axes.barh(middle, times["median"] - low, row - 8, low, color=COLOURS[hue])
        plot.tip(bar, kind, f"{name}: {times['median']:.1f} ms")
        plot.axes.plot([times["low"], times["high"]], [middle, middle], color=COLOURS["ink"], lw=1)
        plot.text(left - 8, middle + 4, name, "layer", ha="right", color=COLOURS["ink"], fontsize=TEXT)
        end = plot.at(times["high"], middle)[0] + 6
        plot.text(end, middle + 4, f"{times['median']:.1f}", "amount", color=COLOURS["ink"], fontsize=TEXT)
    return plot.svg(label)


def _labels(plot: Canvas, points: Sequence[Point], lines: Sequence[tuple[str, float]]) -> None:
    """Write names beside their points and along their lines. A thin line leads to a name that found no room nearby."""
    places = [plot.at(p.cost, p.quality) for p in points]
    taken: list[Box] = [(px - 7, py - 7, px + 7, py + 7) for px, py in places]
    left, _, right, _ = plot.area
    wanted = [(p.label, "ink", "label", spots_around(*at)) for p, at in zip(points, places, strict=True)]
    for name, value in lines:
        level = plot.at(plot.axes.get_xlim()[0], value)[1]
        wanted.append((name, "muted", "label line", spots_along(left, right, level)))
    for index, (name, hue, kind, spots) in enumerate(wanted):
        text = shorten(name, LONGEST)
        x, y, anchor = place(text, TEXT, spots, taken, plot.area)
        if index < len(places) and abs(y - places[index][1] - 4) > 20:
            px, py = places[index]
            plot.line((px, x), (py, y - 10 if y > py else y + 3))
        align = {"start": "left", "middle": "center", "end": "right"}[anchor]
        plot.text(x, y, text, kind, name, ha=align, color=COLOURS[hue], fontsize=TEXT)


def _finite(pairs: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    return [pair for pair in pairs if math.isfinite(pair[1]) and math.isfinite(pair[2])]
