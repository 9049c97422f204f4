"""The reference evaluator's arithmetic, activations and norms: programs built with coremltools' builder against torch and numpy."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
ct = pytest.importorskip("coremltools", reason="needs the extra `coreml`")

import torch.nn.functional as F  # noqa: E402  (after importorskip)
from coremltools.converters.mil import Builder as mb  # noqa: E402
from test_mil_evaluate import Cases, P, X, check, evaluate  # noqa: E402

V = np.random.default_rng(1).normal(size=4).astype(np.float32)  # per channel
x, p, v = (torch.from_numpy(a) for a in (X, P, V))


ELEMENTWISE: Cases = {
    "add": (lambda a, b: mb.add(x=a, y=b), x + p),
    "sub": (lambda a, b: mb.sub(x=a, y=b), x - p),
    "mul": (lambda a, b: mb.mul(x=a, y=b), x * p),
    "real_div": (lambda a, b: mb.real_div(x=a, y=b), x / p),
    "floor_div": (lambda a, b: mb.floor_div(x=a, y=b), np.floor(X / P)),
    "mod": (lambda a, b: mb.mod(x=a, y=b), np.mod(X, P)),
    "pow": (lambda a, b: mb.pow(x=b, y=a), p**x),
    "maximum": (lambda a, b: mb.maximum(x=a, y=b), np.maximum(X, P)),
    "minimum": (lambda a, b: mb.minimum(x=a, y=b), np.minimum(X, P)),
    "broadcast": (lambda a, b: mb.add(x=a, y=V.reshape(4, 1, 1)), X + V.reshape(4, 1, 1)),
    "compare": (
        lambda a, b: mb.cast(
            x=mb.logical_and(x=mb.greater(x=a, y=0.1), y=mb.less_equal(x=b, y=0.5)), dtype="fp32"
        ),
        (X > 0.1) & (P <= 0.5),
    ),
    "equal": (
        lambda a, b: mb.cast(x=mb.logical_or(x=mb.equal(x=a, y=a), y=mb.not_equal(x=b, y=b)), dtype="fp32"),
        np.ones_like(X),
    ),
    "xor": (
        lambda a, b: mb.cast(
            x=mb.logical_xor(x=mb.less(x=a, y=0.0), y=mb.logical_not(x=mb.greater_equal(x=b, y=0.5))),
            dtype="fp32",
        ),
        (X < 0) ^ (P < 0.5),
    ),
    "select": (lambda a, b: mb.select(cond=mb.greater(x=a, y=0.0), a=a, b=b), np.where(X > 0, X, P)),
    "relu": (lambda a, b: mb.relu(x=a), F.relu(x)),
    "relu6": (lambda a, b: mb.relu6(x=mb.mul(x=a, y=9.0)), F.relu6(9 * x)),
    "leaky_relu": (lambda a, b: mb.leaky_relu(x=a, alpha=0.1), F.leaky_relu(x, 0.1)),
    "prelu": (lambda a, b: mb.prelu(x=a, alpha=V), F.prelu(x, v)),
    "elu": (lambda a, b: mb.elu(x=a, alpha=0.7), F.elu(x, 0.7)),
    "clamped_relu": (
        lambda a, b: mb.clamped_relu(x=a, alpha=0.2, beta=0.8),
        np.where(X >= 0, np.minimum(X, 0.8), 0.2 * X),
    ),
    "thresholded_relu": (lambda a, b: mb.thresholded_relu(x=a, alpha=0.3), np.where(X >= 0.3, X, 0)),
    "linear_activation": (lambda a, b: mb.linear_activation(x=a, alpha=2.0, beta=-1.0), 2 * X - 1),
    "scaled_tanh": (lambda a, b: mb.scaled_tanh(x=a, alpha=2.0, beta=0.5), 2 * np.tanh(0.5 * X)),
    "sigmoid_hard": (lambda a, b: mb.sigmoid_hard(x=a, alpha=0.2, beta=0.5), np.clip(0.2 * X + 0.5, 0, 1)),
    "sigmoid": (lambda a, b: mb.sigmoid(x=a), torch.sigmoid(x)),
    "tanh": (lambda a, b: mb.tanh(x=a), torch.tanh(x)),
    "silu": (lambda a, b: mb.silu(x=a), F.silu(x)),
    "gelu": (lambda a, b: mb.gelu(x=a), F.gelu(x)),
    "gelu tanh": (lambda a, b: mb.gelu(x=a, mode="TANH_APPROXIMATION"), F.gelu(x, approximate="tanh")),
    "gelu sigmoid": (lambda a, b: mb.gelu(x=a, mode="SIGMOID_APPROXIMATION"), X / (1 + np.exp(-1.702 * X))),
    "softplus": (lambda a, b: mb.softplus(x=mb.mul(x=a, y=20.0)), np.logaddexp(0, 20 * X.astype(np.float64))),
    "softplus_parametric": (
        lambda a, b: mb.softplus_parametric(x=a, alpha=V, beta=V),
        V.reshape(4, 1, 1) * np.logaddexp(0, X * V.reshape(4, 1, 1)),
    ),
    "softsign": (lambda a, b: mb.softsign(x=a), F.softsign(x)),
    "exp": (lambda a, b: mb.exp(x=a), np.exp(X)),
    "exp2": (lambda a, b: mb.exp2(x=a), np.exp2(X)),
    "log": (lambda a, b: mb.log(x=b, epsilon=0.25), np.log(P + 0.25)),
    "sqrt": (lambda a, b: mb.sqrt(x=b), np.sqrt(P)),
    "rsqrt": (lambda a, b: mb.rsqrt(x=b, epsilon=0.5), 1 / np.sqrt(P + 0.5)),
    "inverse": (lambda a, b: mb.inverse(x=b, epsilon=0.5), 1 / (P + 0.5)),
    "square": (lambda a, b: mb.square(x=a), X**2),
    "abs": (lambda a, b: mb.abs(x=a), np.abs(X)),
    "sign": (lambda a, b: mb.sign(x=a), np.sign(X)),
    "erf": (lambda a, b: mb.erf(x=a), torch.erf(x)),
    "rounding": (
        lambda a, b: mb.add(x=mb.floor(x=a), y=mb.mul(x=mb.ceil(x=a), y=mb.round(x=a))),
        np.floor(X) + np.ceil(X) * np.rint(X),
    ),
    "trigonometry": (
        lambda a, b: mb.add(x=mb.sin(x=a), y=mb.mul(x=mb.cos(x=a), y=mb.tan(x=b))),
        np.sin(X) + np.cos(X) * np.tan(P),
    ),
    "hyperbolic": (lambda a, b: mb.add(x=mb.sinh(x=a), y=mb.cosh(x=b)), np.sinh(X) + np.cosh(P)),
    "inverse trigonometry": (
        lambda a, b: mb.add(
            x=mb.add(x=mb.asin(x=b), y=mb.acos(x=b)), y=mb.mul(x=mb.atan(x=a), y=mb.atanh(x=b))
        ),
        np.arcsin(P) + np.arccos(P) + np.arctan(X) * np.arctanh(P),
    ),
    "clip": (lambda a, b: mb.clip(x=a, alpha=-0.5, beta=0.25), np.clip(X, -0.5, 0.25)),
    "threshold": (lambda a, b: mb.threshold(x=a, alpha=0.2), np.maximum(X, 0.2)),
    "cast to whole": (lambda a, b: mb.cast(x=mb.mul(x=a, y=10.0), dtype="int32"), np.trunc(10 * X)),
    "cast to fp16": (lambda a, b: mb.cast(x=mb.cast(x=a, dtype="fp16"), dtype="fp32"), X.astype(np.float16)),
    "softmax": (lambda a, b: mb.softmax(x=a, axis=1), torch.softmax(x, 1)),
    "identity": (lambda a, b: mb.identity(x=a), X),
    "whole arithmetic": (
        lambda a, b: mb.floor_div(x=mb.cast(x=mb.mul(x=a, y=9.0), dtype="int32"), y=np.int32(-2)),
        np.floor_divide(np.trunc(9 * X), -2),
    ),
}

NORMS: Cases = {
    "layer_norm": (
        lambda a, b: mb.layer_norm(
            x=a, axes=[-1], gamma=np.arange(8, dtype=np.float32), beta=np.ones(8, np.float32), epsilon=1e-3
        ),
        F.layer_norm(x, (8,), torch.arange(8.0), torch.ones(8), 1e-3),
    ),
    "layer_norm channels": (
        lambda a, b: mb.layer_norm(x=a, axes=[1], gamma=V, beta=V),
        F.layer_norm(x.movedim(1, -1), (4,), v, v).movedim(-1, 1),
    ),
    "instance_norm": (
        lambda a, b: mb.instance_norm(x=a, gamma=V, beta=V, epsilon=1e-3),
        F.instance_norm(x, weight=v, bias=v, eps=1e-3),
    ),
    "batch_norm": (
        lambda a, b: mb.batch_norm(x=a, mean=V, variance=np.abs(V), gamma=V, beta=V, epsilon=1e-3),
        F.batch_norm(x, v, v.abs(), v, v, eps=1e-3),
    ),
    "l2_norm": (lambda a, b: mb.l2_norm(x=a, epsilon=1e-3), X / np.sqrt((X**2).sum() + 1e-3)),
    "reduce_sum": (
        lambda a, b: mb.reduce_sum(x=a, axes=[1, -1], keep_dims=True),
        X.sum((1, 3), keepdims=True),
    ),
    "reduce_mean": (lambda a, b: mb.reduce_mean(x=a, axes=[-2, -1], keep_dims=False), X.mean((2, 3))),
    "reduce_max": (lambda a, b: mb.reduce_max(x=a, axes=[2], keep_dims=False), X.max(2)),
    "reduce_min": (
        lambda a, b: mb.reduce_min(x=a, axes=[2, 3], keep_dims=True),
        X.min((2, 3), keepdims=True),
    ),
    "reduce_prod": (lambda a, b: mb.reduce_prod(x=a, axes=[1, 2], keep_dims=False), X.prod((1, 2))),
    "reduce_sum_square": (
        lambda a, b: mb.reduce_sum_square(x=a, axes=[3], keep_dims=True),
        (X**2).sum(3, keepdims=True),
    ),
    "reduce_l1_norm": (
        lambda a, b: mb.reduce_l1_norm(x=a, axes=[3], keep_dims=True),
        np.abs(X).sum(3, keepdims=True),
    ),
    "reduce_l2_norm": (
        lambda a, b: mb.reduce_l2_norm(x=a, axes=[1], keep_dims=True),
        np.sqrt((X**2).sum(1, keepdims=True)),
    ),
    "reduce_log_sum": (
        lambda a, b: mb.reduce_log_sum(x=b, axes=[1], keep_dims=True),
        np.log(P.sum(1, keepdims=True)),
    ),
    "reduce_log_sum_exp": (
        lambda a, b: mb.reduce_log_sum_exp(x=a, axes=[1], keep_dims=True),
        torch.logsumexp(x, 1, keepdim=True),
    ),
    "reduce_argmax": (lambda a, b: mb.reduce_argmax(x=a, axis=3, keep_dims=False), X.argmax(3)),
    "reduce_argmin": (lambda a, b: mb.reduce_argmin(x=a, axis=1, keep_dims=True), X.argmin(1, keepdims=True)),
    "topk": (lambda a, b: mb.topk(x=a, k=3, axis=-1)[0], x.topk(3).values),
    "topk places": (lambda a, b: mb.topk(x=a, k=2, axis=1, ascending=True)[1], X.argsort(1)[:, :2]),
    "argsort": (lambda a, b: mb.argsort(x=a, axis=-1), (-X).argsort(-1)),
    "cumsum": (
        lambda a, b: mb.cumsum(x=a, axis=2, exclusive=True, reverse=True),
        np.flip(np.cumsum(np.flip(X, 2), 2), 2) - X,
    ),
}

GROUPS: dict[str, tuple[str, Cases]] = {"elementwise": ("iOS17", ELEMENTWISE), "norms": ("iOS17", NORMS)}


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
