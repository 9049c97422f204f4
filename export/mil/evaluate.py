"""The reference evaluator: runs a MIL program in float32 and rounds every result to its declared type.

A device that stores in half precision and computes in higher precision does the same, including its overflows. Real
accelerators may also accumulate in half precision and then differ a little more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from export.mil.ops.call import Call, Value
from export.mil.ops.registry import find
from export.mil.package.feature import Feature
from export.mil.package.program import Constant, Operation, Program
from export.mil.package.tensor import DTYPES, EvaluationError, TensorType, compute_tensor, round_to

CONSTEXPR = "constexpr_"


class NonFiniteError(EvaluationError):
    """A program gives infinity or NaN for finite inputs. The message names the first operation that does."""


@dataclass(frozen=True)
class NonFinite:
    """An operation with finite arguments and a result that is not finite; or such an input."""

    type: str
    """Type of the operation, or "input"."""
    name: str
    """Name of the operation or input."""
    output: str
    """Name of the result."""
    dtype: str
    """Declared element type of the result."""
    count: int
    """Number of elements that are infinity or NaN."""

    def __str__(self) -> str:
        return f"{self.type} {self.name!r}: {self.count} values of its output {self.output!r} ({self.dtype}) are not finite"


@dataclass(frozen=True)
class Evaluation:
    """The result of a run."""

    outputs: dict[str, np.ndarray]
    """Outputs by name."""
    non_finite: tuple[NonFinite, ...]
    """The operations that produced infinity or NaN, in order."""


class Evaluator:
    """A program ready to be called.

    Inputs and outputs are arrays by name. Floats of any width are accepted and rounded to the declared type. Outputs
    are float32 with values of the declared type. Images are floats (1, 3, h, w) in 0..255, in the image's colour
    order. Weights are read from the file when an operation needs them and released afterwards."""

    def __init__(
        self, program: Program, round_to_declared: bool = True, allow_non_finite: bool = False
    ) -> None:
        self.program = program
        self.round_to_declared = round_to_declared
        self.allow_non_finite = allow_non_finite
        self._lazy = _lazy_values(program)
        self._steps = tuple(
            op for op in program.operations if not all(o.name in self._lazy for o in op.outputs)
        )
        for op in program.operations:
            if op.type != "const":
                find(op)  # fail on an unknown operation now, not after minutes of computing

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs. Raises NonFiniteError if an operation turns finite values into infinity or NaN, unless that is allowed."""
        evaluation = self.run(inputs)
        if evaluation.non_finite and not self.allow_non_finite:
            raise self._refusal(evaluation.non_finite[0])
        return evaluation.outputs

    @torch.no_grad()
    def run(self, inputs: Mapping[str, np.ndarray]) -> Evaluation:
        """The outputs, and every operation that produced infinity or NaN.

        Raises NonFiniteError if such a value is then quantized, since no whole number can represent it."""
        values: dict[str, Tensor] = self._checked(inputs)
        wanted = {feature.name for feature in self.program.outputs}
        uses = self._uses()
        non_finite = _look_at_inputs(self.program, values)
        for op in self._steps:
            try:
                results = self._compute(op, values)
            except EvaluationError as error:
                if non_finite:
                    raise self._refusal(non_finite[0]) from error
                raise
            non_finite += _look(op, results, values)
            values.update(zip((output.name for output in op.outputs), results, strict=True))
            uses.subtract(self._needs(op))
            for name in (*self._needs(op), *(output.name for output in op.outputs)):
                if uses[name] == 0 and name not in wanted:
                    values.pop(name, None)
        outputs = {feature.name: self._output(feature, values) for feature in self.program.outputs}
        return Evaluation(outputs, tuple(non_finite))

    def _refusal(self, first: NonFinite) -> NonFiniteError:
        return NonFiniteError(
            f"{self.program.path}: expected finite values, got infinity or NaN first from {first}; keep this operation in float32, or "
            "scale what goes into it"
        )

    def _uses(self) -> Counter[str]:
        """How many operations use each computed value."""
        return Counter(name for op in self._steps for name in self._needs(op))

    def _needs(self, op: Operation) -> set[str]:
        return {name for name in op.sources if name not in self._lazy}

    def _compute(self, op: Operation, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The results of one operation, checked against their declared type and rounded to it."""
        where = f"{op.type} {op.name!r}"
        arguments = {key: tuple(self._value(v, values) for v in given) for key, given in op.arguments.items()}
        try:
            results = find(op)(Call(op, arguments))
        except (RuntimeError, IndexError, ValueError, KeyError) as error:
            raise EvaluationError(f"{where}: expected arguments that go together, got {error}") from error
        results = (results,) if isinstance(results, Tensor) else results
        if len(results) != len(op.outputs):
            raise EvaluationError(f"{where}: expected {len(op.outputs)} results, got {len(results)}")
        return tuple(self._declared(r, o.type, where) for r, o in zip(results, op.outputs, strict=True))

    def _declared(self, result: Tensor, type: TensorType, where: str) -> Tensor:
        if not type.fits(tuple(result.shape)):
            raise EvaluationError(f"{where}: the program declares {type}, got shape {list(result.shape)}")
        dtype = DTYPES[type.dtype]
        if dtype.is_float and not self.round_to_declared:
            return result.float()
        try:
            return round_to(result, dtype)
        except EvaluationError as error:
            raise EvaluationError(f"{where}: {error}") from error

    def _value(self, value: str | Constant, values: Mapping[str, Tensor]) -> Value:
        """A computed value by name, or a constant. Packed weights are unpacked here."""
        if isinstance(value, Constant):
            return _constant(value)
        if value not in self._lazy:
            if value not in values:
                raise EvaluationError(
                    f"{self.program.path}: no operation made {value!r} before it is needed; convert again"
                )
            return values[value]
        op = self._lazy[value]
        if op.type == "const":
            return _constant(op.value)
        names = [output.name for output in op.outputs]
        return self._compute(op, values)[names.index(value)]

    def _checked(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        names = {feature.name for feature in self.program.inputs}
        if set(inputs) != names:
            raise EvaluationError(
                f"{self.program.path}: expected the inputs {sorted(names)}, got {sorted(inputs)}"
            )
        return {
            feature.name: _input(feature, np.asarray(inputs[feature.name])) for feature in self.program.inputs
        }

    def _output(self, feature: Feature, values: Mapping[str, Tensor]) -> np.ndarray:
        value = self._value(feature.name, values)
        assert isinstance(value, Tensor)
        return value.numpy()


def _lazy_values(program: Program) -> dict[str, Operation]:
    """Constants and the operations that unpack them. They are computed when needed and not kept."""
    lazy: dict[str, Operation] = {}
    for op in program.operations:
        unpacks = op.type.startswith(CONSTEXPR) and all(name in lazy for name in op.sources)
        if op.type == "const" or unpacks:
            lazy.update((output.name, op) for output in op.outputs)
    return lazy


def _constant(constant: Constant) -> Value:
    value = constant.read()
    return value if isinstance(value, str) else compute_tensor(value, DTYPES[constant.type.dtype])


def _look(op: Operation, results: tuple[Tensor, ...], values: Mapping[str, Tensor]) -> list[NonFinite]:
    """Results that are not finite although all computed arguments are."""
    found = [
        NonFinite(op.type, op.name, output.name, output.type.dtype, int((~torch.isfinite(result)).sum()))
        for output, result in zip(op.outputs, results, strict=True)
        if result.is_floating_point() and not torch.isfinite(result).all()
    ]
    if found and all(torch.isfinite(values[name]).all() for name in op.sources if name in values):
        return found
    return []


def _look_at_inputs(program: Program, values: Mapping[str, Tensor]) -> list[NonFinite]:
    """Inputs that are not finite, before or after rounding to the declared type."""
    counts = {f: int((~torch.isfinite(values[f.name])).sum()) for f in program.inputs}
    return [NonFinite("input", f.name, f.name, f.type.dtype, n) for f, n in counts.items() if n]


def _input(feature: Feature, array: np.ndarray) -> Tensor:
    dtype, shape = DTYPES[feature.type.dtype], tuple(array.shape)
    if array.dtype.kind not in ("fiu" if dtype.is_float else "iub"):
        raise EvaluationError(
            f"input {feature.name!r}: expected {feature.type}, got elements of {array.dtype}"
        )
    if not feature.type.fits(shape):
        raise EvaluationError(f"input {feature.name!r}: expected {feature.type}, got shape {list(shape)}")
    if feature.shapes and shape not in feature.shapes:
        raise EvaluationError(f"input {feature.name!r}: expected one of {feature.shapes}, got {list(shape)}")
    for size, (low, high) in zip(shape, feature.ranges, strict=False):
        if size < low or (high is not None and size > high):
            raise EvaluationError(
                f"input {feature.name!r}: expected sizes in {feature.ranges}, got {list(shape)}"
            )
    if feature.image and array.size and not (array.min() >= 0 and array.max() <= 255):
        raise EvaluationError(
            f"input {feature.name!r}: expected an image in [0, 255], got [{array.min():g}, {array.max():g}]"
        )
    return round_to(torch.from_numpy(np.array(array)), dtype)
