"""What the tests of a student's Core ML packages share: a small student's bundle and its two packages. Needs `export` and `coreml`."""

from pathlib import Path
from typing import Any

import coremltools as ct
import pytest
import torch

from export import cli as command_line
from export.student.model.checkpoint import save_student
from export.student.model.network import Student, StudentConfig

SMALL = StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8)
HEIGHT, WIDTH = 32, 24


def convert(module: Any, inputs: tuple[Any, ...], names: list[str], outputs: list[str], path: Path) -> Any:
    """A float16 package of a torch module."""
    exported = torch.export.export(module.eval(), inputs).run_decompositions({})
    model = ct.convert(
        exported,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT16,
        inputs=[ct.TensorType(name=n, shape=i.shape) for n, i in zip(names, inputs, strict=True)],
        outputs=[ct.TensorType(name=n) for n in outputs],
        skip_model_load=True,
    )
    model.save(str(path))
    return model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's bundle with fp32 graphs, and beside them its two packages."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("student")
    student = Student(SMALL)
    with torch.no_grad():
        student.generator.last.weight.mul_(5)  # a residual that can be seen
    save_student(student, folder / "checkpoint", {"steps": 0})
    out = folder / "small.gdposr"
    assert (
        command_line.main(
            ["--checkpoint", str(folder / "checkpoint"), "--out", str(out), "--precision", "fp32"]
        )
        == 0
    )
    image = torch.zeros(1, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        features, base = student.encoder(image)
    noise = torch.zeros(1, SMALL.noise_channels, HEIGHT // 2, WIDTH // 2)
    convert(student.encoder, (image,), ["image"], ["features", "base"], out / "encoder.fp16.mlpackage")
    convert(
        student.generator,
        (features, base, noise),
        ["features", "base", "noise"],
        ["sr"],
        out / "generator.fp16.mlpackage",
    )
    return out


@pytest.fixture(scope="module")
def packages(bundle: Path) -> dict[str, Path]:
    return {role: bundle / f"{role}.fp16.mlpackage" for role in ("encoder", "generator")}
