"""How INT8 graphs round: kernels keep their sums, and ranges have the least error."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from export.onnx.int8.rounding import fit_ranges, fitted_range, keep_sums, rounded  # noqa: E402

GENERATOR = np.random.default_rng(3)


def model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8, 8]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def convolution(weight: str) -> onnx.NodeProto:
    return helper.make_node("Conv", ["x", weight], ["y"], name="conv", pads=[1, 1, 1, 1])


def stored(graph: onnx.ModelProto, name: str) -> np.ndarray:
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == name)
    return np.asarray(numpy_helper.to_array(tensor))


def test_every_kernel_keeps_its_sum_and_every_weight_a_neighbour() -> None:
    weights = GENERATOR.normal(0, 20, (6, 5, 3, 3))
    whole = rounded(weights)
    assert np.array_equal(whole, np.round(whole))
    assert np.abs(whole - weights).max() < 1
    assert np.abs((whole - weights).sum(axis=(2, 3))).max() <= 0.5
    assert np.abs((np.round(weights) - weights).sum(axis=(2, 3))).max() > 1  # which it would not by itself


def test_the_taps_nearest_to_the_middle_move_and_no_more_than_needed() -> None:
    kernel = np.array([0.45, 0.4, 0.2, 0.1, 3.0, -2.0, 0.0, 0.0, 0.0]).reshape(1, 1, 3, 3)  # the sum is 2.15
    assert rounded(kernel).ravel().tolist() == [1, 0, 0, 0, 3, -2, 0, 0, 0]
    assert rounded(-kernel).ravel().tolist() == [-1, 0, 0, 0, -3, 2, 0, 0, 0]
    exact = np.arange(-4.0, 5.0).reshape(1, 1, 3, 3)
    assert np.array_equal(rounded(exact), exact)


def test_a_flat_picture_passes_a_quantized_convolution_as_it_does_the_plain_one() -> None:
    weights = GENERATOR.normal(0, 0.05, (4, 4, 3, 3)).astype(np.float32)
    scale = (np.abs(weights).max(axis=(1, 2, 3)) / 63).astype(np.float32)
    nearest = np.round(weights / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
    quantizer = helper.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["weight"], axis=0)
    constants = {"steps": nearest, "scale": scale, "zero": np.zeros(4, np.int8)}
    quantized = model([quantizer, convolution("weight")], constants)
    keep_sums(quantized, model([convolution("plain")], {"plain": weights}))

    def error(steps: np.ndarray) -> float:
        return float(np.abs((steps * scale.reshape(-1, 1, 1, 1) - weights).sum(axis=(2, 3))).max())

    kept = stored(quantized, "steps")
    assert kept.dtype == np.int8
    assert np.abs(kept).max() <= 63
    assert error(kept) <= 0.51 * scale.max() < error(nearest)
    assert np.array_equal(stored(quantized, "scale"), scale)


def test_a_range_cuts_off_what_is_rare_and_keeps_what_is_not() -> None:
    rare = np.concatenate([GENERATOR.normal(0, 0.1, 100_000), [1.0, -0.8]])
    low, high = fitted_range(rare)
    assert -0.8 < low < -0.3
    assert 0.3 < high < 1.0
    even = GENERATOR.uniform(-1, 3, 10_000)
    assert fitted_range(even) == (even.min(), even.max())
    assert fitted_range(np.full(9, 2.0)) == (0.0, 2.0)  # zero has a step of its own
    assert fitted_range(np.zeros(9)) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_quantizers_get_the_fitted_range_in_their_own_numbers(dtype: type) -> None:
    parts = [["x", "s", "z"], ["q", "s", "z"]]
    nodes = [
        helper.make_node("QuantizeLinear", parts[0], ["q"]),
        helper.make_node("DequantizeLinear", parts[1], ["y"]),
    ]
    quantized = model(nodes, {"s": np.float32(1).reshape(()), "z": np.zeros((), dtype)})
    plain = model([helper.make_node("Identity", ["x"], ["y"])], {})
    feeds = [{"x": GENERATOR.uniform(-1, 3, (1, 4, 8, 8)).astype(np.float32)} for _ in range(3)]
    fit_ranges(quantized, plain, feeds)
    low, high = (float(pick([pick(feed["x"]) for feed in feeds])) for pick in (np.min, np.max))
    step, zero = float(stored(quantized, "s")), int(stored(quantized, "z"))
    assert step == pytest.approx((high - low) / 255, rel=1e-6)
    assert stored(quantized, "z").dtype == dtype
    assert zero == np.iinfo(dtype).min + round(-low / step)


def test_quantizers_that_share_a_scale_get_one_range_for_all_they_read() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "ten"], ["large"]),
        *(
            helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}/q"], name=name)
            for name in ("x", "large")
        ),
        *(
            helper.make_node("DequantizeLinear", [f"{name}/q", "s", "z"], [f"{name}/d"])
            for name in ("x", "large")
        ),
        helper.make_node("Add", ["x/d", "large/d"], ["y"]),
    ]
    constants = {
        "ten": np.float32(10).reshape(()),
        "s": np.float32(1).reshape(()),
        "z": np.zeros((), np.uint8),
    }
    plain = [nodes[0], helper.make_node("Add", ["x", "large"], ["y"])]
    quantized = model(nodes, constants)
    feed = {"x": GENERATOR.uniform(0, 1, (1, 4, 8, 8)).astype(np.float32)}
    fit_ranges(quantized, model(plain, {"ten": constants["ten"]}), [feed])
    assert float(stored(quantized, "s")) == pytest.approx(10 * feed["x"].max() / 255, rel=0.02)
