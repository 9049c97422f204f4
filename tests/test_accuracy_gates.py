"""Gates of the accuracy table: which rows they hold for, what passes; and the comparison of each row with fp32."""

import dataclasses

import numpy as np
import pytest

from calibration.measure.accuracy import ImageScore, Row
from calibration.measure.gates import GATE_NAMES, INT8_GATES, Gates, check_gates, default_budgets
from calibration.measure.table import compared
from runtime.errors import SettingError

# ---- gates


def row(name: str, psnr: float = 25.0, sqf: float | None = 0.5, diversity: float | None = 4.0) -> Row:
    return Row(name, "model", psnr, 0.75, sqf, 6.0, (0, 0, 0), 0.0, 0.5, diversity, None, None, "cpu", (), ())


@pytest.mark.parametrize(("other", "expected"), [
    (row("int8"), True),
    (row("int8", psnr=24.905), True),
    (row("int8", psnr=24.895), False),
    (row("int8", sqf=0.5049), True),
    (row("int8", sqf=0.5051), False),
    (row("int8", diversity=3.81), True),
    (row("int8", diversity=3.79), False),
    (row("int8", sqf=None), False),
])  # fmt: skip
def test_int8_keeps_its_budget_against_fp32(other: Row, expected: bool) -> None:
    results = check_gates({"int8": INT8_GATES}, [row("fp32"), other])
    assert [result.row for result in results] == ["int8"] * 3
    assert all(result.ok for result in results) is expected


def test_absolute_gates_hold_for_every_model_row_only() -> None:
    folder = dataclasses.replace(row("other", psnr=1.0), kind="folder")
    gates = Gates(min_psnr=25.2, max_niqe=6.5)
    results = check_gates(
        {"fp32": gates, "int8": gates, "other": gates},
        [folder, row("fp32", psnr=25.3), row("int8", psnr=25.1)],
    )
    assert [(r.row, r.gate, r.ok) for r in results] == [
        ("fp32", "min_psnr", True), ("fp32", "max_niqe", True), ("int8", "min_psnr", False), ("int8", "max_niqe", True)
    ]  # fmt: skip


def test_each_row_is_held_to_its_own_budget() -> None:
    budgets = {"int8": Gates(max_psnr_loss=0.1), "w4": Gates(max_psnr_loss=0.5, min_ssim=0.8)}
    results = check_gates(
        budgets, [row("fp32"), row("int8", psnr=24.7), row("w4", psnr=24.7), row("w8", psnr=1.0)]
    )
    assert [(r.row, r.gate, r.limit, r.ok) for r in results] == [
        ("int8", "max_psnr_loss", 0.1, False), ("w4", "min_ssim", 0.8, False), ("w4", "max_psnr_loss", 0.5, True)
    ]  # fmt: skip


def test_the_seam_gate_is_for_rows_that_have_tiles() -> None:
    gates = Gates(max_seam=1.1)
    onnx = dataclasses.replace(row("int8"), target="onnx", seam=1.2)
    package = dataclasses.replace(row("coreml fp16"), target="coreml")
    unmeasured = dataclasses.replace(row("fp32"), target="onnx")
    results = check_gates(dict.fromkeys(("int8", "coreml fp16", "fp32"), gates), [unmeasured, onnx, package])
    assert [(r.row, r.value, r.ok) for r in results] == [("fp32", None, False), ("int8", 1.2, False)]


def test_rows_that_are_equally_perfect_lose_nothing() -> None:
    exact = [dataclasses.replace(row(name, psnr=np.inf), niqe=np.inf) for name in ("fp32", "int8")]
    results = check_gates({"int8": Gates(max_psnr_loss=0.1, max_niqe_rise=0.0)}, exact)
    assert [(r.value, r.ok) for r in results] == [(0, True), (0, True)]


def test_gates_go_to_a_dictionary_and_back() -> None:
    assert INT8_GATES.to_dict() == {"max_psnr_loss": 0.1, "max_sqf_rise": 0.01, "min_diversity_ratio": 0.95}
    assert Gates.from_dict(INT8_GATES.to_dict()) == INT8_GATES
    assert Gates.from_dict(dict.fromkeys(GATE_NAMES, 1)).to_dict() == dict.fromkeys(GATE_NAMES, 1.0)
    assert Gates().to_dict() == {}
    with pytest.raises(SettingError, match=r"gates among min_psnr, .*, got 'max_psnr_los'"):
        Gates.from_dict({"max_psnr_los": 0.1})
    for wrong in ("0.1", None, True, float("nan"), float("inf")):
        with pytest.raises(SettingError, match="max_psnr_loss: expected a finite number"):
            Gates.from_dict({"max_psnr_loss": wrong})


def test_gates_can_be_left_out_and_replaced() -> None:
    assert INT8_GATES.without(["max_sqf_rise"]) == Gates(max_psnr_loss=0.1, min_diversity_ratio=0.95)
    changed = INT8_GATES.overridden(Gates(max_psnr_loss=0.0, max_seam=1.5))
    assert changed == dataclasses.replace(INT8_GATES, max_psnr_loss=0.0, max_seam=1.5)


def test_every_row_but_fp32_has_a_budget_by_default() -> None:
    stated = {"w4": {"max_psnr_loss": 0.5}, "w2": {"max_psnr_loss": 9}}
    assert default_budgets(stated, ["fp32", "int8", "w4"]) == {
        "int8": INT8_GATES,
        "w4": Gates(max_psnr_loss=0.5),
    }
    assert default_budgets({"fp32": {"min_psnr": 25}}, ["fp32"]) == {"fp32": Gates(min_psnr=25)}
    with pytest.raises(SettingError, match=r"budget of int8: .*max_los"):
        default_budgets({"int8": {"max_los": 1}}, ["int8"])


# ---- comparisons


def scored(name: str, *psnr: float) -> Row:
    images = tuple(ImageScore(str(k), p, 0.7, None, 5.0, (0, 0, 0), None) for k, p in enumerate(psnr))
    return dataclasses.replace(row(name, psnr=float(np.mean(psnr))), images=images)


def test_rows_are_compared_picture_by_picture() -> None:
    rows = compared([scored("fp32", 25.0, 30.0, 35.0), scored("int8", 24.9, 29.9, 34.9)])
    assert rows[0].differences == {}
    found = rows[1].differences["psnr"]
    assert (found.mean, found.low, found.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert found.real
    assert not rows[1].differences["ssim"].real


def test_without_fp32_nothing_is_compared() -> None:
    rows = [scored("int8", 25.0), scored("w8", 26.0)]
    assert compared(rows) == rows


def test_a_metric_without_a_mean_difference_is_left_out() -> None:
    """One picture is exact in fp32 alone, another in INT8 alone."""
    rows = compared([scored("fp32", np.inf, 30.0), scored("int8", 30.0, np.inf)])
    assert set(rows[1].differences) == {"ssim", "niqe"}
