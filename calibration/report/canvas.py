"""A matplotlib figure that becomes inline SVG in the colours of the page.

The colours are the page's CSS variables, so that a plot follows the light or dark scheme. Every mark carries a `<title>`, which a
browser shows on hover.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, MaxNLocator, NullLocator, ScalarFormatter

from calibration.report.labels import Box

Format = Callable[[float], str]

# Font size of every label.
TEXT = 12
# The page's variables by the colour that stands for each in matplotlib. The colours only have to differ.
_VARIABLES = ("ink", "muted", "grid", "card", "gray", "blue", "orange", "green", "pink", "yellow")
COLOURS = {name: f"#0{index:x}1e5{index:x}" for index, name in enumerate(_VARIABLES)}


class Canvas:
    """A figure with one frame. Lengths in SVG units, y downwards.

    width, height: of the figure.
    area: left, top, right and bottom of the frame.
    """

    def __init__(self, width: float, height: float, area: Box) -> None:
        self.size, self.area = (width, height), area
        self.tips: dict[str, tuple[str, list[str]]] = {}  # id -> class, hover texts
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
        """Name both axes."""
        for write, text in ((self.axes.set_xlabel, x), (self.axes.set_ylabel, y)):
            write(_printable(text).replace("$", r"\$"), color=COLOURS["muted"], fontsize=TEXT)

    def scale(self, x: Sequence[float], y: Sequence[float], most: int = 6, log: bool = False) -> None:
        """Axes that hold finite values with a margin, and round ticks on them.

        x, y: the values.
        most: ticks of an axis.
        log: whether the x axis is logarithmic.
        """
        across, up = self.axes.xaxis, self.axes.yaxis
        self.axes.set_ylim(*_span(y))
        up.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
        up.set_major_formatter(ScalarFormatter(useOffset=False))
        if log:
            self.axes.set_xscale("log")
            low, high = _log_span(x)
            marks = [d * 10.0**p for p in range(-9, 13) for d in (1, 2, 5) if low <= d * 10.0**p <= high]
            thinned = marks[:: math.ceil(len(marks) / most)] if len(marks) > 1 else None
            across.set_major_locator(FixedLocator(thinned or MaxNLocator(4).tick_values(low, high)))
            across.set_minor_locator(NullLocator())
        else:
            low, high = _span(x)
            across.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
            across.set_major_formatter(ScalarFormatter(useOffset=False))
        self.axes.set_xlim(low, high)

    def bars(self, low: float, high: float, top: float, bottom: float, mark: Locator, write: Format) -> None:
        """Axes for horizontal bars, with the ticks of the values above.

        low, high: ends of the values.
        top, bottom: ends of the y axis, in SVG units.
        mark: places the ticks.
        write: a value as text.
        """
        self.axes.set(xlim=(low, high), ylim=(bottom, top), yticks=[])
        self.axes.xaxis.set_major_locator(mark)
        self.axes.xaxis.set_minor_locator(NullLocator())
        self.axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
        self.axes.xaxis.tick_top()
        self.axes.tick_params(length=0)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Values -> SVG units."""
        across, up = self.axes.transData.transform((x, y))
        return float(across), self.size[1] - float(up)

    def text(self, x: float, y: float, text: str, kind: str, title: str = "", **style: Any) -> None:
        """A line of text.

        x, y: a point of its baseline, in SVG units.
        text: the line.
        kind: CSS class.
        title: hover text; empty: none.
        style: for matplotlib.
        """
        place = (x / self.size[0], 1 - y / self.size[1])
        self.tip(self.figure.text(*place, _printable(text), parse_math=False, **style), kind, title)

    def line(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        """A thin line between two points in SVG units."""
        across, up = [value / self.size[0] for value in x], [1 - value / self.size[1] for value in y]
        style: dict[str, Any] = {"transform": self.figure.transFigure, "color": COLOURS["muted"], "lw": 0.8}
        self.figure.add_artist(Line2D(across, up, **style))

    def dots(self, dots: Sequence[tuple[float, float, float, str]], higher: bool) -> None:
        """One dot per picture, coloured by its change.

        dots: x, y, change and hover text of each.
        higher: whether a positive change is for the better.
        """
        for side, hue in (("better", "blue"), ("worse", "orange"), ("same", "gray")):
            if chosen := [dot for dot in dots if _side(dot[2], higher) == side]:
                x, y, _, titles = zip(*chosen, strict=True)
                style: dict[str, Any] = {"alpha": 0.65, "linewidths": 0.6, "edgecolors": COLOURS["card"]}
                self.tip(self.axes.scatter(x, y, 49, COLOURS[hue], **style), f"dot {side}", *titles)

    def tip(self, artist: Artist, kind: str, *titles: str) -> None:
        """Give an artist a CSS class and its hover text: one for all of it, or one for each of its marks."""
        name = f"tip-{len(self.tips)}"
        artist.set_gid(name)
        self.tips[name] = (kind, [_printable(title) for title in titles if title])

    def svg(self, label: str) -> Markup:
        """One `<svg>` element without namespace. label: describes it for screen readers."""
        stream = io.StringIO()
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "gdposr"}):
            no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.savefig(stream, format="svg", metadata=no_metadata)
        root = ElementTree.fromstring(stream.getvalue())
        for element in root.iter():
            element.tag = _local(element.tag)
            element.attrib = {
                _local(key): value for key, value in element.attrib.items() if key != "clip-path"
            }
            element[:] = [child for child in element if _local(child.tag) not in ("style", "clipPath")]
            if "style" in element.attrib:
                element.set("style", _themed(element.attrib["style"]))
        for group in list(root.iter("g")):
            kind, titles = self.tips.get(group.attrib.pop("id", ""), ("", []))
            if kind:
                group.set("class", kind)
            owners = group.iter("use") if len(titles) > 1 else [group]
            for owner, text in zip(list(owners), titles, strict=False):
                title = ElementTree.Element("title")
                title.text = text
                owner.insert(0, title)
        width, height = self.size
        root.attrib = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": _printable(label)}
        return Markup(ElementTree.tostring(root, encoding="unicode"))


def _side(change: float, higher: bool) -> str:
    return "same" if not change else "better" if (change > 0) is higher else "worse"


def _local(name: str) -> str:
    """A name without its namespace."""
    return name.rpartition("}")[2]


def _themed(style: str) -> str:
    """A style in the page's colours and font."""
    style = re.sub(r"font-family: [^;]*;? ?", "", style)
    for name, colour in COLOURS.items():
        style = style.replace(colour, f"var(--{name})")
    return style


def _printable(text: str) -> str:
    """The text without the characters that XML forbids, which a file's name may contain."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _span(values: Sequence[float], margin: float = 0.07) -> tuple[float, float]:
    """Ends of an axis that holds the values. A single value gets room around it."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = (high - low) * margin or max(abs(high) * 0.02, 1e-3)
    return low - room, high + room


def _log_span(values: Sequence[float]) -> tuple[float, float]:
    """Ends of a logarithmic axis that holds the values. A single value gets room around it."""
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    ratio = max((high / low) ** 0.07, 1.25 if high / low > 1.5 else 2.0)
    return low / ratio, high * ratio
