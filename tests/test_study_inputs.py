"""Inputs of blind studies, and pictures of models without exporting them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from calibration.studies import inputs  # noqa: E402  (after importorskip)
from export.student import sample  # noqa: E402
from export.student.model.checkpoint import save_student  # noqa: E402
from export.student.model.network import Student, StudentConfig  # noqa: E402


def tree(folder: Path) -> dict[str, np.ndarray]:
    return {
        p.relative_to(folder).as_posix(): np.asarray(Image.open(p)) for p in sorted(folder.rglob("*.png"))
    }


def test_inputs_come_in_kinds_with_the_truth_where_there_is_one(photos: Path, tmp_path: Path) -> None:
    command = ["--photos", str(photos), "--real", str(photos), "--camera", str(photos), "--each", "3"]
    assert inputs.main([*command, "--out", str(tmp_path / "a")]) == 0
    lr, hr = tree(tmp_path / "a" / "lr"), tree(tmp_path / "a" / "hr")
    kinds = [name.split("/")[0] for name in lr]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys((*inputs.MADE, "real", "camera"), 3)
    assert {name.split("/")[0] for name in hr} == set(inputs.MADE)
    for name, truth in hr.items():
        assert lr[name].shape[0] * 4 == truth.shape[0]
        assert lr[name].shape[1] * 4 == truth.shape[1]

    def error(kind: str) -> float:
        found = [
            lr[n] - np.asarray(Image.fromarray(hr[n]).reduce(4), float) for n in hr if n.startswith(kind)
        ]
        return float(np.mean([np.square(e).mean() for e in found]))

    assert error("clean") < error("jpeg75") < error("jpeg40")
    assert inputs.main([*command, "--out", str(tmp_path / "b")]) == 0
    again = tree(tmp_path / "b")
    assert all(np.array_equal(again[f"lr/{name}"], pixels) for name, pixels in lr.items())
    assert inputs.main([*command, "--seed", "1", "--out", str(tmp_path / "c")]) == 0
    assert any(not np.array_equal(p, lr.get(n, p[:1])) for n, p in tree(tmp_path / "c" / "lr").items())


def test_too_few_photos_are_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inputs.main(["--photos", str(photos), "--out", str(tmp_path / "a"), "--each", "9"]) == 2
    assert "expected at least 9 photos, got 4" in capsys.readouterr().err


def test_sample_keeps_the_tree_and_follows_the_seed(photos: Path, ncnn_network: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lr" / "kind"
    folder.mkdir(parents=True)
    Image.open(photos / "0.png").crop((0, 0, 17, 14)).save(folder / "odd.png")
    torch.manual_seed(0)
    save_student(
        Student(StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8)), tmp_path / "student"
    )
    seen = {}
    for name, more in (
        ("bicubic", ["--model", "bicubic"]),
        ("prior", ["--model", str(ncnn_network)]),
        ("zero", ["--model", str(tmp_path / "student")]),
        ("again", ["--model", str(tmp_path / "student")]),
        ("one", ["--model", str(tmp_path / "student"), "--seed", "1"]),
    ):
        assert sample.main([*more, "--lr", str(tmp_path / "lr"), "--out", str(tmp_path / name)]) == 0
        seen[name] = np.asarray(Image.open(tmp_path / name / "kind" / "odd.png"))
        assert seen[name].shape == (56, 68, 3)
    assert np.array_equal(seen["zero"], seen["again"])
    assert not np.array_equal(seen["zero"], seen["one"])


def test_unknown_model_is_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--lr", str(photos), "--out", str(tmp_path / "out")]
    assert sample.main(["--model", str(tmp_path / "none"), *args]) == 2
    assert "is not a student checkpoint" in capsys.readouterr().err
    assert sample.main(["--model", "bicubic", *args, "--device", "gpu"]) == 2
    assert "--device gpu: no such device" in capsys.readouterr().err
