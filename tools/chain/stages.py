"""The stages of `make chain` in order, with the folder of each model and the aims of each stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# The first row of every chain, and the stage that stands for the core if the chain began with one.
BICUBIC, GIVEN = "bicubic", "given core"


@dataclass(frozen=True)
class Measure:
    """One figure of a stage's pictures."""

    about: str
    """Heading of its column, with the unit."""
    up: bool
    """Whether more is better."""
    digits: int
    """Digits after the point."""


# Energy score: of two samples (`export.student.losses.energy_score`), smallest if samples are distributed as the photos are.
# Wins: share of samples with the higher reward of `student-gdpo`, each against the noise stage's of the same noise.
MEASURES = {
    "photo": Measure("PSNR to the photo, dB", True, 2),
    "prior": Measure("PSNR to the prior's picture, dB", True, 2),
    "cards": Measure("PSNR of drawn cards, dB", True, 2),
    "sqf": Measure("SQF", False, 4),
    "energy": Measure("energy score, 1/255", False, 3),
    "seeds": Measure("seeds differ, 1/255", True, 2),
    "wins": Measure("wins over the noise stage", True, 3),
}


@dataclass(frozen=True)
class Stage:
    """One stage of the student's training."""

    name: str
    """Name in the table, and of the run's folder in the chain's."""
    aims: tuple[str, ...]
    """Keys of `MEASURES` that it should improve."""
    model: str
    """Folder of its model inside the chain's folder."""


# In the order of `make chain`.
STAGES = (
    Stage("core", ("prior",), "core/model"),
    Stage("noise", ("energy", "seeds"), "noise/model"),
    Stage("gdpo", ("wins",), "student"),  # with the weights as they ship, in float16
)


def find_stages(chain: Path, core: Path | None) -> list[tuple[Stage, Path]]:
    """The stages of a finished chain with their models' folders.

    chain: folder of the chain.
    core: the core that the chain began with, if it trained none. It replaces the stage before noise.

    Raises FileNotFoundError if a model is missing."""
    found = [(stage, chain / stage.model) for stage in STAGES]
    if core is not None:
        found = [(Stage(GIVEN, STAGES[0].aims, ""), core), *found[1:]]
    for stage, folder in found:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder}: expected the model of the stage {stage.name}, no such folder; make chain trains what is missing"
            )
    return found
