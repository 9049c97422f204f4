"""Compares a policy with its reference on the held-out photos. Both pictures of a pair have the same noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from training.loop.validation import Validation
from training.metrics.registry import Metric
from training.stages.rewards import RewardSettings, group_rewards

# Samples of each held-out photo on which policy and reference are compared.
DRAWS = 2


def held_out(validation: Validation, device: torch.device) -> Iterator[tuple[range, Tensor, Tensor]]:
    """The held-out pictures in batches on a device: their numbers, LR (n, 3, h, w) and HR (n, 3, 4h, 4w)."""
    for first in range(0, len(validation.lr), validation.batch):
        lr, hr = (
            side[first : first + validation.batch].to(device) for side in (validation.lr, validation.hr)
        )
        yield range(first, first + len(lr)), lr, hr


@torch.no_grad()
def compare(
    drawn: Iterable[tuple[Tensor, Tensor, Tensor]], metrics: list[Metric], settings: RewardSettings
) -> dict[str, float]:
    """Compare the two models' pictures.

    drawn: the policy's pictures, the reference's from the same noise, and the photos, (n, 3, H, W) each.
    metrics: those of the reward.
    settings: of the reward.

    policy/NAME, reference/NAME: mean of each metric.
    win_rate: share of pictures for which the policy's reward is higher; a tie counts one half.
    margin: mean of the policy's reward minus the reference's, from -1 to 1.
    drift: RMS distance between the two, in levels of 1/255."""
    scores: dict[str, list[Tensor]] = {metric.name: [] for metric in metrics}
    margins, drifts = [], []
    for policy, reference, hr in drawn:
        pair = torch.stack([policy, reference], dim=1)  # (n, 2, 3, H, W)
        report = group_rewards(pair, hr, metrics, settings.weighting, min_spread=settings.spreads)
        margins.append(report.rewards[:, 0] - report.rewards[:, 1])
        drifts.append((policy - reference).square().mean((1, 2, 3)))
        for name, values in report.scores.items():
            scores[name].append(values)
    margin = torch.cat(margins)
    found = {
        "win_rate": float(((margin > 0).float() + 0.5 * (margin == 0).float()).mean()),
        "margin": float(margin.mean()),
        "drift": 255 * float(torch.cat(drifts).mean().sqrt()),
    }
    for name, parts in scores.items():
        policy_mean, reference_mean = torch.cat(parts).mean(0).tolist()
        found |= {f"policy/{name}": policy_mean, f"reference/{name}": reference_mean}
    return found
