"""An accuracy report as one HTML file that needs nothing else: table, gates, crops, scores per picture."""

import base64
import io
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from runtime.image import atomic_file

from .accuracy import AccuracyReport, Row

CROP = 160  # side in HR pixels
COLUMNS = (
    ("method", ""),
    ("PSNR-Y", "dB, higher is better"),
    ("SSIM", "higher is better"),
    ("SQF", "SqueezeNet feature distance, lower is better"),
    ("NIQE", "no-reference naturalness, lower is better"),
    ("diversity", "mean RMS distance between samples, 1/255"),
    ("colour shift", "R G B mean difference from bicubic, 1/255"),
    ("checkerboard", "dB over neighbouring frequencies, near or below 0 is none"),
    ("parameters", ""),
    ("size", "graph files"),
)
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem; border-bottom: 1px solid var(--line); text-align: right; }
th, td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr.model td { background: var(--soft); }
th { font-weight: 600; } .wide { overflow-x: auto; } .note { opacity: .75; }
.strip { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(130px, 240px); gap: .6rem; }
.strip { margin: .4rem 0 1.4rem; overflow-x: auto; }
figure { margin: 0; } figcaption { font-size: .8rem; }
img { width: 100%; height: auto; image-rendering: pixelated; display: block; }
.pass { color: #18794e; } .fail { color: #c62a2f; font-weight: 600; }
"""


class CropCollector:
    """Keeps one small crop of every picture of every row; hand it to `evaluate(..., observe=...)`.

    The crop is where HR has most contrast: there the methods differ. size: side in HR pixels.
    """

    def __init__(self, size: int = CROP) -> None:
        self.size = size
        self.crops: dict[str, dict[str, np.ndarray]] = {}  # picture -> row -> (h, w, 3) uint8
        self._boxes: dict[str, tuple[int, int, int, int]] = {}
        self._widths: dict[str, int] = {}

    def __call__(self, row: str, picture: str, pixels: np.ndarray) -> None:
        if row == "HR":
            self._boxes[picture] = busiest_box(pixels, self.size)
            self._widths[picture] = pixels.shape[1]
        scale = self._widths[picture] / pixels.shape[1]  # 1 except for LR
        top, left, bottom, right = (round(edge / scale) for edge in self._boxes[picture])
        self.crops.setdefault(picture, {})[row] = pixels[top:bottom, left:right].copy()


def busiest_box(pixels: np.ndarray, size: int, grid: int = 8) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the window of that size with the largest mean gradient, on a grid of 8
    pixels.
    """
    gray = pixels.mean(axis=2)
    energy = np.zeros(gray.shape)
    energy[:-1] += np.abs(np.diff(gray, axis=0))
    energy[:, :-1] += np.abs(np.diff(gray, axis=1))
    height, width = gray.shape
    rows, columns = min(size, height), min(size, width)
    total = np.zeros((height + 1, width + 1))
    total[1:, 1:] = energy.cumsum(axis=0).cumsum(axis=1)
    tops, lefts = np.arange(0, height - rows + 1, grid), np.arange(0, width - columns + 1, grid)
    sums = (
        total[np.ix_(tops + rows, lefts + columns)]
        - total[np.ix_(tops, lefts + columns)]
        - total[np.ix_(tops + rows, lefts)]
        + total[np.ix_(tops, lefts)]
    )
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    top, left = int(tops[row]), int(lefts[column])
    return top, left, top + rows, left + columns


def table_rows(report: AccuracyReport) -> list[list[str]]:
    """The table as text, header first; a dash where something does not apply or was not measured."""
    return [[name for name, _ in COLUMNS]] + [_cells(row) for row in report.rows]


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
    parts = [
        f"<h1>{escape(title)}: {escape(report.bundle['name'])}</h1>",
        f'<p class="note">{_conditions(report)}</p>',
        f'<div class="wide">{_table(report)}</div>',
        _gates(report),
        _crops(report, crops) if crops else "",
        _per_picture(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: {escape(report.bundle['name'])}</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(part + chr(10) for part in parts if part)}</body></html>\n"
    )


def shown_pictures(report: AccuracyReport, typical: int = 4) -> list[tuple[str, str]]:
    """(picture, why it is shown): the worst of the last model row by PSNR, SQF and NIQE, then some spread
    over the set.
    """
    models = [row for row in report.rows if row.kind == "model"] or list(report.rows)
    row = models[-1]
    shown: dict[str, str] = {}
    worst = [
        ("lowest PSNR", [-image.psnr for image in row.images]),
        ("highest NIQE", [image.niqe for image in row.images]),
    ]
    if row.sqf is not None:
        worst.insert(1, ("highest SQF", [image.sqf or 0.0 for image in row.images]))
    for reason, badness in worst:
        for index in np.argsort(badness, kind="stable")[::-1][: 2 if reason != "highest NIQE" else 1]:
            shown.setdefault(row.images[index].name, f"{reason} of {row.name}")
    for index in np.linspace(0, len(row.images) - 1, min(typical, len(row.images))).round().astype(int):
        shown.setdefault(row.images[index].name, "spread over the set")
    return list(shown.items())


def _conditions(report: AccuracyReport) -> str:
    facts = [
        f"{report.count} pictures",
        f"{report.scale}x",
        f"seed {report.seed}",
        f"bundle {report.bundle['digest']}",
        f"the HR photos themselves: NIQE {report.hr_niqe:.2f}",
        f"their checkerboard measure {_number(report.hr_checkerboard, 1)} dB",
    ]
    if any(row.diversity is not None for row in report.rows):
        facts.append(
            f"diversity: {report.diversity_samples} samples of the first {report.diversity_images} pictures"
        )
    if report.sqf_note:
        facts.append(f"no SQF: {report.sqf_note}")
    return escape("; ".join(facts) + ".")


def _table(report: AccuracyReport) -> str:
    head = "".join(f'<th title="{escape(meaning)}">{escape(name)}</th>' for name, meaning in COLUMNS)
    body = "".join(f'<tr class="{escape(row.kind)}">{_tds(_cells(row))}</tr>' for row in report.rows)
    notes = sorted({f"{row.name}: {note}" for row in report.rows for note in row.notes})
    listed = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{listed}"


def _gates(report: AccuracyReport) -> str:
    if not report.gates:
        return ""
    rows = "".join(
        f"<tr>{_tds([gate.row, gate.gate.replace('_', ' '), f'{gate.limit:g}', _number(gate.value, 4)])}"
        f'<td class="{"pass" if gate.ok else "fail"}">{"pass" if gate.ok else "FAIL"}</td></tr>'
        for gate in report.gates
    )
    return (
        f"<h2>Gates: {'all passed' if report.ok else 'not all passed'}</h2>"
        "<table><thead><tr><th>row</th><th>gate</th>"
        f"<th>limit</th><th>measured</th><th>result</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _crops(report: AccuracyReport, crops: CropCollector) -> str:
    parts = ["<h2>Crops</h2>"]
    order = ["LR", *(row.name for row in report.rows), "HR"]
    for picture, reason in shown_pictures(report):
        kept = crops.crops.get(picture, {})
        figures = "".join(
            _figure(name, kept[name], _caption(report, name, picture)) for name in order if name in kept
        )
        parts.append(f'<h3>{escape(picture)} <span class="note">({escape(reason)})</span></h3>')
        parts.append(f'<div class="strip">{figures}</div>')
    return "".join(parts)


def _caption(report: AccuracyReport, name: str, picture: str) -> str:
    for row in report.rows:
        for image in row.images if row.name == name else ():
            if image.name == picture:
                sqf = "" if image.sqf is None else f" &middot; SQF {image.sqf:.3f}"
                return f"{image.psnr:.2f} dB{sqf} &middot; NIQE {image.niqe:.2f}"
    return ""


def _figure(name: str, pixels: np.ndarray, caption: str) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}">'
        f"<figcaption><b>{escape(name)}</b><br>{caption}</figcaption></figure>"
    )


def _per_picture(report: AccuracyReport) -> str:
    blocks = []
    for row in report.rows:
        lines = "".join(
            f"<tr>{_tds([i.name, f'{i.psnr:.3f}', f'{i.ssim:.4f}', _number(i.sqf, 4), f'{i.niqe:.3f}'])}</tr>"
            for i in row.images
        )
        blocks.append(
            f"<details><summary>{escape(row.name)}</summary><table><thead><tr><th>picture</th><th>PSNR-Y</th><th>SSIM</th>"
            f"<th>SQF</th><th>NIQE</th></tr></thead><tbody>{lines}</tbody></table></details>"
        )
    return "<h2>Every picture</h2>" + "".join(blocks)


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        f"{row.psnr:.2f}",
        f"{row.ssim:.4f}",
        _number(row.sqf, 4),
        f"{row.niqe:.2f}",
        _number(row.diversity, 2),
        "-" if row.kind == "bicubic" else " ".join(f"{value:+.2f}" for value in row.colour_shift),
        _number(row.checkerboard, 1),
        "-" if row.parameters is None else f"{row.parameters:,}",
        "-" if row.bytes is None else _size(row.bytes),
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB" if count else "0"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _tds(cells: Iterable[str] | Sequence[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)
