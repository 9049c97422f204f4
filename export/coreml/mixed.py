"""Measures the noise of each weight of a Core ML package in few bits, for `calibration.sensitivity.plan` to choose widths."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from calibration.sensitivity import LayerNoise, measure
from export.coreml.compress import MIXED, WIDTHS, compress, find_weights
from export.coreml.package import read_spec
from export.mil.package.program import SUFFIX


def weight_noise(
    package: Path,
    evaluate: Callable[[Path], float],
    bits: Sequence[int] = (4, 6),
    *,
    say: Callable[[int, int], None] | None = None,
) -> list[LayerNoise]:
    """Measure each weight of a float16 package at each width.

    package: the float16 package.
    evaluate: PSNR in dB of a package.
    bits: widths to measure. The widest palette counts as noise-free unless it is among them.
    say: called with the weights done and their number after each weight.

    The cost of a row is the size of the weight and its palette in bytes."""
    parameters = {weight.name: weight.parameters for weight in find_weights(read_spec(package))}

    def cost(name: str, width: int) -> float:
        return parameters[name] * width / 8 + 2 * 2**width

    with tempfile.TemporaryDirectory() as scratch:

        def alone(name: str, width: int) -> float:
            return evaluate(compress(package, MIXED, Path(scratch) / f"alone{SUFFIX}", plan={name: width}))

        rows = measure(list(parameters), bits, alone, cost, say)
    widest = max(WIDTHS)
    if widest not in bits:
        rows += [LayerNoise(name, widest, math.inf, cost(name, widest)) for name in parameters]
    return rows
