"""How well a score without reference ranks the samples of a picture: agreement with SQF against HR, and the gain of choosing by it.

Agreement is Kendall's tau within a picture, averaged over pictures, so differences between pictures do not count; chance is 0. The
pictures are split in two halves: a candidate and its direction are chosen on one half and confirmed on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np

from calibration.measure.intervals import Interval, interval
from calibration.measure.pairs import Pair, read_rgb
from calibration.studies.candidates import CANDIDATES, Candidate
from runtime.errors import ImageError
from runtime.upscale.color import low_pass
from runtime.upscale.upscaler import Upscaler
from training.metrics import sqf
from training.metrics.fidelity import psnr_y
from training.metrics.luma import luma_y

# Samples of each picture.
SAMPLES: Final = 8
# Name of all candidates in one score.
COMBINATION: Final = "all together"
# Stands for an infinite score, such as NIQE's of a flat picture.
WORST: Final = 1e6
# Levels of the a-trous filter, about 8 output pixels. Differences that are coarser would be structure.
LOW_PASS_LEVELS: Final = 3


@dataclass(frozen=True, eq=False)
class Measured:
    """Figures of P pictures with S samples each."""

    sqf: np.ndarray
    """SQF of each sample, (P, S)."""
    psnr: np.ndarray
    """PSNR of luma of each sample in dB, (P, S)."""
    scores: dict[str, np.ndarray]
    """Candidate -> its score of each sample, (P, S)."""
    distance: np.ndarray
    """RMS difference of luma between two samples in 1/255, mean over pairs of samples, (P,)."""
    low: np.ndarray
    """That difference after a low-pass, (P,)."""


@dataclass(frozen=True)
class Estimate:
    """Mean over pictures, with its interval."""

    mean: float
    """Mean over pictures."""
    interval: Interval
    """95 % interval of the mean."""


@dataclass(frozen=True)
class Verdict:
    """How well one candidate chooses, over all pictures unless a field says otherwise."""

    name: str
    """Name of the candidate, or `COMBINATION`."""
    sign: int
    """1: lower is better; -1: higher is better. Chosen on one half of the pictures."""
    chosen: float
    """Tau on that half."""
    confirmed: float
    """Tau on the other half."""
    tau: Estimate
    """Kendall's tau against SQF, with that sign."""
    psnr_tau: float
    """Agreement with PSNR instead of SQF."""
    wins: Estimate
    """Share of the other samples that the chosen one beats; 0.5 by chance."""
    gain: Estimate
    """SQF of the mean sample minus SQF of the chosen one; 0 by chance."""
    share: float
    """That gain over the gain of choosing by SQF itself."""


