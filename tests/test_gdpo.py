"""Rules of GDPO: groups and their noise, policy and reference, validation by pairs, the anchor."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from stage_runs import SD_GDPO, a_batch, two_steps  # noqa: E402  (after importorskip)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from training.data.photos import PhotoSet, find_images  # noqa: E402
from training.loop.validation import Validation  # noqa: E402
from training.main import build_stage  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.stages.gdpo import Gdpo  # noqa: E402


def policy(miniature: Path, **changes: Any) -> Gdpo:
    stage = build_stage(replace(SD_GDPO, **changes), base=str(miniature))
    assert isinstance(stage, Gdpo)
    return stage


def test_encoder_runs_once_for_a_picture(
    miniature: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, calls = policy(miniature, group=4), []
    encode: Callable[..., Any] = OneStepModel.encode

    def counted(self: OneStepModel, lr: torch.Tensor) -> torch.Tensor:
        calls.append(len(lr))
        return encode(self, lr)

    monkeypatch.setattr(OneStepModel, "encode", counted)
    stage("policy", replace(a_batch(photos), prompts=("a", "b")), {})
    assert calls == [2]


def test_group_differs_by_its_noise_and_is_the_same_again(miniature: Path, photos: Path) -> None:
    stage = policy(miniature)
    batch = replace(a_batch(photos), prompts=("a", "b"))
    first, again = stage.draw(batch), stage.draw(batch)
    assert first.candidates.shape[:2] == (2, 3)
    assert torch.equal(first.candidates, again.candidates)
    assert not torch.equal(first.candidates[:, 0], first.candidates[:, 1])
    assert torch.allclose(first.advantage.mean(1), torch.zeros(2), atol=1e-5)


def test_policy_begins_at_the_reference_and_only_its_lora_moves(miniature: Path, photos: Path) -> None:
    for condition in ("candidate", "lr"):
        stage = policy(miniature, condition=condition)
        assert all("lora_" in n for n, p in stage.named_parameters() if p.requires_grad)
        losses, _ = stage("policy", replace(a_batch(photos), prompts=("a", "b")), {})
        assert float(losses["loss"]) == pytest.approx(0.693147, abs=1e-4)
        losses["loss"].backward()
        moved = [
            n for n, p in stage.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0
        ]
        assert moved
        assert all("lora_B" in name for name in moved)  # the gradient of A is zero while B is


@pytest.mark.parametrize("condition", ["candidate", "lr"])
def test_steps_lower_the_loss_on_their_batch(condition: str, miniature: Path, photos: Path) -> None:
    stage = policy(miniature, condition=condition, weight=200.0)
    batch = replace(a_batch(photos), prompts=("a", "b"))
    optimizer = torch.optim.AdamW(stage.groups()["policy"][0], lr=2e-3)
    losses = []
    for _ in range(4):
        values, _ = stage("policy", batch, {})
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        losses.append(float(values["loss"].detach()))
    assert losses[-1] < losses[0]


def test_reference_and_policy_sampler_part_once_the_policy_moves(miniature: Path, photos: Path) -> None:
    batch = replace(a_batch(photos), prompts=("a", "b"))
    by_reference, by_policy = policy(miniature), policy(miniature, sampler="policy")
    before = [stage.draw(batch).candidates for stage in (by_reference, by_policy)]
    torch.testing.assert_close(*before, atol=1e-5, rtol=1e-4)
    for stage in (by_reference, by_policy):
        for parameter in stage.groups()["policy"][0]:
            torch.nn.init.constant_(parameter, 0.02)
    after = [stage.draw(batch).candidates for stage in (by_reference, by_policy)]
    torch.testing.assert_close(after[0], before[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(after[1], before[1], atol=1e-3)


def test_noise_of_the_loss_is_shared_unless_asked_otherwise(
    miniature: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, seen = replace(a_batch(photos), prompts=("a", "b")), []
    start = OneStepModel.start

    def watch(self: OneStepModel, latent: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        seen.append(noise)
        return start(self, latent, noise)

    for shared in (True, False):
        stage = policy(miniature, shared_noise=shared)
        group = stage.draw(batch)
        with monkeypatch.context() as patch:
            patch.setattr(OneStepModel, "start", watch)
            seen.clear()
            stage._outputs(group, batch)
        noise = seen[0].unflatten(0, (2, 3))
        assert torch.equal(noise[:, 0], noise[:, 1]) is shared
        assert not torch.equal(noise[0], noise[1])


@pytest.mark.slow
def test_validation_compares_the_policy_with_its_reference(
    miniature: Path, photos: Path, tmp_path: Path
) -> None:
    """log.jsonl has each metric of both; the curves name the model that drew the groups."""
    settings = replace(SD_GDPO, metrics=("psnr", "niqe"), lr=1e-2)
    seen = two_steps("gdpo", settings, photos, tmp_path, base=str(miniature))
    assert {"policy/reference/psnr", "policy/reference/psnr_spread", "policy/win_rate"} <= seen[0].keys()
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert row["policy/psnr"] != row["reference/psnr"]
    assert row["policy/niqe"] != row["reference/niqe"]
    assert 0 <= row["win_rate"] <= 1
    assert -1 <= row["margin"] <= 1
    assert row["drift"] > 0.1
    assert row["latent_drift"] > 0.001
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"samples", "groups"} <= set(curves.Tags()["images"])
    sheet = curves.Images("groups")[-1]
    size = 2 + 12 * 3  # reward, psnr and niqe below each picture
    assert (sheet.width, sheet.height) == (256 * (1 + settings.group), 256 + size)


def test_an_untrained_policy_ties_with_its_reference(miniature: Path, photos: Path, tmp_path: Path) -> None:
    found = policy(miniature).measure(Validation(PhotoSet(find_images(photos)), tmp_path, size=64, batch=3))
    assert found["policy/ssim"] == pytest.approx(found["reference/ssim"], rel=1e-6)
    assert (found["win_rate"], found["margin"]) == (0.5, 0.0)
    assert max(found["drift"], found["latent_drift"]) < 1e-4


def test_groups_that_hardly_differ_count_less_with_min_spread(miniature: Path, photos: Path) -> None:
    batch = replace(a_batch(photos), prompts=("a", "b"))
    plain = policy(miniature, metrics=("psnr",)).draw(batch)
    demanding = policy(miniature, metrics=("psnr",), min_spread=("psnr:1000",)).draw(batch)
    strength = demanding.report.strength.mean()
    assert 0 < float(strength) < 0.1
    assert float(plain.report.strength.mean()) == 1.0
    share = demanding.advantage.abs().sum(1) / plain.advantage.abs().sum(1)
    assert float(share.mean()) == pytest.approx(float(strength), rel=0.05)


@pytest.mark.slow
def test_an_anchor_holds_the_lr_conditioned_policy(miniature: Path, photos: Path) -> None:
    batch = replace(a_batch(photos), prompts=("a", "b"))

    def distance(anchor: float) -> float:
        stage = policy(miniature, condition="lr", anchor=anchor, weight=1.0)
        optimizer = torch.optim.AdamW(stage.groups()["policy"][0], lr=1e-2)
        for _ in range(3):
            losses, _ = stage("policy", batch, {})
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
        return float(stage("policy", batch, {})[0]["anchor"])

    free, held = distance(0.0), distance(10.0)
    assert 0 < held < 0.5 * free
