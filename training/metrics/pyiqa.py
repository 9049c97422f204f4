"""Learned image metrics from pyiqa. Nothing is loaded before a metric is used.

LPIPS (Zhang et al. 2018, arXiv 1801.03924), MUSIQ (Ke et al. 2021, arXiv 2108.05997), MANIQA (Yang et al. 2022, arXiv
2204.08958). pyiqa may download a metric's weights at first use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from runtime.errors import ImageError, SettingError

NEEDS = ("torch", "safetensors", "pyiqa")
REMEDY = 'pip install "gdposr[export]" pyiqa'

# (sr, hr), both (H, W, 3) uint8
Score = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class PerceptualMetric:
    """A metric and the meaning of its value."""

    name: str
    """Name in pyiqa."""
    title: str
    """Name in tables."""
    reference: bool
    """Whether it compares with the HR picture."""
    higher_is_better: bool
    """Whether a larger value is better."""


METRICS = (
    PerceptualMetric("lpips", "LPIPS", reference=True, higher_is_better=False),
    PerceptualMetric("musiq", "MUSIQ", reference=False, higher_is_better=True),
    PerceptualMetric("maniqa", "MANIQA", reference=False, higher_is_better=True),
)
NAMES = tuple(metric.name for metric in METRICS)


def available() -> tuple[tuple[str, ...], str | None]:
    """Names of the available metrics, and the reason if there are none. Imports nothing."""
    missing = [package for package in NEEDS if find_spec(package) is None]
    if missing:
        return (), f"{' and '.join(missing)} not installed: {REMEDY}"
    return NAMES, None


def wanted(names: Sequence[str]) -> tuple[str, ...]:
    """The named metrics, each once, in the order of `METRICS`; "all" selects all. Raises SettingError for unknown names."""
    unknown = [name for name in names if name not in (*NAMES, "all")]
    if unknown:
        raise SettingError(
            f"expected metrics among {', '.join(NAMES)} or all, got {unknown[0]!r}: PSNR, SSIM and NIQE are always measured"
        )
    return NAMES if "all" in names else tuple(name for name in NAMES if name in names)


def scorers(names: Sequence[str]) -> dict[str, Score]:
    """Each metric as a function of (sr, hr), loaded, on a CUDA device if there is one.

    Raises SettingError for a name that is not in `METRICS`, and if packages are missing."""
    chosen = [metric for metric in METRICS if metric.name in wanted(names)]
    if not chosen:
        return {}
    reason = available()[1]
    if reason:
        raise SettingError(f"{', '.join(metric.name for metric in chosen)}: {reason}")
    return {metric.name: _scorer(metric) for metric in chosen}


def _scorer(metric: PerceptualMetric) -> Score:
    import torch

    from training.metrics.registry import create_metrics, to_tensor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    (network,) = create_metrics([metric.name], device)
    if (network.reference, network.higher_is_better) != (metric.reference, metric.higher_is_better):
        raise SettingError(
            f"{metric.name}: expected a metric with reference {metric.reference} and higher better {metric.higher_is_better}, got "
            f"{network.reference} and {network.higher_is_better} from pyiqa: install another version of it"
        )

    def score(sr: np.ndarray, hr: np.ndarray) -> float:
        size = f"{sr.shape[1]}x{sr.shape[0]}"
        try:
            value = float(
                network(to_tensor(sr, device), to_tensor(hr, device) if metric.reference else None)[0]
            )
        except Exception as error:
            # third-party models raise various exceptions, for example on small pictures
            raise ImageError(
                f"{metric.name} cannot judge a picture of {size} ({type(error).__name__}: {error}): use larger pictures or leave it out"
            ) from error
        if not math.isfinite(value):
            raise ImageError(
                f"{metric.name}: expected a finite value for a picture of {size}, got {value}: leave it out"
            )
        return value

    return score
