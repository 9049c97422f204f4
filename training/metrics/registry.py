"""Metrics by name. `psnr`, `ssim`, `niqe`, `smooth` and `texture` are built in; `sqf` and `critic` too, but they need
weights. Any other name is looked up in pyiqa.

Every metric gets the picture as a user would: clamped to [0, 1] and rounded to 8-bit levels, in float32 under any autocast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.metrics.critic import load_critic
from training.metrics.fidelity import MetricError, psnr, ssim
from training.metrics.likeness import smoothness, texture_likeness
from training.metrics.niqe import niqe
from training.metrics.squeezenet import SqueezeFeatures, sqf
from training.pixels import rounded, to_pixels
from training.randomness import fixed_random_state

BUILT_IN = ("psnr", "ssim", "niqe", "sqf", "smooth", "texture", "critic")


@dataclass(frozen=True, eq=False)
class Metric:
    """One way to judge SR pictures. A call gives raw values; `higher_is_better` gives their direction."""

    name: str
    """Name of the metric."""
    reference: bool
    """Full-reference: whether it compares with the HR picture."""
    higher_is_better: bool
    """Whether a larger value is better."""
    score: Callable[..., Tensor]
    """The function: (sr, hr), or (sr) without reference, float32 of 8-bit levels / 255 -> N values."""
    of_texture: bool | None = None
    """Whether it is weighted by the share of detail instead of that of smooth parts; None: if it is no-reference."""

    @property
    def family(self) -> str:
        """The part of a reward that it belongs to, "smooth" or "detail"."""
        texture = not self.reference if self.of_texture is None else self.of_texture
        return "detail" if texture else "smooth"

    @torch.no_grad()
    def __call__(self, sr: Tensor, hr: Tensor | None = None) -> Tensor:
        """Judge N pictures -> (N,) float32.

        sr: (N, 3, H, W) RGB, clamped to [0, 1].
        hr: the same shape in [0, 1]; None for a no-reference metric.

        A picture with a non-finite pixel scores NaN."""
        if sr.ndim != 4 or sr.shape[1] != 3 or not sr.is_floating_point() or sr.numel() == 0:
            raise MetricError(
                f"{self.name} needs SR of (N, 3, H, W) float, got {tuple(sr.shape)} of {sr.dtype}"
            )
        if self.reference and (hr is None or hr.shape != sr.shape):
            got = "none" if hr is None else f"{tuple(hr.shape)} for SR of {tuple(sr.shape)}"
            raise MetricError(f"{self.name} compares with an HR picture of the same size, got {got}")
        broken = ~torch.isfinite(sr).flatten(1).all(1)
        with torch.autocast(sr.device.type, enabled=False):
            clean = torch.nan_to_num(sr)
            pictures = [clean, hr] if self.reference and hr is not None else [clean]
            scores = self.score(*(rounded(picture.float()) for picture in pictures))
        if scores.numel() != len(sr):
            raise MetricError(
                f"{self.name} must give one value per picture, got {tuple(scores.shape)} for {len(sr)}"
            )
        return scores.reshape(-1).to(sr.device, torch.float32).masked_fill(broken, float("nan"))


def create_metrics(
    names: Sequence[str],
    device: torch.device | str,
    perceptual_weights: str | Path | None = None,
    critic: str | Path | None = None,
) -> list[Metric]:
    """The named metrics, in that order.

    names: built-in metrics or metrics of pyiqa.
    device: for their networks.
    perceptual_weights: SqueezeNet 1.1 as safetensors, needed by `sqf` only.
    critic: output of `gdposr train critic`, needed by `critic` only."""
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated or not names:
        raise MetricError(
            f"expected one or more different metrics, got {', '.join(names) or 'none'}: name each once"
        )
    return [_create(name, torch.device(device), perceptual_weights, critic) for name in names]


def _create(
    name: str, device: torch.device, perceptual_weights: str | Path | None, critic: str | Path | None
) -> Metric:
    """The metric of a name. Raises MetricError if it is unknown or cannot be loaded.

    name: of the metric.
    device: that computes it.
    perceptual_weights: SqueezeNet 1.1 weights, for sqf.
    critic: trained critic, for critic."""
    if name == "psnr":
        return Metric(name, True, True, psnr)
    if name == "ssim":
        return Metric(name, True, True, ssim)
    if name == "niqe":
        return Metric(name, False, False, _niqe)
    if name == "sqf":
        if perceptual_weights is None:
            raise MetricError(
                "sqf needs SqueezeNet 1.1 weights: give a safetensors file as perceptual_weights"
            )
        try:
            features = SqueezeFeatures(perceptual_weights).to(device)
        except (OSError, ValueError) as error:
            raise MetricError(f"sqf cannot be loaded: {error}") from error
        return Metric(name, True, False, partial(sqf, features))
    if name == "smooth":
        return Metric(name, True, True, smoothness)
    if name == "texture":
        return Metric(name, True, True, texture_likeness, of_texture=True)
    if name == "critic":
        if critic is None:
            raise MetricError(
                "critic needs a network's weights: give the output of gdposr train critic with --critic"
            )
        try:
            judge = load_critic(critic).to(device)
        except (OSError, ValueError) as error:
            raise MetricError(f"critic cannot be loaded: {error}") from error
        return Metric(name, False, True, judge.score)
    return _from_pyiqa(name, device)


def _from_pyiqa(name: str, device: torch.device) -> Metric:
    """A metric of pyiqa. pyiqa may download its weights at first use."""
    try:
        library: Any = import_module("pyiqa")
    except ImportError as error:
        raise MetricError(
            f"metric {name!r} is not built in and pyiqa cannot be imported ({error}): pip install pyiqa, or use "
            f"{', '.join(BUILT_IN)}"
        ) from error
    try:
        with fixed_random_state(device):
            network = library.create_metric(name, device=device, as_loss=False)
        mode, lower_is_better = network.metric_mode, network.lower_better
    except Exception as error:
        # third-party models raise various exceptions while being downloaded and loaded
        raise MetricError(
            f"pyiqa cannot make the metric {name!r} ({type(error).__name__}: {error}): check the name against "
            f"pyiqa.list_models() and its weights, or use {', '.join(BUILT_IN)}"
        ) from error
    if mode not in ("FR", "NR") or lower_is_better is None:
        raise MetricError(
            f"expected an FR or NR metric with a known direction, got {name!r} with mode {mode!r} and "
            f"lower_better {lower_is_better!r}"
        )

    def score(*pictures: Tensor) -> Tensor:
        with fixed_random_state(device):
            return network(*(picture.to(device) for picture in pictures))

    return Metric(name, mode == "FR", not lower_is_better, score)


def to_tensor(picture: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)[None])).to(device).float() / 255


def _niqe(sr: Tensor) -> Tensor:
    return torch.tensor([niqe(to_pixels(picture)) for picture in sr], device=sr.device)
