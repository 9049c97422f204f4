"""Compressed weights: every form that coremltools writes, against its own decompression and against numpy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
ct = pytest.importorskip("coremltools", reason="needs the extra `coreml`")

import coremltools.optimize.coreml as cto  # noqa: E402  (after importorskip)
import torch.nn.functional as F  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402

from export.mil.evaluate import Evaluator  # noqa: E402
from export.mil.lint import is_compressed, lint  # noqa: E402
from export.mil.ops.constexpr import look_up, scatter  # noqa: E402
from export.mil.package.program import Program, read_package  # noqa: E402
from export.mil.package.tensor import EvaluationError  # noqa: E402

RNG = np.random.default_rng(5)
IMAGE = RNG.normal(size=(1, 16, 5, 6)).astype(np.float32)
WEIGHT = RNG.normal(size=(24, 16, 3, 3)).astype(np.float32)
WHOLE = {"weight_threshold": 0}


def linear(**options: Any) -> Callable[[Any], Any]:
    op = cto.OpLinearQuantizerConfig(mode="linear_symmetric", **WHOLE, **options)
    return lambda model: cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=op))


def palette(mode: str = "uniform", **options: Any) -> Callable[[Any], Any]:
    op = cto.OpPalettizerConfig(mode=mode, **WHOLE, **options)
    return lambda model: cto.palettize_weights(model, cto.OptimizationConfig(global_config=op))


def pruned(model: Any) -> Any:
    op = cto.OpMagnitudePrunerConfig(target_sparsity=0.6, **WHOLE)
    return cto.prune_weights(model, cto.OptimizationConfig(global_config=op))


def sparse_palette(model: Any) -> Any:
    op = cto.OpPalettizerConfig(mode="uniform", nbits=4, **WHOLE)
    return cto.palettize_weights(
        pruned(model), cto.OptimizationConfig(global_config=op), joint_compression=True
    )


def sparse_linear(model: Any) -> Any:
    op = cto.OpLinearQuantizerConfig(mode="linear_symmetric", **WHOLE)
    return cto.linear_quantize_weights(
        pruned(model), cto.OptimizationConfig(global_config=op), joint_compression=True
    )


def quantized_palette(model: Any) -> Any:
    lut = palette(nbits=4)(model)
    op = cto.OpLinearQuantizerConfig(mode="linear_symmetric", granularity="per_tensor", **WHOLE)
    return cto.linear_quantize_weights(lut, cto.OptimizationConfig(global_config=op), joint_compression=True)


def affine(model: Any) -> Any:
    op = cto.OpLinearQuantizerConfig(mode="linear", dtype="uint8", granularity="per_tensor", **WHOLE)
    return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=op))


# how, oldest system, the operations that unpack, how weights are stored, largest error of a weight
FORMS: dict[str, tuple[Callable[[Any], Any], str, set[str], str, float]] = {
    "int8 per channel": (linear(), "iOS17", {"constexpr_affine_dequantize"}, "int8", 0.02),
    "int8 per tensor": (
        linear(granularity="per_tensor"),
        "iOS17",
        {"constexpr_affine_dequantize"},
        "int8",
        0.03,
    ),
    "uint8 affine": (affine, "iOS17", {"constexpr_affine_dequantize"}, "uint8", 0.03),
    "int8 per block": (
        linear(granularity="per_block", block_size=8),
        "iOS18",
        {"constexpr_blockwise_shift_scale"},
        "int8",
        0.02,
    ),
    "int4 per block": (
        linear(dtype="int4", granularity="per_block", block_size=4),
        "iOS18",
        {"constexpr_blockwise_shift_scale"},
        "int4",
        0.4,
    ),
    "palette 1": (palette(nbits=1), "iOS17", {"constexpr_lut_to_dense"}, "uint1", 4.5),
    "palette 2": (palette(nbits=2), "iOS17", {"constexpr_lut_to_dense"}, "uint2", 1.5),
    "palette 4": (palette(nbits=4), "iOS17", {"constexpr_lut_to_dense"}, "uint4", 0.4),
    "palette 6": (palette(nbits=6), "iOS17", {"constexpr_lut_to_dense"}, "uint6", 0.1),
    "palette 8": (palette(nbits=8), "iOS17", {"constexpr_lut_to_dense"}, "uint8", 0.03),
    "palette 4, iOS 18": (palette(nbits=4), "iOS18", {"constexpr_lut_to_dense"}, "uint4", 0.4),
    "palette 3, groups": (
        palette(nbits=3, granularity="per_grouped_channel", group_size=8),
        "iOS18",
        {"constexpr_lut_to_dense"},
        "uint3",
        0.9,
    ),
    "palette 6, kmeans": (
        palette("kmeans", nbits=6, granularity="per_grouped_channel", group_size=12),
        "iOS18",
        {"constexpr_lut_to_dense"},
        "uint6",
        1.0,
    ),
    "palette of int8": (
        quantized_palette,
        "iOS18",
        {"constexpr_lut_to_dense", "constexpr_blockwise_shift_scale"},
        "uint4",
        0.5,
    ),
    "sparse": (pruned, "iOS17", {"constexpr_sparse_to_dense"}, "fp32", 1.2),
    "sparse, iOS 18": (pruned, "iOS18", {"constexpr_sparse_to_dense"}, "fp32", 1.2),
    "sparse palette": (
        sparse_palette,
        "iOS18",
        {"constexpr_lut_to_sparse", "constexpr_sparse_to_dense"},
        "uint4",
        1.3,
    ),
    "sparse int8": (
        sparse_linear,
        "iOS18",
        {"constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense"},
        "int8",
        1.2,
    ),
}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """One float32 convolution for each target."""
    found = {}
    for name in ("iOS17", "iOS18"):
        target = getattr(ct.target, name)

        @mb.program(input_specs=[mb.TensorSpec(shape=IMAGE.shape)], opset_version=target)
        def conv(a: Any) -> Any:
            return mb.conv(x=a, weight=WEIGHT, pad_type="same", name="y")

        found[name] = ct.convert(
            conv,
            convert_to="mlprogram",
            minimum_deployment_target=target,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    return found


def saved(model: Any, path: Path) -> Program:
    model.save(str(path))
    return read_package(path)


@pytest.mark.parametrize("form", FORMS)
def test_form_is_unpacked_as_coremltools_does(models: dict[str, Any], tmp_path: Path, form: str) -> None:
    compress, target, unpacking, kind, error = FORMS[form]
    compressed = compress(models[target])
    program = saved(compressed, tmp_path / "packed.mlpackage")
    assert unpacking <= {op.type for op in program.operations}
    assert is_compressed(program)
    assert any(kind in storage.kind for storage in lint(program).storage)
    assert sum(storage.bytes for storage in lint(program).storage) < WEIGHT.nbytes

    plain = saved(cto.decompress_weights(compressed), tmp_path / "plain.mlpackage")
    weight = next(
        value
        for op in plain.constants.values()
        if isinstance(value := op.value.read(), np.ndarray) and value.shape == WEIGHT.shape
    )
    assert np.abs(weight - WEIGHT).max() <= error  # numpy's expectation of what so many bits can keep
    expected = F.conv2d(torch.from_numpy(IMAGE), torch.from_numpy(np.array(weight)), padding=1).numpy()
    np.testing.assert_allclose(Evaluator(program)({"a": IMAGE})["y"], expected, rtol=1e-5, atol=1e-4)


def test_symmetric_int8_is_what_numpy_gives(models: dict[str, Any], tmp_path: Path) -> None:
    program = saved(linear()(models["iOS17"]), tmp_path / "int8.mlpackage")
    scale = np.abs(WEIGHT).max(axis=(1, 2, 3), keepdims=True) / 127
    weight = np.clip(np.rint(WEIGHT / scale), -127, 127) * scale
    expected = F.conv2d(torch.from_numpy(IMAGE), torch.from_numpy(weight), padding=1).numpy()
    came = Evaluator(program)({"a": IMAGE})["y"]
    assert np.abs(came - expected).max() < 1e-3 * np.abs(expected).max()


def test_vectors_lie_along_their_axis() -> None:
    indices = torch.tensor([[[0, 0], [1, 0]], [[1, 1], [0, 0]]], dtype=torch.uint8)
    lut = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).reshape(1, 1, 1, 2, 3)
    first = look_up(indices, lut, 1)
    assert first.shape == (2, 6, 2)
    assert first[0].T.tolist() == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 1, 2, 3]]
    last = look_up(indices, lut, -1)
    assert last.shape == (2, 2, 6)
    assert last[0].tolist() == [[1, 2, 3, 1, 2, 3], [4, 5, 6, 1, 2, 3]]
    with pytest.raises(EvaluationError, match="vectors of 3: expected a vector_axis"):
        look_up(indices, lut, None)


def test_tables_belong_to_blocks() -> None:
    indices = torch.tensor([[2, 3], [3, 0], [1, 0], [3, 0], [2, 1], [0, 3]], dtype=torch.uint8)
    lut = torch.tensor([1.0, 5, 9, 13, 2, 10, 18, 26]).reshape(2, 1, 4, 1)
    assert look_up(indices, lut, None).tolist() == [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]
    with pytest.raises(EvaluationError, match=r"blocks that divide \[6, 2\], got \[4, 1\]"):
        look_up(indices, torch.zeros(4, 1, 4, 1), None)


def test_sparse_values_must_fit_their_mask() -> None:
    mask = torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8)
    assert scatter(torch.tensor([3.0, 4.0]), mask).tolist() == [[3, 0], [0, 4]]
    with pytest.raises(EvaluationError, match="expected 2 values for a sparse mask, got 3"):
        scatter(torch.zeros(3), mask)
