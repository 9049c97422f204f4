"""Half precision: no islands where everything fits, islands where values overflow, and the emulation that decides it."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
ort = pytest.importorskip("onnxruntime", reason="needs the base dependency onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402  (after importorskip)

from export.onnx.graph.convert import data_file  # noqa: E402
from export.onnx.graph.half import FLOOR_DB, FP16_MAX, HalfError, convert_fp16, magnitudes  # noqa: E402
from export.onnx.graph.ranges import agreement, emulation, run  # noqa: E402

CHANNELS = 8


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write(path: Path, gain: float = 1.0, last_gain: float = 1.0) -> Path:
    """A convolution times gain, a division by its deviation as in a norm, a convolution times last_gain; float32."""
    shape = ("n", CHANNELS, 6, 6)
    weights = {
        "first.weight": np.float32(0.1 * gain) * draw(CHANNELS, CHANNELS, 3, 3, seed=1),
        "last.weight": np.float32(0.1 * last_gain) * draw(CHANNELS, CHANNELS, 3, 3, seed=2),
        "axes": np.array([1, 2, 3], dtype=np.int64),
        "eps": np.array(1e-9, dtype=np.float32),
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["first"], "first", **pads),
        helper.make_node("Mul", ["first", "first"], ["square"], "square"),
        helper.make_node("ReduceMean", ["square", "axes"], ["mean"], "mean"),
        helper.make_node("Add", ["mean", "eps"], ["variance"], "variance"),
        helper.make_node("Sqrt", ["variance"], ["deviation"], "deviation"),
        helper.make_node("Div", ["first", "deviation"], ["normal"], "normal"),
        helper.make_node("Conv", ["normal", "last.weight"], ["y"], "last", **pads),
    ]
    graph = helper.make_graph(
        nodes,
        "norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"model": "test"})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


FEEDS = [{"x": draw(1, CHANNELS, 6, 6, seed=seed)} for seed in (3, 4)]


def test_a_graph_that_fits_has_no_islands(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fp32.onnx")
    report = convert_fp16(source, tmp_path / "a.fp16.onnx", FEEDS)
    assert report.islands == ()
    assert report.kinds == {}
    assert report.psnr >= FLOOR_DB
    model = onnx.load(report.path)
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {
        TensorProto.FLOAT
    }
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert kinds["first.weight"] == kinds["last.weight"] == TensorProto.FLOAT16
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("model", "test")]


def test_values_beyond_half_precision_become_islands(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fp32.onnx", gain=1000.0)  # about 1e3, squares 1e6
    graph = onnx.load(source)
    assert magnitudes(source, graph, FEEDS)["square"] > FP16_MAX
    broken = run(source, FEEDS[0], emulation(graph, ()))  # divided by infinity: finite, and wrong
    assert agreement(broken, run(source, FEEDS[0])) < 20
    report = convert_fp16(source, tmp_path / "a.fp16.onnx", FEEDS)
    assert report.islands == ("square", "mean", "variance", "deviation")
    assert report.kinds == {"Add": 1, "Mul": 1, "ReduceMean": 1, "Sqrt": 1}
    assert report.psnr >= FLOOR_DB
    assert agreement(run(report.path, FEEDS[1]), run(source, FEEDS[1])) >= FLOOR_DB
    # neighbouring islands hand their values on in float32: one cast into them, one out, and the graph's own two
    nodes = onnx.load(report.path).graph.node
    casts = {node.output[0]: node for node in nodes if node.op_type == "Cast"}
    assert len(casts) == 4
    assert not [node for node in casts.values() if node.input[0] in casts]


def test_an_island_at_the_end_keeps_the_outputs_name(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fp32.onnx", last_gain=1e5)
    report = convert_fp16(source, tmp_path / "a.fp16.onnx", FEEDS)
    assert report.islands == ("last",)
    assert float(np.abs(run(report.path, FEEDS[0])["y"]).max()) > FP16_MAX


def test_weights_beyond_half_precision_stay_whole(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fp32.onnx", gain=1e6)
    report = convert_fp16(source, tmp_path / "a.fp16.onnx", FEEDS)
    assert "first" in report.islands
    kinds = {t.name: t.data_type for t in onnx.load(report.path).graph.initializer}
    assert kinds["first.weight"] == TensorProto.FLOAT
    assert kinds["last.weight"] == TensorProto.FLOAT16


def test_islands_grow_where_half_precision_is_too_coarse(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fp32.onnx", gain=4e-4)  # squares of 1e-7, but float16 counts in 6e-8
    graph = onnx.load(source)
    assert agreement(run(source, FEEDS[0], emulation(graph, ())), run(source, FEEDS[0])) < FLOOR_DB
    report = convert_fp16(source, tmp_path / "a.fp16.onnx", FEEDS)
    assert {"square", "mean", "variance"} <= set(report.islands)
    assert report.psnr >= FLOOR_DB


def test_what_cannot_be_converted_is_an_error_that_names_it(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fp32.onnx")
    target = tmp_path / "a.fp16.onnx"
    with pytest.raises(HalfError, match=r"expected at least 190 dB .* of 7 nodes in float32 \("):
        convert_fp16(source, target, FEEDS, floor_db=190.0)
    with pytest.raises(HalfError, match="gives NaN or infinity in float32 already, first at square"):
        convert_fp16(source, target, [{"x": FEEDS[0]["x"] * np.float32(1e25)}])
    with pytest.raises(ValueError, match="measured on real inputs, got none"):
        convert_fp16(source, target, [])
    assert not target.exists()


def test_large_weights_stand_beside_the_graph(tmp_path: Path) -> None:
    source = write(tmp_path / "a.fp32.onnx", gain=1000.0)
    inside = convert_fp16(source, tmp_path / "inside.fp16.onnx", FEEDS)
    split = tmp_path / "b.fp32.onnx"
    onnx.save(onnx.load(source), split, save_as_external_data=True, location=data_file(split).name)
    assert data_file(split).stat().st_size >= 2 * 4 * CHANNELS**2 * 9
    beside = convert_fp16(split, tmp_path / "b.fp16.onnx", FEEDS, inside_bytes=1000)
    assert beside.islands == inside.islands
    assert data_file(beside.path).stat().st_size == 2 * 2 * CHANNELS**2 * 9
    assert sorted(path.name for path in tmp_path.glob("b.*")) == [
        "b.fp16.onnx", "b.fp16.onnx.data", "b.fp32.onnx", "b.fp32.onnx.data",
    ]  # fmt: skip
    np.testing.assert_array_equal(run(beside.path, FEEDS[0])["y"], run(inside.path, FEEDS[0])["y"])
