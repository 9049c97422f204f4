"""Plots of an accuracy report as inline SVG: quality against cost, picture against picture, sensitivity of layers.

Each function gives one `<svg>` element as text, well-formed XML without namespace. Colours and fonts come from the page by class, so
that a plot follows its light or dark scheme; every mark carries a `<title>` that a browser shows on hover.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from calibration.report.labels import Axis, Box, axis_over, place, shorten, spots_along, spots_around, tick_text

TEXT = 12  # font size of every label
LONGEST = 26  # characters of a label
SQUARE = (68.0, 8.0, 304.0, 244.0)  # the area of the plots of pictures

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
    area = (58.0, 14.0, 470.0, 292.0)
    span = [p.quality for p in shown] + [value for _, value in lines]
    x = axis_over([p.cost for p in shown], area[0], area[2], log=True)
    y = axis_over(span, *((area[3], area[1]) if higher else (area[1], area[3])))
    parts = [_frame(area, x, y, cost_label, quality_label, x_format=cost_format)]
    parts += [
        f'<line class="reference" x1="{area[0]}" x2="{area[2]}" y1="{y.at(v):.1f}" y2="{y.at(v):.1f}"/>'
        for _, v in lines
    ]
    parts.append(_steps(frontier(shown, higher), x, y, area))
    for p in shown:
        text = f"{p.label}: {p.quality:.{digits}f} at {cost_format(p.cost)}"
        if p.low is not None and p.high is not None:
            text += f" (95 %: {p.low:.{digits}f} to {p.high:.{digits}f})"
        parts.append(_mark(p.kind, x.at(p.cost), y.at(p.quality), text))
    parts.append(_labels(shown, lines, x, y, area))
    return _svg(480, 340, f"{quality_label} against {cost_label}", parts)


def scatter_plot(
    pairs: Sequence[tuple[str, float, float]], *, x_label: str, y_label: str, higher: bool, digits: int = 2
) -> str:
    """One value against another per picture, with the line on which they are equal. pairs: (name, x, y); infinite ones are left out."""
    known = _finite(pairs)
    area = SQUARE
    values = [value for _, first, second in known for value in (first, second)]
    x, y = axis_over(values, area[0], area[2]), axis_over(values, area[3], area[1])
    equal = f'<line class="equal" x1="{area[0]}" y1="{area[3]}" x2="{area[2]}" y2="{area[1]}"/>'
    dots = [
        _dot(x.at(a), y.at(b), b - a, higher, f"{name}: {a:.{digits}f} and {b:.{digits}f}")
        for name, a, b in known
    ]
    frame = _frame(area, x, y, x_label, y_label, most=5)
    return _svg(312, 288, f"{y_label} against {x_label}", [frame, equal, *dots])


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
    area = SQUARE
    x = axis_over([a for _, a, _ in known], area[0], area[2])
    y = axis_over([-least, least, *(band or ()), *(b - a for _, a, b in known)], area[3], area[1])
    parts = [_frame(area, x, y, x_label, y_label, most=5)]
    if band:
        mean, low, high = band
        text = _title(
            f"mean {_signed(mean, digits + 1)} (95 %: {_signed(low, digits + 1)} to {_signed(high, digits + 1)})"
        )
        height = max(y.at(low) - y.at(high), 1.0)
        parts.append(
            f'<g>{text}<rect class="band" x="{area[0]}" y="{y.at(high):.1f}" width="{area[2] - area[0]}" height="{height:.1f}"/>'
            f'<line class="mean" x1="{area[0]}" x2="{area[2]}" y1="{y.at(mean):.1f}" y2="{y.at(mean):.1f}"/></g>'
        )
    parts.append(f'<line class="equal" x1="{area[0]}" x2="{area[2]}" y1="{y.at(0):.1f}" y2="{y.at(0):.1f}"/>')
    parts += [
        _dot(x.at(a), y.at(b - a), b - a, higher, f"{name}: {_signed(b - a, digits + 1)} from {a:.{digits}f}")
        for name, a, b in known
    ]
    return _svg(312, 288, f"{y_label} against {x_label}", parts)


def bar_plot(
    bars: Sequence[Bar], *, series: Sequence[str], span: Sequence[float], label: str, unit: str
) -> str:
    """Horizontal bars, one group a block under its name, in the order given. series: all there are, a colour each. span: values
    that the scale holds, at least those of the bars. An infinite bar fills the width."""
    groups = list(dict.fromkeys(bar.group for bar in bars))
    counts = {group: sum(bar.group == group for bar in bars) for group in groups}
    thick, top = 11.0, 26.0
    height = top + sum(24 + thick * counts[group] for group in groups) + 4
    known = [value for value in span if math.isfinite(value)] or [0.0]
    step = 10.0 if max(known) - min(known) > 15 else 5.0
    low = math.floor(min(known) / step - 0.2) * step
    x = Axis(low, max(math.ceil(max(known) / step) * step, low + step), 8.0, 430.0)
    parts = []
    for tick in x.ticks():
        here, anchor = f"{x.at(tick):.1f}", "start" if x.at(tick) < 24 else "middle"
        parts.append(f'<line class="grid" x1="{here}" x2="{here}" y1="{top - 4}" y2="{height - 4:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{here}" y="14" text-anchor="{anchor}">{tick_text(tick, 1)} {escape(unit)}</text>'
        )
    y = top
    for group in groups:
        y += 14
        parts.append(
            f'<text class="layer" x="8" y="{y:.1f}">{_title(group)}{escape(shorten(group, 60, front=True))}</text>'
        )
        y += 5
        for bar in (bar for bar in bars if bar.group == group):
            parts.append(_bar(bar, x, y, thick - 2, series.index(bar.series), unit))
            y += thick
        y += 5
    return _svg(480, round(height), label, parts)


def _bar(bar: Bar, x: Axis, y: float, thick: float, series: int, unit: str) -> str:
    length = max(x.at(bar.value) - x.start, 1.5)
    value = f"{bar.value:.1f}" if math.isfinite(bar.value) else "\N{INFINITY}"
    note = f", {bar.note}" if bar.note else ""
    return (
        f"<g>{_title(f'{bar.group}, {bar.series}: {value} {unit}{note}')}"
        f'<rect class="series s{series % 5}" x="{x.start}" y="{y:.1f}" width="{length:.1f}" height="{thick}" rx="1.5"/>'
        f'<text class="amount" x="{x.start + length + 4:.1f}" y="{y + thick - 1:.1f}">{value}</text></g>'
    )


def _frame(
    area: Box, x: Axis, y: Axis, x_label: str, y_label: str, x_format: Format | None = None, most: int = 6
) -> str:
    """Grid, ticks and the names of both axes."""
    left, top, right, bottom = area
    parts = []
    ticks = x.ticks(most)
    write = x_format or (lambda value: tick_text(value, ticks[1] - ticks[0] if len(ticks) > 1 else 0.01))
    for tick in ticks:
        here = f"{x.at(tick):.1f}"
        parts.append(f'<line class="grid" x1="{here}" x2="{here}" y1="{top}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{here}" y="{bottom + 15}" text-anchor="middle">{escape(write(tick))}</text>'
        )
    ticks = y.ticks(most)
    for tick in ticks:
        level, text = y.at(tick), tick_text(tick, ticks[1] - ticks[0] if len(ticks) > 1 else 0.01)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{level + 4:.1f}" text-anchor="end">{text}</text>')
    middle = (top + bottom) / 2
    parts.append(
        f'<text class="axis" x="{(left + right) / 2}" y="{bottom + 34}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(
        f'<text class="axis" x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _steps(best: Sequence[Point], x: Axis, y: Axis, area: Box) -> str:
    """The frontier as a staircase to the right edge: what any cost buys at most."""
    if not best:
        return ""
    path = f"M{x.at(best[0].cost):.1f} {y.at(best[0].quality):.1f}"
    for point in best[1:]:
        path += f"H{x.at(point.cost):.1f}V{y.at(point.quality):.1f}"
    return f'<path class="frontier" d="{path}H{area[2]}"><title>Pareto frontier</title></path>'


def _labels(points: Sequence[Point], lines: Sequence[tuple[str, float]], x: Axis, y: Axis, area: Box) -> str:
    """Names beside their points and along their lines; a thin line leads to a name that found no room close by."""
    places = [(x.at(p.cost), y.at(p.quality)) for p in points]
    taken: list[Box] = [(px - 7, py - 7, px + 7, py + 7) for px, py in places]
    parts = []
    for point, (px, py) in zip(points, places, strict=True):
        name = shorten(point.label, LONGEST)
        tx, ty, anchor = place(name, TEXT, spots_around(px, py), taken, area)
        if abs(ty - py - 4) > 20:
            end = ty - 10 if ty > py else ty + 3
            parts.append(f'<line class="leader" x1="{px:.1f}" y1="{py:.1f}" x2="{tx:.1f}" y2="{end:.1f}"/>')
        parts.append(_label("label", tx, ty, anchor, name, point.label))
    for line, value in lines:
        name = shorten(line, LONGEST)
        parts.append(
            _label(
                "label line",
                *place(name, TEXT, spots_along(area[0], area[2], y.at(value)), taken, area),
                name,
                line,
            )
        )
    return "".join(parts)


def _label(kind: str, x: float, y: float, anchor: str, text: str, title: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_title(title)}{escape(text)}</text>'


def _mark(kind: str, x: float, y: float, title: str) -> str:
    """A mark whose shape tells the kind of method as its colour does."""
    corners = {
        "peer": ((-5, -5), (5, -5), (5, 5), (-5, 5)),
        "folder": ((0, -7), (6, 5), (-6, 5)),
        "bicubic": ((0, -7), (7, 0), (0, 7), (-7, 0)),
    }.get(kind)
    if corners is None:
        return f'<circle class="mark model" cx="{x:.1f}" cy="{y:.1f}" r="6">{_title(title)}</circle>'
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="mark {escape(kind)}" points="{path}">{_title(title)}</polygon>'


def _dot(x: float, y: float, change: float, higher: bool, title: str) -> str:
    side = "same" if change == 0 else "better" if (change > 0) is higher else "worse"
    return f'<circle class="dot {side}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{_title(title)}</circle>'


def _finite(pairs: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    return [pair for pair in pairs if math.isfinite(pair[1]) and math.isfinite(pair[2])]


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
