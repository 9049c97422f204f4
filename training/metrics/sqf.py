"""SQF, a full-reference perceptual distance: LPIPS (Zhang et al., 2018) without its learned weights.

Lower is better, 0 is equal. Both pictures pass through SqueezeNet 1.1; the feature maps after conv1, fire3,
fire5, fire7 and fire9 are scaled to unit length over channels; the squared difference is summed over channels
and averaged over pixels, then over the five layers. On RealSR: bicubic 0.563, OSEDiff 0.488.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from training.metrics.squeezenet import SqueezeFeatures

MIN_SIDE = 35  # pixels; smaller pictures have no fire9 map


def sqf(sr: np.ndarray, hr: np.ndarray, weights: str | Path) -> float:
    """sr, hr: (H, W, 3) uint8 of one size, at least 35 pixels a side. weights: SqueezeNet 1.1 as a
    safetensors file.
    """
    return scorer(weights)(sr, hr)


def unavailable(weights: str | Path | None) -> str | None:
    """Why SQF cannot be measured here; None where it can."""
    if weights is None:
        return "no SqueezeNet weights given"
    if find_spec("torch") is None or find_spec("safetensors") is None:
        return "torch and safetensors are not installed"
    return None


def scorer(weights: str | Path) -> Callable[[np.ndarray, np.ndarray], float]:
    """The score as a function of (sr, hr), with the network loaded."""
    network = _network(Path(weights).resolve())

    def score(sr: np.ndarray, hr: np.ndarray) -> float:
        import torch

        if sr.shape != hr.shape or sr.dtype != np.uint8 or hr.dtype != np.uint8 or sr.shape[2:] != (3,):
            raise ImageError(
                f"SQF needs two (H, W, 3) uint8 pictures of one size, got {sr.shape} and {hr.shape}"
            )
        if min(sr.shape[:2]) < MIN_SIDE:
            raise ImageError(f"SQF needs at least {MIN_SIDE} pixels a side, got {sr.shape[1]}x{sr.shape[0]}")
        with torch.inference_mode():
            pairs = zip(network(_tensor(sr)), network(_tensor(hr)), strict=True)
            layers = [float((a - b).square().sum(1).mean()) for a, b in pairs]
        return sum(layers) / len(layers)

    return score


@lru_cache(maxsize=1)
def _network(weights: Path) -> "SqueezeFeatures":
    from training.metrics.squeezenet import SqueezeFeatures

    try:
        return SqueezeFeatures(weights)
    except (OSError, ValueError) as error:
        raise ImageError(f"SQF: {error}") from error


def _tensor(image: np.ndarray) -> "Tensor":
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))[None]).float() / 255
