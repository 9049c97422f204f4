"""Bootstrap over pictures: the interval of a mean, and whether two methods differ.

The percentile bootstrap of the mean (Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13): the pictures are drawn
with replacement `RESAMPLES` times, and the interval runs between the tails of the resampled means. Two methods are compared on the
same pictures: their difference is taken per picture and then resampled (paired), so that differences between pictures cancel out.

Crops of one photo resemble each other and are not independent. If groups are given, whole groups are drawn (the cluster bootstrap;
Davison & Hinkley 1997, Bootstrap Methods and their Application, sec. 3.8).

A mean with an infinite value (PSNR of equal pictures) is infinite, and a resample without that value is finite. So an interval may
have one finite and one infinite end. Two infinite values of one picture are equal; their difference is 0.

With few groups the intervals are too narrow, and with one group they have no width: do not trust those of fewer than `FEW`.

Not scipy.stats.bootstrap, which agrees to the chance of the draws (tests/test_statistics.py: values, differences, whole groups): it
refuses a single picture, and the base install has no scipy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

# Name of the row that differences and relative gates compare with.
REFERENCE: Final = "fp32"
# Share of the resampled means inside an interval.
CONFIDENCE = 0.95
# Draws of all pictures. Another seed then moves an end by about 1 % of the interval's width.
RESAMPLES = 10_000
# Groups. With fewer the percentile bootstrap covers well below its stated confidence.
FEW = 10
# Random numbers held in memory at once, 16 MB.
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A confidence interval of the mean over all pictures of this kind, 95 % by default. Unit of the metric."""

    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""


@dataclass(frozen=True)
class Difference:
    """Mean of values - reference over the pictures, with its interval. Unit of the metric."""

    mean: float
    """Above 0: the values are larger than the reference."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""

    @property
    def real(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def interval(
    values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> Interval:
    """Interval of the mean of values. ValueError for no values and for NaN.

    values: one per picture.
    resamples: how often the pictures are drawn anew.
    seed: of the draws.
    confidence: share of the resampled means inside the interval, 0 to 1.
    """
    return intervals({"values": values}, resamples=resamples, seed=seed, confidence=confidence)["values"]


def difference(
    values: Sequence[float],
    reference: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Mean of values - reference, with its interval.

    values, reference: one per picture; picture k is the same in both.
    resamples, seed, confidence: as in `interval`.

    ValueError for no values, for unequal numbers, and for differences without a mean (+infinity and -infinity).
    """
    (found,) = differences(
        {"values": values}, {"values": reference}, resamples=resamples, seed=seed, confidence=confidence
    ).values()
    return found


def intervals(
    columns: Mapping[str, Sequence[float]],
    *,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> dict[str, Interval]:
    """`interval` for several metrics of the same pictures, on the same resamples.

    columns: metric -> value of each picture.
    groups: the photo that each picture is a crop of; None: each is its own.
    resamples, seed, confidence: as in `interval`.
    """
    if not columns:
        return {}
    values = _table(columns)
    low, high = _tails(values, _members(groups, len(values)), resamples, seed, confidence)
    return {name: Interval(float(low[k]), float(high[k])) for k, name in enumerate(columns)}


def differences(
    columns: Mapping[str, Sequence[float]],
    reference: Mapping[str, Sequence[float]],
    *,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> dict[str, Difference]:
    """`difference` for the metrics that both have, on the same resamples.

    columns, reference: metric -> value of each picture.
    groups, resamples, seed, confidence: as in `intervals`.
    """
    names = [name for name in columns if name in reference]
    if not names:
        return {}
    ours, theirs = _table({n: columns[n] for n in names}), _table({n: reference[n] for n in names})
    if len(ours) != len(theirs):
        raise ValueError(
            f"expected values of the same pictures, got {len(ours)} and {len(theirs)}: compare rows of one run"
        )
    same = ours == theirs  # true also if both are infinite
    change = np.where(same, 0.0, ours - np.where(same, 0.0, theirs))
    torn = [
        n for k, n in enumerate(names) if np.isposinf(change[:, k]).any() and np.isneginf(change[:, k]).any()
    ]
    if torn:
        raise ValueError(
            f"{torn[0]}: expected differences with a mean, got infinite ones of both signs: leave out the pictures that one of the two "
            "reproduces exactly"
        )
    low, high = _tails(change, _members(groups, len(change)), resamples, seed, confidence)
    return {
        name: Difference(float(change[:, k].mean()), float(low[k]), float(high[k]))
        for k, name in enumerate(names)
    }


def _table(columns: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Metrics side by side, (pictures, metrics) float64, checked."""
    lengths = {name: len(values) for name, values in columns.items()}
    if min(lengths.values()) < 1 or len(set(lengths.values())) > 1:
        raise ValueError(f"expected one or more values, as many of every metric, got {lengths}")
    values = np.stack([np.asarray(column, np.float64) for column in columns.values()], axis=1)
    if np.isnan(values).any():
        raise ValueError(
            f"expected numbers, got NaN in {', '.join(n for n, v in columns.items() if np.isnan(v).any())}"
        )
    return values


def _members(groups: Sequence[str] | None, count: int) -> np.ndarray:
    """The number of each picture's group, (pictures,) int, in the order in which groups first appear."""
    if groups is None:
        return np.arange(count)
    if len(groups) != count:
        raise ValueError(f"expected a group for each of {count} pictures, got {len(groups)}: name one each")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups])


def _tails(
    values: np.ndarray, members: np.ndarray, resamples: int, seed: int, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends for (pictures, metrics): order statistics of the resampled means, which may be infinite."""
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"expected at least 1 resample and a confidence between 0 and 1, got {resamples} and {confidence}"
        )
    means = _resampled_means(values, members, resamples, seed)
    tail = (1 - confidence) / 2
    first = int(tail * (resamples - 1))
    last = resamples - 1 - first
    ordered = np.partition(means, (first, last), axis=0)
    return ordered[first], ordered[last]


def _resampled_means(values: np.ndarray, members: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(pictures, metrics) -> (resamples, metrics). A resample is a count for each group, so one product gives all metrics."""
    count = int(members.max()) + 1
    rng = np.random.Generator(np.random.PCG64(seed))
    # Subtracting an offset first makes the interval of a constant metric exact.
    offset = np.where(np.isfinite(values[0]), values[0], 0.0)
    sums = _added(np.where(np.isfinite(values), values - offset, 0.0), members)
    infinite = {sign: _added(values == sign, members) for sign in (np.inf, -np.inf)}
    sizes = np.bincount(members).astype(np.float64)[:, None]  # pictures in each group
    parts = []
    step = max(1, _CHUNK // count)
    for begin in range(0, resamples, step):
        rows = min(step, resamples - begin)
        drawn = rng.integers(0, count, (rows, count))
        drawn += count * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        means = offset + counts @ sums / (counts @ sizes)
        for sign, present in infinite.items():
            means = np.where(counts @ present > 0, sign, means)
        parts.append(means)
    return np.concatenate(parts)


def _added(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """(pictures, metrics) -> their sums by group, (groups, metrics) float64."""
    sums = np.zeros((int(members.max()) + 1, values.shape[1]))
    np.add.at(sums, members, values)
    return sums