def measure(
    upscaler: Upscaler,
    pairs: Sequence[Pair],
    weights: str | Path,
    *,
    samples: int = SAMPLES,
    first: int = 0,
    seed: int = 0,
    candidates: Mapping[str, Candidate] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Measure the samples of every pair.

    upscaler: draws the samples.
    pairs: LR and HR.
    weights: for SQF.
    samples: of each pair.
    first: number of the first sample.
    seed: of the noise.
    candidates: None: `CANDIDATES`.
    progress: called with pairs done and in all.
    ImageError if the sizes of a pair do not match.
    """
    if samples < 2:
        raise ImageError(f"expected at least 2 samples to choose from, got {samples}: ask for more")
    judge, chosen = sqf.scorer(weights), CANDIDATES if candidates is None else candidates
    truth, fidelity, distance, low = [], [], [], []
    scores: dict[str, list[Sequence[float]]] = {name: [] for name in chosen}
    for done, pair in enumerate(pairs, 1):
        lr, hr = read_rgb(pair.lr), read_rgb(pair.hr)
        drawn = upscaler.up(lr, seed, samples, first=first)
        truth.append([judge(sample, hr) for sample in drawn])
        fidelity.append([psnr_y(sample, hr) for sample in drawn])
        for name, candidate in chosen.items():
            scores[name].append(candidate(drawn, lr))
        planes = [luma_y(sample).astype(np.float32) for sample in drawn]
        distance.append(_distance(planes))
        low.append(_distance([low_pass(plane, levels=LOW_PASS_LEVELS) for plane in planes]))
        if progress:
            progress(done, len(pairs))
    return Measured(
        np.array(truth),
        np.array(fidelity),
        {name: np.nan_to_num(np.array(values, np.float64), posinf=WORST) for name, values in scores.items()},
        np.array(distance),
        np.array(low),
    )


def kendall(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Kendall's tau-a of each row: (P, S) twice -> (P,). Equal values count as no agreement."""
    pairs = list(combinations(range(scores.shape[1]), 2))
    signs = [np.sign(scores[:, i] - scores[:, j]) * np.sign(truth[:, i] - truth[:, j]) for i, j in pairs]
    return np.mean(signs, axis=0)


def halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of both halves. Pictures alternate in the order of names, so that both halves have the same cameras."""
    index = np.arange(count)
    return index[::2], index[1::2]


def judged(
    name: str, scores: np.ndarray, measured: Measured, *, swapped: bool = False, sign: int | None = None
) -> Verdict:
    """A candidate's agreement.

    name: of the candidate.
    scores: (P, S).
    measured: of the same pictures.
    swapped: the second half chooses instead of the first.
    sign: the direction; None: as that half has it.
    """
    choosing, confirming = halves(len(scores))[:: -1 if swapped else 1]
    tau = kendall(scores, measured.sqf)
    if sign is None:
        sign = 1 if tau[choosing].mean() >= 0 else -1
    # the first of equal ones, as `gdposr upscale` does
    pick = (sign * scores).argmin(axis=1)
    chosen = np.take_along_axis(measured.sqf, pick[:, None], axis=1)
    others = measured.sqf.shape[1] - 1
    wins = ((measured.sqf > chosen).sum(axis=1) + ((measured.sqf == chosen).sum(axis=1) - 1) / 2) / others
    gain = measured.sqf.mean(axis=1) - chosen[:, 0]
    possible = float(best_gain(measured).mean())
    return Verdict(
        name,
        sign,
        float(sign * tau[choosing].mean()),
        float(sign * tau[confirming].mean()),
        estimate(sign * tau),
        float(sign * kendall(scores, -measured.psnr).mean()),
        estimate(wins),
        estimate(gain),
        float(gain.mean()) / possible if possible else 0.0,
    )


def combined(measured: Measured) -> np.ndarray:
    """All candidates in one score, (P, S), lower is better.

    They are standardised within pictures and weighted by least squares to fit SQF. A picture's weights come from the half that it is
    not in.
    """
    columns = np.stack([_standardised(v) for v in measured.scores.values()], axis=2)  # (P, S, C)
    target = _standardised(measured.sqf)
    result = np.zeros_like(target)
    first, second = halves(len(target))
    for fitted, tested in ((first, second), (second, first)):
        matrix = columns[fitted].reshape(-1, columns.shape[2])
        result[tested] = columns[tested] @ np.linalg.lstsq(matrix, target[fitted].ravel(), rcond=None)[0]
    return result


def best_gain(measured: Measured) -> np.ndarray:
    """SQF of the mean sample minus SQF of the best, (P,): the gain of a perfect choice."""
    return np.asarray(measured.sqf.mean(axis=1) - measured.sqf.min(axis=1))


def verdicts(measured: Measured, swapped: bool = False) -> list[Verdict]:
    """Every candidate, the best on the choosing half first, and the combination last."""
    found = [judged(name, values, measured, swapped=swapped) for name, values in measured.scores.items()]
    found.sort(key=lambda verdict: -verdict.chosen)
    return [*found, judged(COMBINATION, combined(measured), measured, swapped=swapped, sign=1)]


def estimate(values: np.ndarray) -> Estimate:
    """Mean of one value per picture, with its interval."""
    return Estimate(float(values.mean()), interval(values.tolist()))


def _standardised(values: np.ndarray) -> np.ndarray:
    """Zero mean and unit standard deviation of each row; a constant row becomes 0."""
    centred = values - values.mean(axis=1, keepdims=True)
    spread = values.std(axis=1, keepdims=True)
    return np.asarray(centred / np.where(spread > 0, spread, 1.0))


def _distance(planes: Sequence[np.ndarray]) -> float:
    """RMS difference of two planes, mean over all pairs."""
    return float(np.mean([np.sqrt(np.mean((a - b) ** 2)) for a, b in combinations(planes, 2)]))
