"""Preference tuning of the student: what moves, by how much, and what holds it back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from safetensors.torch import load_file  # noqa: E402  (after importorskip)

from export.student import ablation  # noqa: E402
from export.student.gdpo import (  # noqa: E402
    Group,
    StudentGdpo,
    StudentGdpoSettings,
    relative_change,
)
from export.student.losses import distances  # noqa: E402
from export.student.model.checkpoint import load_student, save_student  # noqa: E402
from export.student.model.network import TINY_STUDENT, Student  # noqa: E402
from gdposr.cli import main  # noqa: E402
from training.data.batches import Batch, batches  # noqa: E402
from training.data.photos import CropParams, PairDataset, PhotoSet, find_images  # noqa: E402
from training.loop.budget import Budget  # noqa: E402
from training.loop.trainer import Trainer  # noqa: E402
from training.loop.validation import Validation  # noqa: E402
from training.metrics.registry import Metric, create_metrics  # noqa: E402
from training.settings import from_dict, to_dict, with_settings  # noqa: E402
from training.stages.normalisation import normalise  # noqa: E402
from training.stages.preference import group_variance, preference_loss  # noqa: E402
from training.stages.rewards import group_rewards  # noqa: E402

SETTINGS = StudentGdpoSettings(
    batch=2, crop=64, group=6, lr=1e-3, warmup_steps=1, held_out=1, metrics=("psnr",)
)


def student(seed: int = 0) -> Student:
    """A tiny one whose samples differ by a few levels."""
    torch.manual_seed(seed)
    made = Student(TINY_STUDENT)
    with torch.no_grad():
        made.generator.last.weight.mul_(2.0)
    return made.eval()


def brightness() -> Metric:
    return Metric("brightness", False, True, lambda sr: sr.mean((1, 2, 3)))


def stage(judge: Metric | None = None, **changes: Any) -> StudentGdpo:
    (psnr,) = create_metrics(["psnr"], "cpu")
    judge = judge or psnr
    return StudentGdpo(student(), replace(SETTINGS, metrics=(judge.name,), **changes), [judge])


def a_batch(photos: Path, size: int = 2) -> Batch:
    pairs = PairDataset(PhotoSet(find_images(photos)), CropParams(64), seed=3)
    return next(batches(pairs, None, size, workers=0))


def drawn(made: StudentGdpo, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, Group]:
    features, base = made.student.encoder(batch.lr)
    return features, base, made.draw(features, base, batch)


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


# ------------------------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize(
    "changes",
    [{}, {"sampler": "policy"}, {"objective": "dpo"}, {"objective": "grpo", "sampler": "policy"}],
)
def test_first_step_has_a_gradient_and_no_movement(changes: dict[str, Any], photos: Path) -> None:
    made = stage(**changes)
    losses, _ = made("policy", a_batch(photos), {})
    losses["loss"].backward()
    norm = sum(float(p.grad.square().sum()) for p in made.student.generator.parameters())
    assert norm > 0
    assert all(p.grad is None for p in [*made.student.encoder.parameters(), *made.reference.parameters()])
    expected = 0.0 if changes.get("objective") == "grpo" else np.log(2)
    assert float(losses["loss"].detach()) == pytest.approx(expected, abs=1e-5)
    assert (float(losses["margin"]), float(losses["drift"]), float(losses["win_rate"])) == (0.0, 0.0, 0.0)


def test_noise_of_the_group_itself_would_teach_nothing(photos: Path) -> None:
    """Every candidate is then what the policy draws: both errors and their gradients are zero at the start. A noise of the loss's own
    does not have this rest."""
    made = stage(sampler="policy")
    batch = a_batch(photos)
    features, base, group = drawn(made, batch)

    def gradient(noise: torch.Tensor) -> float:
        """noise: (B, G, ...)"""
        made.zero_grad()
        policy = torch.stack([made.student.generator(features, base, n) for n in noise.unbind(1)], dim=1)
        change = relative_change(policy, policy.detach(), group)
        preference_loss(change, group.advantage, 1.0).backward()
        return max(float(p.grad.abs().max()) for p in made.student.generator.parameters())

    own = gradient(group.noise)
    other = gradient(made.noise(features, batch, "loss").unsqueeze(1))
    assert own == 0.0
    assert other > 1e-4
    assert not torch.equal(made.noise(features, batch, "loss"), group.noise[:, 0])


def test_movement_does_not_know_the_spread_of_a_group(photos: Path) -> None:
    """Samples and the policy's move ten times as far apart: the same movement, anchor and guards."""
    made = stage()
    _, _, group = drawn(made, a_batch(photos))
    middle = group.candidates.mean(1, keepdim=True)
    move = 0.3 * (group.candidates[:, :1] - middle) + 0.001
    found = []
    for scale in (1.0, 10.0):
        candidates = middle + scale * (group.candidates - middle)
        wider = replace(group, candidates=candidates, variance=group_variance(candidates, 1e-12))
        change = relative_change(middle + scale * move, middle, wider)
        assert change.shape == (2, 6)
        held = distances((scale * move)[:, 0], torch.zeros_like(middle[:, 0]), wider.variance)
        found.append([*(group.advantage * change).sum(1).tolist(), *(float(v) for v in held.values())])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)
    assert min(abs(x) for x in found[0]) > 1e-3


