"""Muon: momentum whose update of a kernel is made orthogonal (Jordan et al. 2024).

All directions of a layer's weights are then learned at the same pace, where Adam follows the few with large gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Newton-Schulz iteration: coefficients of x, x^3 and x^5, and how often. Singular values from 0.01 to 1 end between 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.775, 2.0315)
ITERATIONS = 5
# RMS of an update divided by the learning rate, about that of Adam, so that one learning rate fits both (Liu et al. 2025).
UPDATE_RMS = 0.2


def orthogonalised(matrix: Tensor) -> Tensor:
    """About the nearest semi-orthogonal matrix, (m, n) -> (m, n): U V^T of its decomposition U S V^T. Zeros stay zeros."""
    a, b, c = COEFFICIENTS
    x = matrix / matrix.norm().clamp_min(1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(ITERATIONS):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """Muon for weights of two and more dimensions; a convolution's kernel (out, in, h, w) counts as the matrix (out, in * h * w).

    parameters: to be trained.
    lr: learning rate, of the size that AdamW needs.
    momentum: share of the mean gradient that is kept per step (Nesterov's form), from 0 to below 1."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            keep = group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["mean"] = torch.zeros_like(weight)
                state["mean"].lerp_(weight.grad, 1 - keep)
                ahead = weight.grad.lerp(state["mean"], keep).flatten(1)
                size = UPDATE_RMS * max(ahead.shape) ** 0.5
                weight.add_(orthogonalised(ahead).reshape(weight.shape), alpha=-group["lr"] * size)
        return loss
