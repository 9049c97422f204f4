"""Shares and agreement: the Wilson interval of a share, and Cohen's kappa of two voters. Pure functions of counts."""

from collections import Counter
from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

# Share of many studies whose interval holds the true share.
CONFIDENCE = 0.95


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of a proportion: (low, high) within [0, 1].

    Wilson 1927, Probable inference, the law of succession, and statistical inference, J. Am. Stat. Assoc. 22:209-212. Unlike
    p +- z*sqrt(p(1-p)/n) it holds for few trials and never has width 0. Without trials it is (0, 1).
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"expected successes from 0 to {trials}, the trials, got {successes}")
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, got {confidence}")
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = successes / trials, z * z / trials
    middle = share + weight / 2
    reach = z * sqrt(share * (1 - share) / trials + weight / (4 * trials))
    low, high = (middle - reach) / (1 + weight), (middle + reach) / (1 + weight)
    # exact at the ends, without a rounding error of 1e-17
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


def agreement(first: Sequence[str], second: Sequence[str]) -> float:
    """Share of items on which two voters agree. Vote k of both is on the same item."""
    _check(first, second)
    return sum(one == other for one, other in zip(first, second, strict=True)) / len(first)


def kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Agreement beyond chance: 1 full, 0 as much as by chance, below 0 less. None if both gave the same vote on every item.

    Cohen 1960, A coefficient of agreement for nominal scales, Educ. Psychol. Meas. 20:37-46: (p_o - p_e) / (1 - p_e). p_e is the
    agreement of two independent voters with the same shares of votes.
    """
    observed = agreement(first, second)
    one, other = Counter(first), Counter(second)
    # in units of 1 / n^2, so that 1 is exact
    expected = sum(one[vote] * other[vote] for vote in one)
    total = len(first) ** 2
    return None if expected == total else (observed - expected / total) / (1 - expected / total)


def _check(first: Sequence[str], second: Sequence[str]) -> None:
    if len(first) != len(second) or not first:
        raise ValueError(f"expected two equally long lists of votes, got {len(first)} and {len(second)}")
