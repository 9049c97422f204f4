"""Plots of a report as inline SVG, drawn by matplotlib: quality against cost, picture against picture, sensitivity, times.

Each function gives one `<svg>` element as text, well-formed XML without namespace. Its colours are the page's CSS variables, so that a
plot follows the light or dark scheme; every mark carries a `<title>` that a browser shows on hover.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    ScalarFormatter,
)

from calibration.report.labels import Box, place, shorten, spots_along, spots_around

TEXT = 12  # font size of every label
LONGEST = 26  # characters of a label
SQUARE = (68.0, 8.0, 304.0, 244.0)  # the area of the plots of pictures
SHAPES = {"peer": "s", "folder": "^", "bicubic": "D"}  # mark of each kind of method
HUES = {"model": "blue", "peer": "orange", "folder": "green"}
SERIES = ("orange", "blue", "green", "pink", "yellow")
# What matplotlib is told -> the page's variable that takes its place; any different colours do.
COLOURS = {
    name: f"#0{index:x}1e5{index:x}"
    for index, name in enumerate(
        ("ink", "muted", "grid", "card", "gray", "blue", "orange", "green", "pink", "yellow")
    )
}

Format = Callable[[float], str]


@dataclass(frozen=True)
class Point:
    """One method in a plot of quality against cost. kind: of the row, picks mark and colour. low, high: interval of the quality, for
    the hover text alone: intervals over pictures are far wider than what lies between methods on the same pictures."""

    label: str
    kind: str
    cost: float
    quality: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bar:
    """One bar: how far a value reaches in one series of one group. note: the rest of its hover text."""

    group: str
    series: str
    value: float
    note: str = ""


class _Plot:
    """A figure of width x height SVG units with one frame; area: left, top, right, bottom of the frame, y downwards."""

    def __init__(self, width: float, height: float, area: Box) -> None:
        self.size, self.area = (width, height), area
        self.tips: list[tuple[str, Sequence[str]]] = []
        self.figure = Figure((width / 72, height / 72), dpi=72)
        left, top, right, bottom = area
        self.axes: Axes = self.figure.add_axes(
            (left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height)
        )
        self.figure.patch.set_visible(False)
        self.axes.patch.set_visible(False)
        self.axes.spines[:].set_visible(False)
        self.axes.set_axisbelow(True)
        self.axes.grid(color=COLOURS["grid"], linewidth=1)
        self.axes.tick_params(length=0, labelcolor=COLOURS["muted"], labelsize=11)

    def names(self, x: str, y: str) -> None:
        for write, text in ((self.axes.set_xlabel, x), (self.axes.set_ylabel, y)):
            write(text.replace("$", r"\$"), color=COLOURS["muted"], fontsize=TEXT)

    def scale(self, x: Sequence[float], y: Sequence[float], most: int = 6, log: bool = False) -> None:
        """Axes that hold these finite values with a margin, and round ticks on them. log: of x."""
        self.axes.set_ylim(*_span(y))
        self.axes.yaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
        if log:
            self.axes.set_xscale("log")
            low, high = _log_span(x)
            marks = [d * 10.0**p for p in range(-9, 13) for d in (1, 2, 5) if low <= d * 10.0**p <= high]
            few = (
                marks[:: math.ceil(len(marks) / most)]
                if len(marks) > 1
                else MaxNLocator(4).tick_values(low, high)
            )
            self.axes.xaxis.set_major_locator(FixedLocator(few))
            self.axes.xaxis.set_minor_locator(NullLocator())
        else:
            self.axes.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
        self.axes.set_xlim(*(_log_span(x) if log else _span(x)))
        for axis in (self.axes.xaxis, self.axes.yaxis)[log:]:
            axis.set_major_formatter(ScalarFormatter(useOffset=False))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Values -> SVG units."""
        here, level = self.axes.transData.transform((x, y))
        return float(here), self.size[1] - float(level)

    def text(self, x: float, y: float, text: str, kind: str, title: str = "", **style: Any) -> None:
        """At SVG units, on the baseline."""
        width, height = self.size
        artist = self.figure.text(x / width, 1 - y / height, text, parse_math=False, **style)
        self.tip(artist, kind, title)

    def mark(self, x: float, y: float, kind: str, title: str, shape: str, hue: str, size: float) -> None:
        (artist,) = self.axes.plot(
            [x], [y], shape, ms=size, mfc=COLOURS[hue], mec=COLOURS["card"], mew=size / 9
        )
        self.tip(artist, kind, title)

    def tip(self, artist: Artist, kind: str, title: str) -> None:
        """Class and hover text of what is drawn."""
        artist.set_gid(f"tip-{len(self.tips)}")
        self.tips.append((kind, [title] if title else []))

    def dots(self, dots: Sequence[tuple[float, float, float, str]], higher: bool) -> None:
        """One dot per picture, coloured by its change: x, y, change for the better where `higher`, hover text."""
        for side, hue in (("better", "blue"), ("worse", "orange"), ("same", "gray")):
            chosen = [
                dot
                for dot in dots
                if side == ("same" if not dot[2] else "better" if (dot[2] > 0) is higher else "worse")
            ]
            if chosen:
                x, y, _, titles = zip(*chosen, strict=True)
                drawn = self.axes.scatter(
                    x, y, 49, COLOURS[hue], alpha=0.65, linewidths=0.6, edgecolors=COLOURS["card"]
                )
                drawn.set_gid(f"tip-{len(self.tips)}")
                self.tips.append((f"dot {side}", titles))

    def svg(self, label: str) -> str:
        stream = io.StringIO()
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "gdposr"}):
            self.figure.savefig(stream, format="svg")
        body = re.sub(
            r"(?s)^.*?</metadata>|<!--.*?-->|</svg>\s*$| clip-path=\"[^\"]*\"", "", stream.getvalue()
        )
        body = re.sub(r"(?s)<style.*?</style>|<clipPath.*?</clipPath>", "", body).replace(
            "xlink:href", "href"
        )
        first, *groups = body.split('<g id="tip-')
        body = first + "".join(map(self._named, groups))
        body = re.sub(r' id="(?:figure|axes|patch|line2d|text|[xy]tick|matplotlib)[^"]*"', "", body)
        body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
        for name, colour in COLOURS.items():
            body = body.replace(colour, f"var(--{name})")
        width, height = self.size
        return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{body}</svg>'

    def _named(self, group: str) -> str:
        """The rest of a group whose opening tag broke off before its number, with class and titles: one of all, or one of each."""
        number, _, rest = group.partition('">')
        kind, titles = self.tips[int(number)]
        marks = [f"<title>{escape(title)}</title>" for title in titles]
        if len(marks) > 1:
            each = iter(marks)
            rest = re.sub(
                r"(<use[^>]*)/>", lambda use: f"{use[1]}>{next(each)}</use>", rest, count=len(marks)
            )
        return f'<g class="{escape(kind)}">{marks[0] if len(marks) == 1 else ""}{rest}'


