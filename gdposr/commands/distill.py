"""Distil a tuned one-step model to the small student. Needs the extra `train`: pip install "gdposr[train]"."""

from collections.abc import Sequence

from gdposr.forward import Stage, run_stage

HELP = "distil a one-step model to the small student (needs the extra `train`)"

STAGE = Stage("export.distill.cli", "train", "the small student, from a teacher and photos")


def forward(argv: Sequence[str]) -> int:
    """Pass all arguments to the stage."""
    return run_stage(STAGE, argv)
