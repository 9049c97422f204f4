"""Scores of a stage's pictures on held-out photos: one value per picture, so that stages are compared picture by picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.student.gdpo import StudentGdpoSettings
from export.student.losses import energy_score
from training.data.cards import draw_card
from training.data.everyday import degrade_everyday
from training.data.photos import CropParams, PhotoSet, find_images, random_crop, split_photos
from training.metrics.fidelity import psnr_rgb
from training.metrics.registry import Metric, create_metrics
from training.metrics.squeezenet import SqueezeFeatures, sqf
from training.pixels import from_pixels, rounded, to_pixels
from training.stages.comparison import compare

# Samples of each picture.
SAMPLES = 2
# Drawn cards that are measured.
CARDS = 24

# A model: LR (3, h, w) in [0, 1] and the number of a sample -> (3, 4h, 4w).
Draw = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Held:
    """The pictures to measure on, in [0, 1]. LR pictures have 8-bit levels."""

    lr: tuple[Tensor, ...]
    """(3, h, w) each."""
    hr: tuple[Tensor, ...]
    """(3, 4h, 4w) each."""
    names: tuple[str, ...]
    """Photo of each picture. Crops of one photo are not independent."""
    cards: tuple[tuple[Tensor, Tensor], ...]
    """LR and HR of drawn cards."""
    prior: tuple[Tensor, ...] = ()
    """The prior's pictures, (3, 4h, 4w) each; none without a prior."""


def held_pictures(
    data: Path, *, held_out: int = 16, draws: int = 3, size: int = 256, cards: int = CARDS
) -> Held:
    """Crops of the photos that every stage holds out, degraded as users' photos are, and drawn cards.

    data: the photos that the chain trained on.
    held_out: how many of them it left out.
    draws: crops of each photo, with a degradation each.
    size: side of a crop in HR pixels.
    cards: how many cards are drawn."""
    _, left = split_photos(find_images(data), held_out)
    photos, lr, hr, names = PhotoSet(left), [], [], []
    for draw in range(draws):
        for k in range(len(photos)):
            rng = np.random.default_rng([2, k, draw])
            pixels = random_crop(photos[k], rng, CropParams(size, zoom_range=(1.0, 1.0), augment=False))
            picture = from_pixels(np.ascontiguousarray(pixels))
            lr.append(rounded(degrade_everyday(picture, rng)))
            hr.append(picture)
            names.append(photos.paths[k].name)
    drawn = []
    for k in range(cards):
        rng = np.random.default_rng([3, k])
        card = from_pixels(draw_card(rng, size // 2))
        drawn.append((rounded(degrade_everyday(card, rng)), card))
    return Held(tuple(lr), tuple(hr), tuple(names), tuple(drawn))


@torch.no_grad()
def columns(draw: Draw, held: Held, features: SqueezeFeatures | None = None) -> dict[str, list[float]]:
    """The measures of `stages.MEASURES` but wins, each with one value per picture; cards with one per card.

    A picture that equals its target has an infinite PSNR. features: for SQF; None leaves it out."""
    found: dict[str, list[float]] = {name: [] for name in ("photo", "prior", "sqf", "energy", "seeds")}
    for k, (lr, hr) in enumerate(zip(held.lr, held.hr, strict=True)):
        first, second = (draw(lr, sample).clamp(0, 1)[None] for sample in range(SAMPLES))
        found["photo"].append(float(psnr_rgb(first, hr[None])))
        if held.prior:
            found["prior"].append(float(psnr_rgb(first, held.prior[k][None])))
        if features is not None:
            found["sqf"].append(float(sqf(features, first, hr[None])))
        found["energy"].append(255 * float(energy_score(torch.stack([first, second]), hr[None])))
        found["seeds"].append(255 * float((first - second).square().mean().sqrt()))
    found["cards"] = [float(psnr_rgb(draw(lr, 0).clamp(0, 1)[None], card[None])) for lr, card in held.cards]
    return {name: values for name, values in found.items() if values}


@torch.no_grad()
def wins(policy: Draw, reference: Draw, held: Held) -> list[float]:
    """Share of a picture's samples for which the policy has the higher reward of `student-gdpo`, a tie one half, for each picture."""
    settings = StudentGdpoSettings()
    metrics: list[Metric] = create_metrics(settings.metrics, "cpu")
    found = []
    for lr, hr in zip(held.lr, held.hr, strict=True):
        pairs = [(policy(lr, k)[None], reference(lr, k)[None], hr[None]) for k in range(SAMPLES)]
        found.append(compare(pairs, metrics, settings)["win_rate"])
    return found


def on_pixels(samples: Callable[[np.ndarray, int], Sequence[np.ndarray]]) -> Draw:
    """A model on 8-bit pictures, (h, w, 3) uint8 and a count -> that many (4h, 4w, 3) uint8, as a `Draw`."""

    def draw(lr: Tensor, sample: int) -> Tensor:
        pixels = np.ascontiguousarray(to_pixels(lr))
        return from_pixels(np.ascontiguousarray(samples(pixels, sample + 1)[sample]))

    return draw
