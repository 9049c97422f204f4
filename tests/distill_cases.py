"""What the tests of the student's distillation share: the tiny preset, a run of it, its recorded losses. Needs the extra `export`."""

from pathlib import Path

from export.distill import cli as distill
from export.distill.recipe import PRESETS, DistillConfig
from training.loop.budget import Budget

TINY = PRESETS["tiny"]


def run(
    out: Path,
    photos: Path,
    weights: Path,
    *,
    steps: int,
    resume: bool = False,
    config: DistillConfig = TINY,
) -> dict:
    budget = Budget(steps=steps)
    return distill.run(config, photos, weights, out, budget, resume=resume, workers=0)


RECORDED: list[dict[str, float]] = [
    {
        "pixel": 0.083711,
        "structure": 0.046242,
        "colour": 0.003268,
        "feature": 0.130737,
        "diversity": 6.1e-05,
        "grid": 0.006056,
    },
    {
        "pixel": 0.039885,
        "structure": 0.018031,
        "colour": 0.003217,
        "feature": 0.039347,
        "diversity": 3e-05,
        "grid": 0.006822,
        "adversary": -0.009592,
    },
]
