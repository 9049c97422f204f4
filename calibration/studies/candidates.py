"""No-reference scores that may find the best of several samples. `ranking.py` measures whether they do.

Each takes the samples of one picture, (H, W, 3) uint8, and its LR, (h, w, 3) uint8, and gives one number per sample. The measurement
shows whether lower or higher is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from PIL import Image

from runtime.image.grain import COARSE, FINE, NAME, binomial, score
from training.metrics.luma import luma_y
from training.metrics.niqe import niqe

Samples = Sequence[np.ndarray]
Candidate = Callable[[Samples, np.ndarray], Sequence[float]]

# Period of the pixel shuffle and of JPEG, in output pixels.
BLOCK: Final = 8
# Bins of gradient magnitude, in 1/255.
BINS: Final = np.append(np.arange(0, 64, 1.0), 1e9)


def each(measure: Callable[[np.ndarray], float]) -> Candidate:
    """A candidate that measures the luma of each sample by itself."""
    return lambda samples, lr: [measure(_luma(sample)) for sample in samples]


def fine_energy(plane: np.ndarray) -> float:
    """Variance of the part that the finest filter of `runtime.image.grain` removes."""
    return float(np.mean((plane[FINE:-FINE, FINE:-FINE] - binomial(plane, FINE)) ** 2))


def coarse_energy(plane: np.ndarray) -> float:
    """Variance between the two coarser filters of `runtime.image.grain`."""
    narrow, wide = (binomial(plane, passes) for passes in COARSE)
    edge = COARSE[1] - COARSE[0]
    return float(np.mean((narrow[edge:-edge, edge:-edge] - wide) ** 2))


def laplacian_energy(plane: np.ndarray) -> float:
    return float(np.mean(_laplacian(plane) ** 2))


def laplacian_kurtosis(plane: np.ndarray) -> float:
    """How far fine texture is concentrated in few places: fourth moment over the squared second."""
    squares = _laplacian(plane).astype(np.float64) ** 2
    energy = squares.mean()
    return float((squares**2).mean() / energy**2) if energy else 0.0


def total_variation(plane: np.ndarray) -> float:
    return float(np.abs(np.diff(plane, axis=0)).mean() + np.abs(np.diff(plane, axis=1)).mean())


def gradient_entropy(plane: np.ndarray) -> float:
    """Shannon entropy of the histogram of gradient magnitudes, nats."""
    down, across = np.diff(plane, axis=0)[:, :-1], np.diff(plane, axis=1)[:-1]
    counts = np.histogram(np.hypot(down, across), BINS)[0]
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def blockiness(plane: np.ndarray) -> float:
    """How unevenly steps are spread over the eight positions of a period: standard deviation over mean."""
    across = np.abs(np.diff(plane, axis=1)).mean(axis=0)
    down = np.abs(np.diff(plane, axis=0)).mean(axis=1)
    steps = np.array([across[k::BLOCK].mean() + down[k::BLOCK].mean() for k in range(BLOCK)])
    return float(steps.std() / steps.mean()) if steps.any() else 0.0


def inconsistency(samples: Samples, lr: np.ndarray) -> list[float]:
    """Mean squared distance between the reduced sample and LR."""
    size = (lr.shape[1], lr.shape[0])
    small = [Image.fromarray(sample).resize(size, Image.Resampling.LANCZOS) for sample in samples]
    return [float(np.mean((np.asarray(s, np.float32) - lr) ** 2)) for s in small]


def invention(samples: Samples, lr: np.ndarray) -> list[float]:
    """Mean squared distance between the luma of a sample and of bicubic."""
    size = (samples[0].shape[1], samples[0].shape[0])
    plain = _luma(np.asarray(Image.fromarray(lr).resize(size, Image.Resampling.BICUBIC)))
    return [float(np.mean((_luma(sample) - plain) ** 2)) for sample in samples]


def distance_to_mean(samples: Samples, lr: np.ndarray) -> list[float]:
    """Mean squared distance of luma to the mean of all samples; the sample with the least is the medoid."""
    planes = [_luma(sample) for sample in samples]
    mean = np.mean(planes, axis=0)
    return [float(np.mean((plane - mean) ** 2)) for plane in planes]


def distance_to_others(samples: Samples, lr: np.ndarray) -> list[float]:
    """Mean absolute distance of luma to the other samples. Large differences count less than in a mean square."""
    planes = [_luma(sample) for sample in samples]
    return [float(np.mean([np.abs(plane - other).mean() for other in planes])) for plane in planes]


def chroma_energy(samples: Samples, lr: np.ndarray) -> list[float]:
    """Mean squared distance of the channels to luma: colourfulness."""
    return [float(np.mean((sample - _luma(sample)[..., None]) ** 2)) for sample in samples]


def _luma(picture: np.ndarray) -> np.ndarray:
    return luma_y(picture).astype(np.float32)


def _laplacian(plane: np.ndarray) -> np.ndarray:
    sides = plane[:-2, 1:-1] + plane[2:, 1:-1] + plane[1:-1, :-2] + plane[1:-1, 2:]
    return np.asarray(4 * plane[1:-1, 1:-1] - sides)


CANDIDATES: Final[dict[str, Candidate]] = {
    NAME: lambda samples, lr: [score(sample) for sample in samples],
    "niqe": lambda samples, lr: [niqe(sample) for sample in samples],
    "fine energy": each(fine_energy),
    "coarse energy": each(coarse_energy),
    "laplacian energy": each(laplacian_energy),
    "laplacian kurtosis": each(laplacian_kurtosis),
    "total variation": each(total_variation),
    "gradient entropy": each(gradient_entropy),
    "blockiness": each(blockiness),
    "contrast": each(lambda plane: float(plane.std())),
    "chroma energy": chroma_energy,
    "distance to LR": inconsistency,
    "distance to bicubic": invention,
    "distance to the mean": distance_to_mean,
    "distance to the others": distance_to_others,
}
