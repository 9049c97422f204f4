"""Rules of NAOSD: what it trains, the gradient of its score distillation, losses that are switched off."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from stage_runs import SD_NAOSD, a_batch  # noqa: E402  (after importorskip)

from training.data.batches import Batch  # noqa: E402
from training.metrics.squeezenet import perceptual_loss  # noqa: E402
from training.model.loading import load_model  # noqa: E402
from training.model.text import NEGATIVE_PROMPT  # noqa: E402
from training.randomness import integers, normal  # noqa: E402
from training.stages.naosd import Naosd  # noqa: E402


def test_naosd_trains_lora_and_conv_in_and_never_the_decoder(miniature: Path, weights: Path) -> None:
    stage = Naosd(load_model(miniature), SD_NAOSD, perceptual_loss(weights), str(miniature))
    names = [name for name, p in stage.model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or "conv_in" in name for name in names)
    assert any("conv_in" in name for name in names)
    assert any(name.startswith("vae.") for name in names)
    assert not any("decoder" in name for name in names)
    groups = stage.groups()
    generator, score = ({id(p) for p in groups[phase][0]} for phase in ("generator", "score"))
    assert generator
    assert score
    assert not generator & score


def test_vsd_is_zero_where_the_score_network_is_the_base(
    miniature: Path, photos: Path, weights: Path
) -> None:
    """The LoRA of the score network begins without effect, so without guidance both scores are the same."""
    stage = Naosd(load_model(miniature), replace(SD_NAOSD, cfg=1.0), perceptual_loss(weights), "base")
    batch = replace(a_batch(photos), prompts=("a photo", "a photo"))
    losses, carry = stage("generator", batch, {})
    assert float(losses["vsd"]) == pytest.approx(0.0, abs=1e-8)
    guided = Naosd(load_model(miniature), SD_NAOSD, perceptual_loss(weights), "base")
    assert float(guided("generator", batch, {})[0]["vsd"]) > 1e-6
    assert not carry["clean"].requires_grad


@pytest.mark.parametrize("negative", [NEGATIVE_PROMPT, "the photo"])
def test_vsd_pulls_towards_the_base_and_away_from_the_score_network(
    miniature: Path, weights: Path, negative: str
) -> None:
    """Gradient 2 (z_fake - z_real) / mean |z - z_real| / numel, from an independent calculation with the same noise."""
    settings = replace(SD_NAOSD, negative_prompt=negative)
    stage = Naosd(load_model(miniature), settings, perceptual_loss(weights), "base")
    score: Any = stage.score
    for name, parameter in score.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.02)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    batch = Batch((4, 9), torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 64, 64), ("a", "b"), ("", ""))
    condition = stage.model.condition(batch.prompts, 2)
    (gradient,) = torch.autograd.grad(stage._vsd(z, condition, batch), z)

    schedule = stage.model.schedule
    t = integers(0, batch.items, 20, 500, "vsd timestep")
    alpha = schedule.alpha_bar[t].float().reshape(2, 1, 1, 1)
    noisy = alpha.sqrt() * z.detach() + (1 - alpha).sqrt() * normal(0, batch.items, (4, 8, 8), "vsd noise")

    def clean(output: torch.Tensor) -> torch.Tensor:
        return (noisy - (1 - alpha).sqrt() * output) / alpha.sqrt()

    with torch.no_grad():
        fake = clean(score(noisy, t, encoder_hidden_states=condition).sample)
        with score.disable_adapter():
            unwanted = stage.model.condition((negative,) * 2, 2)
            low, high = (score(noisy, t, encoder_hidden_states=c).sample for c in (unwanted, condition))
            real = clean(low + 7.5 * (high - low))
        scale = (z - real).abs().mean((1, 2, 3), keepdim=True)
    expected = 2 * (fake - real) / scale / z.numel()
    assert float((gradient - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_gradient_checkpointing_reaches_every_unet(miniature: Path, weights: Path) -> None:
    settings = replace(SD_NAOSD, gradient_checkpointing=True)
    stage = Naosd(load_model(miniature), settings, perceptual_loss(weights), "base")
    for unet in (stage.model.unet, stage.score):
        assert any(getattr(module, "gradient_checkpointing", False) for module in unet.modules())


def test_switched_off_losses_are_absent(miniature: Path, photos: Path) -> None:
    settings = replace(SD_NAOSD, perceptual=0.0, vsd=0.0)
    stage = Naosd(load_model(miniature), settings, None, "base")
    assert stage.phases(0.0) == ("generator",)
    losses, _ = stage("generator", replace(a_batch(photos), prompts=("", "")), {})
    assert set(losses) == {"l1", "loss"}
    assert float(losses["loss"]) == pytest.approx(float(losses["l1"]))
