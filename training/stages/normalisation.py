"""Puts a group's scores on one scale, independent of the metric's unit. Pure functions of (..., G), G samples per group."""

from __future__ import annotations

import torch
from torch import Tensor

# Relative to the largest score. A group with a smaller range counts as constant in float32.
CONSTANT = 1e-6


def normalise(scores: Tensor, higher_is_better: bool, min_spread: float = 0.0) -> Tensor:
    """Min-max normalisation within a group: (..., G) -> (..., G) float32, 0 for the worst and 1 for the best.

    min_spread: range within a group, in the metric's unit, from which scores count in full. A smaller range is pulled
        towards 0.5 in proportion, so that invisible differences do not count as much as visible ones.

    A constant group is 0.5 everywhere and has no effect on the advantage. A score that is not finite becomes 0. The
    finite ones are normalised among themselves; if these are constant they become 0.5, still above it."""
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
    """Range of a group's finite scores over min_spread, at most 1: (..., G) -> (...). 1 if min_spread is 0."""
    values = scores.detach().float()
    if min_spread == 0:
        return values.new_ones(values.shape[:-1])
    finite = torch.isfinite(values)
    low = torch.where(finite, values, torch.inf).amin(-1)
    high = torch.where(finite, values, -torch.inf).amax(-1)
    return ((high - low) / min_spread).clamp(0.0, 1.0)
