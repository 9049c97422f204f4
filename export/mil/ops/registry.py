"""Every operation that the evaluator supports, by MIL type.

To add one: write a function of a `Call` that returns its result, or a tuple of results, and add it to `OPS` in its
module. Follow the definition in `coremltools.converters.mil.mil.ops.defs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from export.mil.ops import constexpr as ops_constexpr
from export.mil.ops import elementwise as ops_elementwise
from export.mil.ops import linear as ops_linear
from export.mil.ops import norm as ops_norm
from export.mil.ops import resize as ops_resize
from export.mil.ops import shape as ops_shape
from export.mil.ops.call import Compute
from export.mil.package.program import Operation
from export.mil.package.tensor import EvaluationError

OPS: Final[Mapping[str, Compute]] = {
    **ops_elementwise.OPS,
    **ops_linear.OPS,
    **ops_norm.OPS,
    **ops_resize.OPS,
    **ops_shape.OPS,
    **ops_constexpr.OPS,
}


def find(op: Operation) -> Compute:
    """The function that computes an operation. Raises EvaluationError if there is none."""
    if op.type not in OPS:
        raise EvaluationError(
            f"operation {op.type} {op.name!r}: expected one of the {len(OPS)} that are known, got another; "
            "replace it in the model, or add it as described in export/mil/ops/registry.py"
        )
    return OPS[op.type]