def frontier(points: Sequence[Point], higher: bool) -> list[Point]:
    """The points that no other one beats in cost and quality at once, by rising cost. higher: more quality is a larger number."""
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
) -> str:
    """Quality against cost on a logarithmic axis; better is always up. references: (label, quality) without cost, as lines."""
    shown = [p for p in points if math.isfinite(p.quality) and math.isfinite(p.cost) and p.cost > 0]
    lines = [(name, value) for name, value in references if math.isfinite(value)]
    plot = _Plot(480, 340, (58.0, 14.0, 460.0, 292.0))
    plot.names(cost_label, quality_label)
    plot.scale([p.cost for p in shown], [p.quality for p in shown] + [value for _, value in lines], log=True)
    plot.axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: cost_format(value)))
    if not higher:
        plot.axes.invert_yaxis()
    for _, value in lines:
        plot.tip(plot.axes.axhline(value, color=COLOURS["gray"], ls=(0, (2, 4)), lw=1), "reference", "")
    best = frontier(shown, higher)
    if best:  # a staircase to the right edge: what any cost buys at most
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
        hue = HUES.get(kind, "gray")
        plot.mark(p.cost, p.quality, f"mark {kind}", text, SHAPES.get(kind, "o"), hue, 12)
    _labels(plot, shown, lines)
    return plot.svg(f"{quality_label} against {cost_label}")


def scatter_plot(
    pairs: Sequence[tuple[str, float, float]], *, x_label: str, y_label: str, higher: bool, digits: int = 2
) -> str:
    """One value against another per picture, with the line on which they are equal. pairs: (name, x, y); infinite ones are left out."""
    known = _finite(pairs)
    values = [value for _, first, second in known for value in (first, second)]
    plot = _Plot(312, 288, SQUARE)
    plot.names(x_label, y_label)
    plot.scale(values, values, most=5)
    plot.tip(plot.axes.plot(*[plot.axes.get_xlim()] * 2, color=COLOURS["gray"], lw=1)[0], "equal", "")
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
) -> str:
    """Second value minus first against the first per picture. band: mean of the differences with the ends of its interval. least: the
    axis reaches this far both ways, so that differences of no account look small."""
    known = _finite(pairs)
    plot = _Plot(312, 288, SQUARE)
    plot.names(x_label, y_label)
    plot.scale(
        [a for _, a, _ in known], [-least, least, *(band or ()), *(b - a for _, a, b in known)], most=5
    )
    if band:
        mean, low, high = band
        text = f"mean {_signed(mean, digits + 1)} (95 %: {_signed(low, digits + 1)} to {_signed(high, digits + 1)})"
        plot.tip(plot.axes.axhspan(low, high, color=COLOURS["pink"], alpha=0.25), "band", text)
        plot.tip(plot.axes.axhline(mean, color=COLOURS["pink"], lw=2), "mean", text)
    plot.tip(plot.axes.axhline(0, color=COLOURS["gray"], lw=1), "equal", "")
    plot.dots(
        [
            (a, b - a, b - a, f"{name}: {_signed(b - a, digits + 1)} from {a:.{digits}f}")
            for name, a, b in known
        ],
        higher,
    )
    return plot.svg(f"{y_label} against {x_label}")


