"""Accuracy: every row measured alike, pairs matched by name with clear errors, gates that decide."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.measure.accuracy import AccuracyReport, ImageScore, Row, evaluate, measure_row
from calibration.measure.gates import GATE_NAMES, INT8_GATES, Gates, check_gates, default_budgets
from calibration.measure.intervals import difference, interval
from calibration.measure.methods import Method, Tiled, bicubic, tile_borders
from calibration.measure.pairs import find_pairs, read_rgb
from calibration.measure.table import compared, evenly
from calibration.sensitivity import LayerNoise
from runtime.bundle.manifest import SizeRule
from runtime.errors import BundleError, ImageError, SettingError
from training.metrics import pyiqa as perceptual

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


def test_diversity_and_seam_are_of_pictures_from_the_whole_list(folders: tuple[Path, Path]) -> None:
    assert evenly(24, 8) == [0, 3, 7, 10, 13, 16, 20, 23]
    assert (evenly(3, 8), evenly(5, 1), evenly(5, 0)) == ([0, 1, 2], [0], [])
    pairs = find_pairs(*folders)
    step = {read_rgb(pair.lr).tobytes(): 10 * (1 + k) for k, pair in enumerate(pairs)}

    def samples(lr: np.ndarray, count: int) -> list[np.ndarray]:
        return [np.full((4, 4, 3), k * step[lr.tobytes()], np.uint8) for k in range(count)]

    method = Method("random", "model", lambda name, lr: bicubic(lr, 4), samples=samples)
    row = measure_row(method, pairs, 4, None, 2, 2)
    assert row.diversity == pytest.approx((10 + 30) / 2)  # of the first and the last picture
    assert (row.intervals["diversity"].low, row.intervals["diversity"].high) == pytest.approx((10, 30))
    together = measure_row(method, pairs, 4, None, 2, 2, group=lambda name: "one photo").intervals[
        "diversity"
    ]
    assert (together.low, together.high) == pytest.approx((20, 20))


def test_the_seam_is_that_of_small_tiles(folders: tuple[Path, Path]) -> None:
    """A method whose tiles differ by 40 levels, on the first picture only."""

    def tiled(lr: np.ndarray) -> Tiled:
        picture = bicubic(lr, 4) // 2
        picture[64:] += 40
        return Tiled(picture, (64,), ())

    method = Method("cut", "peer", lambda name, lr: bicubic(lr, 4), tiled=tiled)
    row = measure_row(method, find_pairs(*folders), 4, None, 1)
    assert row.seam is not None
    assert row.seam > 3
    assert measure_row(method, find_pairs(*folders), 4, None, 0).seam is None
    flat = dataclasses.replace(method, tiled=lambda lr: Tiled(np.zeros((144, 128, 3), np.uint8), (64,), ()))
    assert measure_row(flat, find_pairs(*folders), 4, None).seam is None


def test_borders_are_where_the_runtime_cuts() -> None:
    rule = SizeRule(multiple_of=2, minimum=8, tile=64, context=6)
    assert tile_borders(40, 100, 32, rule, 4) == ((128,), (128, 256, 384))
    assert tile_borders(32, 20, 32, rule, 4) == ((), ())
    blended = dataclasses.replace(rule, overlap=8)
    assert tile_borders(40, 64, 32, blended, 4) == ((96,), (96, 192))


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
        ("empty", "hr", "got none"),
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
