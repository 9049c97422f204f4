"""The optimizers of a stage's phases, AdamW and Muon, and their learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.loop.stage import RunSettings, Stage

# Muon is momentum whose update of a kernel is made orthogonal (Jordan et al. 2024). All directions of a layer's weights are then
# learned at the same pace, where Adam follows the few with large gradients.

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


def learning_rate(peak: float, final: float, warmup: int, step: int, progress: float) -> float:
    """The learning rate of a step: a linear warm-up times a cosine from peak to final.

    peak, final: learning rates after the warm-up and at the end.
    warmup: number of warm-up steps.
    step: number of the phase's step, from 0.
    progress: of the schedule, 0 to 1."""
    cosine = final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return cosine * min(1.0, (step + 1) / warmup)


class Optimizers:
    """AdamW for each phase of a stage, with Muon for the kernels of phases in `Stage.muon`. Call `prepare` before the first update."""

    def __init__(self, stage: Stage, settings: RunSettings) -> None:
        self.stage, self.settings = stage, settings
        self.groups = stage.groups()
        self.raw: dict[str, torch.optim.Optimizer] = {}
        self.names: dict[str, list[str]] = {}  # of a phase's optimizers
        for phase, (parameters, rate) in self.groups.items():
            kernels = [p for p in parameters if phase in stage.muon() and p.ndim > 1]
            if kernels:
                self.raw[f"{phase}.kernels"] = Muon(kernels, lr=rate)
            others = [p for p in parameters if not any(p is kernel for kernel in kernels)]
            self.raw[phase] = torch.optim.AdamW(
                others, lr=rate, betas=(0.9, settings.beta2), weight_decay=settings.weight_decay
            )
            self.names[phase] = [name for name in (f"{phase}.kernels", phase) if name in self.raw]
        self.steps = dict.fromkeys(self.groups, 0)

    def prepare(self, accelerator: Accelerator) -> None:
        """Wrap the optimizers for accelerate, after the stage has been."""
        self.accelerator = accelerator
        self.prepared = {name: accelerator.prepare(optimizer) for name, optimizer in self.raw.items()}

    def update(self, phase: str, progress: float, finite: bool) -> float:
        """Clip the gradient and step one phase's optimizers; returns the norm of the gradient.

        progress: of the run, 0 to 1.
        finite: whether the loss is finite. The weights do not change if the loss or the norm is not finite."""
        parameters, peak = self.groups[phase]
        optimizers = [self.prepared[name] for name in self.names[phase]]
        s = self.settings
        rate = learning_rate(
            peak, s.final_lr, s.warmup_steps, self.steps[phase], self.stage.phase_progress(phase, progress)
        )
        self.steps[phase] += 1
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            self.accelerator.unscale_gradients(optimizer)
        norm = float(nn.utils.clip_grad_norm_(parameters, s.clip))
        # a gradient scaler skips overflowing steps by itself
        if finite and (math.isfinite(norm) or self.accelerator.scaler):
            for optimizer in optimizers:
                optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        return norm
