"""The loss of a converted pair of graphs against fp32, on photos with known HR, in terms of the accuracy gates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from calibration.measure.gates import Gates
from calibration.samples import Sample, as_pixels
from runtime.errors import GdposrError
from training.metrics.artefacts import diversity
from training.metrics.fidelity import psnr_y

# image, noise -> sr, as in export.parity
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]
# sr, hr -> score
Score = Callable[[np.ndarray, np.ndarray], float]
# Gates that `losses` covers.
JUDGED = ("max_psnr_loss", "min_diversity_ratio", "max_sqf_rise")


@dataclass(frozen=True)
class Quality:
    """Means over the samples."""

    psnr: float
    """PSNR in dB on Y of the 8-bit picture."""
    diversity: float | None
    """Mean RMS distance between samples of one photo, in 1/255; None with one sample per photo."""
    sqf: float | None
    """Mean SQF; None if it was not measured."""


def judge(run: Run, samples: Sequence[Sample], sqf: Score | None = None) -> Quality:
    """Measure a model on samples. Consecutive samples with the same LR picture belong to one photo."""
    psnr, spread, distances = [], [], []
    for _, group in groupby(samples, key=lambda sample: sample.lr.tobytes()):
        pictures = []
        for sample in group:
            sr = run(sample.lr[None], sample.noise[None])[0]
            if not np.isfinite(sr).all():
                raise GdposrError(
                    f"sample of {sample.photo}: expected finite values, got NaN or infinity; check the weights"
                )
            pictures.append(as_pixels(sr))
            hr = as_pixels(sample.hr)
            psnr.append(psnr_y(pictures[-1], hr))
            if sqf is not None:
                distances.append(sqf(pictures[-1], hr))
        if len(pictures) > 1:
            spread.append(diversity(pictures))
    return Quality(
        float(np.mean(psnr)),
        float(np.mean(spread)) if spread else None,
        float(np.mean(distances)) if distances else None,
    )


def losses(came: Quality, reference: Quality) -> dict[str, float]:
    """The loss against the reference by gate, without values that were not measured."""
    lost = {"max_psnr_loss": reference.psnr - came.psnr}
    if came.diversity is not None and reference.diversity:
        lost["min_diversity_ratio"] = came.diversity / reference.diversity
    if came.sqf is not None and reference.sqf:
        lost["max_sqf_rise"] = came.sqf / reference.sqf - 1
    return lost


def broken(budget: Gates, lost: Mapping[str, float]) -> list[str]:
    """The gates of a budget that are missed, each with its limit and value. Gates that were not measured are left out."""
    missed = []
    for gate, value in lost.items():
        limit = getattr(budget, gate)
        if limit is None:
            continue
        kept = value >= limit if gate.startswith("min_") else value <= limit
        if not kept:
            missed.append(f"{gate} {limit:g}, got {value:.4f}")
    return missed
