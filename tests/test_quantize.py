"""INT8 under control: integer kernels, no saturation, what stays float follows from measurement, budgets are kept or refused."""

import collections
import hashlib
import math
from collections.abc import Iterator, Mapping
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

import onnxruntime as ort  # noqa: E402
from onnx import numpy_helper  # noqa: E402

from calibration.measure.gates import INT8_GATES, Gates  # noqa: E402
from calibration.samples import SampleSets, draw_sets  # noqa: E402
from calibration.sensitivity import predicted_db  # noqa: E402
from export import cli as command_line  # noqa: E402
from export.load import student_source  # noqa: E402
from export.onnx.graph.convert import OnnxPair, export_fp32  # noqa: E402
from export.onnx.int8 import quantize  # noqa: E402
from export.onnx.int8.integer_form import integer_form  # noqa: E402
from export.onnx.int8.layers import SUM_WORK, find_layers, of_the_picture  # noqa: E402
from export.onnx.int8.nncf_graphs import QuantizationError, Workbench  # noqa: E402
from export.onnx.int8.quality import Quality, broken, judge, losses  # noqa: E402
from export.onnx.int8.quantize import INT8_PRESETS, Int8Request, quantize_int8  # noqa: E402
from export.source import Source, psnr  # noqa: E402
from export.student.model.checkpoint import save_student  # noqa: E402
from export.student.model.network import Student, StudentConfig  # noqa: E402
from export.write_bundle import Wanted, write_bundle  # noqa: E402
from runtime.bundle.reader import Bundle  # noqa: E402

pytestmark = pytest.mark.usefixtures("exports_once")

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


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name != "avx2" else ()) for name in INT8_PRESETS],
)
def made(
    request: pytest.FixtureRequest, graphs: dict[str, Path], source: Source, sets: SampleSets,
    tmp_path_factory: pytest.TempPathFactory,
) -> quantize.Int8Graphs:  # fmt: skip
    folder = tmp_path_factory.mktemp(request.param)
    return quantize_int8(graphs, folder, source.specs, Int8Request(sets, request.param))


def worst(pair: OnnxPair, reference: OnnxPair, sets: SampleSets) -> float:
    return min(
        psnr(pair(s.lr[None], s.noise[None]), reference(s.lr[None], s.noise[None])) for s in sets.validation
    )


def weights(path: Path) -> Iterator[np.ndarray]:
    for tensor in onnx.load(path).graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1:
            yield numpy_helper.to_array(tensor).astype(int)


def test_quantized_graphs_stay_close_to_fp32_with_weights_of_one_byte(
    made: quantize.Int8Graphs, graphs: dict[str, Path], source: Source, sets: SampleSets
) -> None:
    assert worst(OnnxPair(source.specs, made.paths), OnnxPair(source.specs, graphs), sets) > 40
    for role, path in made.paths.items():
        stored = [tensor for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 4]
        for tensor in stored:  # the bicubic base stays in floating point
            assert (tensor.data_type == onnx.TensorProto.INT8) == (list(tensor.dims) != [48, 1, 5, 5])
        assert len(list(weights(path))) == {"encoder": 3, "generator": 6}[role]


def test_what_leaves_a_graph_stays_float_and_the_rest_is_quantized(made: quantize.Int8Graphs) -> None:
    floats = made.to_dict()["float_layers"]
    assert {BASE, "encoder/blocks/0/Add", "generator/Add_2"} <= set(floats)
    assert {row.layer for row in made.rows} == set(made.bits) - {BASE}  # by rule, so not measured
    assert made.unchecked == ("max_sqf_rise",)


