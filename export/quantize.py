"""INT8 ONNX graphs by NNCF, under accuracy control.

Each layer is quantized alone first, so that its noise is known; `calibration.sensitivity.plan` leaves in floating point what costs most
noise per saved work; the result is judged on photos that calibration never saw, and as long as it breaks its budget the noisiest layer
goes back to floating point. So nothing is left out of INT8 by guess: a student's bicubic base and the last sum come out of the
measurement.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from calibration.gates import INT8_GATES, Gates
from calibration.samples import Sample, SampleSets
from calibration.sensitivity import LayerNoise, measure, noisiest, plan, predicted_db
from export.integer import integer_form
from export.judge import Quality, Score, broken, judge, losses
from export.layers import FLOAT_BITS, find_layers, passive, quantized_alone
from export.onnx import OnnxPair, save_checked
from export.ranges import reduced
from export.source import ROLES
from runtime.errors import GdposrError
from runtime.manifest import GraphSpec

Feed = Mapping[str, np.ndarray]
Say = Callable[[str], None]

PLAN_DB: Final = 49.0  # noise that adds 0.03 dB to the error of a picture at 27 dB; the budget is 0.1


class QuantizationError(GdposrError):
    """The graphs cannot be quantized, or not within their budget."""


@dataclass(frozen=True)
class Int8Preset:
    """How INT8 graphs are made. weight_bits: 7 keeps half the range free."""

    weight_bits: int
    purpose: str


# The student's graphs against fp32 on the same samples, and their time beside fp32's on a CPU with VNNI (`make bench` after
# `gdposr export --int8 NAME`): the two differ in neither, so the first one ships and the runtime need not choose.
INT8_PRESETS: Final[Mapping[str, Int8Preset]] = {
    "avx2": Int8Preset(
        7, "any x86 CPU: without VNNI two products are added in 16 bits, and 2 * 255 * 64 fits"
    ),
    "vnni": Int8Preset(8, "CPUs that add products in 32 bits: x86 with VNNI, ARM with dot products"),
}


@dataclass(frozen=True)
class Int8Request:
    """What INT8 graphs are calibrated on and judged by. keep_float: nodes that stay in floating point whatever they bear; sqf: a scorer
    for a budget with that gate, which is left out without it."""

    sets: SampleSets
    preset: str = "avx2"
    budget: Gates = INT8_GATES
    keep_float: tuple[str, ...] = ()
    sqf: Score | None = None

    def __post_init__(self) -> None:
        if self.preset not in INT8_PRESETS:
            raise QuantizationError(f"preset: expected one of {', '.join(INT8_PRESETS)}, got {self.preset!r}")


@dataclass(frozen=True)
class Int8Graphs:
    """What was written and why. rows: the noise of each layer alone; bits: of each layer, 32 for float."""

    paths: dict[str, Path]
    rows: tuple[LayerNoise, ...]
    bits: dict[str, int]
    preset: str
    losses: dict[str, float]  # by gate, on the validation samples
    samples: int  # of validation

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "preset": self.preset,
            "weight_bits": INT8_PRESETS[self.preset].weight_bits,
            "float_layers": [layer for layer, bits in self.bits.items() if bits == FLOAT_BITS],
            "validation": {name: round(value, 5) for name, value in self.losses.items()}
            | {"samples": self.samples},
        }


def quantize_int8(
    graphs: Mapping[str, Path],
    folder: Path,
    specs: Mapping[str, GraphSpec],
    request: Int8Request,
    say: Say = lambda text: None,
) -> Int8Graphs:
    """Quantize both fp32 graphs; writes encoder.int8.onnx and generator.int8.onnx into folder.

    QuantizationError, naming the node, where activations are not finite and where NNCF or ONNX Runtime refuses a node; also where the
    budget is broken even with all layers in floating point.
    """
    sets, keep_float, sqf = request.sets, request.keep_float, request.sqf
    work = _Work(graphs, sets, specs, INT8_PRESETS[request.preset].weight_bits)
    layers = {layer.name: layer for role in ROLES for layer in work.layers[role]}
    unknown = [name for name in keep_float if name not in layers]
    if unknown:
        raise QuantizationError(
            f"float layer: expected some of {', '.join(layers)}, got {unknown[0]!r}; correct it"
        )
    measured = [name for name in layers if name not in keep_float]
    say(f"  measuring {len(measured)} layers alone")
    rows = measure(measured, (8,), work.alone(measured), lambda name, bits: layers[name].cost(bits))
    free = [LayerNoise(name, FLOAT_BITS, math.inf, layers[name].cost(FLOAT_BITS)) for name in measured]
    bits = plan([*rows, *free], PLAN_DB) | dict.fromkeys(keep_float, FLOAT_BITS)
    reference = work.judge(work.reference, sqf)
    while True:
        floats = [name for name, width in bits.items() if width == FLOAT_BITS]
        chosen = {name: width for name, width in bits.items() if name in measured}
        expected = predicted_db([*rows, *free], chosen)
        say(f"  in floating point: {', '.join(floats) or 'nothing'}; expected {expected:.1f} dB")
        paths = work.write(folder, bits)
        lost = losses(work.judge(OnnxPair(specs, paths), sqf), reference)
        say("  on photos held back: " + ", ".join(f"{name} {value:.4f}" for name, value in lost.items()))
        missed = broken(request.budget, lost)
        if not missed:
            return Int8Graphs(paths, tuple(rows), bits, request.preset, lost, len(sets.validation))
        layer = noisiest(rows, bits)
        if layer is None:
            raise QuantizationError(
                f"INT8 breaks its budget ({'; '.join(missed)}) even with every layer in floating point; calibrate on other photos or "
                "leave INT8 out"
            )
        say(f"  {'; '.join(missed)}: back to floating point: {layer}")
        bits[layer] = FLOAT_BITS


class _Work:
    """The graphs, what goes into them, and what the fp32 model makes of it."""

    def __init__(
        self, graphs: Mapping[str, Path], sets: SampleSets, specs: Mapping[str, GraphSpec], weight_bits: int
    ) -> None:
        self.specs, self.sets, self.weight_bits = specs, sets, weight_bits
        self.reference = OnnxPair(specs, graphs)
        self.models = {role: onnx.load(path) for role, path in graphs.items()}
        self.feeds = self._feeds(sets.calibration)
        for role, path in graphs.items():
            check_finite(role, path, self.models[role], self.feeds[role])
        pixels = int(np.prod(sets.calibration[0].lr.shape[1:]))
        self.layers = {role: find_layers(self.models[role], self.feeds[role][0], pixels) for role in graphs}
        self._expected = [self.reference(s.lr[None], s.noise[None]) for s in sets.validation]
        self._graphs = dict(graphs)

    def _feeds(self, samples: Sequence[Sample]) -> dict[str, list[Feed]]:
        image, noise = self.specs["encoder"].inputs[0].name, self.specs["generator"].inputs[-1].name
        return {
            "encoder": [{image: s.lr[None]} for s in samples],
            "generator": [self.reference.encode(s.lr[None]) | {noise: s.noise[None]} for s in samples],
        }

    def alone(self, names: Sequence[str]) -> Callable[[str, int], float]:
        """A function of one of these layers: the PSNR in dB of the model against fp32, over all validation samples, with that layer
        alone in INT8. It ignores the bits."""
        roles = {layer.name: role for role in ROLES for layer in self.layers[role] if layer.name in names}
        whole = {
            role: self._all(role, [n for n in names if roles[n] == role]) for role in set(roles.values())
        }

        def psnr(name: str, bits: int) -> float:
            role = roles[name]
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / "alone.onnx"
                onnx.save(quantized_alone(whole[role], self.models[role], name), path)
                try:
                    pair = OnnxPair(self.specs, {**self._graphs, role: path})
                except Exception as error:  # ONNX Runtime's exceptions have no common base but this
                    raise _refused(name, self.models[role], "ONNX Runtime", error) from error
                errors = [
                    np.mean(np.square(pair(s.lr[None], s.noise[None]) - expected))
                    for s, expected in zip(self.sets.validation, self._expected, strict=True)
                ]
            return -10 * math.log10(max(float(np.mean(errors)), 1e-20))

        return psnr

    def _all(self, role: str, names: Sequence[str]) -> onnx.ModelProto:
        """NNCF's graph with all of these layers in INT8. Where NNCF fails, each is tried alone to find the one that it refuses."""
        try:
            return self._quantized(role, set(names))
        except QuantizationError:
            for name in names:
                self._quantized(role, {name})
            raise

    def write(self, folder: Path, bits: Mapping[str, int]) -> dict[str, Path]:
        """Both graphs with these layers in INT8."""
        paths = {}
        for role, model in self.models.items():
            names = {layer.name for layer in self.layers[role] if bits.get(layer.name) == 8}
            paths[role] = folder / f"{role}.int8.onnx"
            if names:
                graph = self._quantized(role, names)
                save_checked(integer_form(graph, model, self.feeds[role]), paths[role])
            else:
                save_checked(model, paths[role])
        return paths

    def judge(self, pair: OnnxPair, sqf: Score | None) -> Quality:
        return judge(pair, self.sets.validation, sqf)

    def _quantized(self, role: str, names: set[str]) -> onnx.ModelProto:
        """NNCF's graph with these layers in INT8."""
        import nncf

        model = self.models[role]
        others = [node.name for node in model.graph.node if node.name not in names and not passive(node)]
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        try:
            with _quiet():
                return nncf.quantize(
                    copy,
                    nncf.Dataset(self.feeds[role]),
                    preset=nncf.QuantizationPreset.MIXED,
                    subset_size=len(self.feeds[role]),
                    fast_bias_correction=True,
                    ignored_scope=nncf.IgnoredScope(names=others),
                    advanced_parameters=_parameters(self.weight_bits),
                )
        except Exception as error:  # whatever NNCF meets in a graph that it does not know
            name = min(names)
            if len(names) > 1:
                raise QuantizationError(
                    f"NNCF failed on the {role}: {_line(error)}; leave INT8 out"
                ) from error
            raise _refused(name, model, "NNCF", error) from error


