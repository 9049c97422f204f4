"""What the tests of INT8 share: a small student, its float graphs and samples; and NNCF answering once. Needs the extra `export`."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nncf
import onnx
import pytest
import torch

from calibration.samples import SampleSets, draw_sets
from export.load import student_source
from export.onnx.graph.convert import export_fp32
from export.source import Source
from export.student.model.network import Student, StudentConfig

SMALL = StudentConfig(width=16, encoder_blocks=1, generator_blocks=1, detail=16, noise_gate=True)
BASE = "encoder/Conv"  # the bicubic enlargement: all of the picture passes through it


@pytest.fixture(scope="module", autouse=True)
def _nncf_once() -> Iterator[None]:
    """NNCF gives the same graph for the same request, and most tests make the same requests: each is answered once."""
    plain, answers = nncf.quantize, {}

    def answered(model: Any, data: Any, *, ignored_scope: Any, advanced_parameters: Any, **more: Any) -> Any:
        digest = hashlib.sha256(model.SerializeToString())
        for feed in data.get_inference_data():
            for name, values in sorted(feed.items()):
                digest.update(name.encode() + values.tobytes())
        key = (digest.digest(), frozenset(ignored_scope.names), advanced_parameters.overflow_fix)
        if key not in answers:
            options = {"ignored_scope": ignored_scope, "advanced_parameters": advanced_parameters, **more}
            answers[key] = plain(model, data, **options)
        copy = onnx.ModelProto()
        copy.CopyFrom(answers[key])
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nncf, "quantize", answered)
        yield


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    student = Student(SMALL)
    with torch.no_grad():
        student.generator.last.weight.mul_(5)  # a residual that is worth quantizing
    return student.eval()


@pytest.fixture(scope="module")
def source(student: Student) -> Source:
    return student_source(student, {}, "0" * 64)


@pytest.fixture(scope="module")
def sets() -> SampleSets:
    return draw_sets(None, crops=8, size=32)


@pytest.fixture(scope="module")
def graphs(source: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return export_fp32(source, tmp_path_factory.mktemp("fp32"), {})