@pytest.mark.slow
def test_the_noisiest_inner_layers_stay_float_where_more_is_asked(
    graphs: dict[str, Path], source: Source, sets: SampleSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = quantize_int8(graphs, tmp_path, source.specs, Int8Request(sets))
    inner = [row for row in few.rows if few.bits[row.layer] == 8]
    predicted = predicted_db(few.rows, {row.layer: 8 for row in inner})
    monkeypatch.setattr(quantize, "PLAN_DB", predicted + 1)
    more = quantize_int8(graphs, tmp_path, source.specs, Int8Request(sets))
    back = {name for name, bits in more.bits.items() if bits == 32} - {
        name for name, bits in few.bits.items() if bits == 32
    }
    assert back
    kept = {row.layer: 8 for row in inner if row.layer not in back}
    assert predicted_db(few.rows, kept) >= predicted + 1


def test_without_vnni_two_products_never_leave_sixteen_bits(made: quantize.Int8Graphs) -> None:
    largest = max(int(np.abs(tensor).max()) for path in made.paths.values() for tensor in weights(path))
    if made.preset == "avx2":
        assert 2 * 255 * largest <= 2**15 - 1
        assert largest > 60
    else:
        assert largest > 100


def test_weights_have_a_scale_per_channel(made: quantize.Int8Graphs) -> None:
    found = 0
    for path in made.paths.values():
        model = onnx.load(path)
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in constants:
                stored = constants[node.input[0]]
                if stored.ndim == 4:
                    assert constants[node.input[1]].shape == (stored.shape[0],)
                    found += 1
    assert found == 9


def test_convolutions_run_in_integers(made: quantize.Int8Graphs, tmp_path: Path) -> None:
    for role, path in made.paths.items():
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{role}.onnx")
        options.log_severity_level = 4
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        kinds = collections.Counter(
            node.op_type for node in onnx.load(tmp_path / f"{role}.onnx", load_external_data=False).graph.node
        )
        convolutions = [name for name, bits in made.bits.items() if name.endswith("Conv") and bits == 8]
        ours = [name for name in convolutions if name.startswith(role)]
        assert kinds["QLinearConv"] == len(ours)


def test_integer_form_computes_what_nncf_meant(
    graphs: dict[str, Path], source: Source, sets: SampleSets, tmp_path: Path
) -> None:
    work = Workbench(graphs, sets, source.specs, 7)
    names = {layer.name for layer in work.layers["encoder"]} - {BASE}
    plain = work._quantized("encoder", names)
    onnx.save(plain, tmp_path / "plain.onnx")
    onnx.save(integer_form(plain, work.models["encoder"], work.feeds["encoder"]), tmp_path / "integer.onnx")
    pairs = [
        OnnxPair(source.specs, {**graphs, "encoder": tmp_path / f"{name}.onnx"})
        for name in ("plain", "integer")
    ]
    exact = OnnxPair(source.specs, graphs)
    assert worst(pairs[1], pairs[0], sets) > worst(pairs[0], exact, sets)


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


def test_what_gives_pictures_is_told_from_what_gives_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = Student(
        StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8, fold=1, consistent=True)
    )
    graphs = export_fp32(student_source(student.eval(), {}, "0" * 64), tmp_path, {})
    found = {role: of_the_picture(onnx.load(path)) for role, path in graphs.items()}
    assert found == {
        "encoder": {BASE: "interpolation"},
        "generator": {
            "generator/Conv": "interpolation",
            **dict.fromkeys(("generator/Add_2", "generator/Add_1"), "sum with a picture"),
        },
    }


def test_work_is_counted_in_multiply_accumulates_per_lr_pixel(
    graphs: dict[str, Path], sets: SampleSets
) -> None:
    feed = {"image": sets.calibration[0].lr[None]}
    found = {layer.name: layer for layer in find_layers(onnx.load(graphs["encoder"]), feed, 32 * 32)}
    assert found[BASE].work == 48 * 25  # at every LR pixel
    assert found["encoder/blocks/0/conv1/Conv"].work == 16 * 16 * 9 / 4  # at every second in both directions
    # the features: an output, so in float whatever it takes
    assert found["encoder/blocks/0/Add"].work == SUM_WORK * 16 / 4
    assert {name for name, layer in found.items() if not layer.whole} == {BASE, "encoder/blocks/0/Add"}
    assert found[BASE].cost(8) == found[BASE].cost(32)


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
