"""INT8 under control: budgets are kept or refused, layers stay float by name, failures are named, a bundle carries the proof."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
nncf = pytest.importorskip("nncf", reason="needs the extra `export`")
pytest.importorskip(
    "skimage", reason="needs the extra `export`, whose scikit-image holds the calibration photos"
)

import quantize_cases  # noqa: E402  (after importorskip)
from onnx import numpy_helper  # noqa: E402
from quantize_cases import BASE, SMALL  # noqa: E402

from calibration.measure.gates import INT8_GATES, Gates  # noqa: E402
from calibration.samples import SampleSets  # noqa: E402
from export import cli as command_line  # noqa: E402
from export.onnx.int8 import quantize  # noqa: E402
from export.onnx.int8.nncf_graphs import QuantizationError  # noqa: E402
from export.onnx.int8.quality import Quality, broken, judge, losses  # noqa: E402
from export.onnx.int8.quantize import Int8Request, quantize_int8  # noqa: E402
from export.source import Source  # noqa: E402
from export.student.model.checkpoint import save_student  # noqa: E402
from export.student.model.network import Student  # noqa: E402
from export.write_bundle import Wanted, write_bundle  # noqa: E402
from runtime.bundle.reader import Bundle  # noqa: E402

pytestmark = pytest.mark.usefixtures("exports_once")

_nncf_once, student = quantize_cases._nncf_once, quantize_cases.student  # fixtures
source, sets, graphs = quantize_cases.source, quantize_cases.sets, quantize_cases.graphs


@pytest.mark.slow
def test_a_broken_budget_sends_layers_back_to_floating_point(
    graphs: dict[str, Path], source: Source, sets: SampleSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = iter([0.3, 0.2, 0.05])
    monkeypatch.setattr(quantize, "losses", lambda came, reference: {"max_psnr_loss": next(lost)})
    said: list[str] = []
    result = quantize_int8(graphs, tmp_path, source.specs, Int8Request(sets), said.append)
    back = [text for text in said if "back to floating point" in text]
    assert len(back) == 2
    assert result.losses == {"max_psnr_loss": 0.05}
    floats = result.to_dict()["float_layers"]
    assert {text.rsplit(" ", 1)[1] for text in back} <= set(floats)


@pytest.mark.slow
def test_a_budget_that_nothing_keeps_is_refused(
    graphs: dict[str, Path], source: Source, sets: SampleSets, tmp_path: Path
) -> None:
    with pytest.raises(
        QuantizationError, match=r"max_psnr_loss -1, got .* with only [56]\d% of the work in INT8"
    ):
        quantize_int8(graphs, tmp_path, source.specs, Int8Request(sets, budget=Gates(max_psnr_loss=-1.0)))


@pytest.mark.slow
def test_layers_can_be_kept_float_by_name(
    graphs: dict[str, Path], source: Source, sets: SampleSets, tmp_path: Path
) -> None:
    name = "generator/last/Conv"
    result = quantize_int8(graphs, tmp_path, source.specs, Int8Request(sets, keep_float=(name,)))
    assert name in result.to_dict()["float_layers"]
    assert name not in {row.layer for row in result.rows}
    with pytest.raises(QuantizationError, match=r"expected some of encoder/Conv, .*got 'nobody'"):
        quantize_int8(graphs, tmp_path, source.specs, Int8Request(sets, keep_float=("nobody",)))


@pytest.mark.parametrize("node", ["generator/expand/Conv", "generator/last/Conv", "encoder/stem/Conv"])
def test_nan_is_named_by_node(
    graphs: dict[str, Path], source: Source, sets: SampleSets, tmp_path: Path, node: str
) -> None:
    role = node.split("/")[0]
    model = onnx.load(graphs[role])
    weight = next(found.input[1] for found in model.graph.node if found.name == node)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
    values = numpy_helper.to_array(tensor).copy()
    values[3] = math.nan
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    graphs = {**graphs, role: tmp_path / f"{role}.onnx"}
    onnx.save(model, graphs[role])
    with pytest.raises(QuantizationError, match=rf"NaN or infinity out of node {node} \(Conv\)"):
        quantize_int8(graphs, tmp_path, source.specs, Int8Request(sets))


@pytest.mark.slow
def test_nan_leaves_the_bundle_that_was_there(
    toy_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, out = tmp_path / "bad", toy_copy
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    broken_student = Student(SMALL)
    with torch.no_grad():
        broken_student.generator.expand.bias[5] = math.nan
    save_student(broken_student, bad)
    command = ["--checkpoint", str(bad), "--out", str(out), "--precision", "fp32", "int8"]
    assert command_line.main(command) == 2
    error = capsys.readouterr().err
    assert "NaN or infinity" in error
    assert "generator/expand/Conv (Conv)" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".new")] == []


@pytest.mark.slow
def test_a_node_that_nncf_refuses_is_named_with_the_remedy(
    graphs: dict[str, Path], source: Source, sets: SampleSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = nncf.quantize

    def refuse(model: Any, *args: Any, ignored_scope: Any, **options: Any) -> Any:
        nodes = {node.name for node in model.graph.node}
        if "generator/last/Conv" in nodes - set(ignored_scope.names):
            raise RuntimeError("unsupported operation")
        return whole(model, *args, ignored_scope=ignored_scope, **options)

    monkeypatch.setattr(nncf, "quantize", refuse)
    with pytest.raises(QuantizationError) as caught:
        quantize_int8(graphs, tmp_path, source.specs, Int8Request(sets))
    assert "NNCF cannot take node generator/last/Conv (Conv) in INT8: unsupported operation" in str(
        caught.value
    )
    assert "--float-layer generator/last/Conv" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_judging_groups_the_seeds_of_a_picture(sets: SampleSets) -> None:
    def same(image: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return np.kron(image, np.ones((1, 1, 4, 4), np.float32))

    def noisy(image: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return same(image, noise) + 0.1 * np.float32(noise[:, :1, :1, :1])

    assert judge(same, sets.validation).diversity == 0
    spread = judge(noisy, sets.validation, sqf=lambda sr, hr: 0.5)
    assert spread.diversity is not None
    assert spread.diversity > 1
    assert spread.sqf == pytest.approx(0.5)


def test_losses_and_broken_gates_speak_the_language_of_the_gates() -> None:
    reference, came = Quality(27.0, 4.0, 0.5), Quality(26.8, 3.0, 0.51)
    lost = losses(came, reference)
    assert lost == pytest.approx({"max_psnr_loss": 0.2, "min_diversity_ratio": 0.75, "max_sqf_rise": 0.02})
    assert broken(INT8_GATES, lost) == [
        "max_psnr_loss 0.1, got 0.2000",
        "min_diversity_ratio 0.95, got 0.7500",
        "max_sqf_rise 0.01, got 0.0200",
    ]
    assert broken(INT8_GATES, losses(reference, reference)) == []
    assert losses(replace(came, sqf=None, diversity=None), reference) == pytest.approx({"max_psnr_loss": 0.2})


@pytest.mark.slow
def test_a_bundle_carries_its_proof_and_samples_can_be_drawn_once(
    student: Student, sets: SampleSets, tmp_path: Path
) -> None:
    from calibration.samples import save_sets
    from calibration.sensitivity import read_rows

    save_student(student, tmp_path / "student")
    save_sets(sets, tmp_path / "sets.safetensors")
    out = tmp_path / "b.gdposr"
    command = ["--checkpoint", str(tmp_path / "student"), "--out", str(out)]
    choices = ["--float-layer", "generator/Add_2", "--budget", "max_psnr_loss=0.5"]
    assert command_line.main([*command, *choices, "--calibration", str(tmp_path / "sets.safetensors")]) == 0
    manifest = Bundle.open(out).manifest
    limits = INT8_GATES.to_dict() | {"max_psnr_loss": 0.5}
    assert manifest.budgets == {"fp16": INT8_GATES.to_dict(), "int8": limits}
    proof: Mapping[str, Any] = manifest.accuracy["int8"]
    assert proof["preset"] == "avx2"
    assert "generator/Add_2" in proof["float_layers"]
    assert proof["validation"]["max_psnr_loss"] <= 0.5
    assert proof["validation"]["samples"] == len(sets.validation) == 8
    measured = {row.layer for row in read_rows(manifest.accuracy["sensitivity"])["onnx"]}
    kept = {BASE, "generator/Add_2"}  # by rule and as asked for: neither is measured
    assert kept <= set(proof["float_layers"])
    assert measured
    assert measured.isdisjoint(kept)


def test_options_without_effect_are_refused(student: Student, tmp_path: Path) -> None:
    save_student(student, tmp_path / "student")
    for wanted in (
        Wanted(precisions=("fp32",), float_layers=("generator/Add_2",)),
        Wanted(("coreml",), budget=Gates(max_psnr_loss=0.2)),
    ):
        with pytest.raises(ValueError, match="apply to INT8 graphs only, and none are wanted"):
            write_bundle(tmp_path / "student", tmp_path / "b.gdposr", wanted)
    assert not (tmp_path / "b.gdposr").exists()