def check_finite(role: str, path: Path, model: onnx.ModelProto, feeds: Sequence[Feed]) -> None:
    """QuantizationError with the name of the first node that gives NaN or infinity for one of the feeds."""
    largest = reduced(path, model, feeds, "ReduceMax")
    for node in model.graph.node:
        if any(not math.isfinite(largest.get(name, 0.0)) for name in node.output):
            raise QuantizationError(
                f"{role}: expected finite activations, came NaN or infinity out of node {node.name} ({node.op_type}) on the "
                "calibration samples; check the checkpoint's weights and the photos"
            )


def _parameters(weight_bits: int) -> Any:
    """Ranges from the smallest to the largest value seen: NNCF's default, a mean over samples, cuts off the strongest details (38
    instead of 46 dB for the worst photo)."""
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    return AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE if weight_bits == 7 else OverflowFix.DISABLE,
        activations_range_estimator_params=RangeEstimatorParameters(
            min=StatisticsCollectorParameters(
                statistics_type=StatisticsType.MIN, aggregator_type=AggregatorType.MIN
            ),
            max=StatisticsCollectorParameters(
                statistics_type=StatisticsType.MAX, aggregator_type=AggregatorType.MAX
            ),
        ),
    )


def _refused(name: str, model: onnx.ModelProto, who: str, error: Exception) -> QuantizationError:
    kind = next(node.op_type for node in model.graph.node if node.name == name)
    return QuantizationError(
        f"{who} cannot take node {name} ({kind}) in INT8: {_line(error)}; leave it in floating point with --float-layer {name}"
    )


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without NNCF's progress bars and its log."""
    import nncf

    level = logging.getLogger("nncf").level
    nncf.set_log_level(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.getLogger("nncf").setLevel(level)
