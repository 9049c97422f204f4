"""Lint of Core ML packages: what it counts, each rule raised by what breaks it, and the exit code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("skimage", reason="needs the extra `export`, whose scikit-image holds the photos")
ct = pytest.importorskip("coremltools", reason="needs the extra `coreml`")

import mil_cases  # noqa: E402  (after importorskip)
from coremltools.converters.mil import Builder as mb  # noqa: E402
from test_mil_evaluate import save  # noqa: E402

from export.mil.cli import main  # noqa: E402
from export.mil.lint import RULES, lint  # noqa: E402
from export.mil.package.program import read_package  # noqa: E402

bundle, packages = mil_cases.bundle, mil_cases.packages  # fixtures


def test_lint_counts_operations_and_weights(packages: dict[str, Path]) -> None:
    report = lint(read_package(packages["generator"]))
    assert report.operations["conv"] == 5
    assert report.operations["pixel_shuffle"] == 2
    (half,) = [storage for storage in report.storage if storage.kind == "fp16"]
    assert half.tensors >= 5
    assert {flag.rule for flag in report.flags} <= {"padding"}


# what raises each rule, from a (1, 4, 6, 8) float32 array
BREAKERS: dict[str, Callable[[Any], Any]] = {
    "rank": lambda a: mb.expand_dims(x=a, axes=[0]),
    "float32": lambda a: mb.relu(x=a),
    "weights": lambda a: mb.conv(x=a, weight=mb.reshape(x=a, shape=[12, 4, 2, 2]), pad_type="valid"),
    "gather": lambda a: mb.gather(
        x=a, indices=mb.reduce_argmax(x=mb.reshape(x=a, shape=[48, 4]), axis=1, keep_dims=False), axis=1
    ),
    "kernel": lambda a: mb.avg_pool(
        x=mb.tile(x=a, reps=[1, 1, 4, 4]), kernel_sizes=[15, 15], pad_type="valid"
    ),
    "size": lambda a: mb.tile(x=mb.reshape(x=a, shape=[1, 192, 1, 1]), reps=[1, 1, 1, 16385]),
    "whole": lambda a: mb.cast(x=a, dtype="int32"),
    "cast": lambda a: mb.relu(x=mb.cast(x=mb.cast(x=mb.sin(x=a), dtype="fp16"), dtype="fp32")),
    "tokens": lambda a: mb.linear(x=mb.reshape(x=a, shape=[1, 24, 8]), weight=np.ones((5, 8), np.float32)),
    "padding": lambda a: mb.tile(x=mb.reshape(x=a, shape=[1, 192, 1, 1]), reps=[1, 1, 32, 1]),
    "unsupported": lambda a: mb.reduce_prod(x=a, axes=[1]),
}


def test_every_rule_of_lint_is_raised_by_what_breaks_it(tmp_path: Path) -> None:
    assert set(BREAKERS) | {"range"} == set(RULES)
    path = save(
        lambda a: tuple(build(a) for build in BREAKERS.values()), tmp_path / "all.mlpackage", inputs=1
    )
    program = read_package(path)
    makers = {output.name: op for op in program.operations for output in op.outputs}
    broken = [makers[feature.name].name for feature in program.outputs]
    raised = {(flag.rule, flag.name) for flag in lint(program).flags}
    for rule, name in zip(BREAKERS, broken, strict=True):
        assert (rule, name) in raised or rule == "cast", (
            rule
        )  # the cast of a cast stands before its last operation
    assert "cast" in {rule for rule, _ in raised}


def test_products_with_a_matrix_are_told_from_attention(tmp_path: Path) -> None:
    def build(a: Any) -> Any:
        first = mb.matmul(x=a, y=np.ones((8, 5), np.float32), name="matrix")
        return (
            first,
            mb.matmul(x=a, y=np.ones((1, 4, 8, 5), np.float32), name="values"),
            mb.matmul(x=a, y=a, transpose_y=True),
        )

    flags = lint(read_package(save(build, tmp_path / "products.mlpackage", inputs=1))).flags
    assert [flag.name for flag in flags if flag.rule == "tokens"] == ["matrix"]


def test_strict_lint_fails_where_a_flag_is_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(lambda a: mb.relu(x=a), tmp_path / "float.mlpackage", inputs=1)
    assert main(["lint", str(path)]) == 0
    assert main(["lint", str(path), "--strict"]) == 1
    assert "computed in float32" in capsys.readouterr().out
