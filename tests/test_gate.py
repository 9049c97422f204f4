"""The gate that every change passes: the shipped bundle keeps its budgets on degraded open photos, and carries its proof."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("skimage", reason="needs the extra `export`, whose scikit-image holds the photos")

from calibration.measure.gates import Gates
from calibration.measure.pairs import find_pairs, read_rgb
from calibration.samples import draw_sets, write_open_pairs
from calibration.sensitivity import read_rows
from gdposr.cli import main
from runtime.bundle.reader import Bundle

COMMAND = ["accuracy", "--no-speed", "--limit", "7"]


@pytest.mark.slow
def test_the_shipped_bundle_keeps_its_budgets_on_open_photos(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--check", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["count"], report["groups"], report["few"]) == (7, 6, True)
    assert report["pictures"] == "7 degraded crops of 6 open photos (scikit-image)"
    assert "over 6 photos, of which the 7 pictures are crops: too few to trust" in report["caution"]
    assert {image["group"] for image in report["rows"][0]["images"]} >= {"chelsea", "moon"}
    assert "not checked: max_sqf_rise, which needs --sqf-weights FILE" in err
    packages = [f"coreml {name}" for name in Bundle.open().manifest.coreml]
    assert f"not checked: {', '.join(packages)} (give --coreml all)" in err
    checked = {(gate["row"], gate["gate"]): gate for gate in report["gates"]}
    for gate in ("max_psnr_loss", "min_diversity_ratio"):
        assert checked["int8", gate]["value"] is not None
        assert checked["int8", gate]["ok"]
    assert report["ok"] is True


def test_the_open_photos_are_not_those_that_calibration_saw(tmp_path: Path) -> None:
    lr, hr = write_open_pairs(tmp_path, 12, size=32)
    measured = {pair.name.rpartition("-")[0] for pair in find_pairs(lr, hr)}
    seen = {Path(sample.photo).stem for sample in draw_sets(None, seeds=1, size=32).calibration}
    assert measured
    assert measured.isdisjoint(seen)


def test_a_broken_budget_fails_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--precision", "fp32", "--precision", "int8", "--budget", "max_psnr_loss=-1"]
    assert main([*COMMAND[:2], "--limit", "2", *arguments]) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_open_pairs_are_the_same_every_time_and_fit_the_model(tmp_path: Path) -> None:
    lr, hr = write_open_pairs(tmp_path / "a", 9, size=32)
    again = write_open_pairs(tmp_path / "b", 9, size=32)
    pairs = find_pairs(lr, hr)
    assert len(pairs) == 9
    assert {"chelsea-0", "chelsea-1"} <= {pair.name for pair in pairs}
    for pair in pairs:
        assert read_rgb(pair.lr).shape == (32, 32, 3)
        assert read_rgb(pair.hr).shape == (128, 128, 3)
    for folder, other in zip((lr, hr), again, strict=True):
        for path in folder.iterdir():
            assert path.read_bytes() == (other / path.name).read_bytes()


def test_half_a_pair_of_folders_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accuracy", "--lr", str(tmp_path)]) == 2
    assert "--lr and --hr belong together" in capsys.readouterr().err


def test_the_shipped_bundle_carries_its_proof() -> None:
    manifest = Bundle.open().manifest
    rows = [name for name in manifest.graphs if name != "fp32"] + [
        f"coreml {name}" for name in manifest.coreml
    ]
    assert set(manifest.budgets) == set(rows)
    for limits in manifest.budgets.values():
        assert Gates.from_dict(limits).max_psnr_loss == 0.1
    proof = manifest.accuracy["int8"]["validation"]
    assert proof["max_psnr_loss"] <= 0.1
    assert proof["min_diversity_ratio"] >= 0.95
    found = read_rows(manifest.accuracy["sensitivity"])
    cost = {row.layer: row.cost for row in found["onnx"]}
    floats = set(manifest.accuracy["int8"]["float_layers"])
    assert floats - set(cost) == {
        "encoder/Conv",
        "generator/Conv",
        "generator/Add_2",
        "generator/Add_3",
    }  # what gives pictures, by rule and not by measurement
    floats &= set(cost)
    assert floats == {"encoder/blocks/5/Add"}  # what leaves the encoder: the rest is precise enough in INT8
    assert sum(cost[layer] for layer in floats) < 0.1 * sum(cost.values()), (
        "sums may stay float, the bulk must not"
    )
    assert set(found) == {"onnx"}  # no Core ML variant that measures its layers is in it


def test_int8_is_a_third_in_size() -> None:
    graphs = Bundle.open().manifest.graphs
    size = {name: sum(graph.total_bytes for graph in pair.values()) for name, pair in graphs.items()}
    assert 3 * size["int8"] <= size["fp32"]


def test_sensitivity_prints_the_layers_worst_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "pages" / "sensitivity.html"
    assert main(["sensitivity", "--report", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("onnx"))
    worst = [line.split()[0] for line in lines[start + 1 : start + 3]]
    assert worst[0] == "generator/last/Conv"
    assert lines[start + 1].split()[-1] == "8"
    assert all(layer in page.read_text() for layer in worst)
    assert main(["sensitivity", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["sensitivity"]
    assert {"layer", "bits", "psnr", "cost", "chosen"} == set(data["onnx"][0])


def test_a_bundle_without_figures_says_so(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensitivity", str(toy_bundle)]) == 1
    assert "no layer was measured; export the student again" in capsys.readouterr().err
