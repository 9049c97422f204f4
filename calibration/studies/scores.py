"""The scores that are compared with votes: every reward of training and the scores of detail, each as a metric of one crop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.metrics import detail
from training.metrics.registry import BUILT_IN, Metric, create_metrics, to_tensor

TRUTH, INPUT, NOTHING = "truth", "input", "nothing"
# Built-in rewards that need a file.
WEIGHTED = ("sqf", "critic")
# Relative and absolute difference of values that count as equal.
ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Score:
    """One score of a crop."""

    metric: Metric
    """How it is computed and which way is better."""
    against: str
    """The picture to compare with: the HR picture ("truth"), the enlarged input ("input") or "nothing"."""

    def of(self, sr: np.ndarray, reference: np.ndarray | None) -> float:
        """sr, reference: (H, W, 3) uint8; reference None for "nothing". NaN if the picture lacks the parts that the score needs."""
        return float(self.metric(to_tensor(sr), None if reference is None else to_tensor(reference))[0])

    def prefers_first(self, first: float, second: float) -> bool | None:
        """Whether the first value is better; None if the values are NaN or equal within float32."""
        if math.isclose(first, second, rel_tol=ROUNDING, abs_tol=ROUNDING) or math.isnan(first + second):
            return None
        return (first > second) is self.metric.higher_is_better


def all_scores(sqf_weights: Path | None = None, critic: Path | None = None) -> list[Score]:
    """All scores; SQF and the critic only if their weights are given."""
    plain = [name for name in BUILT_IN if name not in WEIGHTED] + ["sqf"] * (sqf_weights is not None)
    rewards = create_metrics(plain, "cpu", sqf_weights)
    distances = [
        Metric("gradients", True, False, detail.gradient_distance),
        Metric("wavelets", True, False, detail.wavelet_distance),
        Metric("gmsd", True, False, detail.gmsd),
        Metric("grain, distance", True, False, lambda sr, hr: detail.fine_grain(sr, hr).distance),
        Metric("chroma, distance", True, False, lambda sr, hr: detail.fine_chroma(sr, hr).distance),
    ]
    # the amount alone, on the flat parts of the input: these need no truth
    amounts = [
        Metric("grain, amount", True, False, lambda sr, lr: detail.fine_grain(sr, lr).value),
        Metric("chroma, amount", True, False, lambda sr, lr: detail.fine_chroma(sr, lr).value),
    ]
    if critic is not None:
        from training.metrics.critic import load_critic

        rewards.append(Metric("critic", False, True, load_critic(critic).score))
    return [
        *(Score(metric, TRUTH if metric.reference else NOTHING) for metric in (*rewards, *distances)),
        *(Score(metric, INPUT) for metric in amounts),
    ]
