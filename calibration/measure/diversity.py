"""How closely a student's samples follow the teacher's: distance, diversity, and whether a seed gives the same sample.

Pure functions of pictures, in levels of 1/255. Both models are compared on samples of the same pictures and the same noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from runtime.upscale.probe import psnr_db

# PSNR in dB that stands for equal pictures.
HIGHEST_PSNR = 100.0
# Share of the teacher's diversity that a distillation must keep.
DIVERSITY_FLOOR = 0.9
# Side in pixels of a mean filter. The part that it removes counts as texture.
WINDOW = 5


@dataclass(frozen=True)
class Agreement:
    """A student beside its teacher. A distance is the RMS difference of two samples, in 1/255, averaged over pairs and pictures."""

    teacher_psnr: float
    """PSNR in dB of the student's sample against the teacher's of the same noise, over RGB; mean over samples."""
    diversity: float
    """Distance between the student's samples over the distance between the teacher's."""
    texture_diversity: float
    """Diversity of the texture alone."""
    follows: float
    """Correlation of the student's differences between samples with the teacher's. 1: a seed gives the same sample; 0: no relation."""
    texture_follows: float
    """Correlation of these differences in the texture alone."""
    distance: float
    """Distance between the student's samples."""
    teacher_distance: float
    """Distance between the teacher's samples."""

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def agreement(pictures: Iterable[tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]) -> Agreement:
    """Compare the samples of both models.

    pictures: the student's and the teacher's samples of each, at least two, (H, W, 3) in [0, 255]; sample k of both has the same noise.
    ValueError if the teacher's samples do not differ.
    """
    psnr, full, texture = [], _Differences(), _Differences()
    for ours, theirs in pictures:
        if len(ours) != len(theirs) or len(ours) < 2:
            raise ValueError(
                f"expected as many samples of both, at least two, got {len(ours)} and {len(theirs)}"
            )
        ours, theirs = ([x.astype(np.float64) for x in samples] for samples in (ours, theirs))
        psnr += [_psnr(a, b) for a, b in zip(ours, theirs, strict=True)]
        for i, j in combinations(range(len(ours)), 2):
            pair = ours[i] - ours[j], theirs[i] - theirs[j]
            full.add(*pair)
            texture.add(*(high_pass(x) for x in pair))
    if not psnr:
        raise ValueError("expected at least one picture, got none")
    return Agreement(
        teacher_psnr=float(np.mean(psnr)),
        diversity=full.ratio,
        texture_diversity=texture.ratio,
        follows=full.correlation,
        texture_follows=texture.correlation,
        distance=float(np.mean(full.student)),
        teacher_distance=float(np.mean(full.teacher)),
    )


def high_pass(image: np.ndarray) -> np.ndarray:
    """The picture minus its 5x5 mean, without the borders: (H, W, 3) -> (H - 4, W - 4, 3)."""
    edge = WINDOW // 2
    windows = np.lib.stride_tricks.sliding_window_view(image, (WINDOW, WINDOW), axis=(0, 1))
    return image[edge:-edge, edge:-edge] - windows.mean(axis=(-2, -1))


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return min(HIGHEST_PSNR, psnr_db(a, b, equal=HIGHEST_PSNR))


class _Differences:
    """Sums over differences between two samples, of student and teacher."""

    def __init__(self) -> None:
        self.student: list[float] = []
        self.teacher: list[float] = []
        self._sums = np.zeros(6)  # number, a, b, a^2, b^2, ab

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Count a difference. a: the student's, b: the teacher's."""
        self.student.append(float(np.sqrt(np.mean(a * a))))
        self.teacher.append(float(np.sqrt(np.mean(b * b))))
        self._sums += [a.size, a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()]

    @property
    def ratio(self) -> float:
        whole = float(np.mean(self.teacher))
        if whole == 0:
            raise ValueError(
                "the teacher's samples of different noise are all equal: there is no diversity to keep, expected a model whose noise "
                "has an effect"
            )
        return float(np.mean(self.student)) / whole

    @property
    def correlation(self) -> float:
        """Pearson's, over all pixels; 0 if one side is constant."""
        n, a, b, aa, bb, ab = self._sums
        spread = (aa - a * a / n) * (bb - b * b / n)
        return float((ab - a * b / n) / np.sqrt(spread)) if spread > 0 else 0.0
