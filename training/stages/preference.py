"""Preference losses on groups of samples: GDPO-SR, Diffusion-DPO and a clipped policy gradient, as pure functions.

B pictures, G samples of each. If the policy's error on a sample is below the frozen reference's, the policy has moved
towards that sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Least standard deviation of a group's rewards in [0, 1]. Below it they are equal up to rounding.
MIN_DEVIATION = 1e-6
# Bound of the log likelihood ratio. It keeps the ratio finite and is far outside any clip.
MAX_LOG_RATIO = 20.0


def group_advantage(rewards: Tensor) -> Tensor:
    """Group-relative advantage (GDPO-SR). rewards: (B, G) float -> (B, G) float32, zero mean and unit population
    variance per row, so that a pair gets +1 and -1. A row of equal rewards gets zeros."""
    values = _checked_rewards(rewards)
    centred = values - values.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    return torch.where(deviation > MIN_DEVIATION, centred / deviation.clamp_min(MIN_DEVIATION), 0.0)


def best_worst_advantage(rewards: Tensor) -> Tensor:
    """Diffusion-DPO on a group: (B, G) -> (B, G) float32, +1 for the best of each row, -1 for its worst, 0 for the others.

    Among equal rewards the first counts. A row of equal rewards gets zeros."""
    values = _checked_rewards(rewards)
    best, worst = values.argmax(1, keepdim=True), values.argmin(1, keepdim=True)
    varied = values.gather(1, best) - values.gather(1, worst) > MIN_DEVIATION  # (B, 1)
    signs = torch.zeros_like(values).scatter(1, best, 1.0).scatter(1, worst, -1.0)
    return signs * varied


def error_change(policy: Tensor, reference: Tensor, target: Tensor) -> Tensor:
    """e - e_ref, the mean squared error of the policy's output minus that of the reference's: (B, G, C, h, w) each -> (B, G) float32.

    policy and reference may have 1 instead of G: one output for the whole group. |p - x|^2 - |r - x|^2 is computed as
    a product, which avoids the difference of large numbers. Raises ValueError for shapes that do not fit."""
    shapes = [tuple(tensor.shape) for tensor in (policy, reference, target)]
    if target.ndim != 5 or any(s not in (shapes[2], (len(target), 1, *shapes[2][2:])) for s in shapes):
        raise ValueError(
            "expected policy, reference and target of one shape (B, G, C, h, w), the first two with 1 or G outputs, "
            f"got {', '.join(map(str, shapes))}"
        )
    p, r, x = policy.float(), reference.float(), target.float()
    return ((p - r) * (p + r - 2 * x)).mean((2, 3, 4))


def group_variance(samples: Tensor, floor: float) -> Tensor:
    """Variance within a group: (B, G, C, h, w) -> (B,) float32, mean |x_i - mean x|^2 over G, C, h and w, at least
    floor. No gradient."""
    x = samples.detach().float()
    return (x - x.mean(1, keepdim=True)).square().mean((1, 2, 3, 4)).clamp_min(floor)


def anchor_distance(policy: Tensor, reference: Tensor, variance: Tensor) -> Tensor:
    """Mean squared distance between two outputs for the same input, in units of the group's variance. Scalar, mean over B.

    policy, reference: of one shape (B, ...); without gradient into the reference.
    variance: (B,), see `group_variance`.

    With shared noise and sum_i A_i = 0, the preference's gradient does not depend on how far the policy has moved.
    This term's grows with the distance and limits it."""
    apart = policy.float() - reference.float()
    return (apart.square().flatten(1).mean(1) / variance).mean()


