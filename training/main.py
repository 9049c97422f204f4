"""The commands of the training stages.

    gdposr train pretrain --preset pocket --data DIR --out RUN --minutes M
    gdposr train naosd --preset P --base BASE --data DIR --out RUN --minutes M
    gdposr train gdpo --preset P --base NAOSD_RUN --data DIR --out RUN --steps N

A run folder contains config.json (the resolved settings, written first), log.jsonl, tensorboard/, samples/, state/
(for --resume) and, after the end, model/. The run folder is the --base of the next stage."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from training.data.photos import PhotoSet
from training.loop.budget import Budget
from training.loop.command import add_options, begin, device_preparation, exit_code, photo_pairs
from training.loop.stage import RunSettings, Stage
from training.loop.trainer import Trainer
from training.loop.validation import Validation
from training.metrics.registry import create_metrics
from training.metrics.squeezenet import NETS, Perceptual, SqueezeFeatures, perceptual_loss
from training.model.loading import load_model
from training.model.one_step import OneStepModel, base_config
from training.model.text import PromptSource
from training.settings import with_settings
from training.stages.gdpo import Gdpo, GdpoSettings
from training.stages.naosd import Naosd, NaosdSettings
from training.stages.presets import PRESETS, SD21
from training.stages.pretrain import Pretrain, PretrainSettings

log = logging.getLogger("train")

# Type of frozen weights, by precision.
FROZEN_DTYPE = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Sides of a crop's latent relative to the base's. Outside this range a warning is logged.
SIZE_RATIO = (0.75, 1.5)


def run(
    stage: str,
    settings: RunSettings,
    data: Path,
    out: Path,
    budget: Budget,
    *,
    base: str | None = None,
    text_base: str | None = None,
    perceptual_weights: Path | None = None,
    perceptual_net: str = "auto",
    resume: bool = False,
    workers: int = 1,
    validate_minutes: float = 5.0,
    photos: PhotoSet | None = None,
    caption: Callable[[Path], str] | None = None,
    validate: bool = True,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Run one stage; returns what `Trainer.run` returns.

    stage: "pretrain", "naosd" or "gdpo", matching the settings.
    settings: resolved settings of that stage.
    data: folder of photos, searched recursively.
    out: run folder.
    budget: when to end.
    base: model to start from: diffusers layout, public checkpoint or run folder.
    text_base: source of text encoder, tokenizer and scheduler if base has none.
    perceptual_weights: SqueezeNet 1.1 weights.
    perceptual_net: network of the perceptual loss, see `NETS`.
    resume: continue from out/state.
    workers: processes that prepare pictures.
    validate_minutes: minutes between validations and saved states.
    photos: decoded training photos; None reads them from data.
    caption: gives captions to photos that have none in a file, such as a tagging network; see `PromptSource`.
    validate: whether to validate at all.
    on_step: called with the step number and the losses after every step."""
    # model: the stage on its base
    settings, accelerator, training, held_out = begin(settings, data, out, resume=resume)
    built = build_stage(
        settings,
        base=base,
        text_base=text_base,
        perceptual_weights=perceptual_weights,
        perceptual_net=perceptual_net,
        device=accelerator.device,
    )
    # data: photos, and captions for a model with text
    photos = photos or PhotoSet(training)
    prompts = None
    if (model := _with_text(built)) is not None:
        prompts = PromptSource(data, settings.prompt or model.prompt, caption=caption)
        log.info("%s", prompts.describe([*photos.paths, *held_out]))
    # trainer: pairs are degraded by the loader or on the device
    features = SqueezeFeatures(perceptual_weights) if perceptual_weights else None
    pretraining = isinstance(settings, PretrainSettings)
    trainer = Trainer(
        built,
        settings,
        photo_pairs(photos, settings, hr_alone=pretraining),
        out,
        budget,
        prepare=None if pretraining else device_preparation(settings),
        prompts=prompts,
        validation=Validation(
            PhotoSet(held_out), out / "samples", features, size=max(256, settings.crop), prompts=prompts
        )
        if held_out and validate
        else None,
        save_minutes=validate_minutes,
        workers=workers,
        about={
            "stage": stage,
            "base": base,
            "data": str(data.resolve()),
            "perceptual": _perceptual_name(built),
        },
        on_step=on_step,
    )
    return trainer.run(resume=resume)


