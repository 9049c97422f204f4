"""What the tests of the trainer share: a stage of a few weights, its settings and its trainer. Needs the extra `train`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from training.data.batches import Batch
from training.data.photos import CropParams, PairDataset, PhotoSet, find_images
from training.loop.budget import Budget
from training.loop.stage import Carry, Losses, RunSettings, Stage
from training.loop.trainer import Trainer
from training.loop.validation import bicubic
from training.randomness import normal

SETTINGS = RunSettings(batch=2, crop=64, lr=1e-2, warmup_steps=2, held_out=1, seed=5)


class Toy(Stage):
    """Phase "net" learns to enlarge; phase "critic" learns the mean of what "net" made, handed on in the carry."""

    def __init__(self, settings: RunSettings = SETTINGS, break_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.critic = torch.nn.Linear(1, 1)
        self.frozen = torch.nn.Conv2d(3, 3, 1).requires_grad_(False)
        self.settings, self.break_at = settings, break_at
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def phases(self, progress: float) -> tuple[str, ...]:
        return ("net", "critic")

    def groups(self) -> dict[str, tuple[list[torch.nn.Parameter], float]]:
        return {"net": (list(self.net.parameters()), 1e-2), "critic": (list(self.critic.parameters()), 1e-1)}

    def forward(self, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        self.seen.append((phase, batch.items))
        if phase == "critic":
            return {"loss": (self.critic(carry["mean"][:, None]) - 1).square().mean()}, {}
        noise = normal(self.settings.seed, batch.items, batch.lr.shape[1:], "toy").to(batch.lr)
        sr = self._enlarge(batch.lr + 0.01 * noise)
        loss = (sr - batch.hr).square().mean()
        if self.break_at in batch.items:
            loss = loss * float("nan")
        return {"loss": loss}, {"mean": sr.detach().mean((1, 2, 3))}

    def _enlarge(self, lr: torch.Tensor) -> torch.Tensor:
        return self.frozen(bicubic(lr)) * 0 + bicubic(lr) + self.net(bicubic(lr))

    def sample(self, lr: torch.Tensor, hr: torch.Tensor, k: int, prompts: Sequence[str] = ()) -> torch.Tensor:
        return self._enlarge(lr) + 0.01 * k

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.json").write_text(json.dumps(provenance))


def make(
    photos: Path,
    out: Path,
    budget: Budget,
    settings: RunSettings = SETTINGS,
    stage: Toy | None = None,
    **more: Any,
) -> Trainer:
    pairs = PairDataset(PhotoSet(find_images(photos)), CropParams(settings.crop), seed=settings.seed)
    return Trainer(stage or Toy(settings), settings, pairs, out, budget, workers=0, **more)


def state(out: Path, name: str = "state") -> dict[str, torch.Tensor]:
    return load_file(out / name / "state.safetensors")