def preference_loss(change: Tensor, advantage: Tensor, weight: float) -> Tensor:
    """-log sigmoid(-weight * sum_i A_i (e_i - e_ref_i)), mean over B. Scalar.

    change: e - e_ref, (B, G), see `error_change`, with the same noise and timestep; the reference's without gradient.
    advantage: A, (B, G).
    weight: a larger value saturates the loss sooner.

    With `group_advantage` this is the loss of GDPO-SR (its w = 5000 with the factor 1/2 is weight = 2500). With
    `best_worst_advantage` it is Diffusion-DPO (Wallace et al. 2023)."""
    return -F.logsigmoid(-weight * _movement(change, advantage)).mean()


def preference_accuracy(change: Tensor, advantage: Tensor) -> Tensor:
    """Implicit accuracy: the share of rows in which the policy has moved the preferred way, that is sum_i A_i (e_i - e_ref_i) < 0.

    (B, G) each -> scalar in [0, 1]. Rows without movement or advantage count as not moved."""
    return (_movement(change, advantage) < 0).float().mean()


def gaussian_log_ratio(candidate: Tensor, old_mean: Tensor, new_mean: Tensor, sigma: float) -> Tensor:
    """log N(x; new, sigma^2) - log N(x; old, sigma^2), averaged over C, h and w as in DanceGRPO: (B, G, C, h, w) -> (B, G) float32.

    candidate: x.
    old_mean, new_mean: may have 1 instead of G.
    sigma: standard deviation in units of the latent.

    A one-step model is a Gaussian policy of fixed sigma around its prediction."""
    _check_sigma(sigma)
    x, old, new = candidate.float(), old_mean.float(), new_mean.float()
    # |x - old|^2 - |x - new|^2 as a product avoids the difference of large numbers
    return ((new - old) * (2 * x - old - new)).mean((2, 3, 4)) / (2 * sigma**2)


def gaussian_kl(new_mean: Tensor, reference_mean: Tensor, sigma: float) -> Tensor:
    """KL divergence of two Gaussian policies with the same sigma, averaged over C, h and w: (B, G, C, h, w) -> (B, G) float32."""
    _check_sigma(sigma)
    return (new_mean.float() - reference_mean.float()).square().mean((2, 3, 4)) / (2 * sigma**2)


def grpo_loss(
    log_ratio: Tensor, advantage: Tensor, clip: float = 0.2, kl: Tensor | None = None, kl_weight: float = 0.0
) -> Tensor:
    """Clipped surrogate of group relative policy optimization (DanceGRPO, Xue et al. 2025): (B, G) each -> scalar, mean over both.

    -min(r A, clamp(r, 1 - clip, 1 + clip) A) + kl_weight * kl, with r = exp(log_ratio).

    log_ratio: of the new to the old policy.
    advantage: A.
    clip: above 0 and below 1.
    kl: divergence from the reference; needed if kl_weight is not 0.
    kl_weight: its weight."""
    if not 0 < clip < 1:
        raise ValueError(f"clip must be above 0 and below 1, got {clip}")
    if kl is None and kl_weight != 0:
        raise ValueError(f"a kl_weight of {kl_weight} needs kl (B, G), got None")
    _check_same_shape(log_ratio, advantage, *([] if kl is None else [kl]))
    ratio = log_ratio.float().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -gain.mean() if kl is None else kl_weight * kl.float().mean() - gain.mean()


def _movement(change: Tensor, advantage: Tensor) -> Tensor:
    """sum_i A_i (e_i - e_ref_i): (B, G) each -> (B,) float32."""
    _check_same_shape(change, advantage)
    return (advantage.float() * change.float()).sum(1)


def _checked_rewards(rewards: Tensor) -> Tensor:
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"expected rewards (B, G) with at least two samples in a group, got {tuple(rewards.shape)}"
        )
    if not torch.isfinite(rewards).all():
        raise ValueError("rewards must be finite, got NaN or infinity: normalise the scores first")
    return rewards.detach().float()


def _check_same_shape(*tensors: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(shapes[0]) != 2 or len(set(shapes)) != 1:
        raise ValueError(f"expected tensors of one shape (B, G), got {', '.join(map(str, shapes))}")


def _check_sigma(sigma: float) -> None:
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
