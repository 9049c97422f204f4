"""Weights in 8 and 4 bits: what is compressed, what a graph computes with it, and which layers a 4-bit pair keeps in 8 bits."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the base dependency onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402  (after importorskip)

from calibration.sensitivity import PlanError, read_rows  # noqa: E402
from export import write_bundle as writer  # noqa: E402
from export.load import student_source  # noqa: E402
from export.onnx.graph.convert import data_file, export_fp32  # noqa: E402
from export.onnx.graph.packed import BLOCK, quantize4, quantize8  # noqa: E402
from export.onnx.graph.ranges import run  # noqa: E402
from export.onnx.graph.weight_only import WeightOnly, compress_onnx, compress_pair, find_weights  # noqa: E402
from export.onnx.target import ONNX_FLOOR_DB, default_precisions  # noqa: E402
from export.parity import samples  # noqa: E402
from export.source import Source, psnr  # noqa: E402
from export.student.model.checkpoint import save_student  # noqa: E402
from export.student.model.network import Student, StudentConfig  # noqa: E402
from runtime.bundle.reader import Bundle  # noqa: E402
from runtime.upscale.upscaler import Upscaler  # noqa: E402

pytestmark = pytest.mark.usefixtures("exports_once")

CHANNELS = 48  # not a multiple of the block
SMALL = StudentConfig(width=32, encoder_blocks=1, generator_blocks=1, detail=32)
COMPRESSED = {
    "conv": "conv/Conv",
    "up": "up/ConvTranspose",
    "gemm": "gemm/Gemm",
}  # weights, and who takes them


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write(path: Path) -> Path:
    """All kinds of layers one after the other; float32. x: a picture, i: indices of a table."""
    weights = {
        "first": draw(CHANNELS, 3, 3, 3, seed=1),
        "conv": 0.05 * draw(CHANNELS, CHANNELS, 3, 3, seed=2),
        "conv.bias": draw(CHANNELS, seed=3),
        "up": 0.1 * draw(CHANNELS, 40, 2, 2, seed=4),
        "norm": draw(1, 40, 1, 1, seed=5),
        "product": 0.1 * draw(40, CHANNELS, seed=6),
        "gemm": 0.1 * draw(56, CHANNELS, seed=7),
        "table": draw(64, 56, seed=8),
        "tiny": draw(56, 16, seed=9),
    }
    integers = {"axes": np.array([2, 3]), "flat": np.array([-1, 40])}
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "first"], ["a"], "first/Conv", pads=[1] * 4),
        node("Conv", ["a", "conv", "conv.bias"], ["b"], "conv/Conv", pads=[1] * 4),
        node("ConvTranspose", ["b", "up"], ["c"], "up/ConvTranspose", strides=[2, 2]),
        node("Mul", ["c", "norm"], ["d"], "norm/Mul"),
        node("ReduceMean", ["d", "axes"], ["e"], "pool", keepdims=0),
        node("MatMul", ["e", "product"], ["f"], "product/MatMul"),
        node("Gemm", ["f", "gemm"], ["g"], "gemm/Gemm", transB=1),
        node("Gather", ["table", "i"], ["h"], "table/Gather"),
        node("Add", ["g", "h"], ["k"], "sum"),
        node("MatMul", ["k", "tiny"], ["y"], "tiny/MatMul"),
    ]
    graph = helper.make_graph(
        nodes,
        "layers",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 6, 6]),
            helper.make_tensor_value_info("i", TensorProto.INT64, ["n"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [numpy_helper.from_array(value, name) for name, value in (weights | integers).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"model": "test"})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


FEED = {"x": draw(2, 3, 6, 6, seed=10), "i": np.array([5, 60])}


def kinds(path: Path) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}


def restored(source: Path, target: Path, bits: int) -> Path:
    """A float32 graph with the weights that a compressed one should compute with."""
    model = onnx.load(source)
    weights = find_weights(model)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            value = weights[tensor.name].quantize(numpy_helper.to_array(tensor), bits).restore()
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    onnx.save(model, target)
    return target


def test_8_bits_err_by_half_a_step_of_the_output_channel() -> None:
    value = draw(8, 5, 3, 3) * np.logspace(-6, 3, 8, dtype=np.float32).reshape(8, 1, 1, 1)
    packed = quantize8(value, 0)
    assert packed.values.dtype == np.int8
    assert packed.scale.shape == (8,)
    error = np.abs(packed.restore() - value).max(axis=(1, 2, 3))
    assert np.all(error <= 0.5001 * np.abs(value).max(axis=(1, 2, 3)) / 127)


@pytest.mark.parametrize("axis", [0, 1])
def test_4_bits_err_by_half_a_step_of_the_block(axis: int) -> None:
    shape = (CHANNELS, 7) if axis == 0 else (7, CHANNELS)
    value = np.moveaxis(draw(*shape, 3, 3), axis, 0)
    value[:BLOCK] *= 100  # the second block has a scale of its own
    value[3] = 0
    packed = quantize4(np.moveaxis(value, 0, axis), axis)
    assert packed.values.max() <= 15
    assert packed.scale.dtype == np.float16
    assert packed.scale.shape[axis] == 2
    came = np.moveaxis(packed.restore(), axis, 0)
    for part in (slice(0, BLOCK), slice(BLOCK, None)):
        span = value[part].max(axis=0) - value[part].min(axis=0)
        # half a step, half another where the zero point was rounded, float16 of the scale
        assert np.all(np.abs(came[part] - value[part]) <= 1.02 * span / 15)
    assert not came[3].any()


def test_extreme_weights_keep_their_size() -> None:
    value = np.zeros((4, BLOCK), np.float32)
    value[1], value[2], value[3] = 1e-9, 1e9, draw(BLOCK)
    for packed in (quantize4(value, 1), quantize8(value, 0)):
        assert packed.scale.dtype == np.float32  # beyond float16
        np.testing.assert_allclose(packed.restore()[:3], value[:3], rtol=1e-6)


@pytest.mark.parametrize(("bits", "opset", "kind"), [(8, 18, TensorProto.INT8), (4, 21, TensorProto.UINT4)])
def test_layers_are_compressed_and_all_else_stays_float(
    tmp_path: Path, bits: int, opset: int, kind: int
) -> None:
    source = write(tmp_path / "a.fp32.onnx")
    target = compress_onnx(source, tmp_path / "a.onnx", bits)
    model, before, after = onnx.load(target), kinds(source), kinds(target)
    assert model.opset_import[0].version == opset
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("model", "test")]
    for name in COMPRESSED:
        assert after[f"{name}/values"] == kind
        assert name not in after
    assert {name: after[name] for name in before if name not in COMPRESSED} == {
        name: before[name] for name in before if name not in COMPRESSED
    }
    names = [node.name for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert names == [f"{name}/DequantizeLinear" for name in COMPRESSED]
    kept = [node.name for node in model.graph.node if node.op_type not in ("DequantizeLinear", "Cast")]
    assert kept == [node.name for node in onnx.load(source).graph.node]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_graph_computes_with_the_restored_weights(tmp_path: Path, bits: int) -> None:
    source = write(tmp_path / "a.fp32.onnx")
    target = compress_onnx(source, tmp_path / "a.onnx", bits)
    came = run(target, FEED)["y"]
    expected = run(restored(source, tmp_path / "restored.onnx", bits), FEED)["y"]
    np.testing.assert_allclose(came, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    whole = run(source, FEED)["y"]
    peak = np.abs(whole).max()
    assert (35 if bits == 8 else 12) < psnr(came / peak, whole / peak) < 80


def test_the_weight_stands_before_its_first_use(tmp_path: Path) -> None:
    target = compress_onnx(write(tmp_path / "a.fp32.onnx"), tmp_path / "a.onnx", 8)
    names = [node.name for node in onnx.load(target).graph.node]
    for name, layer in COMPRESSED.items():
        assert names.index(layer) == names.index(f"{name}/DequantizeLinear") + 1


def test_wide_layers_keep_8_bits(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fp32.onnx")
    narrow = compress_onnx(source, tmp_path / "narrow.onnx", 4)
    mixed = compress_onnx(source, tmp_path / "mixed.onnx", 4, wide=["conv"])
    assert kinds(mixed)["conv/values"] == TensorProto.INT8
    assert kinds(mixed)["up/values"] == TensorProto.UINT4
    assert mixed.stat().st_size > narrow.stat().st_size
    with pytest.raises(ValueError, match="expected weights that can be compressed, got first"):
        compress_onnx(source, tmp_path / "wrong.onnx", 4, wide=["first"])
    with pytest.raises(ValueError, match="expected weights of 4 or 8 bits, got 2"):
        compress_onnx(source, tmp_path / "wrong.onnx", 2)


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fp32.onnx")
    for bits in (8, 4):
        once, again = (compress_onnx(source, tmp_path / f"{k}.onnx", bits).read_bytes() for k in range(2))
        assert once == again


@pytest.mark.parametrize("bits", [8, 4])
def test_large_weights_stand_beside_the_graph(tmp_path: Path, bits: int) -> None:
    source = write(tmp_path / "a.fp32.onnx")
    split = tmp_path / "b.fp32.onnx"
    onnx.save(onnx.load(source), split, save_as_external_data=True, location=data_file(split).name)
    inside = compress_onnx(split, tmp_path / "inside.onnx", bits)
    assert inside.read_bytes() == compress_onnx(source, tmp_path / "a.onnx", bits).read_bytes()
    assert not data_file(inside).exists()
    beside = compress_onnx(split, tmp_path / "beside.onnx", bits, inside_bytes=1000)
    assert data_file(beside).stat().st_size > CHANNELS**2 * 9 * bits / 8
    assert beside.stat().st_size < inside.stat().st_size / 2
    np.testing.assert_array_equal(run(beside, FEED)["y"], run(inside, FEED)["y"])
    compress_onnx(split, beside, bits)
    assert not data_file(beside).exists()  # nothing of an earlier graph is left


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    student = Student(SMALL)
    with torch.no_grad():
        student.generator.last.weight.mul_(3)
    return student


@pytest.fixture(scope="module")
def source(student: Student) -> Source:
    return student_source(student, {"steps": 0}, "0" * 64)


@pytest.fixture(scope="module")
def graphs(source: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return export_fp32(source, tmp_path_factory.mktemp("graphs"), {"model": source.kind})


def pair(
    source: Source, graphs: dict[str, Path], folder: Path, precision: str, target_db: float = 0.0
) -> WeightOnly:
    folder.mkdir(exist_ok=True)
    photos = samples(source, 2, seed=3, size=32)
    return compress_pair(source, graphs, folder, precision, photos, target_db, lambda text: None)


def total(made: WeightOnly) -> int:
    return sum(path.stat().st_size for path in made.paths.values())


@pytest.mark.slow
def test_measured_layers_keep_8_bits_until_the_target_is_met(
    source: Source, graphs: dict[str, Path], tmp_path: Path
) -> None:
    eight, four = (pair(source, graphs, tmp_path, precision) for precision in ("w8", "w4"))
    assert not four.rows
    assert four.psnr < eight.psnr
    assert "generator/blocks.0.conv1.weight" not in four.wide
    target = (four.psnr + eight.psnr) / 2
    planned = pair(source, graphs, tmp_path / "planned", "w4", target)
    assert four.psnr < target <= planned.psnr
    assert set(four.wide) < set(planned.wide)
    layers = {f"{role}/{name}" for role, path in graphs.items() for name in find_weights(onnx.load(path))}
    measured = {row.layer for row in planned.rows}
    assert measured == layers - set(four.wide)
    assert set(planned.wide) - set(four.wide) < measured  # not all of them
    assert total(four) < total(planned) < total(eight)
    stored = json.dumps({"w4": [row.to_dict() for row in planned.rows]}, allow_nan=False)
    assert {(row.layer, row.bits) for row in read_rows(json.loads(stored))["w4"]} == {
        (layer, bits) for layer in measured for bits in (4, 8)
    }
    assert planned.to_dict() == {"wide": list(planned.wide), "psnr": round(planned.psnr, 1)}
    with pytest.raises(PlanError, match="expected a plan of at least 150 dB"):
        pair(source, graphs, tmp_path, "w4", 150.0)


def test_measuring_leaves_the_model_as_it_was(
    source: Source, graphs: dict[str, Path], tmp_path: Path
) -> None:
    before = {role: copy.deepcopy(module.state_dict()) for role, module in source.modules.items()}
    pair(source, graphs, tmp_path, "w4", pair(source, graphs, tmp_path, "w4").psnr + 1)
    for role, module in source.modules.items():
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[role][name]), f"{role}/{name}"


@pytest.mark.slow
def test_a_bundle_runs_in_8_and_4_bits(
    student: Student, source: Source, tmp_path: Path, make_pixels: Callable[..., np.ndarray]
) -> None:
    assert not {"w8", "w4"} & set(default_precisions(source))  # on request only
    save_student(student, tmp_path / "student", {"steps": 0})
    out = tmp_path / "few.gdposr"
    manifest = writer.write_bundle(tmp_path / "student", out, writer.Wanted(precisions=("fp32", "w8", "w4")))
    Bundle.open(out).verify()
    assert list(manifest.graphs) == ["fp32", "w8", "w4"]
    sizes = {name: sum(graph.bytes for graph in graphs.values()) for name, graphs in manifest.graphs.items()}
    assert sizes["fp32"] > sizes["w8"] > sizes["w4"]
    parity = manifest.accuracy["parity_db"]
    assert parity["fp32"] > parity["w8"] > parity["w4"] >= ONNX_FLOOR_DB["w4"]
    assert manifest.accuracy["w4"]["wide"]
    pixels, pictures = make_pixels(20, 30), {}
    for precision in manifest.graphs:
        with Upscaler(out, device="cpu", precision=precision) as upscaler:
            pictures[precision] = upscaler.up(pixels, seed=1)[0].astype(np.float64) / 255
    for precision in ("w8", "w4"):
        assert psnr(pictures[precision], pictures["fp32"]) >= manifest.probe.floor_db[precision]
