"""INT8 graphs: integer kernels, no saturation, close to fp32, and what stays float follows from measurement."""

import collections
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
nncf = pytest.importorskip("nncf", reason="needs the extra `export`")
pytest.importorskip(
    "skimage", reason="needs the extra `export`, whose scikit-image holds the calibration photos"
)

import onnxruntime as ort  # noqa: E402  (after importorskip)
import quantize_cases  # noqa: E402
from onnx import numpy_helper  # noqa: E402
from quantize_cases import BASE  # noqa: E402

from calibration.samples import SampleSets  # noqa: E402
from calibration.sensitivity import predicted_db  # noqa: E402
from export.load import student_source  # noqa: E402
from export.onnx.graph.convert import OnnxPair, export_fp32  # noqa: E402
from export.onnx.int8 import quantize  # noqa: E402
from export.onnx.int8.integer_form import integer_form  # noqa: E402
from export.onnx.int8.layers import SUM_WORK, find_layers, of_the_picture  # noqa: E402
from export.onnx.int8.nncf_graphs import Workbench  # noqa: E402
from export.onnx.int8.quantize import INT8_PRESETS, Int8Request, quantize_int8  # noqa: E402
from export.source import Source, psnr  # noqa: E402
from export.student.model.network import Student, StudentConfig  # noqa: E402

pytestmark = pytest.mark.usefixtures("exports_once")

_nncf_once, student = quantize_cases._nncf_once, quantize_cases.student  # fixtures
source, sets, graphs = quantize_cases.source, quantize_cases.sets, quantize_cases.graphs


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
            **dict.fromkeys(("generator/Add_2", "generator/Add_3"), "sum with a picture"),
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
