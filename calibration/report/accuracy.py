"""An accuracy report as one HTML file that needs nothing else: verdict, table, gates, plots, crops, every picture, machine."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from calibration.measure.accuracy import AccuracyReport, Row
from calibration.measure.gates import REFERENCE
from calibration.report.crops import CropCollector, judged_rows, strips
from calibration.report.labels import shorten
from calibration.report.page import document
from calibration.report.plots import Bar, Format, Point, bar_plot, difference_plot, pareto_plot, scatter_plot
from calibration.report.tables import (
    CROSS,
    MINUS,
    PSNR,
    SQF,
    TICK,
    Metric,
    gate_name,
    gate_table,
    limit_text,
    measured_text,
    note_text,
    number,
    picture_tables,
    size_text,
    summary_table,
    table_rows,
)
from calibration.sensitivity import LayerNoise
from runtime.image.files import atomic_file

__all__ = ["CropCollector", "render", "table_rows", "write_report"]

SHOWN_LAYERS = 14  # of a sensitivity plot; the rest are folded away
LEAST = {"psnr": 0.02, "sqf": 0.001}  # differences that no plot should blow up


def write_report(
    path: str | os.PathLike[str],
    report: AccuracyReport,
    crops: CropCollector | None = None,
    title: str = "Accuracy",
) -> None:
    """Write the page; it appears complete or not at all."""
    with atomic_file(Path(path)) as stream:
        stream.write(render(report, crops, title).encode())


def render(report: AccuracyReport, crops: CropCollector | None = None, title: str = "Accuracy") -> str:
    """The page as text."""
    cards = strips(report, crops) if crops else ""
    heading = f"{title}: {report.bundle['name']}"
    parts = [
        summary_table(report),
        gate_table(report),
        _trade_offs(report),
        _scatters(report),
        f"<h2>Worst pictures</h2>{_crop_note()}{cards}" if cards else "",
        sensitivity_plots(report.sensitivity),
        picture_tables(report),
        _machine(report),
    ]
    head = _verdict(report) + _conditions(report)
    return document(heading, parts, head=head, compared=_opening(report) if cards else None)


# ---- head


def _verdict(report: AccuracyReport) -> str:
    if report.ok is None:
        return '<p class="verdict">no gates were set</p>'
    if report.ok:
        all_of_them = f"all {len(report.gates)} gates" if len(report.gates) > 1 else "the one gate"
        return f'<p class="verdict pass">{TICK} {all_of_them} passed</p>'
    broken = [gate for gate in report.gates if not gate.ok]
    named = "; ".join(
        f"{gate.row}: {gate_name(gate.gate)} {measured_text(gate)}, {limit_text(gate.gate, gate.limit)}"
        for gate in broken
    )
    return (
        f'<p class="verdict fail">{CROSS} {len(broken)} of {len(report.gates)} gates broken</p>'
        f'<p class="fail">{escape(named)}</p>'
    )


def _conditions(report: AccuracyReport) -> str:
    facts = [
        f"{report.count} pictures: {report.pictures}",
        f"{report.scale}x",
        f"seed {report.seed}",
        f"bundle {report.bundle['digest']}",
        f"the HR photos themselves: NIQE {report.hr_niqe:.2f}",
        f"their checkerboard measure {number(report.hr_checkerboard, 1)} dB",
    ]
    if any(row.diversity is not None for row in report.rows):
        facts.append(
            f"diversity: {report.diversity_samples} samples of {report.diversity_images} pictures, spread evenly over the list"
        )
    if report.sqf_note:
        facts.append(f"no SQF: {report.sqf_note}")
    if report.extra_note:
        facts.append(f"no learned metrics: {report.extra_note}")
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    return note_text("; ".join(facts) + ".") + (note_text(f"Machine: {machine}.") if machine else "")


# ---- plots


def _trade_offs(report: AccuracyReport) -> str:
    metric = SQF if any(row.sqf is not None for row in report.rows) else PSNR
    figures = [
        _trade_off(
            report,
            metric,
            "milliseconds",
            "milliseconds per picture",
            lambda ms: f"{ms:g}" if ms < 10 else f"{ms:.0f}",
        ),
        _trade_off(
            report,
            metric,
            "bytes",
            "size of the files with graphs or weights",
            lambda count: size_text(round(count)),
        ),
    ]
    drawn = "".join(figures)
    if not drawn:
        return ""
    note = note_text(
        "Better is up and left. Dashed: the Pareto frontier, what each cost buys at most. Dotted: what costs nothing, or nobody knows "
        "how much. Circles are rows of the bundle, squares and triangles other methods; hover for the figures."
    )
    return f'<h2>Quality against speed and size</h2><div class="card"><div class="plots">{drawn}</div>{note}</div>'


def _trade_off(report: AccuracyReport, metric: Metric, cost: str, label: str, write: Format) -> str:
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
        return ""
    plot = pareto_plot(
        points, references, cost_label=label, quality_label=f"{metric.title}, {metric.way}", higher=metric.higher,
        cost_format=write, digits=metric.digits,
    )  # fmt: skip
    return f"<figure><figcaption>{metric.title} against {label}</figcaption>{plot}</figure>"


def _scatters(report: AccuracyReport) -> str:
    """Every other row of the model against fp32, picture by picture: on the line of equals, and the difference alone."""
    models = {row.name: row for row in report.rows if row.kind == "model"}
    reference = models.pop(REFERENCE, None)
    if reference is None:
        return ""
    drawn = "".join(_scatter(row, reference, metric) for row in models.values() for metric in (PSNR, SQF))
    if not drawn:
        return ""
    note = (
        '<p class="note">One dot is one picture, hover for its name. <b class="better">Blue</b>: better than '
        f'{REFERENCE}, <b class="worse">orange</b>: worse. The band is the mean difference with its 95 % interval.</p>'
    )
    return f'<h2>Picture by picture</h2><div class="card"><div class="plots small">{drawn}</div>{note}</div>'


def _scatter(row: Row, reference: Row, metric: Metric) -> str:
    base = {image.name: metric.of(image) for image in reference.images}
    pairs = [
        (image.name, first, second)
        for image in row.images
        if (first := base.get(image.name)) is not None and (second := metric.of(image)) is not None
    ]
    finite = [pair for pair in pairs if math.isfinite(pair[1]) and math.isfinite(pair[2])]
    if not finite:
        return ""
    better = sum(b != a and (b > a) is metric.higher for _, a, b in finite)
    worse = sum(b != a and (b > a) is not metric.higher for _, a, b in finite)
    left = f", {len(pairs) - len(finite)} equal to HR left out" if len(finite) < len(pairs) else ""
    change = row.differences.get(metric.key)
    band = (change.mean, change.low, change.high) if change and math.isfinite(change.mean) else None
    unit = "PSNR-Y, dB" if metric is PSNR else metric.title
    name = shorten(row.name, 18)
    plot = scatter_plot(
        finite, x_label=f"{REFERENCE}: {unit}", y_label=f"{name}: {unit}", higher=metric.higher, digits=metric.digits
    )  # fmt: skip
    gap = difference_plot(
        finite, band, x_label=f"{REFERENCE}: {unit}", y_label=f"{name} {MINUS} {REFERENCE}: {unit}",
        higher=metric.higher, least=LEAST[metric.key], digits=metric.digits,
    )  # fmt: skip
    counts = f"{better} better, {worse} worse{left}"
    return (
        f"<figure><figcaption>{escape(row.name)}: {metric.title} <small>{counts}</small></figcaption>{plot}</figure>"
        f"<figure><figcaption>{escape(row.name)} {MINUS} {REFERENCE}: {metric.title}</figcaption>{gap}</figure>"
    )


# ---- crops, layers, machine


def _crop_note() -> str:
    return note_text(
        "Crops of the part with most contrast, pixel for pixel; LR enlarged without smoothing. Drag the line over the large picture, "
        "or reach it with Tab and move it with the arrow keys; the two lists choose what is compared, flicker shows them in turns."
    )


def _opening(report: AccuracyReport) -> tuple[str, str]:
    """What a comparison opens with: fp32 and the row whose worst pictures are shown, else bicubic and that row."""
    names = [row.name for row in report.rows]
    right = judged_rows(report)[0].name
    left = REFERENCE if REFERENCE in names and right != REFERENCE else names[0]
    return left, right if right != left else "HR"


def sensitivity_page(name: str, rows: Mapping[str, Sequence[LayerNoise]]) -> str:
    """A page of its own with the plots of a bundle, by target."""
    return document(f"Sensitivity: {name}", [sensitivity_plots(rows)])


def sensitivity_plots(found: Mapping[str, Sequence[LayerNoise]]) -> str:
    """A plot per target; nothing where nothing was measured."""
    figures = [_layers(target, rows) for target, rows in found.items() if rows]
    if not figures:
        return ""
    note = note_text(
        "PSNR of the model's result with that layer alone quantized: the shorter a bar, the more the layer suffers. "
        "The scale is logarithmic and does not begin at zero."
    )
    return f'<h2>Sensitivity of the layers</h2><div class="card"><div class="plots">{"".join(figures)}</div>{note}</div>'


def _layers(target: str, rows: Sequence[LayerNoise]) -> str:
    """The layers of one target, the one that loses most first; those that lose little are folded away, on the same scale."""
    lowest: dict[str, float] = {}
    for row in rows:
        lowest[row.layer] = min(row.psnr, lowest.get(row.layer, math.inf))
    order = sorted(lowest, key=lambda layer: (lowest[layer], layer))
    widths = sorted({row.bits for row in rows})
    bars = [
        [Bar(layer, f"{row.bits} bits", row.psnr, f"cost {row.cost:g}")
         for row in sorted(rows, key=lambda row: row.bits) if row.layer == layer]
        for layer in order
    ]  # fmt: skip
    first, rest = (
        bar_plot(
            [bar for group in part for bar in group],
            series=[f"{width} bits" for width in widths],
            span=[row.psnr for row in rows],
            label=f"sensitivity of the layers for {target}",
            unit="dB",
        )
        for part in (bars[:SHOWN_LAYERS], bars[SHOWN_LAYERS:])
    )
    keys = "".join(
        f'<small class="key s{index % 5}">{width} bits</small>' for index, width in enumerate(widths)
    )
    folded = f"<details><summary>{len(order) - SHOWN_LAYERS} less sensitive layers</summary><figure>{rest}</figure></details>"
    return (
        f"<figure><figcaption>{escape(target)} {keys}</figcaption>{first}"
        f"{folded if len(order) > SHOWN_LAYERS else ''}</figure>"
    )


def _machine(report: AccuracyReport) -> str:
    lists = [
        f"<div><h3>{title}</h3><dl>"
        + "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items())
        + "</dl></div>"
        for title, facts in (("Machine", report.machine), ("Versions", report.versions))
        if facts
    ]
    return f'<h2>Machine and versions</h2><div class="card pair">{"".join(lists)}</div>' if lists else ""
