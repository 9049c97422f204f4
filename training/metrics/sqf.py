"""SQF for 8-bit NumPy pictures. `squeezenet.sqf` has the definition and the torch form. torch is imported at the first measurement."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import ImageError

if TYPE_CHECKING:
    from training.metrics.squeezenet import SqueezeFeatures


def sqf(sr: np.ndarray, hr: np.ndarray, weights: str | Path) -> float:
    """SQF of sr and hr, (H, W, 3) uint8 of one size, at least 35 pixels a side. weights: SqueezeNet 1.1 as safetensors."""
    return scorer(weights)(sr, hr)


def unavailable(weights: str | Path | None) -> str | None:
    """The reason why SQF cannot be measured; None if it can."""
    if weights is None:
        return "no SqueezeNet weights given"
    if find_spec("torch") is None or find_spec("safetensors") is None:
        return "torch and safetensors are not installed"
    return None


def scorer(weights: str | Path) -> Callable[[np.ndarray, np.ndarray], float]:
    """The score as a function of (sr, hr), with the network already loaded."""
    network = _network(Path(weights).resolve())

    def score(sr: np.ndarray, hr: np.ndarray) -> float:
        import torch

        from training.metrics.registry import to_tensor
        from training.metrics.squeezenet import sqf

        if sr.shape != hr.shape or sr.dtype != np.uint8 or hr.dtype != np.uint8 or sr.shape[2:] != (3,):
            raise ImageError(
                f"SQF needs two (H, W, 3) uint8 pictures of one size, got {sr.shape} and {hr.shape}"
            )
        with torch.inference_mode():
            return float(sqf(network, to_tensor(sr), to_tensor(hr)))

    return score


@lru_cache(maxsize=1)
def _network(weights: Path) -> SqueezeFeatures:
    from training.metrics.squeezenet import SqueezeFeatures

    try:
        return SqueezeFeatures(weights)
    except (OSError, ValueError) as error:
        raise ImageError(f"SQF: {error}") from error
