"""Load the model to export from its checkpoint: a student or a one-step diffusion model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.source import BASE, FEATURES, IMAGE, NOISE, SR, STUDENT, Source
from export.student.model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_student
from export.student.model.network import Student
from runtime.bundle.manifest import GraphSpec, NoiseSpec, SizeRule, TensorSpec
from runtime.files import sha256_of

# Side of a student's tile in LR pixels.
STUDENT_TILE = 256


def load_source(checkpoint: Path, *, base: str | Path | None = None, prompt: str | None = None) -> Source:
    """The model at `checkpoint`.

    checkpoint: a student's folder, a distillation run, or anything that `training.model.loading.load_model` reads,
        also a hub name.
    base: source of the text encoder and scheduler of a one-step model that lacks them.
    prompt: of a one-step model; None for the default."""
    if _on_the_hub(checkpoint) or any((checkpoint / x).exists() for x in ("model", "model.json", "unet")):
        from export.fold.one_step import load_one_step  # needs diffusers, which a student does not

        return load_one_step(checkpoint, base, prompt)
    # a distillation run keeps the student in a subfolder
    folder = checkpoint / "student" if (checkpoint / "student").is_dir() else checkpoint
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"{checkpoint} is not a student checkpoint ({CONFIG_FILE}, {WEIGHTS_FILE}), and not a one-step model (a training run with "
            "model/, or a folder with unet/ and vae/): docs/training.md tells how to train either"
        )
    if base is not None or prompt is not None:
        raise ValueError(f"{checkpoint} is a student, which takes no base and no prompt: leave them out")
    student, training = load_student(folder)
    return student_source(student, training, sha256_of(folder / WEIGHTS_FILE))


def _on_the_hub(checkpoint: Path) -> bool:
    """Whether a checkpoint that does not exist here is a hub name, such as owner/name/folder."""
    if checkpoint.exists() or checkpoint.is_absolute():
        return False
    from training.model.loading import hub_name

    return hub_name(checkpoint) is not None


def student_source(student: Student, training: Mapping[str, Any], checkpoint_sha256: str) -> Source:
    """A student as a source with two graphs.

    student: the network.
    training: its provenance.
    checkpoint_sha256: hash of its weights file."""
    c = student.config
    student = student.cpu().float().eval()
    image = TensorSpec(IMAGE, 3, 1.0, (0.0, 1.0))
    features = TensorSpec(FEATURES, c.width, 1.0 / c.fold)
    base = TensorSpec(BASE, c.base_channels, 1.0)
    noise = TensorSpec(NOISE, c.noise_channels, 1.0 / c.fold)
    sr = TensorSpec(SR, 3, float(c.scale), (0.0, 1.0))
    context = -(-c.receptive_radius // c.fold) * c.fold
    return Source(
        kind=STUDENT,
        modules={"encoder": student.encoder, "generator": student.generator},
        specs={
            "encoder": GraphSpec((image,), (features, base)),
            "generator": GraphSpec((features, base, noise), (sr,)),
        },
        scale=c.scale,
        size=SizeRule(multiple_of=c.fold, minimum=8 * c.fold, tile=STUDENT_TILE, context=context),
        noise=NoiseSpec(1, c.noise_channels, c.fold),
        parameters=student.parameters_total,
        checkpoint_sha256=checkpoint_sha256,
        training=training,
    )
