"""An accuracy report as one HTML file: verdict, tables, gates, plots, crops, every picture, machine."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from calibration.measure.accuracy import AccuracyReport, Row
from calibration.measure.intervals import REFERENCE
from calibration.report.canvas import Format
from calibration.report.crops import CropCollector, compared, strips
from calibration.report.labels import shorten
from calibration.report.numbers import MINUS, size_text
from calibration.report.page import page
from calibration.report.plots import Bar, Point, bar_plot, difference_plot, pareto_plot, scatter_plot
from calibration.report.tables import PSNR, SQF, Metric, limits, metrics_of, table_rows
from calibration.sensitivity import LayerNoise
from runtime.files import atomic_file

__all__ = ["CropCollector", "render", "table_rows", "write_report"]

# Layers shown in a plot of sensitivity; the rest are folded away.
SHOWN_LAYERS = 14
# The axis of differences reaches at least this far both ways, by metric.
LEAST = {"psnr": 0.02, "sqf": 0.001}


def write_report(
    path: str | os.PathLike[str], report: AccuracyReport, crops: CropCollector | None = None
) -> None:
    """Write the page; it appears complete or not at all."""
    with atomic_file(Path(path)) as stream:
        stream.write(render(report, crops).encode(errors="replace"))


def render(report: AccuracyReport, crops: CropCollector | None = None, title: str = "Accuracy") -> str:
    """The page as text."""
    columns = ("target", "diversity", "seam", "checkerboard", "parameters", "bytes", "milliseconds")
    return page(
        "accuracy.html.j2",
        title=f"{title}: {report.bundle['name']}",
        report=report,
        reference=REFERENCE,
        present={key for key in columns if any(getattr(row, key) not in (None, "") for row in report.rows)},
        limits=limits(report),
        notes=sorted({f"{row.name}: {note}" for row in report.rows for note in row.notes}),
        trade_offs=_trade_offs(report),
        scatters=_scatters(report),
        strips=strips(report, crops) if crops else [],
        compared=compared(report),
        sensitivity=_sensitivity(report.sensitivity),
        metrics=metrics_of(report),
    )


def sensitivity_page(name: str, rows: Mapping[str, Sequence[LayerNoise]]) -> str:
    """A page of its own with the plots of a bundle, by target."""
    return page("sensitivity.html.j2", title=f"Sensitivity: {name}", sensitivity=_sensitivity(rows))


@dataclass(frozen=True)
class Figure:
    """A plot with its caption."""

    caption: str
    """The line above the plot."""
    plot: Markup
    """SVG, ready for the page."""
    note: str = ""
    """Text after the caption, in small print."""


# ---- quality against cost


def _trade_offs(report: AccuracyReport) -> list[Figure]:
    """Quality against time and against size, by SQF, or by PSNR if there is no SQF."""
    metric = SQF if any(row.sqf is not None for row in report.rows) else PSNR
    figures = [
        _trade_off(report, metric, "milliseconds", "milliseconds per picture", _milliseconds),
        _trade_off(
            report, metric, "bytes", "size of the files with graphs or weights", lambda n: size_text(round(n))
        ),
    ]
    return [figure for figure in figures if figure]


def _milliseconds(value: float) -> str:
    return f"{value:g}" if value < 10 else f"{value:.0f}"


def _trade_off(report: AccuracyReport, metric: Metric, cost: str, label: str, write: Format) -> Figure | None:
    """Quality against one cost. None if no row has the cost.

    report: with the rows.
    metric: the quality.
    cost: attribute of a row.
    label: of the cost's axis.
    write: a cost as text.
    """
    points, references = [], []
    for row in report.rows:
        quality, price = metric.of(row), getattr(row, cost)
        if quality is None or not math.isfinite(quality):
            continue
        if price:
            ends = row.intervals.get(metric.key)
            low, high = (ends.low, ends.high) if ends else (None, None)
            points.append(Point(row.name, row.kind, price, quality, low, high))
        elif row.kind != "model":
            references.append((row.name, quality))
    if not points:
        return None
    plot = pareto_plot(
        points, references, cost_label=label, quality_label=f"{metric.title}, {metric.way} is better", higher=metric.higher,
        cost_format=write, digits=metric.digits,
    )  # fmt: skip
    return Figure(f"{metric.title} against {label}", plot)


# ---- picture by picture


def _scatters(report: AccuracyReport) -> list[Figure]:
    """Every other row of the model against fp32: both values of each picture, then their difference alone."""
    models = {row.name: row for row in report.rows if row.kind == "model"}
    reference = models.pop(REFERENCE, None)
    if reference is None:
        return []
    drawn = (_scatter(row, reference, metric) for row in models.values() for metric in (PSNR, SQF))
    return [figure for both in drawn for figure in both]


def _scatter(row: Row, reference: Row, metric: Metric) -> list[Figure]:
    """Two plots; none without a picture that has both values."""
    base = {image.name: metric.of(image) for image in reference.images}
    pairs = [
        (image.name, first, second)
        for image in row.images
        if (first := base.get(image.name)) is not None and (second := metric.of(image)) is not None
    ]
    finite = [pair for pair in pairs if math.isfinite(pair[1]) and math.isfinite(pair[2])]
    if not finite:
        return []
    rises, falls = (sum(sign * (b - a) > 0 for _, a, b in finite) for sign in (1, -1))
    better, worse = (rises, falls) if metric.higher else (falls, rises)
    left = f", {len(pairs) - len(finite)} equal to HR left out" if len(finite) < len(pairs) else ""
    change = row.differences.get(metric.key)
    band = (change.mean, change.low, change.high) if change and math.isfinite(change.mean) else None
    unit = "PSNR-Y, dB" if metric is PSNR else metric.title
    name = shorten(row.name, 18)
    both = scatter_plot(
        finite, x_label=f"{REFERENCE}: {unit}", y_label=f"{name}: {unit}", higher=metric.higher, digits=metric.digits
    )  # fmt: skip
    gap = difference_plot(
        finite, band, x_label=f"{REFERENCE}: {unit}", y_label=f"{name} {MINUS} {REFERENCE}: {unit}",
        higher=metric.higher, least=LEAST[metric.key], digits=metric.digits,
    )  # fmt: skip
    return [
        Figure(f"{row.name}: {metric.title}", both, f"{better} better, {worse} worse{left}"),
        Figure(f"{row.name} {MINUS} {REFERENCE}: {metric.title}", gap),
    ]


# ---- layers


@dataclass(frozen=True)
class Layers:
    """How sensitive the layers are for one target."""

    target: str
    """The quantized target, such as "onnx" or "coreml"."""
    series: list[str]
    """Names of the colours: a number of bits each."""
    plot: Markup
    """The most sensitive layers."""
    rest: Markup | None
    """The others, on the same scale."""
    folded: int
    """How many others there are."""


def _sensitivity(found: Mapping[str, Sequence[LayerNoise]]) -> list[Layers]:
    return [_layers(target, rows) for target, rows in found.items() if rows]


def _layers(target: str, rows: Sequence[LayerNoise]) -> Layers:
    """The layers of one target, the one that loses most first."""
    lowest: dict[str, float] = {}
    for row in rows:
        lowest[row.layer] = min(row.psnr, lowest.get(row.layer, math.inf))
    order = sorted(lowest, key=lambda layer: (lowest[layer], layer))
    series = [f"{bits} bits" for bits in sorted({row.bits for row in rows})]

    def plot(layers: Sequence[str]) -> Markup:
        bars = [
            Bar(layer, f"{row.bits} bits", row.psnr, f"cost {row.cost:g}")
            for layer in layers
            for row in sorted(rows, key=lambda row: row.bits)
            if row.layer == layer
        ]
        span = [row.psnr for row in rows]
        label = f"sensitivity of the layers for {target}"
        return bar_plot(bars, series=series, span=span, label=label, unit="dB")

    rest = order[SHOWN_LAYERS:]
    return Layers(target, series, plot(order[:SHOWN_LAYERS]), plot(rest) if rest else None, len(rest))
