"""Stable Diffusion 2.1 at its full size, with random weights: one NAOSD and one GDPO step on a CPU within 24 GB."""

import resource
import time
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("diffusers", reason="needs the extra `train`")
pytest.importorskip("onnx", reason="needs the extra `export`")

from make_miniature_sd21 import make_miniature  # noqa: E402  (after importorskip)
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

from tools.sd21_size import bfloat16, full_size_networks  # noqa: E402
from training.data.photos import CropParams, PairDataset, PhotoSet, find_images  # noqa: E402
from training.loop.budget import Budget  # noqa: E402
from training.loop.stage import RunSettings, Stage  # noqa: E402
from training.loop.trainer import Trainer  # noqa: E402
from training.metrics.registry import create_metrics  # noqa: E402
from training.metrics.squeezenet import perceptual_loss  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.model.schedule import NoiseSchedule  # noqa: E402
from training.model.text import PromptSource, TextConditioner, load_text  # noqa: E402
from training.stages.gdpo import Gdpo  # noqa: E402
from training.stages.naosd import Naosd  # noqa: E402
from training.stages.presets import GDPO, NAOSD  # noqa: E402

CROP = 256  # HR pixels: a quarter of the preset's 512x512 in work, the same weights
LIMIT_GB = 24


def full_size(folder: Path) -> OneStepModel:
    """The architecture of stable-diffusion-2-1-base in bf16; the tokenizer is the miniature's."""
    torch.manual_seed(0)
    unet, vae = full_size_networks()
    with bfloat16():
        encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=23,
                num_attention_heads=16,
                hidden_act="gelu",
                projection_dim=512,
            )
        )
    tokenizer = load_text(make_miniature(folder)).tokenizer
    return OneStepModel(vae, unet, TextConditioner(tokenizer, encoder), NoiseSchedule.scaled_linear())


def one_step(stage: Stage, settings: RunSettings, photos: Path, out: Path) -> dict[str, float]:
    seen: list[dict[str, float]] = []
    pairs = PairDataset(PhotoSet(find_images(photos)), CropParams(settings.crop), seed=0)
    trainer = Trainer(
        stage,
        settings,
        pairs,
        out,
        Budget(steps=1),
        prompts=PromptSource(photos, "a photo"),
        workers=0,
        on_step=lambda step, losses: seen.append(losses),
    )
    trainer.run()
    return seen[0]


@pytest.mark.nightly
def test_one_step_of_each_stage_at_full_size(photos: Path, weights: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    model = full_size(tmp_path / "miniature")
    assert sum(p.numel() for p in model.unet.parameters()) == 865_910_724
    settings = replace(NAOSD["sd21"], batch=1, crop=CROP, precision="bf16", warmup_steps=1)
    stage = Naosd(model, settings, perceptual_loss(weights), str(tmp_path / "miniature"))
    losses = one_step(stage, settings, photos, tmp_path / "naosd")
    assert 0 < losses["generator/loss"] < 100
    assert 0 < losses["score/loss"] < 100
    tuned = replace(GDPO["sd21"], crop=CROP, precision="bf16", warmup_steps=1, metrics=("psnr", "niqe"))
    del stage
    model = full_size(tmp_path / "miniature")
    policy = Gdpo(model, tuned, create_metrics(tuned.metrics, "cpu"), str(tmp_path / "miniature"))
    losses = one_step(policy, tuned, photos, tmp_path / "gdpo")
    assert losses["policy/loss"] == pytest.approx(0.693, abs=0.01)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak {peak:.1f} GB, {time.monotonic() - began:.0f} s")
    assert peak < LIMIT_GB
