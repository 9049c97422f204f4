"""Crops for an accuracy report: the place to cut, the pictures to show, and the scores beside each."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from calibration.measure.accuracy import AccuracyReport, ImageScore, Row
from calibration.measure.gates import GateResult
from calibration.measure.intervals import REFERENCE
from calibration.measure.table import evenly

# Side of a crop in HR pixels.
CROP = 160


class CropCollector:
    """Keeps one small crop of every picture of every row; hand it to `evaluate(..., observe=...)`.

    The crop is the part of HR with most contrast, because methods differ most there. size: side in HR pixels.
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
    """(top, left, bottom, right) of the window of that size with the largest mean gradient. grid: step between windows, pixels."""
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


def judged_rows(report: AccuracyReport) -> list[Row]:
    """The one or two rows whose worst pictures are shown: INT8, and the gated row that is nearest its limit or furthest beyond it.

    Without either, the last row of the model.
    """
    models = {row.name: row for row in report.rows if row.kind == "model"}
    gated = [gate for gate in report.gates if gate.row in models and gate.value is not None]
    names = ["int8"] if "int8" in models else []
    names += [min(gated, key=_slack).row] if gated else []
    return [models[name] for name in dict.fromkeys(names)] or (list(models.values()) or list(report.rows))[
        -1:
    ]


def shown_pictures(report: AccuracyReport, typical: int = 3) -> list[tuple[str, str]]:
    """Name of each picture to show, and the reason.

    They are the pictures in which the judged rows lose most against fp32, those in which the first of these rows scores worst, and some
    spread evenly over the set. typical: how many are spread.
    """
    row, *others = judged_rows(report)
    worst = [*_losses(report, row), *(loss for other in others for loss in _losses(report, other)[:1])]
    worst.append((f"lowest PSNR of {row.name}", [-image.psnr for image in row.images], 1))
    if row.sqf is not None:
        worst.append((f"highest SQF of {row.name}", [image.sqf or 0.0 for image in row.images], 1))
    worst.append((f"highest NIQE of {row.name}", [image.niqe for image in row.images], 1))
    reasons: dict[str, list[str]] = {}
    for reason, badness, count in worst:
        for index in np.argsort(badness, kind="stable")[::-1][:count]:
            reasons.setdefault(row.images[index].name, []).append(reason)
    for index in evenly(len(row.images), typical):
        reasons.setdefault(row.images[index].name, ["one of those spread evenly over the set"])
    return [(name, "; ".join(several)) for name, several in reasons.items()]


def _losses(report: AccuracyReport, row: Row) -> list[tuple[str, list[float], int]]:
    """(reason, badness of each picture, number to show) of a row against fp32, PSNR first; empty without fp32 and for fp32 itself."""
    reference = next((r for r in report.rows if r.name == REFERENCE and r is not row), None)
    if reference is None:
        return []
    base = {image.name: image for image in reference.images}
    pairs = [(image, base[image.name]) for image in row.images if image.name in base]
    psnr = [_finite(b.psnr - a.psnr) for a, b in pairs]
    losses = [(f"{row.name} loses most PSNR against {REFERENCE}", psnr, 2)]
    if all(a.sqf is not None and b.sqf is not None for a, b in pairs):
        sqf = [(a.sqf or 0.0) - (b.sqf or 0.0) for a, b in pairs]
        losses.append((f"{row.name} loses most SQF against {REFERENCE}", sqf, 1))
    return losses


def _slack(gate: GateResult) -> float:
    """The distance of a measured gate from its limit, as a share of what the limit allows; below 0 for a broken gate."""
    value = math.inf if gate.value is None else gate.value
    left = value - gate.limit if gate.gate.startswith("min_") else gate.limit - value
    # a ratio falls from 1, other losses rise from 0
    allowed = 1.0 - gate.limit if gate.gate == "min_diversity_ratio" else gate.limit
    return left / (abs(allowed) or 1.0)


@dataclass(frozen=True)
class Strip:
    """The crops of one picture."""

    picture: str
    """Name of the picture."""
    reason: str
    """Why it is shown."""
    crops: list[tuple[str, str, list[str]]]
    """Row, PNG file in base64 and scores of each."""


def strips(report: AccuracyReport, collected: CropCollector) -> list[Strip]:
    """The pictures to show, as far as their crops were collected."""
    scores = {(row.name, image.name): _scores(image) for row in report.rows for image in row.images}
    found = []
    for picture, reason in shown_pictures(report):
        kept = collected.crops.get(picture, {})
        rows = [row for row in strip_order(report.rows) if row in kept]
        crops = [(row, png(kept[row]), scores.get((row, picture), [])) for row in rows]
        if crops:
            found.append(Strip(picture, reason, crops))
    return found


def compared(report: AccuracyReport) -> tuple[str, str]:
    """The two rows that a comparison shows first: fp32 and the row whose worst pictures are shown, else bicubic and that row."""
    names = [row.name for row in report.rows]
    right = judged_rows(report)[0].name
    left = REFERENCE if REFERENCE in names and right != REFERENCE else names[0]
    return left, right if right != left else "HR"


def strip_order(rows: Sequence[Row]) -> list[str]:
    """LR, bicubic, the model's rows, HR, then pictures made elsewhere."""
    own = [row.name for row in rows if row.kind in ("bicubic", "model")]
    return ["LR", *own, "HR", *(row.name for row in rows if row.name not in own)]


def png(pixels: np.ndarray) -> str:
    """(h, w, 3) uint8 as a PNG file, in base64."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def _scores(image: ImageScore) -> list[str]:
    psnr = "equal to HR" if math.isinf(image.psnr) else f"{image.psnr:.2f} dB"
    sqf = [] if image.sqf is None else [f"SQF {image.sqf:.3f}"]
    return [psnr, *sqf, f"NIQE {image.niqe:.2f}"]


def _finite(value: float) -> float:
    """A loss to sort by; 0 if both pictures equal HR."""
    return 0.0 if math.isnan(value) else value
