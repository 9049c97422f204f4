"""Which layers bear few bits: the noise of each layer alone, and a plan that gives bits to the layers that need them.

Each layer's noise is small and unrelated to the others', so the noise of a model with all layers quantized is close to their sum. It is
therefore enough to measure each layer once at each width. From the same rows come the layers that INT8 leaves in floating point and
the widths of the weights in a mixed Core ML package. `export` measures the rows; a bundle's manifest keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.checks import arguments, check_mapping, check_real, check_text, check_whole, fail
from runtime.errors import GdposrError


class PlanError(GdposrError):
    """No choice of widths reaches the floor."""


@dataclass(frozen=True)
class LayerNoise:
    """Quality with one layer alone quantized at one width."""

    layer: str
    """Name of its node or of its weights."""
    bits: int
    """Width at which it was measured."""
    psnr: float
    """PSNR in dB of the whole model's result with this layer alone quantized; inf: no noise at this width."""
    cost: float
    """Cost of this width in the unit that a plan saves, such as bytes or bit operations."""

    def __post_init__(self) -> None:
        if math.isnan(self.psnr) or self.psnr == -math.inf:
            raise PlanError(
                f"{self.layer} at {self.bits} bits: expected a PSNR in dB, got {self.psnr}: the model gave NaN or infinity; leave "
                "this layer out or check the weights"
            )

    def to_dict(self) -> dict[str, Any]:
        return {"layer": self.layer, "bits": self.bits, "psnr": round(self.psnr, 2), "cost": round(self.cost)}


def measure(
    layers: Sequence[str],
    bits: Sequence[int],
    alone: Callable[[str, int], float],
    cost: Callable[[str, int], float],
    say: Callable[[int, int], None] | None = None,
) -> list[LayerNoise]:
    """Rows of all layers at all widths.

    layers: their names.
    bits: the widths.
    alone: layer, bits -> PSNR in dB with that layer alone quantized.
    cost: layer, bits -> cost of that width.
    say: called after each layer with layers done and in all.
    """
    rows = []
    for done, layer in enumerate(layers, start=1):
        rows += [LayerNoise(layer, width, float(alone(layer, width)), cost(layer, width)) for width in bits]
        if say is not None:
            say(done, len(layers))
    return rows


def plan(rows: Sequence[LayerNoise], floor_db: float, *, reference_db: float = math.inf) -> dict[str, int]:
    """Bits of each layer, at low cost, with a predicted PSNR of at least floor_db. reference_db: PSNR of the unquantized model.

    Greedy: all layers start at their cheapest width. The layer that loses most noise per added cost is widened until the floor is
    reached. Then layers are narrowed again as far as the floor allows. PlanError if even the widest widths miss the floor.
    """
    options = _options(rows)
    noise = {(row.layer, row.bits): _noise(row.psnr, reference_db) for row in rows}
    price = {(row.layer, row.bits): row.cost for row in rows}
    chosen = {layer: widths[0] for layer, widths in options.items()}
    budget = _power(floor_db) - _power(reference_db)

    def spent() -> float:
        return math.fsum(noise[item] for item in chosen.items())

    while spent() > budget:
        steps = []
        for layer, bits in chosen.items():
            for wider in (width for width in options[layer] if width > bits):
                gain = noise[layer, bits] - noise[layer, wider]
                added = price[layer, wider] - price[layer, bits]
                steps.append((gain / added, layer, wider))
        best = max(steps, key=lambda step: (step[0], step[1]), default=None)
        if best is None or best[0] <= 0:
            widest = predicted_db(rows, chosen, reference_db=reference_db)
            raise PlanError(
                f"expected a plan of at least {floor_db:g} dB, got {widest:.1f} dB with the widest weights; lower the floor or leave "
                "the model as it is"
            )
        chosen[best[1]] = best[2]
    for layer in sorted(chosen, key=lambda layer: (-max(price[layer, b] for b in options[layer]), layer)):
        kept = chosen[layer]
        for narrower in (width for width in options[layer] if width < kept):
            chosen[layer] = narrower
            if spent() <= budget:
                break
            chosen[layer] = kept
    return chosen


def predicted_db(
    rows: Sequence[LayerNoise], chosen: Mapping[str, int], *, reference_db: float = math.inf
) -> float:
    """Predicted PSNR of a plan in dB: the sum of the unquantized model's noise and of each layer's at its width."""
    noise = {(row.layer, row.bits): _noise(row.psnr, reference_db) for row in rows}
    power = _power(reference_db) + math.fsum(noise[item] for item in chosen.items())
    return math.inf if power == 0 else -10 * math.log10(power)


def noisiest(rows: Sequence[LayerNoise], chosen: Mapping[str, int]) -> str | None:
    """The layer with most noise at its chosen width, to be left out first if a plan misses its floor. None if no layer has noise."""
    now = [row for row in rows if chosen.get(row.layer) == row.bits and math.isfinite(row.psnr)]
    return min(now, key=lambda row: (row.psnr, row.layer)).layer if now else None


def read_rows(data: object) -> dict[str, tuple[LayerNoise, ...]]:
    """The rows by target as a manifest keeps them: {target: [{layer, bits, psnr, cost}]}. BundleError for another form."""
    found = {}
    for target, entries in check_mapping("accuracy.sensitivity", data).items():
        where = f"accuracy.sensitivity.{target}"
        if not isinstance(entries, list):
            raise fail(where, "a list of layers", entries)
        found[target] = tuple(_read(f"{where}[{i}]", entry) for i, entry in enumerate(entries))
    return found


def _read(where: str, entry: object) -> LayerNoise:
    values = arguments(LayerNoise, where, entry)
    check_text(f"{where}.layer", values["layer"])
    check_whole(f"{where}.bits", values["bits"], 1, 64)
    for name in ("psnr", "cost"):
        values[name] = float(check_real(f"{where}.{name}", values[name]))
    return LayerNoise(**values)


def _options(rows: Sequence[LayerNoise]) -> dict[str, list[int]]:
    """The widths of each layer, narrow first, without those that save nothing over a wider one."""
    options: dict[str, list[LayerNoise]] = {}
    for row in rows:
        options.setdefault(row.layer, []).append(row)
    return {
        layer: sorted(
            row.bits
            for row in widths
            if not any(other.bits > row.bits and other.cost <= row.cost for other in widths)
        )
        for layer, widths in options.items()
    }


def _noise(psnr: float, reference_db: float) -> float:
    """Squared error that a layer adds to that of the unquantized model."""
    return 0.0 if math.isinf(psnr) else max(_power(psnr) - _power(reference_db), 0.0)


def _power(psnr: float) -> float:
    return 10 ** (-psnr / 10)
