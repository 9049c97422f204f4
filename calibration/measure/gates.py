"""Gates: limits that the rows of an accuracy table must keep.

All limits of a row are its budget. Presets, a bundle's manifest and reports list budgets by the name of the row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

from calibration.measure.intervals import REFERENCE
from runtime.errors import SettingError

if TYPE_CHECKING:
    from calibration.measure.table import Row

RELATIVE: Final = (
    "max_psnr_loss", "max_sqf_rise", "max_niqe_rise", "max_lpips_rise", "min_diversity_ratio"
)  # fmt: skip
SQF_GATES: Final = ("max_sqf", "max_sqf_rise")
LPIPS_GATES: Final = ("max_lpips_rise",)


@dataclass(frozen=True)
class Gates:
    """Limits of one row; those in `RELATIVE` compare it with fp32. None: no limit."""

    min_psnr: float | None = None
    """Lowest mean PSNR, in dB."""
    min_ssim: float | None = None
    """Lowest mean SSIM of luma, at most 1."""
    max_sqf: float | None = None
    """Highest mean SQF, a distance between features, 0 for equal pictures."""
    max_niqe: float | None = None
    """Highest mean NIQE of the outputs."""
    max_colour_shift: float | None = None
    """Highest `Row.colour_shift_abs`, in 1/255."""
    max_checkerboard: float | None = None
    """Highest mean checkerboard measure, in dB."""
    max_seam: float | None = None
    """Highest mean seam, for ONNX rows only. Single photos without any seam give 0.7 to 1.2."""
    max_psnr_loss: float | None = None
    """Greatest loss of mean PSNR against fp32, in dB."""
    max_sqf_rise: float | None = None
    """Greatest rise of mean SQF above fp32's, as a share of it; 0.01 is 1 %."""
    max_niqe_rise: float | None = None
    """Greatest rise of mean NIQE above fp32's."""
    max_lpips_rise: float | None = None
    """Greatest rise of mean LPIPS above fp32's."""
    min_diversity_ratio: float | None = None
    """Lowest diversity, as a share of fp32's."""

    @property
    def needs_reference(self) -> bool:
        """Whether a gate compares with fp32."""
        return any(getattr(self, name) is not None for name in RELATIVE)

    def to_dict(self) -> dict[str, float]:
        """The limits that are set, by the name of their gate."""
        limits = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: limit for name, limit in limits.items() if limit is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "budget") -> Gates:
        """SettingError for an unknown gate or a limit that is no finite number. where: the beginning of the message."""
        for name, limit in data.items():
            if name not in GATE_NAMES:
                raise SettingError(
                    f"{where}: expected gates among {', '.join(GATE_NAMES)}, got {name!r}: correct the name"
                )
            number = isinstance(limit, int | float) and not isinstance(limit, bool)
            if not number or not abs(limit) < float("inf"):  # NaN fails, too
                raise SettingError(
                    f"{where}: {name}: expected a finite number as the limit, got {limit!r}: give one"
                )
        return cls(**{name: float(limit) for name, limit in data.items()})

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> Gates:
        """Gates from --budget's texts GATE=VALUE. SettingError as in `from_dict`, and for a value that is no number."""
        limits = {}
        for text in texts:
            name, _, limit = text.partition("=")
            try:
                limits[name] = float(limit)
            except ValueError:
                raise SettingError(f"--budget expects GATE=VALUE with a number, got {text!r}") from None
        return cls.from_dict(limits, "--budget")

    def without(self, names: Iterable[str]) -> Gates:
        """These gates without some limits."""
        return replace(self, **dict.fromkeys(names))

    def overridden(self, other: Gates) -> Gates:
        """These gates, with the limits of `other` in place of their own."""
        return replace(self, **other.to_dict())


GATE_NAMES: Final = tuple(item.name for item in fields(Gates))
# Limits of INT8 against fp32: a small share of the model's gain over bicubic.
INT8_GATES: Final = Gates(max_psnr_loss=0.1, max_sqf_rise=0.01, min_diversity_ratio=0.95)


@dataclass(frozen=True)
class GateResult:
    """One limit on one row."""

    row: str
    """Name of the row."""
    gate: str
    """Name of a field of `Gates`."""
    limit: float
    """The limit in the unit of the gate."""
    value: float | None
    """The measured value. None: it could not be measured, so the gate does not pass."""
    ok: bool
    """Whether the value keeps the limit."""


def default_budgets(stated: Mapping[str, Mapping[str, Any]], rows: Iterable[str]) -> dict[str, Gates]:
    """The budget of each row: the stated one, such as a manifest's, else `INT8_GATES` for every row but fp32."""
    return {
        row: Gates.from_dict(stated[row], f"budget of {row}") if row in stated else INT8_GATES
        for row in rows
        if row in stated or row != REFERENCE
    }


def check_gates(budgets: Mapping[str, Gates], rows: Sequence[Row]) -> tuple[GateResult, ...]:
    """Every limit on every row of the bundle that has a budget; rows in their order, gates in that of `Gates`."""
    models = [row for row in rows if row.kind == "model"]
    reference = next((row for row in models if row.name == REFERENCE), None)
    results = []
    for row in models:
        values = _absolute(row)
        if reference is not None and row is not reference:
            values |= _relative(row, reference)
        for name, limit in budgets.get(row.name, Gates()).to_dict().items():
            if name not in values:
                continue
            value = values[name]
            ok = value is not None and (value >= limit if name.startswith("min_") else value <= limit)
            results.append(GateResult(row.name, name, limit, value, ok))
    return tuple(results)


def _absolute(row: Row) -> dict[str, float | None]:
    return {
        "min_psnr": row.psnr,
        "min_ssim": row.ssim,
        "max_sqf": row.sqf,
        "max_niqe": row.niqe,
        "max_colour_shift": row.colour_shift_abs,
        "max_checkerboard": row.checkerboard,
        **({} if row.target == "coreml" else {"max_seam": row.seam}),  # a package takes whole pictures
    }


def _relative(row: Row, reference: Row) -> dict[str, float | None]:
    lpips, base = row.extra.get("lpips"), reference.extra.get("lpips")
    return {
        "max_psnr_loss": _minus(reference.psnr, row.psnr),
        "max_sqf_rise": _ratio(row.sqf, reference.sqf, -1.0),
        "max_niqe_rise": _minus(row.niqe, reference.niqe),
        "max_lpips_rise": None if lpips is None or base is None else lpips - base,
        "min_diversity_ratio": _ratio(row.diversity, reference.diversity),
    }


def _minus(value: float, other: float) -> float:
    return 0.0 if value == other else value - other  # both may be infinite


def _ratio(value: float | None, base: float | None, offset: float = 0.0) -> float | None:
    if value is None or base is None or base == 0:
        return None
    return value / base + offset
