"""The reference evaluator's convolutions, attention, quantization and movements: built programs against torch and numpy."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
ct = pytest.importorskip("coremltools", reason="needs the extra `coreml`")

import torch.nn.functional as F  # noqa: E402  (after importorskip)
from coremltools.converters.mil import Builder as mb  # noqa: E402
from test_mil_evaluate import Cases, P, X, check, evaluate  # noqa: E402

RNG = np.random.default_rng(2)
W = RNG.normal(size=(6, 4, 3, 3)).astype(np.float32)
G = RNG.normal(size=(6, 2, 3, 3)).astype(np.float32)  # of two groups
T = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)  # transposed: inputs first
M = RNG.normal(size=(5, 8)).astype(np.float32)
B6 = RNG.normal(size=6).astype(np.float32)
x, p, w, g, t, m, b6 = (torch.from_numpy(a) for a in (X, P, W, G, T, M, B6))


def up(mode: str, align: bool | None, size: tuple[int, int]) -> Any:
    return F.interpolate(x, size=size, mode=mode, align_corners=align)


def bilinear_default(size: tuple[int, int]) -> np.ndarray:
    """Corner-anchored sampling at i * in / out, written out pixel by pixel."""
    out = np.zeros((1, 4, *size), np.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            y, z = min(i * 6 / size[0], 5), min(j * 8 / size[1], 7)
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, 5), min(z0 + 1, 7)
            a, b = y - y0, z - z0
            top = X[:, :, y0, z0] * (1 - b) + X[:, :, y0, z1] * b
            out[:, :, i, j] = top * (1 - a) + a * (X[:, :, y1, z0] * (1 - b) + X[:, :, y1, z1] * b)
    return out


def same_padded_conv() -> Any:
    return F.conv2d(
        F.pad(x, (0, 1, 0, 1)), w, stride=2
    )  # 6x8 with a window of 3 and a stride of 2 lacks one row and column


def depth_first(block: int) -> np.ndarray:
    """Depth to space with the place in the block before the channel."""
    n, c, h, width = X.shape
    out = np.zeros((n, c // block**2, h * block, width * block), np.float32)
    for i in range(block):
        for j in range(block):
            first = (i * block + j) * (c // block**2)
            out[:, :, i::block, j::block] = X[:, first : first + c // block**2]
    return out


LINEAR: Cases = {
    "conv": (
        lambda a, b: mb.conv(x=a, weight=W, bias=B6, pad_type="custom", pad=[1, 1, 1, 1], strides=[2, 1]),
        F.conv2d(x, w, b6, (2, 1), 1),
    ),
    "conv groups": (
        lambda a, b: mb.conv(x=a, weight=G, pad_type="valid", groups=2),
        F.conv2d(x, g, groups=2),
    ),
    "conv dilated": (
        lambda a, b: mb.conv(x=a, weight=W, pad_type="custom", pad=[2, 2, 2, 2], dilations=[2, 2]),
        F.conv2d(x, w, padding=2, dilation=2),
    ),
    "conv uneven": (
        lambda a, b: mb.conv(x=a, weight=W, pad_type="custom", pad=[0, 2, 1, 0]),
        F.conv2d(F.pad(x, (1, 0, 0, 2)), w),
    ),
    "conv same": (lambda a, b: mb.conv(x=a, weight=W, pad_type="same", strides=[2, 2]), same_padded_conv()),
    "conv same lower": (
        lambda a, b: mb.conv(x=a, weight=W, pad_type="same_lower", strides=[2, 2]),
        F.conv2d(F.pad(x, (1, 0, 1, 0)), w, stride=2),
    ),
    "conv 1d": (
        lambda a, b: mb.conv(
            x=mb.squeeze(x=mb.slice_by_size(x=a, begin=[0, 0, 0, 0], size=[1, 4, 1, 8]), axes=[2]),
            weight=W[:, :, 0],
            pad_type="valid",
        ),
        F.conv1d(x[:, :, 0], w[:, :, 0]),
    ),
    "conv_transpose": (
        lambda a, b: mb.conv_transpose(
            x=a, weight=T, pad_type="custom", pad=[1, 1, 1, 1], strides=[2, 2], bias=B6[:3]
        ),
        F.conv_transpose2d(x, t, b6[:3], 2, 1),
    ),
    "conv_transpose shaped": (
        lambda a, b: mb.conv_transpose(
            x=a, weight=T, pad_type="custom", pad=[1, 1, 1, 1], strides=[2, 2], output_shape=[1, 3, 12, 16]
        ),
        F.conv_transpose2d(x, t, None, 2, 1, output_padding=1),
    ),
    "linear": (
        lambda a, b: mb.linear(x=mb.reshape(x=a, shape=[1, 24, 8]), weight=M, bias=B6[:5]),
        F.linear(x.reshape(1, 24, 8), m, b6[:5]),
    ),
    "matmul": (lambda a, b: mb.matmul(x=a, y=b, transpose_y=True), x @ p.transpose(-1, -2)),
    "matmul x": (lambda a, b: mb.matmul(x=a, y=b, transpose_x=True), x.transpose(-1, -2) @ p),
    "einsum": (
        lambda a, b: mb.einsum(values=(a, mb.transpose(x=b, perm=[0, 3, 2, 1])), equation="nchw,nwhu->nchu"),
        torch.einsum("nchw,nwhu->nchu", x, p.permute(0, 3, 2, 1)),
    ),
    "max_pool": (
        lambda a, b: mb.max_pool(
            x=a, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]
        ),
        F.max_pool2d(x, 3, 2, 1),
    ),
    "max_pool ceil": (
        lambda a, b: mb.max_pool(x=a, kernel_sizes=[3, 3], strides=[2, 2], pad_type="valid", ceil_mode=True),
        F.max_pool2d(x, 3, 2, ceil_mode=True),
    ),
    "avg_pool": (
        lambda a, b: mb.avg_pool(
            x=a, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]
        ),
        F.avg_pool2d(x, 3, 2, 1),
    ),
    "avg_pool exclude": (
        lambda a, b: mb.avg_pool(
            x=a, kernel_sizes=[3, 3], pad_type="custom", pad=[1, 1, 1, 1], exclude_padding_from_average=True
        ),
        F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    ),
    "avg_pool ceil": (
        lambda a, b: mb.avg_pool(
            x=a, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], ceil_mode=True
        ),
        F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    ),
    "l2_pool": (
        lambda a, b: mb.l2_pool(x=a, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"),
        F.lp_pool2d(x, 2, 2),
    ),
}

SHAPES: Cases = {
    "reshape": (lambda a, b: mb.reshape(x=a, shape=[4, -1, 4]), X.reshape(4, -1, 4)),
    "reshape zero": (lambda a, b: mb.reshape(x=a, shape=[0, -1, 0]), X.reshape(4, 6, 8)),
    "transpose": (lambda a, b: mb.transpose(x=a, perm=[0, 2, -1, 1]), X.transpose(0, 2, 3, 1)),
    "expand_dims": (
        lambda a, b: mb.squeeze(
            x=mb.expand_dims(x=mb.reshape(x=a, shape=[24, 8]), axes=[0, -1, 2]), axes=[0]
        ),
        X.reshape(24, 1, 8, 1),
    ),
    "concat": (lambda a, b: mb.concat(values=(a, b, a), axis=-3), np.concatenate((X, P, X), 1)),
    "concat interleave": (
        lambda a, b: mb.concat(values=(a, b), axis=1, interleave=True),
        np.stack((X, P), 2).reshape(1, 8, 6, 8),
    ),
    "stack": (lambda a, b: mb.stack(values=(a, b), axis=2), np.stack((X, P), 2)),
    "split": (lambda a, b: mb.split(x=a, num_splits=2, axis=1)[1], X[:, 2:]),
    "split sizes": (lambda a, b: mb.split(x=a, split_sizes=[1, 5, 2], axis=-1)[1], X[..., 1:6]),
    "slice": (
        lambda a, b: mb.slice_by_index(x=a, begin=[0, 1, -4, 7], end=[1, 4, -1, 0], stride=[1, 2, 1, -3]),
        X[:, 1:4:2, -4:-1, 7:0:-3],
    ),
    "slice masked": (
        lambda a, b: mb.slice_by_index(
            x=a,
            begin=[0, -2, 2, 3],
            end=[0, 0, 4, 0],
            begin_mask=[True, False, False, True],
            end_mask=[True, False, False, True],
            squeeze_mask=[False, True, False, False],
        ),
        X[:, -2, 2:4],
    ),
    "slice_by_size": (
        lambda a, b: mb.slice_by_size(x=a, begin=[0, 1, 2, 3], size=[1, 2, -1, 4]),
        X[:, 1:3, 2:, 3:7],
    ),
    "gather": (
        lambda a, b: mb.gather(x=a, indices=np.array([[3, 0], [1, 1]], np.int32), axis=1),
        X[:, [[3, 0], [1, 1]]],
    ),
    "gather_along_axis": (
        lambda a, b: mb.gather_along_axis(x=a, indices=mb.reduce_argmax(x=a, axis=3, keep_dims=True), axis=3),
        X.max(3, keepdims=True),
    ),
    "gather batch": (
        lambda a, b: mb.gather(
            x=mb.reshape(x=a, shape=[2, 2, 6, 8]),
            indices=np.array([[1], [0]], np.int32),
            axis=1,
            batch_dims=1,
        ),
        X.reshape(2, 2, 6, 8)[[0, 1], [1, 0]][:, None],
    ),
    "gather_nd": (
        lambda a, b: mb.gather_nd(x=a, indices=np.array([[0, 3], [0, 1]], np.int32)),
        X[[0, 0], [3, 1]],
    ),
    "tile": (lambda a, b: mb.tile(x=a, reps=[2, 1, 1, 3]), np.tile(X, (2, 1, 1, 3))),
    "pad": (
        lambda a, b: mb.pad(x=a, pad=[1, 0, 2, 3], constant_val=0.5),
        np.pad(X, [(0, 0), (0, 0), (1, 0), (2, 3)], constant_values=0.5),
    ),
    "pad reflect": (
        lambda a, b: mb.pad(x=a, pad=[5, 2, 0, 7], mode="reflect"),
        np.pad(X, [(0, 0), (0, 0), (5, 2), (0, 7)], mode="reflect"),
    ),
    "pad replicate": (
        lambda a, b: mb.pad(x=a, pad=[0, 0, 0, 0, 2, 1, 3, 0], mode="replicate"),
        np.pad(X, [(0, 0), (0, 0), (2, 1), (3, 0)], mode="edge"),
    ),
    "pixel_shuffle": (lambda a, b: mb.pixel_shuffle(x=a, upscale_factor=2), F.pixel_shuffle(x, 2)),
    "pixel_unshuffle": (
        lambda a, b: mb.pixel_unshuffle(x=a, downscale_factor=np.uint32(2)),
        F.pixel_unshuffle(x, 2),
    ),
    "depth_to_space": (lambda a, b: mb.depth_to_space(x=a, block_size=2), depth_first(2)),
    "space_to_depth": (
        lambda a, b: mb.space_to_depth(x=mb.depth_to_space(x=a, block_size=2), block_size=2),
        X,
    ),
    "reverse": (lambda a, b: mb.reverse(x=a, axes=[1, 3]), X[:, ::-1, :, ::-1]),
    "sliding_windows": (
        lambda a, b: mb.sliding_windows(x=a, axis=3, size=4, stride=2),
        np.lib.stride_tricks.sliding_window_view(X, 4, 3)[:, :, :, ::2],
    ),
    "band_part": (lambda a, b: mb.band_part(x=a, lower=1, upper=-1), np.triu(X, -1)),
    "one_hot": (
        lambda a, b: mb.one_hot(
            indices=mb.reduce_argmax(x=a, axis=3, keep_dims=False),
            one_hot_vector_size=8,
            axis=-1,
            on_value=2.0,
            off_value=1.0,
        ),
        1.0 + (X.argmax(3)[..., None] == np.arange(8)),
    ),
    "fill_like": (lambda a, b: mb.fill_like(ref_tensor=a, value=2.5), np.full_like(X, 2.5)),
    "shape": (lambda a, b: mb.fill(shape=mb.shape(x=a), value=1.5), np.full_like(X, 1.5)),
    "range_1d": (
        lambda a, b: mb.add(
            x=mb.range_1d(
                start=mb.reduce_argmax(
                    x=mb.fill_like(ref_tensor=mb.reshape(x=a, shape=[-1]), value=0.0), axis=0, keep_dims=False
                ),
                end=8,
                step=2,
            ),
            y=1,
        ),
        np.arange(0, 8, 2) + 1,
    ),
    "flatten2d": (lambda a, b: mb.flatten2d(x=a, axis=2), X.reshape(4, 48)),
    "upsample_nearest": (
        lambda a, b: mb.upsample_nearest_neighbor(x=a, scale_factor_height=2, scale_factor_width=3),
        X.repeat(2, 2).repeat(3, 3),
    ),
    "upsample_bilinear": (
        lambda a, b: mb.upsample_bilinear(
            x=a, scale_factor_height=2, scale_factor_width=3, align_corners=True
        ),
        up("bilinear", True, (12, 24)),
    ),
    "upsample half pixel": (
        lambda a, b: mb.upsample_bilinear(
            x=a, scale_factor_height=2, scale_factor_width=2, align_corners=False
        ),
        up("bilinear", False, (12, 16)),
    ),
    "resize_bilinear": (
        lambda a, b: mb.resize_bilinear(x=a, target_size_height=9, target_size_width=5),
        bilinear_default((9, 5)),
    ),
    "resize corners": (
        lambda a, b: mb.resize_bilinear(
            x=a, target_size_height=9, target_size_width=5, sampling_mode="STRICT_ALIGN_CORNERS"
        ),
        up("bilinear", True, (9, 5)),
    ),
    "resize unaligned": (
        lambda a, b: mb.resize_bilinear(
            x=a, target_size_height=9, target_size_width=5, sampling_mode="UNALIGN_CORNERS"
        ),
        up("bilinear", False, (9, 5)),
    ),
    "resize_nearest": (
        lambda a, b: mb.resize_nearest_neighbor(x=a, target_size_height=9, target_size_width=5),
        up("nearest", None, (9, 5)),
    ),
    "resize": (
        lambda a, b: mb.resize(
            x=a,
            shape=[1, 9, 0],
            resized_dims=np.uint32(2),
            interpolation_mode="LINEAR",
            sampling_mode="UNALIGN_CORNERS",
        ),
        up("bilinear", False, (9, 8)),
    ),
}

ATTENTION: Cases = {
    "attention": (
        lambda a, b: mb.scaled_dot_product_attention(query=a, key=b, value=a),
        F.scaled_dot_product_attention(x, p, x),
    ),
    "attention masked": (
        lambda a, b: mb.scaled_dot_product_attention(
            query=a,
            key=b,
            value=a,
            attn_mask=mb.greater(
                x=mb.add(x=np.tril(np.ones((6, 6), np.float32)), y=mb.mul(x=mb.reduce_sum(x=a), y=0.0)), y=0.5
            ),
        ),
        F.scaled_dot_product_attention(x, p, x, is_causal=True),
    ),
}

QUANTIZED: Cases = {
    "quantize": (
        lambda a, b: mb.dequantize(
            input=mb.quantize(input=a, scale=np.float32(0.02), zero_point=np.int8(5), output_dtype="int8"),
            scale=np.float32(0.02),
            zero_point=np.int8(5),
        ),
        (np.clip(np.rint(X / np.float32(0.02)) + 5, -128, 127) - 5) * 0.02,
    ),
    "quantize halves to even, below zero to zero": (
        lambda a, b: mb.dequantize(
            input=mb.quantize(
                input=mb.mul(x=mb.floor(x=mb.mul(x=a, y=4.0)), y=0.5),
                scale=np.float32(1),
                output_dtype="uint8",
            ),
            scale=np.float32(1),
        ),
        np.clip(np.rint(np.floor(X * 4) / 2), 0, 255),
    ),
    "quantize channels": (
        lambda a, b: mb.dequantize(
            input=mb.quantize(input=b, scale=np.full(4, 0.01, np.float32), output_dtype="uint8", axis=1),
            scale=np.full(4, 0.02, np.float32),
            axis=1,
        ),
        np.rint(P / np.float32(0.01)) * 0.02,
    ),
}

GROUPS: dict[str, tuple[str, Cases]] = {
    "linear": ("iOS17", LINEAR),
    "shapes": ("iOS17", SHAPES),
    "attention": ("iOS18", ATTENTION),
    "quantized": ("iOS17", QUANTIZED),
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """Every case's result, one program per group."""
    return {
        group: evaluate(cases, tmp_path_factory.mktemp(group) / "ops.mlpackage", target)
        for group, (target, cases) in GROUPS.items()
    }


@pytest.mark.parametrize(("group", "name"), [(g, name) for g, (_, cases) in GROUPS.items() for name in cases])
def test_operation_agrees_with_torch_or_numpy(evaluated: dict[str, Any], group: str, name: str) -> None:
    check(evaluated[group][name], GROUPS[group][1][name][1])
