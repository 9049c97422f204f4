"""Runs of the student's preference tuning: what moves, resumed, a reward that rises, the commands, and an ablation's table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from safetensors.torch import load_file  # noqa: E402  (after importorskip)
from student_gdpo_cases import brightness, stage, student  # noqa: E402

from export.student import ablation  # noqa: E402
from export.student.gdpo import StudentGdpo  # noqa: E402
from export.student.model.checkpoint import load_student, save_student  # noqa: E402
from gdposr.cli import main  # noqa: E402
from training.data.photos import CropParams, PairDataset, PhotoSet, find_images  # noqa: E402
from training.loop.budget import Budget  # noqa: E402
from training.loop.trainer import Trainer  # noqa: E402
from training.loop.validation import Validation  # noqa: E402


def run(photos: Path, out: Path, budget: Budget, made: StudentGdpo, **more: Any) -> list[dict[str, float]]:
    seen: list[dict[str, float]] = []
    pairs = PairDataset(PhotoSet(find_images(photos)), CropParams(64), seed=made.settings.seed)
    resume = more.pop("resume", False)
    Trainer(
        made,
        made.settings,
        pairs,
        out,
        budget,
        workers=0,
        on_step=lambda _, losses: seen.append(losses),
        **more,
    ).run(resume=resume)
    return seen


# --------------------------------------------------------------------------------------------------------- a run


def test_only_the_generator_moves_and_the_run_says_how(photos: Path, tmp_path: Path) -> None:
    made = stage()
    before = {name: value.clone() for name, value in made.student.state_dict().items()}
    validation = Validation(PhotoSet(find_images(photos)[:2]), tmp_path / "samples", size=64)
    seen = run(photos, tmp_path / "run", Budget(steps=3), made, validation=validation)
    after, provenance = load_student(tmp_path / "run" / "model")
    for name, value in after.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("encoder."), name
    reference = made.reference.state_dict()
    assert all(torch.equal(value, before[f"generator.{name}"]) for name, value in reference.items())
    assert provenance["settings"]["group"] == 6
    names = ("loss", "win_rate", "margin", "drift", "group_deviation", "strength", "reward_spread")
    names += ("reference/psnr", "reference/psnr_spread")  # of the model that drew the group
    assert all(np.isfinite(seen[-1][f"policy/{name}"]) for name in names)
    row = provenance["validation"]
    assert row["policy/psnr"] != row["reference/psnr"]
    assert 0 <= row["win_rate"] <= 1
    assert row["drift"] > 0


def test_only_the_path_of_the_noise_moves_if_asked(photos: Path, tmp_path: Path) -> None:
    made = stage(noise_only=True)
    before = {name: value.clone() for name, value in made.student.state_dict().items()}
    run(photos, tmp_path / "run", Budget(steps=3), made)
    after = made.student.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved == {"generator.noise.weight"}, "a tiny student has no gate"


def test_an_untrained_policy_ties_with_its_reference(photos: Path, tmp_path: Path) -> None:
    validation = Validation(PhotoSet(find_images(photos)), tmp_path, size=64, batch=3)
    found = stage().measure(validation)
    assert found["policy/psnr"] == found["reference/psnr"]
    assert (found["win_rate"], found["margin"], found["drift"]) == (0.5, 0.0, 0.0)


def test_resumed_run_equals_an_uninterrupted_one(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "whole", Budget(steps=3), stage(ema=0.5, sampler="policy"))
    stopped = Budget(steps=3)
    stopped.progress = lambda step: 1.0 if step == 1 else step / 3  # type: ignore[method-assign]
    run(photos, tmp_path / "parts", stopped, stage(ema=0.5, sampler="policy"))
    run(photos, tmp_path / "parts", Budget(steps=3), stage(ema=0.5, sampler="policy"), resume=True)
    a, b = (load_file(tmp_path / name / "state" / "state.safetensors") for name in ("whole", "parts"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "changes", [{}, {"sampler": "policy"}, {"objective": "dpo"}, {"objective": "grpo", "sampler": "policy"}]
)
def test_a_few_dozen_steps_raise_the_reward(changes: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    made = stage(brightness(), structure=0.0, colour=0.0, **changes)
    run(photos, tmp_path / "run", Budget(steps=30), made)
    found = made.measure(Validation(PhotoSet(find_images(photos)), tmp_path, size=64))
    gain = 255 * (found["policy/brightness"] - found["reference/brightness"])
    assert gain > 0.1, found
    assert found["win_rate"] > 0.9, found


def test_commands_lead_from_a_student_to_a_critic_and_a_tuned_student(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_student(student(), tmp_path / "start", {"stage": "student-noise"})
    common = ["--preset", "tiny", "--init", str(tmp_path / "start"), "--data", str(photos), "--workers", "0"]
    critic, out = str(tmp_path / "critic"), tmp_path / "gdpo"
    assert main(["train", "critic", *common, "--out", critic, "--steps", "2"]) == 0
    tune = ["train", "student-gdpo", *common, "--out", str(out), "--steps", "2", "--critic", critic]
    assert main(tune) == 2
    assert "--set metrics=psnr,smooth,texture,critic" in capsys.readouterr().err
    assert main([*tune, "--set", "metrics=psnr,critic", "--set", "min_spread=psnr:0.02,critic:0.01"]) == 0
    provenance = load_student(out / "model")[1]
    assert [part["stage"] for part in provenance["history"]] == ["student-noise"]
    assert {"policy/critic", "reference/critic", "win_rate"} <= provenance["validation"].keys()
    assert provenance["critic"] == "critic"


# ------------------------------------------------------------------------------------------------------- ablation


def test_ablation_measures_once_and_prints_its_table(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_student(student(), tmp_path / "start")
    command = ["--init", str(tmp_path / "start"), "--data", str(photos), "--out", str(tmp_path / "out"), "--seeds", "1",
               "--steps", "1", "--variant", "gdpo", "--variant", "grpo", "--preset", "tiny", "--workers", "0",
               "--set", "held_out=1"]  # fmt: skip
    assert ablation.main(command) == 0
    table = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:5]] == ["start", "gdpo", "grpo"]
    assert "1 held-out photos are few" in table
    results = tmp_path / "out" / "results.jsonl"
    assert len(results.read_text().splitlines()) == 3
    assert ablation.main(command) == 0  # nothing is run again
    assert capsys.readouterr().out == table
    assert len(results.read_text().splitlines()) == 3
    assert (tmp_path / "out" / "table.md").read_text() == table


def test_ablation_takes_no_row_of_other_settings(photos: Path, tmp_path: Path) -> None:
    save_student(student(), tmp_path / "start")
    command = ["--init", str(tmp_path / "start"), "--data", str(photos), "--out", str(tmp_path / "out"), "--seeds", "0",
               "--preset", "tiny", "--workers", "0", "--set", "held_out=1"]  # fmt: skip

    def rows() -> int:
        return len((tmp_path / "out" / "results.jsonl").read_text().splitlines())

    assert ablation.main(command) == 0
    assert ablation.main(command) == 0
    assert rows() == 1
    assert ablation.main([*command, "--set", "metrics=psnr"]) == 0
    assert ablation.main([*command, "--preset", "pocket"]) == 0
    assert rows() == 3


def test_ablation_needs_photos_held_out(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_student(student(), tmp_path / "start")
    command = ["--init", str(tmp_path / "start"), "--data", str(photos), "--out", str(tmp_path / "out")]
    assert ablation.main([*command, "--set", "held_out=0"]) == 2
    assert "got held_out=0" in capsys.readouterr().err


def test_ablation_takes_differences_photo_by_photo() -> None:
    """Photos that differ far more than the models do, and a gain on each of them."""
    start = {"psnr": [20.0, 30.0, 40.0], "win rate": [0.5, 0.5, 0.5]}
    rows = [{"variant": "start", "seconds": 0, "scores": start}]
    for gain in (0.1, 0.2):
        scores = {"psnr": [x + gain for x in start["psnr"]], "win rate": [1.0, 1.0, 0.5]}
        rows.append({"variant": "gdpo", "seconds": 60, "scores": scores})
    line = ablation.markdown(rows).splitlines()[3]
    assert line == "| gdpo | 2 | 60 | 0.83 (0.50 to 1.00) | +0.15 (+0.15 to +0.15) ± 0.071 |"
