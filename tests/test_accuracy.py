"""Accuracy: every row measured alike on the toy bundle, what the report says of it, and settings that cannot be right."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import accuracy_cases
import numpy as np
import pytest
from accuracy_cases import NAMES
from PIL import Image

from calibration.measure.accuracy import AccuracyReport, evaluate
from calibration.measure.gates import INT8_GATES, Gates
from calibration.measure.intervals import difference, interval
from calibration.measure.methods import Method, bicubic
from calibration.measure.pairs import read_rgb
from calibration.sensitivity import LayerNoise
from runtime.errors import BundleError, ImageError, SettingError
from training.metrics import pyiqa as perceptual

folders = accuracy_cases.folders  # a fixture


def copy_hr(folders: tuple[Path, Path], target: Path, change: int = 0) -> Path:
    target.mkdir()
    for name in NAMES:
        pixels = read_rgb(folders[1] / f"{name}.png").clip(0, 255 - change) + np.uint8(change)
        Image.fromarray(pixels).save(target / f"{name}.png")
    return target


# ---- the whole of it, on the toy bundle


@pytest.fixture
def report(folders: tuple[Path, Path], toy_bundle: Path, tmp_path: Path) -> AccuracyReport:
    return evaluate(
        toy_bundle,
        *folders,
        folders={"perfect": copy_hr(folders, tmp_path / "perfect")},
        peers={"peer": lambda lr: bicubic(lr, 4)},
        diversity_images=2,
        diversity_samples=3,
        budgets={"int8": INT8_GATES},
        threads=1,
    )


def test_all_rows_are_there_in_order(report: AccuracyReport) -> None:
    assert [(row.name, row.kind) for row in report.rows] == [
        ("bicubic", "bicubic"), ("perfect", "folder"), ("peer", "peer"), ("fp32", "model"), ("int8", "model")
    ]  # fmt: skip
    assert (report.count, report.scale, report.diversity_images, report.diversity_samples) == (3, 4, 2, 3)
    for row in report.rows:
        assert [image.name for image in row.images] == list(NAMES)


def test_rows_say_what_they_should(report: AccuracyReport) -> None:
    plain, perfect, peer, model = (report.row(name) for name in ("bicubic", "perfect", "peer", "fp32"))
    assert (perfect.psnr, perfect.ssim) == (float("inf"), pytest.approx(1))
    assert perfect.niqe == pytest.approx(report.hr_niqe)
    assert perfect.checkerboard == report.hr_checkerboard
    assert dataclasses.replace(peer, name="", kind="", parameters=0, bytes=0) == dataclasses.replace(
        plain, name="", kind=""
    )
    assert {row.name: row.target for row in report.rows if row.target} == {"fp32": "onnx", "int8": "onnx"}
    assert {row.name for row in report.rows if row.seam is not None} == {"fp32", "int8"}
    assert model.seam == pytest.approx(1, abs=0.5)
    assert all(row.milliseconds is None for row in report.rows)
    assert plain.colour_shift == (0, 0, 0)
    assert plain.diversity is None
    assert model.diversity is not None
    assert model.diversity >= 0
    assert model.bytes is not None
    assert model.bytes > 0
    assert model.device == "cpu"
    assert model.psnr == pytest.approx(np.mean([image.psnr for image in model.images]))
    assert model.sqf is None
    assert report.sqf_note == "no SqueezeNet weights given"
    with pytest.raises(KeyError, match="there are bicubic"):
        report.row("fp64")


def test_the_report_is_json_with_null_for_infinite(report: AccuracyReport) -> None:
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["rows"][1]["psnr"] is None
    assert data["rows"][1]["images"][0]["psnr"] is None
    assert data["ok"] is report.ok
    assert {gate["gate"] for gate in data["gates"]} == {
        "max_psnr_loss",
        "max_sqf_rise",
        "min_diversity_ratio",
    }


def test_every_mean_has_its_interval_and_every_row_its_difference_to_fp32(report: AccuracyReport) -> None:
    reference = report.row("fp32")
    assert reference.differences == {}
    for row in report.rows:
        psnr = [image.psnr for image in row.images]
        measured = {"psnr", "ssim", "niqe"}  # no SQF without weights
        assert set(row.intervals) == measured | ({"diversity"} if row.kind == "model" else set())
        assert row.intervals["psnr"].low <= row.psnr <= row.intervals["psnr"].high
        if row is not reference:
            assert set(row.differences) == {"psnr", "ssim", "niqe"}
            alone = difference(psnr, [image.psnr for image in reference.images])
            assert row.differences["psnr"].mean == pytest.approx(alone.mean)
    assert report.row("perfect").differences["psnr"].real
    niqe = interval([image.niqe for image in reference.images])
    assert (reference.intervals["niqe"].low, reference.intervals["niqe"].high) == pytest.approx(
        (niqe.low, niqe.high)
    )


def test_the_report_says_what_was_applied_and_on_what(
    report: AccuracyReport, folders: tuple[Path, Path]
) -> None:
    assert report.pictures == f"{folders[0]} and {folders[1]}"
    assert report.budgets == {"int8": INT8_GATES.to_dict()}
    assert report.extra_metrics == ()
    assert report.extra_note == (perceptual.available()[1] or "none was asked for")
    assert report.sensitivity == {}
    assert report.versions["numpy"] == np.__version__
    assert report.to_dict()["rows"][0]["differences"]["psnr"].keys() == {"mean", "low", "high", "real"}


def test_the_report_says_what_its_intervals_are_worth(
    report: AccuracyReport, folders: tuple[Path, Path], toy_bundle: Path
) -> None:
    data = report.to_dict()
    assert (data["count"], data["groups"], data["few"]) == (3, 3, True)
    assert data["caution"].startswith(
        "The intervals are over 3 pictures: too few to trust, take 10 or more. Each"
    )
    assert "comparisons are not corrected for" in data["caution"]
    options = {"precisions": ["fp32"], "diversity_images": 2, "diversity_samples": 2}
    crops = evaluate(
        toy_bundle,
        *folders,
        **options,
        pictures="three crops",
        group=lambda name: name[:0] + "ab"[name == "c"],
    )
    assert (crops.pictures, crops.count, crops.groups) == ("three crops", 3, 2)
    assert "over 2 photos, of which the 3 pictures are crops: too few" in crops.caution
    assert crops.row("fp32").groups == ["a", "a", "b"]
    plain = evaluate(toy_bundle, *folders, **options).row("fp32")
    assert crops.row("fp32").psnr == plain.psnr
    assert crops.row("fp32").intervals["psnr"] != plain.intervals["psnr"]
    enough = dataclasses.replace(report, groups=10)
    assert not enough.few
    assert enough.caution.startswith("Each difference")
    assert dataclasses.replace(report, rows=report.rows[:1], count=1, groups=1).caution.startswith(
        "The intervals are over 1 picture:"
    )
    assert dataclasses.replace(report, rows=(report.row("fp32"),)).caution == ""


def test_a_gate_on_something_unmeasured_does_not_pass(report: AccuracyReport) -> None:
    failed = {gate.gate for gate in report.gates if not gate.ok}
    assert "max_sqf_rise" in failed
    assert report.ok is False


def test_it_is_deterministic_and_reports_progress(folders: tuple[Path, Path], toy_bundle: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    seen: list[tuple[str, str]] = []
    options = {"precisions": ["fp32"], "diversity_images": 1, "diversity_samples": 2}
    first = evaluate(
        toy_bundle, *folders, **options,
        progress=lambda *step: steps.append(step), observe=lambda row, name, pixels: seen.append((row, name)),
    )  # fmt: skip
    assert first == evaluate(toy_bundle, *folders, **options, threads=1)
    assert [step[:2] for step in steps] == [(k, 6) for k in range(1, 7)]
    assert {step[2] for step in steps} == {"bicubic", "fp32"}
    assert set(seen) == {(row, name) for row in ("LR", "HR", "bicubic", "fp32") for name in NAMES}
    assert first.ok is None
    other = evaluate(toy_bundle, *folders, **options, seed=5)
    assert other.row("fp32").images != first.row("fp32").images
    assert other.row("bicubic").images == first.row("bicubic").images


def test_sqf_is_measured_where_weights_are_given(
    folders: tuple[Path, Path],
    toy_bundle: Path,
    shared_data: Callable[[str], Path],
    need: Callable[..., None],
) -> None:
    need("torch", "safetensors")
    weights = shared_data("peers/squeezenet1_1.safetensors")
    report = evaluate(
        toy_bundle, *folders, limit=1, sqf_weights=weights, precisions=["fp32"], diversity_images=0
    )
    assert report.sqf_note is None
    assert report.count == 1
    assert report.row("fp32").diversity is None
    assert all(row.sqf is not None and row.sqf > 0 for row in report.rows)


def test_further_methods_are_rows_with_gates_of_their_own(
    folders: tuple[Path, Path], toy_bundle: Path
) -> None:
    blurred = Method("coreml fp16", "model", lambda name, lr: bicubic(lr, 4), target="coreml", bytes=7)
    report = evaluate(
        toy_bundle, *folders, precisions=["fp32"], methods=[blurred], diversity_images=1,
        budgets={"coreml fp16": Gates(max_psnr_loss=-50, min_diversity_ratio=0.9)},
    )  # fmt: skip
    last = report.rows[-1]
    assert (last.name, last.kind, last.target, last.bytes, last.seam) == (
        "coreml fp16",
        "model",
        "coreml",
        7,
        None,
    )
    assert last.differences["psnr"].mean == pytest.approx(report.row("bicubic").differences["psnr"].mean)
    assert [(gate.row, gate.gate, gate.ok) for gate in report.gates] == [
        ("coreml fp16", "max_psnr_loss", False), ("coreml fp16", "min_diversity_ratio", False)
    ]  # fmt: skip


def test_extra_metrics_stand_beside_the_others(
    folders: tuple[Path, Path], toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def distance(sr: np.ndarray, hr: np.ndarray) -> float:
        return float(np.abs(sr.astype(float) - hr).mean() / 255)

    monkeypatch.setattr(perceptual, "scorers", lambda names: dict.fromkeys(names, distance))
    report = evaluate(
        toy_bundle, *folders, diversity_images=0, extra_metrics=["lpips"],
        budgets={"fp32": Gates(max_lpips_rise=0.5), "int8": Gates(max_lpips_rise=-1)},
    )  # fmt: skip
    assert (report.extra_metrics, report.extra_note) == (("lpips",), None)
    for row in report.rows:
        values = [image.extra["lpips"] for image in row.images]
        assert row.extra["lpips"] == pytest.approx(np.mean(values))
        assert row.intervals["lpips"].low <= row.extra["lpips"] <= row.intervals["lpips"].high
    rise = report.row("int8").extra["lpips"] - report.row("fp32").extra["lpips"]
    assert [(gate.row, gate.value, gate.ok) for gate in report.gates] == [("int8", rise, False)]
    change = report.row("bicubic").extra["lpips"] - report.row("fp32").extra["lpips"]
    assert report.row("bicubic").differences["lpips"].mean == pytest.approx(change)


def test_sensitivity_is_read_from_the_manifest(folders: tuple[Path, Path], toy_copy: Path) -> None:
    path = toy_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    layer = {"layer": "encoder.conv", "bits": 8, "psnr": 41.5, "cost": 100.0}
    manifest["accuracy"]["sensitivity"] = {"int8": [layer]}
    path.write_text(json.dumps(manifest))
    options = {"precisions": ["fp32"], "limit": 1, "diversity_images": 0}
    report = evaluate(toy_copy, *folders, **options)
    assert report.sensitivity == {"int8": (LayerNoise("encoder.conv", 8, 41.5, 100.0),)}
    assert report.to_dict()["sensitivity"] == {"int8": [layer]}
    del layer["bits"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="sensitivity"):
        evaluate(toy_copy, *folders, **options)


# ---- settings that cannot be right


def test_settings_are_checked_before_any_work(
    folders: tuple[Path, Path], toy_bundle: Path, tmp_path: Path
) -> None:
    partial = copy_hr(folders, tmp_path / "partial")
    (partial / "b.png").unlink()
    for options, message in (
        ({"precisions": ["fp7"]}, "no fp7: choose from"),
        ({"precisions": ["int8"], "budgets": {"int8": INT8_GATES}}, "need it among the precisions"),
        ({"budgets": {"int4": INT8_GATES}}, r"rows that are measured \(fp32, int8\), got 'int4'"),
        ({"methods": [Method("int8", "model", lambda name, lr: lr)]}, "two rows would be called 'int8'"),
        ({"folders": {"fp32": folders[1]}}, "two rows would be called 'fp32'"),
        ({"folders": {"x": folders[1]}, "peers": {"x": lambda lr: lr}}, "two rows would be called 'x'"),
        ({"folders": {"x": partial}}, "x: 1 pictures are missing in .*first is b"),
    ):
        with pytest.raises((ImageError, SettingError), match=message):
            evaluate(toy_bundle, *folders, **options)