def bar_plot(
    bars: Sequence[Bar], *, series: Sequence[str], span: Sequence[float], label: str, unit: str
) -> str:
    """Horizontal bars, one group a block under its name, in the order given. series: all there are, a colour each. span: values
    that the scale holds, at least those of the bars. An infinite bar fills the width."""
    groups = list(dict.fromkeys(bar.group for bar in bars))
    thick, top = 11.0, 26.0
    height = top + 24 * len(groups) + thick * len(bars) + 4
    known = [value for value in span if math.isfinite(value)] or [0.0]
    step = 10.0 if max(known) - min(known) > 15 else 5.0
    low = math.floor(min(known) / step - 0.2) * step
    high = max(math.ceil(max(known) / step) * step, low + step)
    plot = _Plot(480, round(height), (24.0, top - 4, 430.0, height - 4))
    plot.axes.set(xlim=(low, high), ylim=(height - 4, top - 4), yticks=[])  # y in SVG units
    plot.axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    plot.axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} {unit}".replace("-", "\N{MINUS SIGN}"))
    plot.axes.xaxis.tick_top()
    plot.axes.tick_params(length=0)
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
            value = f"{bar.value:.1f}" if math.isfinite(bar.value) else "\N{INFINITY}"
            note = f", {bar.note}" if bar.note else ""
            plot.tip(drawn, f"series s{hue}", f"{bar.group}, {bar.series}: {value} {unit}{note}")
            end = plot.at(reach, y)[0] + 4
            plot.text(end, y + thick - 2, value, "amount", color=COLOURS["muted"], fontsize=10)
            y += thick
        y += 5
    return plot.svg(label)


def time_plot(ms: Mapping[str, Mapping[str, float]], ours: Sequence[str], label: str) -> str:
    """Horizontal bars on a logarithmic axis, shorter is faster. ms: name -> median, low and high in ms; ours: names in blue."""
    width, row, left = 760, 26, 250.0
    height = 30 + row * len(ms)
    plot = _Plot(width, height, (left, 20, width - 90, height))
    low = min(times["low"] for times in ms.values()) / 2
    plot.axes.set_xscale("log")
    plot.axes.set(xlim=(low, max(times["high"] for times in ms.values()) * 1.1), ylim=(height, 20), yticks=[])
    plot.axes.xaxis.set_major_locator(LogLocator(numticks=8))
    plot.axes.xaxis.set_minor_locator(NullLocator())
    plot.axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ms"))
    plot.axes.xaxis.tick_top()
    plot.axes.tick_params(length=0)
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


def _labels(plot: _Plot, points: Sequence[Point], lines: Sequence[tuple[str, float]]) -> None:
    """Names beside their points and along their lines; a thin line leads to a name that found no room close by."""
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
            ends = ((px, x), (py, y - 10 if y > py else y + 3))
            plot.axes.plot(*_values(plot, ends), color=COLOURS["muted"], lw=0.8)
        align = {"start": "left", "middle": "center", "end": "right"}[anchor]
        plot.text(x, y, text, kind, name, ha=align, color=COLOURS[hue], fontsize=TEXT)


def _values(
    plot: _Plot, ends: tuple[tuple[float, float], tuple[float, float]]
) -> tuple[list[float], list[float]]:
    """Both ends of a line, SVG units -> values: x of both, y of both."""
    back = plot.axes.transData.inverted()
    corners = [back.transform((x, plot.size[1] - y)) for x, y in zip(*ends, strict=True)]
    return [float(x) for x, _ in corners], [float(y) for _, y in corners]


def _span(values: Sequence[float], margin: float = 0.07) -> tuple[float, float]:
    """Ends of an axis that holds the values; a single one gets room around it."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = (high - low) * margin or max(abs(high) * 0.02, 1e-3)
    return low - room, high + room


def _log_span(values: Sequence[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    ratio = max((high / low) ** 0.07, 1.25 if high / low > 1.5 else 2.0)
    return low / ratio, high * ratio


def _finite(pairs: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    return [pair for pair in pairs if math.isfinite(pair[1]) and math.isfinite(pair[2])]


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
