"""Gates: limits that the rows of an accuracy table must keep. None = not asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .accuracy import Row

REFERENCE = "fp32"


@dataclass(frozen=True)
class Gates:
    """Limits for every model row; the last four compare each other precision with fp32."""

    min_psnr: float | None = None  # dB
    min_ssim: float | None = None
    max_sqf: float | None = None
    max_niqe: float | None = None
    max_colour_shift: float | None = None  # 1/255, `colour_shift_abs`
    max_checkerboard: float | None = None  # dB
    max_psnr_loss: float | None = None  # dB below fp32
    max_sqf_rise: float | None = None  # share of fp32's SQF, 0.01 = 1 %
    max_niqe_rise: float | None = None
    min_diversity_ratio: float | None = None  # share of fp32's diversity

    @property
    def needs_reference(self) -> bool:
        """Whether a gate compares with fp32."""
        relative = (self.max_psnr_loss, self.max_sqf_rise, self.max_niqe_rise, self.min_diversity_ratio)
        return any(limit is not None for limit in relative)


# What INT8 may lose against fp32: a share of the method's own gain, not all of it.
INT8_GATES = Gates(max_psnr_loss=0.1, max_sqf_rise=0.01, min_diversity_ratio=0.95)


@dataclass(frozen=True)
class GateResult:
    """One limit on one row. value: None where it could not be measured, which does not pass."""

    row: str
    gate: str
    limit: float
    value: float | None
    ok: bool


def check_gates(gates: Gates, rows: Sequence[Row]) -> tuple[GateResult, ...]:
    """Every limit on every row of the bundle."""
    models = [row for row in rows if row.kind == "model"]
    reference = next((row for row in models if row.name == REFERENCE), None)
    results = []
    for row in models:
        values = _absolute(row)
        if reference is not None and row is not reference:
            values |= _relative(row, reference)
        for item in fields(gates):
            limit = getattr(gates, item.name)
            if limit is None or item.name not in values:
                continue
            value = values[item.name]
            ok = value is not None and (value >= limit if item.name.startswith("min_") else value <= limit)
            results.append(GateResult(row.name, item.name, limit, value, ok))
    return tuple(results)


def _absolute(row: Row) -> dict[str, float | None]:
    return {
        "min_psnr": row.psnr,
        "min_ssim": row.ssim,
        "max_sqf": row.sqf,
        "max_niqe": row.niqe,
        "max_colour_shift": row.colour_shift_abs,
        "max_checkerboard": row.checkerboard,
    }


def _relative(row: Row, reference: Row) -> dict[str, float | None]:
    return {
        "max_psnr_loss": reference.psnr - row.psnr,
        "max_sqf_rise": _ratio(row.sqf, reference.sqf, -1.0),
        "max_niqe_rise": row.niqe - reference.niqe,
        "min_diversity_ratio": _ratio(row.diversity, reference.diversity),
    }


def _ratio(value: float | None, base: float | None, offset: float = 0.0) -> float | None:
    if value is None or base is None or base == 0:
        return None
    return value / base + offset
