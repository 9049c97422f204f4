"""Runs NNCF on a pair of graphs: each layer alone in INT8, or chosen layers together."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from calibration.samples import Sample, SampleSets
from export.onnx.graph.convert import OnnxPair, save_checked
from export.onnx.graph.ranges import reduced
from export.onnx.graph.weight_only import compress_onnx
from export.onnx.int8.integer_form import integer_form
from export.onnx.int8.layers import find_layers, passive, quantized_alone
from export.onnx.int8.rounding import fit_ranges, keep_sums
from export.source import ROLES, psnr
from runtime.bundle.manifest import GraphSpec
from runtime.errors import GdposrError
from runtime.text import first_line

Feed = Mapping[str, np.ndarray]


class QuantizationError(GdposrError):
    """The graphs cannot be quantized, or not within their budget."""


class Workbench:
    """A pair of graphs, their calibration inputs, and the fp32 model's results."""

    def __init__(
        self, graphs: Mapping[str, Path], sets: SampleSets, specs: Mapping[str, GraphSpec], weight_bits: int
    ) -> None:
        """graphs: fp32 graphs by role.
        sets: calibration and validation samples.
        specs: inputs and outputs by role.
        weight_bits: 8, or 7 to avoid overflow on CPUs that add two products in 16 bits."""
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
        """A function of (layer, bits): PSNR in dB against fp32 with only that layer in INT8, over all validation samples.

        names: the layers it will be called with. It ignores the bits."""
        roles = {layer.name: role for role in ROLES for layer in self.layers[role] if layer.name in names}
        whole = {
            role: self._all(role, [n for n in names if roles[n] == role]) for role in set(roles.values())
        }

        def measured(name: str, bits: int) -> float:
            role = roles[name]
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / "alone.onnx"
                onnx.save(quantized_alone(whole[role], self.models[role], name), path)
                try:
                    pair = OnnxPair(self.specs, {**self._graphs, role: path})
                except Exception as error:  # ONNX Runtime's exceptions have no narrower common base
                    raise _refused(name, self.models[role], "ONNX Runtime", error) from error
                came = [pair(s.lr[None], s.noise[None]).ravel() for s in self.sets.validation]
            found = psnr(np.concatenate(came), np.concatenate([sr.ravel() for sr in self._expected]))
            if not math.isfinite(found):
                raise QuantizationError(
                    f"node {name} in INT8: expected finite pictures, got NaN or infinity; "
                    f"leave it in floating point with --float-layer {name}"
                )
            return found

        return measured

    def _all(self, role: str, names: Sequence[str]) -> onnx.ModelProto:
        """NNCF's graph with all of these layers in INT8. If NNCF fails, each is tried alone to find the one that it rejects."""
        try:
            return self._quantized(role, set(names))
        except QuantizationError:
            for name in names:
                self._quantized(role, {name})
            raise

    def write(self, folder: Path, bits: Mapping[str, int], *, hybrid: bool = False) -> dict[str, Path]:
        """Write both graphs with some layers in INT8; returns the paths by role.

        folder: for the files.
        bits: of each layer.
        hybrid: store the weights of the other layers in 8 bits too; they compute in floating point."""
        paths = {}
        for role, model in self.models.items():
            names = {layer.name for layer in self.layers[role] if bits.get(layer.name) == 8}
            paths[role] = folder / f"{role}.int8.onnx"
            if names:
                graph = self._quantized(role, names)
                save_checked(integer_form(graph, model, self.feeds[role]), paths[role])
            else:
                save_checked(model, paths[role])
            if hybrid:
                compress_onnx(paths[role], paths[role], 8)
        return paths

    def _quantized(self, role: str, names: set[str]) -> onnx.ModelProto:
        """NNCF's graph with these layers in INT8."""
        model = self.models[role]
        try:
            return quantized(model, self.feeds[role], names, self.weight_bits)
        except Exception as error:  # NNCF raises various exceptions for graphs that it does not support
            name = min(names)
            if len(names) > 1:
                raise QuantizationError(
                    f"NNCF failed on the {role}: {first_line(error)}; leave INT8 out"
                ) from error
            raise _refused(name, model, "NNCF", error) from error


def quantized(
    model: onnx.ModelProto, feeds: Sequence[Feed], names: Collection[str], weight_bits: int
) -> onnx.ModelProto:
    """NNCF's graph with some layers in INT8, its kernels and ranges as `rounding` has them.

    model: the fp32 graph, which stays as it is.
    feeds: calibration inputs.
    names: of the layers. All other nodes are in NNCF's ignored scope.
    weight_bits: 8, or 7 to avoid overflow on CPUs that add two products in 16 bits."""
    import nncf

    others = [node.name for node in model.graph.node if node.name not in names and not passive(node)]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with _quiet():
        made: onnx.ModelProto = nncf.quantize(
            copy,
            nncf.Dataset(list(feeds)),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(feeds),
            ignored_scope=nncf.IgnoredScope(names=others),
            advanced_parameters=_parameters(weight_bits),
        )
    keep_sums(made, model)
    fit_ranges(made, model, feeds)
    return made


def check_finite(role: str, path: Path, model: onnx.ModelProto, feeds: Sequence[Feed]) -> None:
    """Raise QuantizationError with the first node that gives NaN or infinity.

    role: encoder or generator.
    path, model: the graph's file and content.
    feeds: inputs to run."""
    largest = reduced(path, model, feeds, "ReduceMax")
    for node in model.graph.node:
        if any(not math.isfinite(largest.get(name, 0.0)) for name in node.output):
            raise QuantizationError(
                f"{role}: expected finite activations, got NaN or infinity out of node {node.name} ({node.op_type}) on the "
                "calibration samples; check the checkpoint's weights and the photos"
            )


def _parameters(weight_bits: int) -> Any:
    """NNCF's settings: biases as they were trained, and ranges from the smallest to the largest value, which `fit_ranges` replaces.

    NNCF's default range, a mean over samples, cuts off the strongest details: 38 instead of 46 dB for the worst photo. Its bias
    correction makes pictures sharper: of RealSR it costs the student .11 dB of PSNR, where INT8 without it costs none."""
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    return AdvancedQuantizationParameters(
        disable_bias_correction=True,
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
    """The error for a node that cannot be quantized.

    name: of the node.
    model: its graph.
    who: program that rejects it.
    error: its exception."""
    kind = next(node.op_type for node in model.graph.node if node.name == name)
    return QuantizationError(
        f"{who} cannot take node {name} ({kind}) in INT8: {first_line(error)}; leave it in floating point with --float-layer {name}"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress NNCF's progress bars and log."""
    import nncf

    level = logging.getLogger("nncf").level
    nncf.set_log_level(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.getLogger("nncf").setLevel(level)
