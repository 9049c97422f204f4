"""Preference tuning of the student: its loss, what holds it back, groups that hardly differ, settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from student_gdpo_cases import brightness, stage  # noqa: E402  (after importorskip)

from export.student.gdpo import (  # noqa: E402
    Group,
    StudentGdpo,
    StudentGdpoSettings,
    relative_change,
)
from export.student.losses import distances  # noqa: E402
from training.data.batches import Batch, batches  # noqa: E402
from training.data.photos import CropParams, PairDataset, PhotoSet, find_images  # noqa: E402
from training.metrics.registry import Metric  # noqa: E402
from training.settings import from_dict, to_dict, with_settings  # noqa: E402
from training.stages.normalisation import normalise  # noqa: E402
from training.stages.preference import group_variance, preference_loss  # noqa: E402
from training.stages.rewards import group_rewards  # noqa: E402


def a_batch(photos: Path, size: int = 2) -> Batch:
    pairs = PairDataset(PhotoSet(find_images(photos)), CropParams(64), seed=3)
    return next(batches(pairs, None, size, workers=0))


def drawn(made: StudentGdpo, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, Group]:
    features, base = made.student.encoder(batch.lr)
    return features, base, made.draw(features, base, batch)


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
