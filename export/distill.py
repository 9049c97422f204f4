"""Train the student. Here from ground truth alone: pixels, SqueezeNet features, structure and an adversary.

    python -m export.distill --data DIR --perceptual-weights FILE --out RUN --minutes 120

A run folder holds config.json (the resolved settings, written first), log.jsonl, samples/ and state/ (for --resume), and at the end
student/ (the averaged weights as safetensors + JSON). The stream of pictures and noise is a pure function of the seed and the step.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from export.objectives import (
    PatchDiscriminator,
    discriminator_loss,
    diversity_loss,
    generator_loss,
    grid_loss,
    structure_loss,
)
from export.recipe import PRESETS, DistillConfig
from export.student import Student, load_student, save_student
from training.budget import Budget, Interrupt
from training.checkpoint import has_state, load_state, save_state
from training.data import CropParams, PairDataset, PhotoSet, find_images, split_photos
from training.perceptual import SqueezeFeatures, squared_feature_distance
from training.settings import to_dict, with_settings
from training.validation import Validation

log = logging.getLogger("distill")

DEAD_BELOW = 1e-3  # difference of two samples, 1/255 rms, under which the student counts as dead


class Distiller:
    """The models, their optimizers and one `step`."""

    def __init__(self, config: DistillConfig, features: SqueezeFeatures) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.student = Student(config.student).to(memory_format=torch.channels_last)
        self.average = Student(config.student).requires_grad_(False).eval()
        self.average.load_state_dict(self.student.state_dict())
        self.discriminator = PatchDiscriminator(config.discriminator_width).to(
            memory_format=torch.channels_last
        )
        self.features = features.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.adversary = torch.optim.AdamW(
            self.discriminator.parameters(), lr=config.discriminator_lr, betas=(0.9, 0.99), weight_decay=0.0
        )
        self._perceptual: Callable[[Tensor, Tensor], Tensor] = self._feature_score
        if config.compile:
            self._perceptual = torch.compile(self._feature_score)

    def start_from(self, checkpoint: Path) -> dict[str, Any]:
        """Take the weights of a student checkpoint; returns its provenance."""
        earlier, provenance = load_student(checkpoint)
        if earlier.config != self.config.student:
            raise ValueError(
                f"{checkpoint} holds a student of shape {earlier.config}, expected {self.config.student}; set student.* to match"
            )
        self.student.load_state_dict(earlier.state_dict())
        self.average.load_state_dict(earlier.state_dict())
        return provenance

    def validate(self, validation: Validation, step: int) -> dict[str, float]:
        """Measure the averaged student."""
        c = self.config.student

        def sample(lr: Tensor, hr: Tensor, k: int) -> Tensor:
            shape = (len(lr), c.noise_channels, lr.shape[2] // c.fold, lr.shape[3] // c.fold)
            return self.average(lr, torch.randn(shape, generator=torch.Generator().manual_seed(k)))

        def plain(lr: Tensor) -> Tensor:
            return torch.pixel_shuffle(self.average.encoder(lr)[1], c.scale)

        return validation(sample, step, plain)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"student": self.student, "average": self.average, "discriminator": self.discriminator}

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"student": self.optimizer, "discriminator": self.adversary}

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bf16")

    def _feature_score(self, samples: Tensor, target: Tensor) -> Tensor:
        with self._autocast():
            near = self.features.maps(samples)
            with torch.no_grad():
                far = self.features.maps(target)
        return squared_feature_distance(near, far, self.config.feature_layers)

    def learning_rate(self, step: int, progress: float) -> float:
        """Linear warm-up, then a cosine from lr to final_lr."""
        c = self.config
        cosine = c.final_lr + (c.lr - c.final_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
        return cosine * min(1.0, (step + 1) / c.warmup_steps)

    def step(self, lr: Tensor, hr: Tensor, step: int, progress: float) -> dict[str, float]:
        """One update. lr: (n, 3, h, w), hr: (n, 3, 4h, 4w) in [0, 1]. Returns the losses of this step."""
        c = self.config
        draw = torch.Generator().manual_seed((c.seed << 32) + step)
        n, _, h, w = lr.shape
        noise = torch.randn(
            2 * n, c.student.noise_channels, h // c.student.fold, w // c.student.fold, generator=draw
        )
        dy, dx = torch.randint(
            0, 8, (2,), generator=draw
        ).tolist()  # so that no loss sees the pixel-shuffle grid at a fixed phase
        with self._autocast():
            features, base = self.student.encoder(lr)
            residual = self.student.generator.residual(features.repeat(2, 1, 1, 1), noise)
        samples = torch.pixel_shuffle(base.float().repeat(2, 1, 1, 1) + residual.float(), c.student.scale)
        losses, pull, real, fake = self._pull(samples.detach().requires_grad_(True), hr, (dy, dx), progress)
        rate = self.learning_rate(step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        samples.backward(pull)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), c.clip)
        self.optimizer.step()
        self._update_average(step)
        values = {name: value.item() for name, value in losses.items()} | {"grad": norm.item(), "lr": rate}
        if "adversary" in losses and step % c.discriminator_every == 0:
            half = step // c.discriminator_every % 2 * n
            values["discriminator"] = self._update_discriminator(real, fake.detach()[half : half + n])
        return values

    def _pull(
        self, samples: Tensor, hr: Tensor, shift: tuple[int, int], progress: float
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Losses, the gradient of their sum at the samples, and what the discriminator is to see (photos, samples).

        The adversary's gradient is scaled to a fixed share of that of pixel and structure, so its strength does not depend on how
        steep the discriminator happens to be."""
        c = self.config
        side = hr.shape[-1] - 8
        dy, dx = shift
        fake, real = (x[:, :, dy : dy + side, dx : dx + side].contiguous() for x in (samples, hr))
        losses = {
            "pixel": (samples - hr.repeat(2, 1, 1, 1)).abs().mean(),
            "structure": structure_loss(samples, hr),
        }
        anchor = _gradient(c.pixel * losses["pixel"] + c.structure * losses["structure"], samples)
        losses["feature"] = self._perceptual(
            fake[: len(hr)], real
        )  # of the first samples: same expectation, half the cost
        losses["diversity"] = diversity_loss(samples, hr, c.texture_share)
        losses["grid"] = grid_loss(samples, hr)
        total = torch.stack(
            [getattr(c, name) * losses[name] for name in ("feature", "diversity", "grid")]
        ).sum()
        pull = anchor + _gradient(total, samples)
        if c.adversary > 0 and progress >= c.adversary_from:
            self.discriminator.requires_grad_(False)
            with self._autocast():
                losses["adversary"] = generator_loss(self.discriminator(fake).float())
            push = _gradient(losses["adversary"], samples)
            pull = pull + push * (c.adversary * anchor.norm() / push.norm().clamp_min(1e-12))
        return losses, pull, real, fake

    def _update_discriminator(self, real: Tensor, fake: Tensor) -> float:
        self.discriminator.requires_grad_(True)
        with self._autocast():
            loss = discriminator_loss(
                self.discriminator(real).float(), self.discriminator(fake.clamp(0, 1)).float()
            )
        self.adversary.zero_grad(set_to_none=True)
        loss.backward()
        self.adversary.step()
        return loss.item()

    def _update_average(self, step: int) -> None:
        decay = min(self.config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(value, 1.0 - decay)


def _gradient(loss: Tensor, samples: Tensor) -> Tensor:
    return torch.autograd.grad(loss, samples, retain_graph=True)[0]


def train(
    config: DistillConfig,
    data: Path,
    perceptual_weights: Path,
    out: Path,
    budget: Budget,
    *,
    resume: bool = False,
    init: Path | None = None,
    workers: int = 1,
    validate_minutes: float = 5.0,
    on_progress: Callable[[int, float, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Run until the budget is spent; returns the last validation. FloatingPointError when a loss is not finite (state saved)."""
    if has_state(out / "state") and not resume:
        raise FileExistsError(
            f"{out} holds an unfinished or finished run; go on with --resume or choose another --out"
        )
    training, held_out = split_photos(find_images(data), config.held_out)
    distiller = Distiller(config, SqueezeFeatures(perceptual_weights))
    step, history = 0, []
    if init is not None:
        earlier = distiller.start_from(init)
        history = [*earlier.pop("history", []), earlier]
    if resume:
        values = load_state(out / "state", distiller.modules, distiller.optimizers)
        step, budget.spent, history = values["step"], values["seconds"], values["history"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(to_dict(config) | {"data": str(data)}, indent=2) + "\n")
    pairs = PairDataset(
        PhotoSet(training),
        CropParams(config.crop),
        mild_share=config.mild_share,
        seed=config.seed,
        start=step * config.batch,
    )
    validation = Validation(PhotoSet(held_out), out / "samples", distiller.features)
    budget.start(budget.spent)

    def save(name: str = "state") -> None:
        save_state(
            out / name,
            distiller.modules,
            distiller.optimizers,
            {"step": step, "seconds": budget.seconds(), "history": history},
        )

    def measure() -> dict[str, Any]:
        row = {"step": step, "seconds": round(budget.seconds(), 1), **distiller.validate(validation, step)}
        with (out / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        log.info("validation %s", " ".join(f"{k}={v:.4g}" for k, v in row.items()))
        save_student(distiller.average, out / "snapshots" / f"{step:07d}", row)
        if not row["samples_differ"] > DEAD_BELOW:
            raise FloatingPointError(
                f"step {step}: the noise has lost its effect (two samples differ by {row['samples_differ']:.2g}/255): the student "
                f"died. Go on from an earlier one in {out / 'snapshots'} with --init and a lower lr"
            )
        return row

    last: dict[str, Any] = {}
    next_measure = budget.seconds() + 60.0  # the first one early, to see at once whether the student lives
    with Interrupt() as interrupt:
        for lr, hr in _batches(pairs, config.batch, workers):
            progress = budget.progress(step)
            if progress >= 1.0 or interrupt.asked:
                break
            losses = distiller.step(lr, hr, step, progress)
            if not all(math.isfinite(v) for v in losses.values()):
                save("failed")
                raise FloatingPointError(
                    f"step {step}: loss is not finite ({losses}); what stood then is in {out / 'failed'}, the last regular "
                    f"state in {out / 'state'}. Lower lr or use fp32"
                )
            step += 1
            if on_progress:
                on_progress(step, progress, losses)
            if budget.seconds() >= next_measure:
                last = measure()
                save()
                next_measure = budget.seconds() + 60 * validate_minutes
    last = measure()
    save()
    provenance = {
        "steps": step,
        "minutes": round(budget.seconds() / 60, 1),
        "photos": len(training),
        "config": to_dict(config),
        "validation": last,
        "history": history,  # earlier runs whose weights this one began with
    }
    save_student(distiller.average, out / "student", provenance)
    return last


def _batches(pairs: PairDataset, batch: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from DataLoader(
        pairs, batch_size=batch, num_workers=workers, prefetch_factor=8 if workers else None
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gdposr train student", description="Train the student from a folder of photos."
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="pocket")
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, searched recursively")
    parser.add_argument(
        "--perceptual-weights",
        type=Path,
        required=True,
        help="SqueezeNet 1.1 weights (safetensors, Caffe layout)",
    )
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--minutes", type=float, help="time budget")
    parser.add_argument("--steps", type=int, help="step budget")
    parser.add_argument("--resume", action="store_true", help="go on from RUN/state")
    parser.add_argument(
        "--init", type=Path, metavar="STUDENT", help="begin with the weights of a finished student"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--validate-minutes", type=float, default=5.0, help="minutes between validations and saved states"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the preset"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 when an argument is wrong or the run cannot start."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config = with_settings(PRESETS[args.preset], args.set)
        budget = Budget(steps=args.steps, minutes=args.minutes)
        last = time.monotonic()

        def show(step: int, progress: float, losses: dict[str, float]) -> None:
            nonlocal last
            if step % 100 == 0:
                now = time.monotonic()
                terms = " ".join(f"{k}={v:.4g}" for k, v in losses.items())
                log.info("step %d (%.0f %%, %.2f s/step) %s", step, 100 * progress, (now - last) / 100, terms)
                last = now

        train(
            config,
            args.data,
            args.perceptual_weights,
            args.out,
            budget,
            resume=args.resume,
            init=args.init,
            workers=args.workers,
            validate_minutes=args.validate_minutes,
            on_progress=show,
        )
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    log.info("student written to %s", args.out / "student")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
