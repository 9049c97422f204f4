"""MIL operations on each element: arithmetic, comparison, functions of one value, activations.

Integer arithmetic keeps integers; everything else runs in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from export.mil.ops.call import Call, Compute, binary, unary

GELU_MODES: Final = ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")


def _pow(x: Tensor, y: Tensor) -> Tensor:
    # A negative integer exponent gives a fraction, which is truncated when the result is rounded.
    return torch.pow(x, y) if x.is_floating_point() else torch.pow(x.double(), y.double())


def _log(call: Call) -> Tensor:
    return torch.log(call.tensor("x") + call.number("epsilon", 1e-45))


def _rsqrt(call: Call) -> Tensor:
    return torch.rsqrt(call.tensor("x") + call.number("epsilon", 1e-12))


def _inverse(call: Call) -> Tensor:
    return 1.0 / (call.tensor("x") + call.number("epsilon", 1e-4))


def _clip(call: Call) -> Tensor:
    return call.tensor("x").clamp(call.number("alpha"), call.number("beta"))


def _cast(call: Call) -> Tensor:
    """Convert to the declared type: the evaluator rounds every result to it, and integers are truncated."""
    return call.tensor("x")


def _select(call: Call) -> Tensor:
    return torch.where(call.tensor("cond").bool(), call.tensor("a"), call.tensor("b"))


def _leaky_relu(call: Call) -> Tensor:
    x = call.tensor("x")
    return torch.where(x >= 0, x, x * call.number("alpha"))


def _prelu(call: Call) -> Tensor:
    x = call.tensor("x")
    alpha = call.tensor("alpha").reshape([1, -1] + [1] * (x.dim() - 2))
    return torch.where(x > 0, x, x * alpha)


def _gelu(call: Call) -> Tensor:
    x = call.tensor("x")
    mode = call.choice("mode", GELU_MODES, "EXACT").upper()
    if mode == "EXACT":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x * torch.sigmoid(1.702 * x)


def _elu(call: Call) -> Tensor:
    x = call.tensor("x")
    return torch.where(x > 0, x, call.number("alpha") * torch.expm1(x))


def _clamped_relu(call: Call) -> Tensor:
    x = call.tensor("x")
    return torch.where(x >= 0, x, call.number("alpha") * x).clamp(max=call.number("beta"))


def _thresholded_relu(call: Call) -> Tensor:
    x = call.tensor("x")
    return torch.where(x >= call.number("alpha"), x, torch.zeros_like(x))


def _softplus_parametric(call: Call) -> Tensor:
    x = call.tensor("x")
    shape = [1, -1] + [1] * (x.dim() - 2)
    alpha, beta = call.tensor("alpha").reshape(shape), call.tensor("beta").reshape(shape)
    return alpha * F.softplus(beta * x)


def _softmax(call: Call) -> Tensor:
    return torch.softmax(call.tensor("x"), call.integer("axis", -1))


ELEMENTWISE: Final[Mapping[str, Compute]] = {
    "add": binary(torch.add),
    "sub": binary(torch.sub),
    "mul": binary(torch.mul),
    "real_div": binary(torch.true_divide),
    "floor_div": binary(torch.floor_divide),
    "mod": binary(torch.remainder),  # the sign of the divisor, as in Python
    "pow": binary(_pow),
    "maximum": binary(torch.maximum),
    "minimum": binary(torch.minimum),
    "equal": binary(torch.eq),
    "not_equal": binary(torch.ne),
    "greater": binary(torch.gt),
    "greater_equal": binary(torch.ge),
    "less": binary(torch.lt),
    "less_equal": binary(torch.le),
    "logical_and": binary(torch.logical_and),
    "logical_or": binary(torch.logical_or),
    "logical_xor": binary(torch.logical_xor),
    "logical_not": unary(torch.logical_not),
    "abs": unary(torch.abs),
    "acos": unary(torch.acos),
    "asin": unary(torch.asin),
    "atan": unary(torch.atan),
    "atanh": unary(torch.atanh),
    "cast": _cast,
    "ceil": unary(torch.ceil),
    "clip": _clip,
    "cos": unary(torch.cos),
    "cosh": unary(torch.cosh),
    "erf": unary(torch.erf),
    "exp": unary(torch.exp),
    "exp2": unary(torch.exp2),
    "floor": unary(torch.floor),
    "identity": unary(torch.clone),
    "inverse": _inverse,
    "log": _log,
    "round": unary(torch.round),
    "rsqrt": _rsqrt,
    "select": _select,
    "sign": unary(torch.sign),
    "sin": unary(torch.sin),
    "sinh": unary(torch.sinh),
    "sqrt": unary(torch.sqrt),
    "square": unary(torch.square),
    "tan": unary(torch.tan),
    "tanh": unary(torch.tanh),
    "threshold": lambda call: call.tensor("x").clamp(min=call.number("alpha")),
}

ACTIVATIONS: Final[Mapping[str, Compute]] = {
    "clamped_relu": _clamped_relu,
    "elu": _elu,
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "linear_activation": lambda call: call.tensor("x") * call.number("alpha") + call.number("beta"),
    "prelu": _prelu,
    "relu": unary(torch.relu),
    "relu6": unary(F.relu6),
    "scaled_tanh": lambda call: call.number("alpha") * torch.tanh(call.number("beta") * call.tensor("x")),
    "sigmoid": unary(torch.sigmoid),
    "sigmoid_hard": lambda call: (call.tensor("x") * call.number("alpha") + call.number("beta")).clamp(0, 1),
    "silu": unary(F.silu),
    "softmax": _softmax,
    # torch's own threshold of 20 is less exact than float32
    "softplus": unary(lambda x: F.softplus(x, threshold=60)),
    "softplus_parametric": _softplus_parametric,
    "softsign": unary(F.softsign),
    "thresholded_relu": _thresholded_relu,
}

OPS: Final[Mapping[str, Compute]] = {**ELEMENTWISE, **ACTIVATIONS}
