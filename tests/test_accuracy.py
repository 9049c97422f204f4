"""Accuracy: every row measured alike, pairs matched by name with clear errors, gates that decide."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.accuracy import AccuracyReport, Row, evaluate, measure_row
from calibration.gates import INT8_GATES, Gates, check_gates
from calibration.methods import Method, bicubic
from calibration.pairs import find_pairs, read_rgb
from runtime.errors import ImageError

Pixels = Callable[..., np.ndarray]
NAMES = ("a", "b", "c")


@pytest.fixture
def folders(tmp_path: Path, make_pixels: Pixels) -> tuple[Path, Path]:
    """Three pairs, LR 36x32 and HR 144x128."""
    lr_dir, hr_dir = tmp_path / "lr", tmp_path / "hr"
    lr_dir.mkdir()
    hr_dir.mkdir()
    for seed, name in enumerate(NAMES):
        hr = Image.fromarray(make_pixels(144, 128, seed=seed))
        hr.save(hr_dir / f"{name}.png")
        hr.resize((32, 36), Image.Resampling.BOX).save(lr_dir / f"{name}.png")
    return lr_dir, hr_dir


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
        gates=INT8_GATES,
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
    assert other.row("bicubic") == first.row("bicubic")


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


# ---- settings that cannot be right


def test_settings_are_checked_before_any_work(
    folders: tuple[Path, Path], toy_bundle: Path, tmp_path: Path
) -> None:
    partial = copy_hr(folders, tmp_path / "partial")
    (partial / "b.png").unlink()
    for options, message in (
        ({"precisions": ["fp7"]}, "no fp7: choose from"),
        ({"precisions": ["int8"], "gates": INT8_GATES}, "need it among the precisions"),
        ({"folders": {"fp32": folders[1]}}, "two rows would be called 'fp32'"),
        ({"folders": {"x": folders[1]}, "peers": {"x": lambda lr: lr}}, "two rows would be called 'x'"),
        ({"folders": {"x": partial}}, "x: 1 pictures are missing in .*first is b"),
    ):
        with pytest.raises(ImageError, match=message):
            evaluate(toy_bundle, *folders, **options)


def test_a_result_of_the_wrong_size_is_named(folders: tuple[Path, Path]) -> None:
    method = Method("odd", "peer", lambda name, lr: bicubic(lr, 2))
    with pytest.raises(
        ImageError, match=r"odd: a: expected \(144, 128, 3\) uint8 like HR, got \(72, 64, 3\)"
    ):
        measure_row(method, find_pairs(*folders), 4, None)


def test_an_hr_photo_of_the_wrong_size_is_named(folders: tuple[Path, Path]) -> None:
    method = Method("bicubic", "bicubic", lambda name, lr: bicubic(lr, 2))
    with pytest.raises(ImageError, match="a: HR must be 2 times LR, expected 64x72, got 128x144"):
        measure_row(method, find_pairs(*folders), 2, None)


# ---- pairs


def test_pairs_match_by_name_across_suffixes_and_subfolders(
    tmp_path: Path, make_photo: Callable[..., Path]
) -> None:
    for name in ("lr/x/1.png", "lr/0.png", "hr/x/1.bmp", "hr/0.tif"):
        make_photo(name)
    pairs = find_pairs(tmp_path / "lr", tmp_path / "hr")
    assert [pair.name for pair in pairs] == ["0", "x/1"]
    assert pairs[1].hr == tmp_path / "hr/x/1.bmp"
    assert len(find_pairs(tmp_path / "lr", tmp_path / "hr", limit=1)) == 1


def test_lonely_doubled_and_missing_photos_are_named(tmp_path: Path, make_photo: Callable[..., Path]) -> None:
    for name in ("lr/1.png", "lr/2.png", "hr/2.png", "hr/3.png", "twice/1.png", "twice/1.jpg"):
        make_photo(name)
    (tmp_path / "empty").mkdir()
    for lr, hr, message in (
        ("lr", "hr", r"2 have no partner: 1 \(only in .*lr\), 3 \(only in .*hr\)"),
        ("twice", "lr", "have the same name"),
        ("empty", "hr", "found none"),
        ("none", "hr", "expected a folder"),
    ):
        with pytest.raises(ImageError, match=message):
            find_pairs(tmp_path / lr, tmp_path / hr)


def test_gray_is_repeated_and_alpha_refused(make_photo: Callable[..., Path]) -> None:
    gray = read_rgb(make_photo("gray.png", channels=1))
    assert gray.shape == (24, 32, 3)
    assert (gray[..., 0] == gray[..., 2]).all()
    with pytest.raises(ImageError, match="without transparency"):
        read_rgb(make_photo("clear.png", channels=4))


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
    results = check_gates(INT8_GATES, [row("fp32"), other])
    assert [result.row for result in results] == ["int8"] * 3
    assert all(result.ok for result in results) is expected


def test_absolute_gates_hold_for_every_model_row_only() -> None:
    folder = dataclasses.replace(row("other", psnr=1.0), kind="folder")
    results = check_gates(
        Gates(min_psnr=25.2, max_niqe=6.5), [folder, row("fp32", psnr=25.3), row("int8", psnr=25.1)]
    )
    assert [(r.row, r.gate, r.ok) for r in results] == [
        ("fp32", "min_psnr", True), ("fp32", "max_niqe", True), ("int8", "min_psnr", False), ("int8", "max_niqe", True)
    ]  # fmt: skip
