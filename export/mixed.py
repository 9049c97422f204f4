"""A width for each weight: which of a Core ML package's weights bear few bits, by measured sensitivity.

The noise of a package whose weights are all compressed is close to the sum of the noises that each weight makes alone, being small and
unrelated. So it is enough to measure each weight once at each width.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.compress import MIXED, WIDTHS, compress, find_weights
from export.package import SUFFIX, read_spec
from runtime.errors import GdposrError


class CompressionError(GdposrError):
    """No way of storing the weights keeps what was asked for."""


@dataclass(frozen=True)
class Sensitivity:
    """PSNR in dB of a package's result with one weight alone compressed to that many bits."""

    name: str
    parameters: int
    bits: int
    psnr: float


def sensitivity(
    package: Path,
    evaluate: Callable[[Path], float],
    bits: Sequence[int] = (4, 6),
    *,
    say: Callable[[int, int], None] | None = None,
) -> list[Sensitivity]:
    """Measure each weight of a float16 package at each width: evaluate gives the PSNR in dB of a package. say(done, total) is called
    after each weight."""
    rows = []
    weights = find_weights(read_spec(package))
    with tempfile.TemporaryDirectory() as scratch:
        for done, weight in enumerate(weights, start=1):
            for width in bits:
                alone = Path(scratch) / f"alone{SUFFIX}"
                compress(package, MIXED, alone, plan={weight.name: width})
                rows.append(Sensitivity(weight.name, weight.parameters, width, float(evaluate(alone))))
            if say is not None:
                say(done, len(weights))
    return rows


def plan(rows: Sequence[Sensitivity], floor_db: float, *, reference_db: float = math.inf) -> dict[str, int]:
    """Bits by weight name: few bytes such that the predicted PSNR keeps floor_db. reference_db: PSNR of the package uncompressed.

    Greedy: all weights start narrow; the one that loses most noise per added byte is widened until the floor holds, then whatever
    turns out not to be needed is narrowed again. 8 bits count as free of noise unless they were measured. CompressionError where
    even the widest miss the floor.
    """
    parameters = {row.name: row.parameters for row in rows}
    noise = {(row.name, row.bits): _noise(row.psnr, reference_db) for row in rows}
    widths = {name: sorted({bits for n, bits in noise if n == name} | {max(WIDTHS)}) for name in parameters}
    chosen = {name: options[0] for name, options in widths.items()}
    budget = _power(floor_db) - _power(reference_db)

    def spent() -> float:
        return math.fsum(noise.get(item, 0.0) for item in chosen.items())

    while spent() > budget:
        steps = []
        for name, bits in chosen.items():
            for wider in (width for width in widths[name] if width > bits):
                gain = noise.get((name, bits), 0.0) - noise.get((name, wider), 0.0)
                steps.append(
                    (gain / (_bytes(parameters[name], wider) - _bytes(parameters[name], bits)), name, wider)
                )
        best = max(steps, key=lambda step: (step[0], step[1]), default=None)
        if best is None or best[0] <= 0:
            widest = predicted_db(rows, chosen, reference_db=reference_db)
            raise CompressionError(
                f"expected a plan of at least {floor_db:g} dB, came {widest:.1f} dB with the widest weights; lower the floor or leave "
                "the package at fp16"
            )
        chosen[best[1]] = best[2]
    for name in sorted(chosen, key=lambda name: (-parameters[name], name)):
        kept = chosen[name]
        for narrower in (width for width in widths[name] if width < kept):
            chosen[name] = narrower
            if spent() <= budget:
                break
            chosen[name] = kept
    return chosen


def predicted_db(
    rows: Sequence[Sensitivity], chosen: Mapping[str, int], *, reference_db: float = math.inf
) -> float:
    """PSNR in dB that a plan should have: the noise of the uncompressed package and of each weight at its width, summed."""
    noise = {(row.name, row.bits): _noise(row.psnr, reference_db) for row in rows}
    power = _power(reference_db) + math.fsum(noise.get(item, 0.0) for item in chosen.items())
    return math.inf if power == 0 else -10 * math.log10(power)


def _noise(psnr: float, reference_db: float) -> float:
    """Squared error that a weight adds to that of the uncompressed package."""
    return max(_power(psnr) - _power(reference_db), 0.0)


def _power(psnr: float) -> float:
    return 10 ** (-psnr / 10)


def _bytes(parameters: int, bits: int) -> float:
    """Size of a weight with its palette of float16 values."""
    return parameters * bits / 8 + 2 * 2**bits
