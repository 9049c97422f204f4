"""INT8 ONNX graphs by NNCF, under accuracy control.

Each layer is measured alone in INT8. Layers whose result leaves the graph stay in floating point, since no integer
kernel returns floats. `calibration.sensitivity.plan` keeps further layers in floating point, those that save least
work per noise first, until the predicted noise is small enough. The result is judged on photos that calibration never
saw. While it breaks its budget, the noisiest layer returns to floating point.

A hybrid pair is for one-step models, whose layers differ more: some nodes always stay in floating point
(`export.onnx.int8.layers.kept_float`), and all layers in floating point have weights of 8 bits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from calibration.measure.gates import INT8_GATES, Gates
from calibration.samples import SampleSets
from calibration.sensitivity import LayerNoise, measure, noisiest, plan, predicted_db
from export.onnx.graph.convert import OnnxPair
from export.onnx.int8.layers import FLOAT_BITS, Layer, kept_float, of_the_picture
from export.onnx.int8.nncf_graphs import QuantizationError, Workbench
from export.onnx.int8.quality import JUDGED, Score, broken, judge, losses
from export.source import ROLES
from runtime.bundle.manifest import GraphSpec

Say = Callable[[str], None]

# Target PSNR in dB against fp32 when layers are chosen. It costs a picture that has 27 dB to its photo 0.04 dB of a budget of 0.1 dB
# at most; the student that ships loses none. At 44 dB it takes 5 % less time, and smooth places get a grain of a level.
PLAN_DB: Final = 47.0
# Least share of the work in INT8, by `Layer.work`, in which an addition counts as `layers.SUM_WORK` multiply-accumulates.
LEAST_SHARE: Final = 0.5


@dataclass(frozen=True)
class Int8Preset:
    """A way to make INT8 graphs."""

    weight_bits: int
    """Bits of a weight; 7 leaves half of the range free, so that the sum of two products fits 16 bits."""
    purpose: str
    """Processors that it is for, as shown in the help."""
    budget: Gates = INT8_GATES
    """Limits of the loss against fp32."""


# Both kept 46 dB against torch and took the same time on a CPU with VNNI, with an earlier student (docs/accuracy.md). On a CPU without
# VNNI, 8 bits keep only 37.5 dB. The shipped bundle therefore uses avx2, which is right on every CPU.
INT8_PRESETS: Final[Mapping[str, Int8Preset]] = {
    #                                                                                  worst dB, time beside fp32
    "avx2": Int8Preset(7, "any x86: without VNNI two products are added in 16 bits"),  # 46.5     0.383
    "vnni": Int8Preset(8, "CPUs that add products in 32 bits: x86 with VNNI, ARM"),    # 46.9     0.382
}  # fmt: skip


@dataclass(frozen=True)
class Int8Request:
    """Samples, preset and budget of INT8 graphs."""

    sets: SampleSets
    """Calibration and validation samples."""
    preset: str = "avx2"
    """Key of `INT8_PRESETS`."""
    budget: Gates | None = None
    """Limits of the loss against fp32; None for the preset's."""
    keep_float: tuple[str, ...] = ()
    """Nodes that stay in floating point."""
    sqf: Score | None = None
    """SQF scorer; without it the budget's SQF gate is not checked."""
    hybrid: bool = False
    """Whether layers in floating point have weights of 8 bits; for one-step models."""

    def __post_init__(self) -> None:
        if self.preset not in INT8_PRESETS:
            raise QuantizationError(f"preset: expected one of {', '.join(INT8_PRESETS)}, got {self.preset!r}")

    @property
    def limits(self) -> Gates:
        """The budget that applies."""
        return INT8_PRESETS[self.preset].budget if self.budget is None else self.budget


@dataclass(frozen=True)
class Int8Graphs:
    """The written graphs and the measurements behind them."""

    paths: dict[str, Path]
    """Graphs by role."""
    rows: tuple[LayerNoise, ...]
    """Noise of each layer alone in INT8."""
    bits: dict[str, int]
    """Bits of each layer; 32 for floating point."""
    preset: str
    """Key of `INT8_PRESETS`."""
    losses: dict[str, float]
    """Loss on the validation samples by gate."""
    unchecked: tuple[str, ...]
    """Gates of the budget that were not measured."""
    samples: int
    """Number of validation samples."""
    share: float
    """Share of the work in INT8, 0 to 1."""
    hybrid: bool
    """Whether the other layers have weights of 8 bits."""

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "preset": self.preset,
            "weight_bits": INT8_PRESETS[self.preset].weight_bits,
            "float_layers": [layer for layer, bits in self.bits.items() if bits == FLOAT_BITS],
            **({"hybrid": True, "int8_share": round(self.share, 3)} if self.hybrid else {}),
            "validation": {name: round(value, 5) for name, value in self.losses.items()}
            | {"samples": self.samples, "unchecked": list(self.unchecked)},
        }


