"""MIL operations over whole axes: normalisation, reduction, sorting, running sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from export.mil.ops.call import Call, Compute, along, axis_of


def _normalise(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    """Zero mean and unit variance (of the population) over these axes."""
    centred = x - x.mean(dim=axes, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(dim=axes, keepdim=True) + epsilon)


def _scale_shift(call: Call, x: Tensor, shape: Callable[[Tensor], Tensor]) -> Tensor:
    """x * gamma + beta, for those of the two that are given."""
    gamma, beta = call.optional("gamma"), call.optional("beta")
    x = x if gamma is None else x * shape(gamma)
    return x if beta is None else x + shape(beta)


def _layer_norm(call: Call) -> Tensor:
    x = call.tensor("x")
    axes = sorted(axis_of(axis, x.dim()) for axis in call.ints("axes", list(range(x.dim()))))
    shape = [size if i in axes else 1 for i, size in enumerate(x.shape)]
    normal = _normalise(x, axes, call.number("epsilon", 1e-5))
    return _scale_shift(call, normal, lambda t: t.reshape(shape))


def _instance_norm(call: Call) -> Tensor:
    x = call.tensor("x")
    normal = _normalise(x, list(range(2, x.dim())), call.number("epsilon", 1e-5))
    return _scale_shift(call, normal, lambda t: along(t, 1, x.dim()))


def _batch_norm(call: Call) -> Tensor:
    x = call.tensor("x")
    mean, variance = (along(call.tensor(name), 1, x.dim()) for name in ("mean", "variance"))
    normal = (x - mean) / torch.sqrt(variance + call.number("epsilon", 1e-5))
    return _scale_shift(call, normal, lambda t: along(t, 1, x.dim()))


def _l2_norm(call: Call) -> Tensor:
    x = call.tensor("x")
    return x / torch.sqrt(x.square().sum(dim=(-3, -2, -1), keepdim=True) + call.number("epsilon", 1e-6))


def _reduce(function: Callable[..., Tensor]) -> Compute:
    """function(x, axes, keepdim) over `axes`, or over all axes if none are given."""

    def compute(call: Call) -> Tensor:
        x = call.tensor("x")
        axes = call.ints("axes", list(range(x.dim())))
        return function(x, axes, call.flag("keep_dims"))

    return compute


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis_of(axis, x.dim()) for axis in axes), reverse=True):
        x = x.prod(dim=axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.to(x.dtype if x.is_floating_point() else torch.float64).mean(axes, keep)


def _logsumexp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x.float(), axes, keep)


def _arg(function: Callable[..., Tensor]) -> Compute:
    def compute(call: Call) -> Tensor:
        return function(call.tensor("x"), dim=call.integer("axis", -1), keepdim=call.flag("keep_dims"))

    return compute


def _topk(call: Call) -> tuple[Tensor, ...]:
    """The k largest values (`ascending`: smallest) and their indices. Among equal values the first comes first. k = -1: all."""
    x, axis = call.tensor("x"), call.integer("axis", -1)
    ascending, k = call.flag("ascending"), call.integer("k", 1)
    values, places = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    count = x.shape[axis] if k == -1 else k
    best = (values.narrow(axis, 0, count), places.narrow(axis, 0, count))
    return best if call.flag("return_indices", True) else best[:1]


def _argsort(call: Call) -> Tensor:
    return torch.argsort(
        call.tensor("x"), dim=call.integer("axis", -1), descending=not call.flag("ascending"), stable=True
    )


def _cumsum(call: Call) -> Tensor:
    x, axis = call.tensor("x"), call.integer("axis", 0)
    x = x.flip(axis) if call.flag("reverse") else x
    total = torch.cumsum(x, axis)
    total = total - x if call.flag("exclusive") else total
    return total.flip(axis) if call.flag("reverse") else total


OPS: Final[Mapping[str, Compute]] = {
    "argsort": _argsort,
    "batch_norm": _batch_norm,
    "cumsum": _cumsum,
    "instance_norm": _instance_norm,
    "l2_norm": _l2_norm,
    "layer_norm": _layer_norm,
    "reduce_argmax": _arg(torch.argmax),
    "reduce_argmin": _arg(torch.argmin),
    "reduce_l1_norm": _reduce(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "reduce_l2_norm": _reduce(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "reduce_log_sum": _reduce(lambda x, axes, keep: x.sum(axes, keep).log()),
    "reduce_log_sum_exp": _reduce(_logsumexp),
    "reduce_max": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
    "reduce_mean": _reduce(_mean),
    "reduce_min": _reduce(lambda x, axes, keep: x.amin(axes, keep)),
    "reduce_prod": _reduce(_prod),
    "reduce_sum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
    "reduce_sum_square": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
    "topk": _topk,
}
