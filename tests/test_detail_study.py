"""The table of candidates: goals by hand on values, and folders of pictures whose rank is known."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from calibration.studies.detail import good_enough, main, summary  # noqa: E402  (after importorskip)

SCALE, SIDE = 4, 16
NAN = float("nan")


def row(gradients: float, grain: float, truth: float, chroma: float = 0.0) -> dict[str, float]:
    return {
        "gradients": gradients,
        "grain": grain,
        "truth_grain": truth,
        "chroma": chroma,
        "truth_chroma": truth,
    }


def test_marks_by_hand() -> None:
    rows = [row(1.0, 1.5, 1.0), row(2.0, 1.6, 1.0, chroma=9.0), row(3.0, NAN, NAN, chroma=NAN)]
    baseline = [row(2.0, 0, 0), row(2.0, 0, 0), row(4.0, 0, 0)]
    assert good_enough(rows, baseline) == {
        "nearer": [True, False, True],
        "clean_grain": [True, False],  # the third has no flat part
        "clean_chroma": [True, False],
    }
    line = summary("ours", rows, baseline)
    assert line["shares"]["nearer"]["share"] == pytest.approx(2 / 3)
    assert line["shares"]["clean_grain"]["pictures"] == 2
    assert line["means"]["grain"] == pytest.approx(1.55)
    assert "nearer" not in summary("ours", rows, None)["shares"]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """lr, hr, "good" nearly the truth, "noisy" with grain on it, and "other", a second sample of "good" that differs on bars alone."""
    rng = np.random.default_rng(0)
    for index in range(3):
        bars = np.where(np.arange(SIDE * SCALE) // 4 % 2, 60.0, 180.0)
        bars[: SIDE * SCALE // 2] = 100.0 + index
        hr = np.broadcast_to(bars[None, :, None], (SIDE * SCALE, SIDE * SCALE, 3)).copy()
        other = hr.copy()
        other[:, SIDE * SCALE // 2 :] += rng.choice([-5.0, 5.0], (SIDE * SCALE, SIDE * SCALE // 2, 1))
        pictures = {
            "hr": hr,
            "lr": hr[::SCALE, ::SCALE],
            "good": hr,
            "noisy": hr + rng.normal(0, 5, hr.shape),
            "other": other,
        }
        for folder, pixels in pictures.items():
            suffix = "_x4_seed0" if folder == "other" else ""
            path = tmp_path / folder / f"p{index}{suffix}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(path)
    return tmp_path


def test_candidates_are_told_apart(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [f"--{name}={world / name}" for name in ("lr", "hr")]
    candidates = [
        f"--sr=good={world / 'good'}",
        f"--sr=noisy={world / 'noisy'}",
        f"--second=good={world / 'other'}",
    ]
    out = world / "eye.json"
    assert main([*folders, *candidates, "--baseline", "noisy", "--json", str(out)]) == 0
    lines = {line["name"]: line for line in json.loads(out.read_text())["models"]}
    assert list(lines) == ["bicubic", "good", "noisy"]
    good, noisy = lines["good"], lines["noisy"]
    assert good["means"]["gradients"] == 0
    assert [good["shares"][key]["share"] for key in ("nearer", "clean_grain", "clean_chroma")] == [1, 1, 1]
    assert noisy["shares"]["clean_grain"]["share"] == noisy["shares"]["clean_chroma"]["share"] == 0
    assert noisy["means"]["grain"] > 2
    assert good["means"]["flat"] == 0
    assert good["means"]["texture"] > 3
    assert "texture" not in noisy["means"]
    printed = capsys.readouterr().out
    assert "3 pictures; nearer than noisy" in printed
    assert "seeds on texture (>= 3)" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--baseline", "peer"], "peer"),
        (["--sr", "x"], "expected NAME=DIR"),
        (["--sr", "bicubic=good"], "names of their own"),
        (["--sr", "x=empty"], "pictures are missing"),
        (["--every", "0"], "at least 1"),
    ],
)
def test_what_does_not_fit_is_told(
    world: Path,
    change: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(world)
    (world / "empty").mkdir()
    shutil.copy(world / "good" / "p0.png", world / "empty" / "q.png")
    assert main(["--lr", "lr", "--hr", "hr", "--sr", "good=good", *change]) == 2
    assert message in capsys.readouterr().err