def quantize_int8(
    graphs: Mapping[str, Path],
    folder: Path,
    specs: Mapping[str, GraphSpec],
    request: Int8Request,
    say: Say = lambda text: None,
) -> Int8Graphs:
    """Quantize both fp32 graphs; writes encoder.int8.onnx and generator.int8.onnx.

    graphs: fp32 graphs by role.
    folder: for the files.
    specs: inputs and outputs by role.
    request: samples, preset and budget.
    say: receives progress messages.

    Raises QuantizationError, which names the node, if activations are not finite or NNCF or ONNX Runtime rejects a
    node; also if the budget is broken even with half of the work in floating point."""
    # kept: layers that stay in floating point because they were asked for, or by rule
    bench = Workbench(graphs, request.sets, specs, INT8_PRESETS[request.preset].weight_bits)
    layers = {layer.name: layer for role in ROLES for layer in bench.layers[role]}
    unknown = [name for name in request.keep_float if name not in layers]
    if unknown:
        raise QuantizationError(
            f"float layer: expected some of {', '.join(layers)}, got {unknown[0]!r}; choose one of these"
        )
    kept = dict.fromkeys(request.keep_float, "asked for")
    rule = kept_float if request.hybrid else of_the_picture
    found = {name: why for model in bench.models.values() for name, why in rule(model).items()}
    kept |= {name: found[name] for name in layers if name in found}
    if request.hybrid:
        counts = Counter(kept.values())
        say(
            "  in floating point by rule: "
            + (", ".join(f"{n} x {why}" for why, n in counts.items()) or "nothing")
        )
    # measure: the noise of every other layer alone
    measured = [name for name in layers if name not in kept]
    say(f"  measuring {len(measured)} layers alone")
    rows = measure(measured, (8,), bench.alone(measured), lambda name, bits: layers[name].cost(bits))
    # plan: which of them may be quantized
    free = [LayerNoise(name, FLOAT_BITS, math.inf, layers[name].cost(FLOAT_BITS)) for name in measured]
    bits = plan([*rows, *free], PLAN_DB) | dict.fromkeys(kept, FLOAT_BITS)
    expected = predicted_db([*rows, *free], {name: bits[name] for name in measured})
    floats = [name for name, width in bits.items() if width == FLOAT_BITS]
    say(f"  in floating point: {', '.join(floats) or 'nothing'}; expected {expected:.1f} dB")
    # gates: those that can be judged here
    unchecked = tuple(
        gate
        for gate in request.limits.to_dict()
        if gate not in JUDGED or (gate == "max_sqf_rise" and not request.sqf)
    )
    if unchecked:
        say(
            f"  not checked here: {', '.join(unchecked)} (SQF needs --sqf-weights); `gdposr accuracy --check` does"
        )
    # quantize and judge: the noisiest layer goes back to floating point until the budget is kept
    samples = request.sets.validation
    reference = judge(bench.reference, samples, request.sqf)
    while True:
        paths = bench.write(folder, bits, hybrid=request.hybrid)
        lost = losses(judge(OnnxPair(specs, paths), samples, request.sqf), reference)
        say("  on photos held back: " + ", ".join(f"{name} {value:.4f}" for name, value in lost.items()))
        missed = "; ".join(broken(request.limits, lost))
        if not missed:
            done = share(layers, bits)
            return Int8Graphs(
                paths, tuple(rows), bits, request.preset, lost, unchecked, len(samples), done, request.hybrid
            )
        layer = noisiest(rows, bits)
        least = 0.0 if request.hybrid else LEAST_SHARE
        if layer is None or share(layers, bits | {layer: FLOAT_BITS}) < least:
            raise QuantizationError(
                f"INT8 breaks its budget ({missed}) with only {share(layers, bits):.0%} of the work in INT8; "
                "calibrate on other photos, allow more, or leave INT8 out"
            )
        say(f"  {missed}: back to floating point: {layer}")
        bits[layer] = FLOAT_BITS


def share(layers: Mapping[str, Layer], bits: Mapping[str, int]) -> float:
    """Share of the graphs' work that is done in INT8, 0 to 1."""
    done = math.fsum(layer.work for name, layer in layers.items() if bits[name] != FLOAT_BITS)
    return done / math.fsum(layer.work for layer in layers.values())