def test_equal_samples_do_not_explode(photos: Path) -> None:
    made = stage()
    torch.nn.init.zeros_(made.student.generator.noise.weight)
    torch.nn.init.zeros_(made.reference.noise.weight)
    losses, _ = made("policy", a_batch(photos), {})
    losses["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in made.student.generator.parameters())
    assert float(losses["group_deviation"]) == pytest.approx(0.25, rel=1e-4)


def test_anchor_and_guards_pull_back(photos: Path) -> None:
    """A policy that has left its reference, with an objective that asks for nothing: every term leads home what it watches."""
    for name in ("anchor", "structure", "colour"):
        off = {"anchor": 0.0, "structure": 0.0, "colour": 0.0}
        constant = Metric("constant", False, True, lambda sr: torch.zeros(len(sr)))
        made = stage(constant, **(off | {name: 1.0}))
        with torch.no_grad():
            made.student.generator.last.bias.add_(torch.linspace(0.02, 0.06, 48))
        optimizer = torch.optim.Adam(made.student.generator.parameters(), lr=1e-3)
        batch, away = a_batch(photos, 1), []
        for _ in range(20):
            losses, _ = made("policy", batch, {})
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
            away.append(float(losses[name]))
        assert away[-1] < 0.7 * away[0], f"{name}: {away[0]:.2f} -> {away[-1]:.2f}"


def test_guards_see_what_they_are_named_after() -> None:
    reference = torch.full((1, 3, 32, 32), 0.5)
    variance = torch.tensor([0.01**2])
    checks = reference + 0.01 * (-1.0) ** torch.arange(32)  # fine stripes
    gray, red = reference + 0.01, reference + torch.tensor([0.01, 0.0, 0.0])[:, None, None]
    seen = {
        name: {k: round(float(v), 3) for k, v in distances(image, reference, variance).items()}
        for name, image in (("stripes", checks), ("gray", gray), ("red", red))
    }
    assert seen["stripes"] == {"anchor": 1.0, "structure": 0.0, "colour": 0.0}
    assert seen["gray"] == {"anchor": 1.0, "structure": 1.0, "colour": 0.0}
    assert seen["red"] == {"anchor": 0.333, "structure": 0.333, "colour": 0.5}


# ----------------------------------------------------------------------------------------------------- min_spread


def test_min_spread_draws_a_narrow_group_together() -> None:
    scores = torch.tensor([[25.0, 25.01, 25.005], [25.0, 26.0, 25.5], [25.0, 25.02, 25.0]])
    wanted = [[0.25, 0.75, 0.5], [0.0, 1.0, 0.5], [0.0, 1.0, 0.0]]
    np.testing.assert_allclose(normalise(scores, True, 0.02), wanted, atol=1e-3)
    np.testing.assert_allclose(normalise(scores[:1], False, 0.02), [[0.75, 0.25, 0.5]], atol=1e-3)
    broken = torch.tensor([[float("nan"), 25.0, 25.01]])
    np.testing.assert_allclose(normalise(broken, True, 0.02), [[0.0, 0.25, 0.75]], atol=1e-3)


def test_min_spread_weighs_metrics_and_groups() -> None:
    """A metric that hardly differs leaves the other in charge; where none differs, the group has no say."""
    levels = torch.tensor([[100.0, 101.0], [100.0, 140.0]])
    sr = (levels / 255)[:, :, None, None, None].expand(2, 2, 3, 16, 16)
    hr = torch.zeros(2, 3, 16, 16)
    bright = brightness()
    dark = Metric("dark", True, False, lambda sr, hr: sr.mean((1, 2, 3)) ** 2)
    plain = group_rewards(sr, hr, [bright, dark], "fixed")
    assert plain.strength.tolist() == [1.0, 1.0]
    assert plain.rewards.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    report = group_rewards(sr, hr, [bright, dark], "fixed", min_spread={"brightness": 40 / 255})
    assert report.rewards[0, 0] > report.rewards[0, 1]  # of the first group only `dark` counts
    np.testing.assert_allclose(report.strength, [(1 / 40 + 1) / 2, 1.0], atol=1e-3)
    with pytest.raises(ValueError, match="min_spread names psnr, expected some of brightness, dark"):
        group_rewards(sr, hr, [bright, dark], min_spread={"psnr": 1.0})


def test_a_group_that_hardly_differs_hardly_pulls(photos: Path) -> None:
    batch, norms = a_batch(photos), []
    for spreads in ((), ("brightness:0.9",)):
        made = stage(brightness(), min_spread=spreads)
        losses, _ = made("policy", batch, {})
        losses["loss"].backward()
        norms.append(sum(float(p.grad.square().sum()) for p in made.student.generator.parameters()) ** 0.5)
    assert norms[1] < 0.1 * norms[0]


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


# ------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["objective=ppo"], "objective must be one of gdpo, dpo, grpo, got 'ppo'"),
        (["group=2"], "group must be from 6 to 12 samples, got 2"),
        (["objective=grpo"], "set sampler=policy"),
        (["weight=0"], "weight must be above 0"),
        (["anchor=-1"], "anchor must be at least 0"),
        (["min_spread=psnr"], "min_spread is NAME:VALUE"),
        (["min_spread=niqe:0.1"], "min_spread names niqe, expected some of psnr"),
        (["crop=100"], "multiple of 16"),
    ],
)
def test_wrong_settings_are_named(changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_settings(StudentGdpoSettings(), changes)


def test_settings_go_to_json_and_back() -> None:
    made = with_settings(StudentGdpoSettings(), ["metrics=psnr,niqe", "min_spread=psnr:0.02,niqe:0.05"])
    assert made.spreads == {"psnr": 0.02, "niqe": 0.05}
    assert from_dict(StudentGdpoSettings, to_dict(made)) == made


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
