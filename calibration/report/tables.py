"""Tables of an accuracy report: every method with its intervals and differences, gates, and every picture; as text or as HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from calibration.measure.accuracy import AccuracyReport, ImageScore, Row
from calibration.measure.gates import REFERENCE, GateResult
from calibration.report.page import name_text
from training.metrics.pyiqa import METRICS as LEARNED

TICK, CROSS = "\N{CHECK MARK}", "\N{BALLOT X}"
BETTER, WORSE = "\N{BLACK UP-POINTING TRIANGLE}", "\N{BLACK DOWN-POINTING TRIANGLE}"
DASH, MINUS, INFINITE = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{INFINITY}"


@dataclass(frozen=True)
class Metric:
    """How a quality figure is named and written."""

    key: str  # as in Row.intervals and Row.differences
    title: str
    meaning: str
    digits: int
    higher: bool  # is better

    def of(self, score: Row | ImageScore) -> float | None:
        """The figure of a row or a picture; None where it was not measured."""
        value: float | None = score.extra.get(self.key) if self.learned else getattr(score, self.key)
        return value

    @property
    def learned(self) -> bool:
        return self.key not in ("psnr", "ssim", "sqf", "niqe")

    @property
    def way(self) -> str:
        return "higher is better" if self.higher else "lower is better"


PSNR = Metric("psnr", "PSNR-Y", "dB on the luma of 8-bit pictures", 2, True)
SQF = Metric("sqf", "SQF", "distance of SqueezeNet features to HR", 4, False)
BASIC = (
    PSNR,
    Metric("ssim", "SSIM", "structural similarity of luma to HR", 4, True),
    SQF,
    Metric("niqe", "NIQE", "naturalness without reference", 2, False),
)


def metrics_of(report: AccuracyReport) -> list[Metric]:
    """The quality figures of a report in the order of its columns: those that some row has."""
    extras = [
        Metric(m.name, m.title, "learned, against HR" if m.reference else "learned, no reference", 3, m.higher_is_better)
        for m in LEARNED
        if m.name in report.extra_metrics
    ]  # fmt: skip
    return [metric for metric in (*BASIC, *extras) if any(metric.of(row) is not None for row in report.rows)]


def table_rows(report: AccuracyReport) -> list[list[str]]:
    """The table as text for a terminal, header first; a dash where something does not apply or was not measured.

    Figures are plain ASCII: not every terminal has more.
    """
    quality = (*BASIC, *(metric for metric in metrics_of(report) if metric.learned))
    rows = report.rows
    columns = [
        ("method", [row.name for row in rows]),
        *((metric.title, [number(metric.of(row), metric.digits) for row in rows]) for metric in quality),
        ("diversity", [number(row.diversity, 2) for row in rows]),
        ("seam", [number(row.seam, 2) for row in rows]),
        ("colour shift", [_shift(row) for row in rows]),
        ("checkerboard", [number(row.checkerboard, 1) for row in rows]),
        ("parameters", ["-" if row.parameters is None else f"{row.parameters:,}" for row in rows]),
        ("size", [_bytes(row) for row in rows]),
        ("ms", [number(row.milliseconds, 1) for row in rows]),
    ]
    shown = [column for column in columns if column[0] not in ("seam", "ms") or set(column[1]) != {"-"}]
    lines = [
        [title for title, _ in shown],
        *(list(cells) for cells in zip(*(cells for _, cells in shown), strict=True)),
    ]
    return [
        [line[0], *(cell.replace(MINUS, "-").replace(INFINITE, "inf") for cell in line[1:])] for line in lines
    ]


def summary_table(report: AccuracyReport) -> str:
    """Every method on a line: figures with intervals and differences, and its gates."""
    rows = report.rows
    columns = _columns(report)
    head = "".join(f'<th scope="col" title="{escape(meaning)}">{name}</th>' for name, meaning, _ in columns)
    body = "".join(
        f'<tr class="{escape(row.kind)}"><th scope="row">{name_text(row.name)}<small>{escape(row.device or row.kind)}</small></th>'
        + "".join(f"<td>{cells[index]}</td>" for _, _, cells in columns)
        + "</tr>"
        for index, row in enumerate(rows)
    )
    notes = sorted({f"{row.name}: {note}" for row in rows for note in row.notes})
    return (
        f'<h2>Summary</h2><div class="card"><div class="wide"><table><thead><tr><th scope="col">method</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{_legend(report)}{''.join(map(note_text, notes))}</div>"
    )


def _columns(report: AccuracyReport) -> list[tuple[str, str, list[str]]]:
    """Name, meaning and cells of each column, as HTML; what no row has is left out."""
    rows = report.rows
    columns = [("target", "which graphs ran", [escape(row.target) or "-" for row in rows])]
    for metric in metrics_of(report):
        name = f"{escape(metric.title)}<small>{'higher' if metric.higher else 'lower'}</small>"
        columns.append((name, f"{metric.meaning}; {metric.way}", [_figure_cell(metric, row) for row in rows]))
    columns += [
        ("diver\N{SOFT HYPHEN}sity", "mean RMS distance between samples, 1/255", [_diversity_cell(row) for row in rows]),
        ("seam", "step across tile borders over the steps beside them; 1: none", [number(row.seam, 2) for row in rows]),
        ("colour shift", "mean size of the shift from bicubic, with R G B below, 1/255", [_shift_cell(row) for row in rows]),
        ("checker\N{SOFT HYPHEN}board", "dB over neighbouring frequencies; near or below 0: none",
         [number(row.checkerboard, 1) for row in rows]),
        ("para\N{SOFT HYPHEN}meters", "weights of all graphs or networks", [_count_cell(row) for row in rows]),
        ("size", "files with graphs or weights", [_bytes(row) for row in rows]),
        ("ms", "median wall time of one whole picture", [number(row.milliseconds, 1) for row in rows]),
        ("gates", "hover for the limits; the table below has them in full", [_ticks(report, row) for row in rows]),
    ]  # fmt: skip
    return [column for column in columns if any(cell != "-" for cell in column[2])]


def _figure_cell(metric: Metric, row: Row) -> str:
    """A mean, its interval in small print, and the difference to fp32 where it is real."""
    value = metric.of(row)
    if value is None:
        return "-"
    text = number(value, metric.digits)
    if math.isfinite(value):
        text += _interval(row, metric.key, metric.digits)
    change = row.differences.get(metric.key)
    if change is None or not math.isfinite(change.mean):
        return text
    digits = max(metric.digits, 3)
    span = (
        f"{signed(change.mean, digits)} (95 %: {signed(change.low, digits)} to {signed(change.high, digits)})"
    )
    if not change.real:
        return f'{text}<small class="same" title="no difference to {REFERENCE} that these pictures show: {span}">=</small>'
    side, mark = ("better", BETTER) if (change.mean > 0) is metric.higher else ("worse", WORSE)
    return f'{text}<small class="{side}" title="{side} than {REFERENCE}: {span}">{mark} {signed(change.mean, digits)}</small>'


def _interval(row: Row, metric: str, digits: int) -> str:
    """In small print; empty where there is none."""
    found = row.intervals.get(metric)
    if found is None:
        return ""
    ends = f"{found.low:.{digits}f}{DASH}{found.high:.{digits}f}"
    return f'<small title="95 % interval over pictures">{ends}</small>'


def _diversity_cell(row: Row) -> str:
    return number(row.diversity, 2) + _interval(row, "diversity", 2)


def _legend(report: AccuracyReport) -> str:
    sentences = []
    if any(row.intervals for row in report.rows):
        sentences.append("Small print: 95 % interval of the mean, bootstrapped over pictures.")
    if any(row.differences for row in report.rows):
        sentences.append(
            f'Against {REFERENCE} on the same pictures: <b class="better">{BETTER} better</b>, '
            f'<b class="worse">{WORSE} worse</b>, <b class="same">=</b> no difference that these pictures show.'
        )
    if report.caution:
        sentences.append(escape(report.caution))
    return f'<p class="note">{" ".join(sentences)}</p>' if sentences else ""


def _ticks(report: AccuracyReport, row: Row) -> str:
    marks = []
    for gate in report.gates:
        if gate.row == row.name:
            state, mark = ("pass", TICK) if gate.ok else ("fail", CROSS)
            text = f"{gate_name(gate.gate)}: {measured_text(gate)}, {limit_text(gate.gate, gate.limit)}"
            marks.append(f'<abbr class="{state}" title="{escape(text)}">{mark}</abbr>')
    return "".join(marks) or "-"


def gate_table(report: AccuracyReport) -> str:
    """Every limit with what was measured; also those of a budget that were not checked. Empty where there is none."""
    if not report.gates and not report.budgets:
        return ""
    lines = [
        _line(
            [gate.row, gate_name(gate.gate), limit_text(gate.gate, gate.limit), measured_text(gate)], text=2
        )
        + f'<td class="text {"pass" if gate.ok else "fail"}">{f"{TICK} pass" if gate.ok else f"{CROSS} FAIL"}</td>'
        for gate in report.gates
    ]
    checked = {(gate.row, gate.gate) for gate in report.gates}
    lines += [
        _line([row, gate_name(gate), limit_text(gate, limit), "-"], text=2)
        + '<td class="text same">not checked</td>'
        for row, budget in report.budgets.items()
        for gate, limit in budget.items()
        if (row, gate) not in checked
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    verdict = {None: "none were checked", True: "all passed", False: "not all passed"}[report.ok]
    return (
        f'<h2>Gates: {verdict}</h2><div class="card"><div class="wide tight"><table><thead><tr><th>row</th><th class="text">gate</th>'
        f'<th>limit</th><th>measured</th><th class="text">result</th></tr></thead><tbody>{body}</tbody></table></div></div>'
    )


def gate_name(gate: str) -> str:
    """As people write it: max_psnr_loss is PSNR loss."""
    words = [
        word.upper() if word in ("psnr", "ssim", "sqf", "niqe", "lpips") else word for word in gate.split("_")
    ]
    return " ".join(words[1:] if words[0] in ("max", "min") else words)


def limit_text(gate: str, limit: float) -> str:
    return f"{'at least' if gate.startswith('min_') else 'at most'} {limit:g}"


def measured_text(gate: GateResult) -> str:
    return "not measured" if gate.value is None else number(gate.value, 4)


def picture_tables(report: AccuracyReport) -> str:
    """Scores of every picture, one folded table per row."""
    quality = metrics_of(report)
    head = "".join(f"<th>{escape(metric.title)}</th>" for metric in quality)
    blocks = []
    for row in report.rows:
        lines = "".join(
            f"<tr>{_line([image.name, *(number(metric.of(image), metric.digits + 1) for metric in quality)], text=1)}</tr>"
            for image in row.images
        )
        blocks.append(
            f'<details><summary>{escape(row.name)}</summary><div class="wide"><table><thead><tr><th>picture</th>{head}</tr></thead>'
            f"<tbody>{lines}</tbody></table></div></details>"
        )
    return f'<h2>Every picture</h2><div class="card">{"".join(blocks)}</div>'


def number(value: float | None, digits: int) -> str:
    """A dash for what is not there."""
    if value is None:
        return "-"
    if math.isinf(value):
        return INFINITE
    text = f"{value:.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("-")


def signed(value: float, digits: int) -> str:
    """With its sign, and with more digits where these few would show nothing but zeros."""
    text = f"{value:+.{digits}f}"
    if value and not float(text):
        text = f"{value:+.0e}"
    return text.replace("-", MINUS)


def size_text(count: int) -> str:
    """Bytes in decimal units."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB" if count else "0"


def note_text(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _shift(row: Row) -> str:
    if row.kind == "bicubic":  # what the shift is measured from
        return "-"
    return " ".join(f"{value:+.2f}".replace("-", MINUS) for value in row.colour_shift)


def _shift_cell(row: Row) -> str:
    shift = _shift(row)
    return shift if shift == "-" else f"{number(row.colour_shift_abs, 2)}<small>{shift}</small>"


def _count_cell(row: Row) -> str:
    if not row.parameters:
        return number(row.parameters, 0)
    return f'<span title="{row.parameters:,}">{row.parameters / 1e6:.2f} M</span>'


def _bytes(row: Row) -> str:
    return "-" if row.bytes is None else size_text(row.bytes)


def _line(cells: Sequence[str], text: int) -> str:
    """Cells of a line, the first `text` of them aligned as text."""
    kinds = [' class="text"' if index < text else "" for index in range(len(cells))]
    return "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, cells, strict=True))
