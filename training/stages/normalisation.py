"""Scores of a group of samples on one scale, whatever the metric's unit: pure functions of (..., G), G samples a group."""

from __future__ import annotations

import torch
from torch import Tensor

CONSTANT = 1e-6  # part of the largest score; a group that differs by less is constant, as float32 sees it


def normalise(scores: Tensor, higher_is_better: bool, min_spread: float = 0.0) -> Tensor:
    """Min-max within a group: (..., G) -> (..., G) float32, 0 the worst and 1 the best.

    min_spread: difference between best and worst, in the metric's unit, that is worth the whole range. A group that spreads less is
    drawn together around 0.5 in proportion, so that a difference nobody sees does not count as much as one that shows.

    A constant group is 0.5 everywhere, so that it has no say in the advantage. A score that is not finite is 0; the finite ones
    of its group are normalised among themselves, and if these are constant they are 0.5, still above it.
    """
    if scores.ndim < 1 or scores.shape[-1] == 0:
        raise ValueError(f"expected scores (..., G) with G of at least 1, got {tuple(scores.shape)}")
    values = scores.detach().float()
    finite = torch.isfinite(values)
    values = torch.where(finite, values, 0.0)
    values = values / values.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    low = torch.where(finite, values, torch.inf).amin(-1, keepdim=True)
    high = torch.where(finite, values, -torch.inf).amax(-1, keepdim=True)
    distance = values - low if higher_is_better else high - values
    varied = high - low > CONSTANT
    share = spread_share(scores, min_spread)[..., None]
    relative = torch.where(varied, distance / (high - low), 0.5)
    return torch.where(finite, relative if min_spread == 0 else 0.5 + share * (relative - 0.5), 0.0)


def spread_share(scores: Tensor, min_spread: float) -> Tensor:
    """Best minus worst of a group's finite scores in units of min_spread, at most 1: (..., G) -> (...). 1 where min_spread is 0."""
    values = scores.detach().float()
    if min_spread == 0:
        return values.new_ones(values.shape[:-1])
    finite = torch.isfinite(values)
    low = torch.where(finite, values, torch.inf).amin(-1)
    high = torch.where(finite, values, -torch.inf).amax(-1)
    return ((high - low) / min_spread).clamp(0.0, 1.0)
