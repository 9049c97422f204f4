"""Rewards of a group of samples from picture metrics, which are pluggable by name (GDPO-SR).

`psnr`, `ssim`, `niqe`, `smooth` and `texture` are built in, so are `sqf` and `critic` where their weights are given; any other name
is asked of pyiqa. Every metric sees what the user would get: the picture clamped to [0, 1] and rounded to whole 8-bit levels, in
float32 under any autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import GdposrError
from training.metrics.attributes import check_pictures, detail_share
from training.metrics.critic import load_critic
from training.metrics.likeness import smoothness, texture_likeness
from training.metrics.niqe import niqe
from training.metrics.squeezenet import SqueezeFeatures
from training.randomness import fixed_random_state
from training.stages.normalisation import normalise, spread_share

BUILT_IN = ("psnr", "ssim", "niqe", "sqf", "smooth", "texture", "critic")
WEIGHTINGS = ("attribute", "fixed")
LUMA = (65481, 128553, 24966)  # BT.601, limited range, in thousandths of a level per unit of RGB
PSNR_CAP = 100.0  # dB, reached by equal pictures
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SQF_MIN_SIDE = 35  # pixels; smaller pictures have no fire9 map


class MetricError(GdposrError, ValueError):
    """A metric is unknown, cannot be loaded, or cannot judge the pictures it was given."""


@dataclass(frozen=True, eq=False)
class Metric:
    """One way to judge SR pictures. A call gives raw values, never sign-flipped: see `higher_is_better`.

    score is the bare function behind it: (sr, hr), or (sr) without reference, float32 of whole 8-bit levels / 255 -> N values.
    """

    name: str
    reference: bool  # full-reference: compares with the HR picture
    higher_is_better: bool
    score: Callable[..., Tensor]
    of_texture: bool | None = None
    """It counts with the share of detail, not with that of smooth parts; None: where it is no-reference."""

    @property
    def family(self) -> str:
        """Which of the two parts of a reward it belongs to, "smooth" or "detail"."""
        texture = not self.reference if self.of_texture is None else self.of_texture
        return "detail" if texture else "smooth"

    @torch.no_grad()
    def __call__(self, sr: Tensor, hr: Tensor | None = None) -> Tensor:
        """sr: (N, 3, H, W) RGB, cut to [0, 1]; hr: the same shape in [0, 1], None for a no-reference metric -> (N,) float32.

        A picture with a pixel that is not finite scores NaN.
        """
        if sr.ndim != 4 or sr.shape[1] != 3 or not sr.is_floating_point() or sr.numel() == 0:
            raise MetricError(
                f"{self.name} needs SR of (N, 3, H, W) float, got {tuple(sr.shape)} of {sr.dtype}"
            )
        if self.reference and (hr is None or hr.shape != sr.shape):
            came = "none" if hr is None else f"{tuple(hr.shape)} for SR of {tuple(sr.shape)}"
            raise MetricError(f"{self.name} compares with an HR picture of the same size, got {came}")
        broken = ~torch.isfinite(sr).flatten(1).all(1)
        with torch.autocast(sr.device.type, enabled=False):
            clean = torch.nan_to_num(sr)
            pictures = [clean, hr] if self.reference and hr is not None else [clean]
            scores = self.score(*(_levels(picture.float().clamp(0, 1)) / 255 for picture in pictures))
        if scores.numel() != len(sr):
            raise MetricError(
                f"{self.name} must give one value per picture, got {tuple(scores.shape)} for {len(sr)}"
            )
        return scores.reshape(-1).to(sr.device, torch.float32).masked_fill(broken, float("nan"))


@dataclass(frozen=True, eq=False)
class RewardReport:
    """rewards: (B, G) float32 in [0, 1]; scores: raw values of each metric by name, (B, G); detail: weight of the no-reference
    metrics, (B,), rho_d of each HR picture where the weighting is by attribute; strength: (B,) in [0, 1], weighted mean over the
    metrics of their spread in units of the least that counts, at most 1: 1 where no least is set."""

    rewards: Tensor
    scores: dict[str, Tensor]
    detail: Tensor
    strength: Tensor


def create_metrics(
    names: Sequence[str],
    device: torch.device | str,
    perceptual_weights: str | Path | None = None,
    critic: str | Path | None = None,
) -> list[Metric]:
    """The named metrics in that order. perceptual_weights: SqueezeNet 1.1 as safetensors, needed by `sqf` only. critic: what
    `gdposr train critic` wrote, needed by `critic` only."""
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated or not names:
        raise MetricError(
            f"expected one or more different metrics, got {', '.join(names) or 'none'}: name each once"
        )
    return [_create(name, torch.device(device), perceptual_weights, critic) for name in names]


def group_rewards(
    sr: Tensor,
    hr: Tensor,
    metrics: Sequence[Metric],
    weighting: str = "attribute",
    chunk: int = 8,
    min_spread: Mapping[str, float] | None = None,
) -> RewardReport:
    """R = rho_s * mean of the full-reference + rho_d * mean of the no-reference metrics, each normalised within its group.

    sr: (B, G, 3, H, W) RGB, G samples of each of the pictures hr: (B, 3, H, W) in [0, 1]. weighting: "attribute" (rho_d by
    `detail_share`) or "fixed" (both 1/2). If only one of the two families is there, R is its mean alone. chunk: pictures that
    a metric sees at once. min_spread: by the metric's name, see `normalise`; 0 for the others.
    """
    check_pictures(hr, "the HR pictures")
    if sr.ndim != 5 or sr.shape[0] != len(hr) or sr.shape[2:] != hr.shape[1:] or sr.shape[1] == 0:
        raise ValueError(
            f"expected SR (B, G, 3, H, W) for HR {tuple(hr.shape)}, got {tuple(sr.shape)}: same B, H and W"
        )
    if weighting not in WEIGHTINGS or not metrics or chunk < 1:
        raise ValueError(
            f"expected a weighting of {' or '.join(WEIGHTINGS)}, at least one metric and a chunk of at least 1, "
            f"got {weighting!r}, {len(metrics)} metrics and {chunk}"
        )
    least = {metric.name: (min_spread or {}).get(metric.name, 0.0) for metric in metrics}
    unknown = sorted(set(min_spread or {}) - set(least))
    if unknown:
        raise ValueError(f"min_spread names {', '.join(unknown)}, expected some of {', '.join(least)}")
    batch, group = sr.shape[:2]
    flat = sr.detach().flatten(0, 1)  # (B * G, 3, H, W)
    picture = torch.arange(batch * group, device=hr.device) // group
    scores = {}
    for metric in metrics:
        parts = [
            metric(some, hr[of] if metric.reference else None)
            for some, of in zip(flat.split(chunk), picture.split(chunk), strict=True)
        ]
        scores[metric.name] = torch.cat(parts).view(batch, group)

    def mean_of(family: str) -> tuple[Tensor, Tensor]:
        """Rewards (B, G) and strengths (B,)."""
        chosen = [m for m in metrics if m.family == family]
        if not chosen:
            return sr.new_zeros(batch, group, dtype=torch.float32), sr.new_zeros(batch, dtype=torch.float32)
        parts = [normalise(scores[m.name], m.higher_is_better, least[m.name]) for m in chosen]
        strengths = [spread_share(scores[m.name], least[m.name]) for m in chosen]
        return torch.stack(parts).mean(0), torch.stack(strengths).mean(0)

    families = {metric.family for metric in metrics}
    if len(families) == 1:
        detail = torch.full((batch,), float("detail" in families), device=sr.device)
    elif weighting == "fixed":
        detail = torch.full((batch,), 0.5, device=sr.device)
    else:
        detail = detail_share(hr).to(sr.device)
    (smooth, smooth_strength), (texture, texture_strength) = mean_of("smooth"), mean_of("detail")
    rewards = (1 - detail[:, None]) * smooth + detail[:, None] * texture
    strength = (1 - detail) * smooth_strength + detail * texture_strength
    return RewardReport(rewards, scores, detail, strength)


def psnr(sr: Tensor, hr: Tensor) -> Tensor:
    """PSNR in dB of Y (BT.601, limited range) over the whole picture: (N, 3, H, W) -> (N,), at most `PSNR_CAP`."""
    weights = torch.tensor(LUMA, device=sr.device, dtype=torch.float32)[:, None, None] / 255000
    error = ((_levels(sr) - _levels(hr)) * weights).sum(1).square().flatten(1).mean(1)
    return (20 * torch.log10(255 / error.sqrt())).clamp(max=PSNR_CAP)


def ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """SSIM of Y rounded to whole levels: (N, 3, H, W) -> (N,). 11x11 Gaussian window of sigma 1.5 where it fits, the
    contrast-structure term cut off at zero, as in pyiqa."""
    if min(sr.shape[2:]) < SSIM_WINDOW:
        raise MetricError(
            f"ssim needs at least {SSIM_WINDOW} pixels a side, got {sr.shape[3]}x{sr.shape[2]}: use larger crops"
        )
    # Centred planes: a variance is a small difference of large squares, which float32 would round away.
    x, y = _luma_levels(sr) - 126.0, _luma_levels(hr) - 126.0
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y, square_x, square_y, product = _window(torch.stack([x, y, x * x, y * y, x * y]))
    variances = square_x - mean_x**2 + square_y - mean_y**2
    structure = ((2 * (product - mean_x * mean_y) + c2) / (variances + c2)).clamp(min=0)
    mean_x, mean_y = mean_x + 126.0, mean_y + 126.0
    return (structure * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)).flatten(1).mean(1)


def sqf(features: SqueezeFeatures, sr: Tensor, hr: Tensor) -> Tensor:
    """Squared distance of SqueezeNet features, summed over channels, averaged over pixels and layers: (N, 3, H, W) -> (N,)."""
    if min(sr.shape[2:]) < SQF_MIN_SIDE:
        raise MetricError(
            f"sqf needs at least {SQF_MIN_SIDE} pixels a side, got {sr.shape[3]}x{sr.shape[2]}: use larger crops"
        )
    pairs = zip(features(sr), features(hr), strict=True)
    return torch.stack([(a - b).square().sum(1).flatten(1).mean(1) for a, b in pairs]).mean(0)


def _create(
    name: str, device: torch.device, perceptual_weights: str | Path | None, critic: str | Path | None
) -> Metric:
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
                "critic needs a network's weights: give what gdposr train critic wrote, with --critic"
            )
        try:
            judge = load_critic(critic).to(device)
        except (OSError, ValueError) as error:
            raise MetricError(f"critic cannot be loaded: {error}") from error
        return Metric(name, False, True, judge.score)
    return _from_pyiqa(name, device)


def _from_pyiqa(name: str, device: torch.device) -> Metric:
    """A metric of pyiqa by its name there. Its weights may be downloaded by pyiqa at the first use."""
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
    except Exception as error:  # whatever a third-party model raises while it is found, downloaded and loaded
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


def _niqe(sr: Tensor) -> Tensor:
    pictures = _levels(sr).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()  # (N, H, W, 3)
    return torch.tensor([niqe(picture) for picture in pictures], device=sr.device)


def _levels(images: Tensor) -> Tensor:
    return (images * 255).round()


def _luma_levels(images: Tensor) -> Tensor:
    """Y rounded to whole levels of 16..235, (N, 3, H, W) -> (N, H, W) float32; in whole numbers, so the same on every device."""
    red, green, blue = _levels(images).long().unbind(1)
    return ((LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue + 127500) // 255000 + 16).float()


def _window(planes: Tensor) -> Tensor:
    """Gaussian mean where the window fits: (..., H, W) -> (..., H - 10, W - 10). Plain sums: a convolution may run in TF32."""
    offsets = torch.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    kernel = torch.exp(-(offsets.double() ** 2) / (2 * SSIM_SIGMA**2))
    taps = (kernel / kernel.sum()).tolist()
    height, width = planes.shape[-2] - SSIM_WINDOW + 1, planes.shape[-1] - SSIM_WINDOW + 1
    down = sum(tap * planes[..., k : k + height, :] for k, tap in enumerate(taps))
    return sum(tap * down[..., k : k + width] for k, tap in enumerate(taps))
