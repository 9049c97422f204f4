"""The optimizers of a stage's phases, and their learning rate."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import nn

from training.loop.muon import Muon
from training.loop.stage import RunSettings, Stage


def learning_rate(peak: float, final: float, warmup: int, step: int, progress: float) -> float:
    """The learning rate of a step: a linear warm-up times a cosine from peak to final.

    peak, final: learning rates after the warm-up and at the end.
    warmup: number of warm-up steps.
    step: number of the phase's step, from 0.
    progress: of the schedule, 0 to 1."""
    cosine = final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return cosine * min(1.0, (step + 1) / warmup)


class Optimizers:
    """AdamW for each phase of a stage, with Muon for the kernels where `Stage.muon` says so. Call `prepare` before the first update."""

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