def build_stage(
    settings: RunSettings,
    *,
    base: str | None = None,
    text_base: str | None = None,
    perceptual_weights: Path | None = None,
    perceptual_net: str = "auto",
    device: torch.device | str = "cpu",
) -> Stage:
    """The stage for these settings, with its models loaded. Raises ValueError if a model that it needs is not given.

    settings: of one of the stages.
    base: model to start from.
    text_base: source of text encoder, tokenizer and scheduler if base has none.
    perceptual_weights: SqueezeNet 1.1 weights.
    perceptual_net: network of the perceptual loss, see `NETS`.
    device: for the models and metrics."""
    if isinstance(settings, PretrainSettings):
        return Pretrain(settings, _perceptual(settings.perceptual, perceptual_weights, perceptual_net))
    if base is None:
        raise ValueError(
            "this stage needs --base: a Stable Diffusion folder or hub name, or a finished run folder"
        )
    assert isinstance(settings, NaosdSettings | GdpoSettings)
    fully_trained = isinstance(settings, NaosdSettings) and settings.adapt == "full"
    model = load_model(
        base,
        base=text_base,
        noise_timestep=settings.noise_timestep if isinstance(settings, NaosdSettings) else None,
        denoise_timestep=settings.denoise_timestep if isinstance(settings, NaosdSettings) else None,
        device=device,
        dtype=torch.float32 if fully_trained else FROZEN_DTYPE[settings.precision],
    )
    warn_of_size(model, settings.crop)
    if isinstance(settings, NaosdSettings):
        perceptual = _perceptual(settings.perceptual, perceptual_weights, perceptual_net)
        return Naosd(model, settings, perceptual, base, text_base)
    if settings.precision == "bf16":
        log.warning(
            "bf16 is too coarse for the preference term; precision=no or fp16 work better in this stage"
        )
    metrics = create_metrics(settings.metrics, device, perceptual_weights)
    return Gdpo(model, settings, metrics, base, text_base)


def warn_of_size(model: OneStepModel, crop: int) -> None:
    """Log a warning if the latent of a crop is far from the size that the base was trained on, such as 64x64. crop: HR pixels."""
    trained, side = base_config(model.unet).get("sample_size"), crop // model.vae_factor
    if isinstance(trained, int) and not SIZE_RATIO[0] <= side / trained <= SIZE_RATIO[1]:
        log.warning(
            "crop=%d gives latents of %dx%d, and this base was trained on %dx%d, where it is best: --set crop=%d",
            crop,
            *(side, side, trained, trained),
            trained * model.vae_factor,
        )


def _perceptual(weight: float, weights: Path | None, net: str) -> Perceptual | None:
    if weight <= 0:
        return None
    perceptual = perceptual_loss(weights, net)
    log.info("perceptual loss: %s", perceptual.name)
    return perceptual


def _perceptual_name(stage: Stage) -> str | None:
    perceptual = getattr(stage, "perceptual", None)
    return None if perceptual is None else perceptual.name


def _with_text(stage: Stage) -> OneStepModel | None:
    """The model of a stage that trains one with a text encoder."""
    model = getattr(stage, "model", None)
    return model if getattr(model, "text", None) is not None else None


def _parser(stage: str) -> argparse.ArgumentParser:
    about = {
        "pretrain": "Train the pocket base, a small VAE and latent diffusion UNet, from a folder of photos.",
        "naosd": "Train the noise-aware one-step model on a base.",
        "gdpo": "Tune a finished NAOSD model by group direct preference optimization.",
    }
    parser = argparse.ArgumentParser(prog=f"gdposr train {stage}", description=about[stage])
    add_options(parser, PRESETS[stage])
    if stage != "pretrain":
        parser.add_argument(
            "--base",
            metavar="SOURCE",
            help="diffusers folder, hub name or finished run folder"
            + (f" (preset sd21: {SD21})" if stage == "naosd" else ""),
        )
        parser.add_argument(
            "--text-base",
            metavar="SOURCE",
            help="source of text encoder, tokenizer and scheduler if --base has none",
        )
    parser.add_argument(
        "--perceptual-weights",
        type=Path,
        metavar="FILE",
        help="SqueezeNet 1.1 (safetensors, Caffe layout), for the perceptual loss without lpips and for the metric sqf",
    )
    parser.add_argument("--perceptual-net", choices=NETS, default="auto")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """argv: the stage's name, then its options.

    Exit code 0 on success, 2 on a wrong argument or a failed run, 130 when the user stopped it."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in PRESETS:
        print(f"error: expected one of {', '.join(PRESETS)}, then its options", file=sys.stderr)
        return 2
    stage, args = argv[0], _parser(argv[0]).parse_args(argv[1:])
    base = getattr(args, "base", None)
    if base is None and stage == "naosd" and args.preset == "sd21":
        base = SD21
    return exit_code(
        lambda: run(
            stage,
            with_settings(PRESETS[stage][args.preset], args.set),
            args.data,
            args.out,
            Budget(steps=args.steps, minutes=args.minutes),
            base=base,
            text_base=getattr(args, "text_base", None),
            perceptual_weights=args.perceptual_weights,
            perceptual_net=args.perceptual_net,
            resume=args.resume,
            workers=args.workers,
            validate_minutes=args.validate_minutes,
        ),
        f"model written to {args.out / 'model'}",
    )


if __name__ == "__main__":
    raise SystemExit(main())
