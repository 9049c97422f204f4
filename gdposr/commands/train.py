"""Train a model. Needs the extra `train`: pip install "gdposr[train]"."""

from collections.abc import Sequence

from gdposr.console import OK, UsageError
from gdposr.forward import Stage, run_stage

HELP = "train a model (needs the extra `train`)"

# Name behind `gdposr train` -> the command line that it runs.
STAGES = {
    "pretrain": Stage("training.main", "train", "the pocket base: a small VAE and latent diffusion UNet"),
    "naosd": Stage("training.main", "train", "the noise-aware one-step model on a base"),
    "gdpo": Stage("training.main", "train", "preference tuning of a finished naosd run"),
    "merge": Stage("training.model.merging", "train", "write a run's model as one folder that stands alone"),
    "import": Stage(
        "training.model.published", "train", "convert a pickled LoRA of the public code to safetensors, once"
    ),
    "student": Stage(
        "export.distill.cli",
        "train",
        "a small student from photos: same as `gdposr distill`; a teacher is optional",
    ),
    "pictures": Stage(
        "export.prior.cli", "train", "a published network's pictures, for the student to learn from"
    ),
    "student-core": Stage(
        "export.student.cli", "train", "train the student without noise on a published network's pictures"
    ),
    "student-noise": Stage(
        "export.student.cli", "train", "train the student's response to noise; needs a finished core"
    ),
    "student-gdpo": Stage(
        "export.student.cli", "train", "preference tuning of a finished student among its own samples"
    ),
    "critic": Stage(
        "export.student.cli", "train", "a network that tells photos from a student's pictures, as a reward"
    ),
    "sample": Stage(
        "export.student.sample",
        "train",
        "enlarge a folder with a student's or a one-step model's checkpoint, unexported",
    ),
    "bench": Stage("training.bench", "train", "times of the data and reward code on this machine"),
}
# Stages that share a module, which gets the stage's name as its first argument.
NAMED = ("pretrain", "naosd", "gdpo", "student-core", "student-noise", "student-gdpo", "critic")


def usage() -> str:
    lines = [f"  {name:13} {stage.about}" for name, stage in STAGES.items()]
    return "\n".join(
        [
            "usage: gdposr train STAGE ...",
            "",
            "stages:",
            *lines,
            "",
            "gdposr train STAGE --help tells its options.",
        ]
    )


def forward(argv: Sequence[str]) -> int:
    """The first argument names the stage; the rest is the stage's own."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return OK
    if argv[0] not in STAGES:
        raise UsageError(f"train expects one of {', '.join(STAGES)}, got {argv[0]!r}")
    return run_stage(STAGES[argv[0]], argv if argv[0] in NAMED else argv[1:])
