"""Blur kernels of the degradation: Gaussian, generalised Gaussian and plateau (isotropic or not), and the sinc low-pass.

A kernel is a float32 array (size, size) with an odd size that sums to one. Angles in radians, sigma in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")


@dataclass(frozen=True)
class KernelParams:
    """Distribution of the random blur kernel of one stage."""

    size_range: tuple[int, int]
    """Smallest and largest side in pixels, odd, inclusive."""
    sigma_range: tuple[float, float]
    """Standard deviation in pixels. A larger value blurs more."""
    sinc_prob: float
    """Probability of a sinc kernel instead of one of `KINDS`."""
    kind_prob: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """Probabilities of `KINDS`, in that order."""
    generalized_beta: tuple[float, float] = (0.5, 4.0)
    """Exponent of generalised Gaussians, see `generalized_gaussian_kernel`."""
    plateau_beta: tuple[float, float] = (1.0, 2.0)
    """Exponent of plateau kernels, see `plateau_kernel`."""

    def __post_init__(self) -> None:
        if abs(sum(self.kind_prob) - 1.0) > 1e-6 or len(self.kind_prob) != len(KINDS):
            raise ValueError(
                f"kind_prob needs {len(KINDS)} probabilities that sum to 1, got {self.kind_prob}"
            )
        if self.size_range[0] % 2 == 0 or self.size_range[1] % 2 == 0:
            raise ValueError(f"kernel sizes must be odd, got {self.size_range}")


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"kernel size must be odd and positive, got {size}")
    axis = np.arange(size, dtype=np.float64) - size // 2
    return np.meshgrid(axis, axis)


def _mahalanobis(size: int, sigma_x: float, sigma_y: float, theta: float) -> np.ndarray:
    """Squared Mahalanobis distance from the centre, (size, size).

    size: side of the kernel.
    sigma_x, sigma_y: standard deviations along the axes.
    theta: rotation of the axes in radians."""
    x, y = _grid(size)
    u = (np.cos(theta) * x + np.sin(theta) * y) / sigma_x
    v = (-np.sin(theta) * x + np.cos(theta) * y) / sigma_y
    return u * u + v * v


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum()).astype(np.float32)


def gaussian_kernel(
    size: int, sigma_x: float, sigma_y: float | None = None, theta: float = 0.0
) -> np.ndarray:
    """Gaussian kernel exp(-d^2 / 2).

    size: side of the kernel.
    sigma_x, sigma_y: standard deviations in pixels; sigma_y None is isotropic.
    theta: rotation in radians."""
    return _normalised(np.exp(-0.5 * _mahalanobis(size, sigma_x, sigma_y or sigma_x, theta)))


def generalized_gaussian_kernel(
    size: int, sigma_x: float, sigma_y: float | None, theta: float, beta: float
) -> np.ndarray:
    """exp(-(d^2)^beta / 2): peaked for beta < 1, Gaussian for beta = 1, flat-topped for beta > 1.

    size: side of the kernel.
    sigma_x, sigma_y: standard deviations in pixels; sigma_y None is isotropic.
    theta: rotation in radians.
    beta: exponent."""
    return _normalised(np.exp(-0.5 * _mahalanobis(size, sigma_x, sigma_y or sigma_x, theta) ** beta))


def plateau_kernel(size: int, sigma_x: float, sigma_y: float | None, theta: float, beta: float) -> np.ndarray:
    """1 / ((d^2)^beta + 1).

    size: side of the kernel.
    sigma_x, sigma_y: standard deviations in pixels; sigma_y None is isotropic.
    theta: rotation in radians.
    beta: exponent."""
    return _normalised(1.0 / (_mahalanobis(size, sigma_x, sigma_y or sigma_x, theta) ** beta + 1.0))


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """Circular low-pass: cutoff * J1(cutoff * r) / (2 * pi * r). It causes ringing, as intended.

    cutoff: radians per pixel in (0, pi]."""
    x, y = _grid(size)
    r = np.hypot(x, y)
    r[size // 2, size // 2] = 1.0  # the limit at the centre is set below
    bessel = torch.special.bessel_j1(torch.from_numpy(cutoff * r)).numpy()
    kernel = cutoff * bessel / (2.0 * np.pi * r)
    kernel[size // 2, size // 2] = cutoff**2 / (4.0 * np.pi)
    return _normalised(kernel)


def random_kernel(rng: np.random.Generator, params: KernelParams) -> np.ndarray:
    """Draw a kernel: sinc with probability params.sinc_prob, else one of `KINDS`."""
    size = int(rng.choice(np.arange(params.size_range[0], params.size_range[1] + 1, 2)))
    if rng.random() < params.sinc_prob:
        return sinc_kernel(size, rng.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi))
    kind = KINDS[rng.choice(len(KINDS), p=params.kind_prob)]
    sigma_x = rng.uniform(*params.sigma_range)
    aniso = kind.endswith("aniso")
    sigma_y = rng.uniform(*params.sigma_range) if aniso else None
    theta = rng.uniform(-np.pi, np.pi) if aniso else 0.0
    if kind.startswith("generalized"):
        return generalized_gaussian_kernel(size, sigma_x, sigma_y, theta, _beta(rng, params.generalized_beta))
    if kind.startswith("plateau"):
        return plateau_kernel(size, sigma_x, sigma_y, theta, _beta(rng, params.plateau_beta))
    return gaussian_kernel(size, sigma_x, sigma_y, theta)


def _beta(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """Half of the draws are below 1 and half above, uniform on either side, as published."""
    low, high = bounds
    if low >= 1.0 or rng.random() >= 0.5:
        return float(rng.uniform(max(1.0, low), high))
    return float(rng.uniform(low, 1.0))
