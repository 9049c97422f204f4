"""One operation with the values of its arguments, as passed to the function that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from export.mil.package.program import Operation
from export.mil.package.tensor import EvaluationError

Value: TypeAlias = Tensor | str


@dataclass(frozen=True)
class Call:
    """An operation and its arguments. Floats are float32, integers have the type in `Dtype.compute`."""

    op: Operation
    """The operation."""
    values: Mapping[str, tuple[Value, ...]]
    """Values by argument. Some arguments take several."""

    def has(self, name: str) -> bool:
        """Whether the argument is given."""
        return bool(self.values.get(name))

    def tensors(self, name: str) -> tuple[Tensor, ...]:
        """An argument of several tensors."""
        values = self.values.get(name, ())
        if not values or not all(isinstance(value, Tensor) for value in values):
            raise EvaluationError(
                f"{self.op.type} {self.op.name!r}: expected tensors {name!r}, got {len(values)} values"
            )
        return tuple(value for value in values if isinstance(value, Tensor))

    def tensor(self, name: str) -> Tensor:
        """A required tensor."""
        tensors = self.tensors(name)
        if len(tensors) != 1:
            raise EvaluationError(
                f"{self.op.type} {self.op.name!r}: expected one {name!r}, got {len(tensors)}"
            )
        return tensors[0]

    def optional(self, name: str) -> Tensor | None:
        """A tensor, or None if the argument is missing."""
        return self.tensor(name) if self.has(name) else None

    def ints(self, name: str, default: list[int] | None = None) -> list[int]:
        """A vector of integers. A scalar counts as a vector of one."""
        if default is not None and not self.has(name):
            return default
        return [int(v) for v in self.tensor(name).reshape(-1).tolist()]

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer."""
        (value,) = self.ints(name, None if default is None else [default])
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A real number."""
        if default is not None and not self.has(name):
            return default
        return float(self.tensor(name).reshape(()).item())

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        return bool(self.tensor(name).reshape(()).item()) if self.has(name) else default

    def flags(self, name: str, count: int) -> list[bool]:
        """A vector of booleans, all False if the argument is missing."""
        return (
            [bool(v) for v in self.tensor(name).reshape(-1).tolist()] if self.has(name) else [False] * count
        )

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        if default is not None and not self.has(name):
            return default
        values = self.values.get(name, ())
        if len(values) != 1 or not isinstance(values[0], str):
            raise EvaluationError(
                f"{self.op.type} {self.op.name!r}: expected a string {name!r}, got {values}"
            )
        return values[0]

    def choice(self, name: str, known: tuple[str, ...], default: str | None = None) -> str:
        """One of several known strings. Case is ignored."""
        value = self.text(name, default)
        if value.lower() not in (option.lower() for option in known):
            raise EvaluationError(
                f"{self.op.type} {self.op.name!r}: expected {name} among {', '.join(known)}, got {value!r}"
            )
        return value

    @property
    def output_dtype(self) -> str:
        """Declared element type of the first result."""
        return self.op.outputs[0].type.dtype


Compute = Callable[[Call], Tensor | tuple[Tensor, ...]]


def unary(function: Callable[[Tensor], Tensor]) -> Compute:
    """An operation of the one tensor x."""
    return lambda call: function(call.tensor("x"))


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Compute:
    """An operation of the tensors x and y, broadcast against each other as in numpy."""
    return lambda call: function(call.tensor("x"), call.tensor("y"))


def axis_of(axis: int, rank: int) -> int:
    """A possibly negative axis, counted from the front."""
    return axis + rank if axis < 0 else axis


def along(vector: Tensor, axis: int, rank: int) -> Tensor:
    """A vector reshaped so that it broadcasts along one axis of a tensor of that rank. A scalar stays a scalar."""
    return (
        vector
        if vector.dim() == 0
        else vector.reshape([-1 if i == axis_of(axis, rank) else 1 for i in range(rank)])
    )


def take(x: Tensor, axis: int, positions: list[int]) -> Tensor:
    """The entries of x at the given positions of one axis, in this order."""
    return x.index_select(axis, torch.tensor(positions, dtype=torch.long))
