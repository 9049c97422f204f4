"""Sheets of sample groups with their rewards, to see what a reward prefers."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from training.data.batches import Batch
from training.loop.validation import Validation
from training.model.text import DEFAULT_PROMPT
from training.pixels import to_pixels
from training.stages.rewards import RewardReport

# Height in pixels of a line of text.
LINE = 12


def first_pictures(validation: Validation, device: torch.device, count: int = 2) -> Batch:
    """The first held-out pictures as a batch with their prompts."""
    lr, hr = validation.lr[:count], validation.hr[:count]
    names = tuple(path.name for path in validation.paths[: len(lr)])
    prompts = validation.prompts_of(range(len(lr))) or (DEFAULT_PROMPT,) * len(lr)
    return Batch(tuple(range(len(lr))), lr, hr, prompts, names).to(device)


def group_sheet(samples: Tensor, hr: Tensor, report: RewardReport) -> np.ndarray:
    """A row for each picture: the photo and its samples from the best to the worst, with reward and scores below.

    samples: (B, G, 3, H, W); hr: (B, 3, H, W), all in [0, 1].
    report: rewards and scores of the samples.
    Returns (h, w, 3) uint8."""
    rows = []
    for b, photo in enumerate(hr):
        order = report.rewards[b].argsort(descending=True).tolist()
        first = _labelled(photo, [f"weight of detail {float(report.detail[b]):.2f}"], 1 + len(report.scores))
        others = []
        for i in order:
            text = [f"reward {float(report.rewards[b, i]):.3f}"]
            text += [f"{name} {float(scores[b, i]):.4g}" for name, scores in report.scores.items()]
            others.append(_labelled(samples[b, i], text, len(text)))
        rows.append(np.concatenate([first, *others], axis=1))
    return np.concatenate(rows)


def _labelled(picture: Tensor, text: list[str], lines: int) -> np.ndarray:
    """A picture (3, H, W) above black space for lines of text."""
    pixels = to_pixels(picture.detach().float().cpu().clamp(0, 1))
    tile = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + lines * LINE + 2))
    tile.paste(Image.fromarray(pixels))
    draw = ImageDraw.Draw(tile)
    for k, line in enumerate(text):
        draw.text((2, pixels.shape[0] + k * LINE), line, fill="white")
    return np.asarray(tile)
