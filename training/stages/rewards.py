"""Rewards of a group of samples, from image metrics (GDPO-SR)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.loop.stage import RunSettings
from training.metrics.attributes import check_pictures, detail_share, published_share
from training.metrics.registry import Metric
from training.stages.normalisation import normalise, spread_share

# How rho_d is found: our share of detailed pixels, that of the public code, or one half.
WEIGHTINGS = ("attribute", "published", "fixed")
OBJECTIVES = ("gdpo", "dpo", "grpo")
SAMPLERS = ("reference", "policy")


@dataclass(frozen=True)
class RewardSettings(RunSettings):
    """Settings of the reward in addition to `RunSettings`."""

    metrics: tuple[str, ...] = ("psnr",)
    """Names of the metrics that make up the reward."""
    weighting: str = "attribute"
    """How the rewards of smooth and of detailed places are weighted: "attribute" by the HR picture's share of detail,
    "published" by that share as GDPO-SR's public code measures it, "fixed" by one half each."""
    min_spread: tuple[str, ...] = ()
    """NAME:VALUE per metric, such as psnr:0.02,critic:0.05: the range within a group, in the metric's unit, from
    which the metric counts in full. Smaller ranges count less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {self.weighting!r}")
        if not self.metrics:
            raise ValueError("metrics must name at least one metric, for example psnr,niqe")
        unknown = sorted(set(self.spreads) - set(self.metrics))
        if unknown:
            raise ValueError(
                f"min_spread names {', '.join(unknown)}, expected some of {', '.join(self.metrics)}"
            )

    @property
    def spreads(self) -> dict[str, float]:
        """min_spread as numbers by metric. Raises ValueError if an entry is not NAME:VALUE."""
        found = {}
        for text in self.min_spread:
            name, colon, value = str(text).partition(":")
            try:
                found[name] = float(value)
            except ValueError:
                found[name] = -1.0
            if not colon or not found[name] > 0:
                raise ValueError(
                    f"min_spread is NAME:VALUE with a value above 0, such as psnr:0.02, got {text!r}"
                )
        return found


@dataclass(frozen=True)
class ObjectiveSettings(RewardSettings):
    """Settings of the objective in addition to `RewardSettings`. The stages have defaults and units of their own."""

    objective: str = "gdpo"
    """gdpo: all samples of the group; dpo: the best against the worst (Diffusion-DPO); grpo: clipped policy gradient."""
    sampler: str = "reference"
    """Which model draws the group: "reference" (frozen) or "policy" (the one in training)."""
    weight: float = 1.0
    """Factor inside the sigmoid of the loss. A larger value saturates the loss sooner."""
    anchor: float = 0.0
    """Weight of the squared distance to the reference. A larger value keeps the policy closer to it."""
    grpo_sigma: float = 1.0
    """Standard deviation of the Gaussian policy around a sample."""
    grpo_clip: float = 0.2
    """How far the likelihood ratio may leave 1 before it is clipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("objective", OBJECTIVES), ("sampler", SAMPLERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("weight", "grpo_sigma", "grpo_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.anchor >= 0:
            raise ValueError(f"anchor must be at least 0, got {self.anchor}")


@dataclass(frozen=True, eq=False)
class RewardReport:
    """Rewards of B groups of G samples."""

    rewards: Tensor
    """(B, G) float32 in [0, 1]."""
    scores: dict[str, Tensor]
    """Raw values of each metric by name, (B, G)."""
    detail: Tensor
    """Weight of the metrics for detailed places, (B,): rho_d of each HR picture unless the weights are fixed."""
    strength: Tensor
    """(B,) in [0, 1], weighted mean over the metrics of `spread_share`; 1 if no min_spread is set."""


def group_rewards(
    sr: Tensor,
    hr: Tensor,
    metrics: Sequence[Metric],
    weighting: str = "attribute",
    chunk: int = 8,
    min_spread: Mapping[str, float] | None = None,
) -> RewardReport:
    """R = rho_s * mean of the full-reference + rho_d * mean of the no-reference metrics, each normalised within its group.

    sr: (B, G, 3, H, W) RGB, G samples of each picture.
    hr: (B, 3, H, W) in [0, 1].
    metrics: those of the reward. If all belong to one of the two families, R is their mean.
    weighting: "attribute" (rho_d by `detail_share`), "published" (by `published_share`) or "fixed" (both 1/2).
    chunk: pictures that a metric gets at once.
    min_spread: by metric, see `normalise`; 0 for the others."""
    # check shapes and settings
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
    # score: every sample by every metric
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

    # normalise: each metric within its group, then the mean of a family
    def mean_of(family: str) -> tuple[Tensor, Tensor]:
        """Rewards (B, G) and strengths (B,)."""
        chosen = [m for m in metrics if m.family == family]
        if not chosen:
            return sr.new_zeros(batch, group, dtype=torch.float32), sr.new_zeros(batch, dtype=torch.float32)
        parts = [normalise(scores[m.name], m.higher_is_better, least[m.name]) for m in chosen]
        strengths = [spread_share(scores[m.name], least[m.name]) for m in chosen]
        return torch.stack(parts).mean(0), torch.stack(strengths).mean(0)

    # weigh: rho_d for each picture
    families = {metric.family for metric in metrics}
    if len(families) == 1:
        detail = torch.full((batch,), float("detail" in families), device=sr.device)
    elif weighting == "fixed":
        detail = torch.full((batch,), 0.5, device=sr.device)
    else:
        share = published_share if weighting == "published" else detail_share
        detail = share(hr).to(sr.device)
    # sum: both families
    (smooth, smooth_strength), (texture, texture_strength) = mean_of("smooth"), mean_of("detail")
    rewards = (1 - detail[:, None]) * smooth + detail[:, None] * texture
    strength = (1 - detail) * smooth_strength + detail * texture_strength
    return RewardReport(rewards, scores, detail, strength)


def statistics(report: RewardReport, drawn_by: str) -> dict[str, Tensor]:
    """Values of a training step's groups to log: scalars, means over B.

    drawn_by: the model that drew the samples, "reference" or "policy".

    strength: how much of the reward counted; reward_spread: standard deviation of the rewards within a group;
    DRAWN_BY/METRIC: mean score; DRAWN_BY/METRIC_spread: range of the scores within a group."""
    found = {
        "strength": report.strength.mean(),
        "reward_spread": report.rewards.std(dim=1, unbiased=False).mean(),
    }
    for name, scores in report.scores.items():
        found[f"{drawn_by}/{name}"] = scores.mean()
        found[f"{drawn_by}/{name}_spread"] = (scores.amax(1) - scores.amin(1)).mean()
    return found
