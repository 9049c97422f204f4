"""The tables of an accuracy report: the quality figures, the gates, and the table for a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from calibration.measure.accuracy import AccuracyReport, ImageScore, Row
from calibration.report.numbers import INFINITY, MINUS, number, size_text
from training.metrics.pyiqa import METRICS as LEARNED


@dataclass(frozen=True)
class Metric:
    """Name and format of a quality figure."""

    key: str
    """Its key in `Row.intervals` and `Row.differences`."""
    title: str
    """Head of its column."""
    meaning: str
    """Its meaning in a few words."""
    digits: int
    """Digits behind the decimal point."""
    higher: bool
    """Whether a larger value is better."""

    def of(self, score: Row | ImageScore) -> float | None:
        """The figure of a row or a picture; None if it was not measured."""
        value: float | None = score.extra.get(self.key) if self.learned else getattr(score, self.key)
        return value

    @property
    def learned(self) -> bool:
        return self.key not in ("psnr", "ssim", "sqf", "niqe")

    @property
    def way(self) -> str:
        """The better direction, in words."""
        return "higher" if self.higher else "lower"


PSNR = Metric("psnr", "PSNR-Y", "dB on the luma of 8-bit pictures", 2, True)
SQF = Metric("sqf", "SQF", "distance of SqueezeNet features to HR", 4, False)
BASIC = (
    PSNR,
    Metric("ssim", "SSIM", "structural similarity of luma to HR", 4, True),
    SQF,
    Metric("niqe", "NIQE", "naturalness without reference", 2, False),
)


def metrics_of(report: AccuracyReport) -> list[Metric]:
    """The quality figures that some row of a report has, in the order of its columns."""
    extras = [
        Metric(m.name, m.title, "learned, against HR" if m.reference else "learned, no reference", 3, m.higher_is_better)
        for m in LEARNED
        if m.name in report.extra_metrics
    ]  # fmt: skip
    return [metric for metric in (*BASIC, *extras) if any(metric.of(row) is not None for row in report.rows)]


def table_rows(report: AccuracyReport) -> list[list[str]]:
    """The table as text for a terminal, header first. A dash where a figure does not apply or was not measured.

    Figures are plain ASCII, because not every terminal has more.
    """
    quality = (*BASIC, *(metric for metric in metrics_of(report) if metric.learned))
    rows = report.rows
    columns = {
        "method": [row.name for row in rows],
        **{metric.title: [number(metric.of(row), metric.digits) for row in rows] for metric in quality},
        "diversity": [number(row.diversity, 2) for row in rows],
        "seam": [number(row.seam, 2) for row in rows],
        "colour shift": [_shift(row) for row in rows],
        "checkerboard": [number(row.checkerboard, 1) for row in rows],
        "parameters": ["-" if row.parameters is None else f"{row.parameters:,}" for row in rows],
        "size": [size_text(row.bytes) for row in rows],
        "ms": [number(row.milliseconds, 1) for row in rows],
    }
    for title in ("seam", "ms"):
        if set(columns[title]) == {"-"}:
            del columns[title]
    lines = [
        [name, *(cell.replace(MINUS, "-").replace(INFINITY, "inf") for cell in cells)]
        for name, *cells in zip(*columns.values(), strict=True)
    ]
    return [list(columns), *lines]


def _shift(row: Row) -> str:
    """Colour shift of red, green and blue. A dash for bicubic, against which it is measured."""
    if row.kind == "bicubic":
        return "-"
    return " ".join(f"{value:+.2f}" for value in row.colour_shift)


@dataclass(frozen=True)
class Limit:
    """One gate on one row, in words."""

    row: str
    """Name of the row."""
    gate: str
    """Name of the gate, as in `Gates`."""
    limit: str
    """"at least" or "at most" and a number."""
    measured: str
    """A number, "not measured", or "-" if nothing was checked."""
    ok: bool | None
    """Whether the value keeps the limit; None: not checked."""


def limits(report: AccuracyReport) -> list[Limit]:
    """Every gate with its measured value, then the limits of budgets that were not checked."""
    found: dict[tuple[str, str], tuple[float, str, bool | None]] = {}
    for gate in report.gates:
        value = "not measured" if gate.value is None else number(gate.value, 4)
        found[gate.row, gate.gate] = gate.limit, value, gate.ok
    for row, budget in report.budgets.items():
        for name, limit in budget.items():
            found.setdefault((row, name), (limit, "-", None))
    return [
        Limit(row, gate_name(name), f"{'at least' if name.startswith('min_') else 'at most'} {limit:g}", value, ok)
        for (row, name), (limit, value, ok) in found.items()
    ]  # fmt: skip


def gate_name(gate: str) -> str:
    """The name of a gate in words: PSNR loss for max_psnr_loss."""
    words = [
        word.upper() if word in ("psnr", "ssim", "sqf", "niqe", "lpips") else word for word in gate.split("_")
    ]
    return " ".join(words[1:] if words[0] in ("max", "min") else words)
