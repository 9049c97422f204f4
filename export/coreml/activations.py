"""The Core ML variant w8a8: a student with 8-bit weights and 8-bit activations, calibrated on photos.

coremltools.optimize.torch wraps each layer of the residual in quantization as Core ML requires for 8-bit arithmetic
(from the A17 Pro and the M4 on): symmetric, one scale per activation, one per output channel of a weight. The picture
stays in floating point: the base, its sum with the residual, and the photo up to the first layer. So do the tensors
between encoder and generator.

torch.export has no rule for quantized tensors (torch 2.13), so `export.coreml.convert` traces such a student instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, fx, nn

from calibration.samples import LEAST_SAMPLES, Sample
from export.coreml.package import quiet
from export.source import BASE, IMAGE, STUDENT, Source
from runtime.bundle.manifest import GraphSpec
from runtime.errors import GdposrError, SettingError

if TYPE_CHECKING:
    from torch.ao.quantization import FakeQuantize

W8A8: Final = "w8a8"
# Usual size of a calibration set. With 8, the PSNR is the same within 0.2 dB.
SAMPLES: Final = 32
# Bins of the histogram of an activation's magnitudes.
BINS: Final = 4096
# Ranges tried for an activation, evenly spaced from a tenth of its largest magnitude to all of it.
TRIED: Final = 181
Arguments = tuple[Tensor, ...]


class CalibrationError(GdposrError):
    """Calibration photos on which ranges cannot be measured, or for which the model gives NaN or infinity."""


def quantize_activations(source: Source, samples: Sequence[Sample]) -> Source:
    """The same student with quantized modules, for conversion with variant w8a8. It also runs in torch on the CPU.

    samples: at least 4, better 32. The generator is calibrated on the features of the float encoder.

    Raises SettingError for a model that is not a student, and CalibrationError for too few samples or if an operation
    gives NaN or infinity."""
    if source.kind != STUDENT:
        raise SettingError(
            f"{W8A8}: expected a student, whose activations fit static ranges, got a {source.kind}; distil it first "
            "(`gdposr distill`)"
        )
    if len(samples) < LEAST_SAMPLES:
        raise CalibrationError(
            f"expected at least {LEAST_SAMPLES} calibration samples, got {len(samples)}; draw more, or give a folder with more photos"
        )
    images = [torch.from_numpy(sample.lr[None]) for sample in samples]
    feeds: dict[str, list[Arguments]] = {
        "encoder": [(image,) for image in images],
        "generator": [
            (*source.encode(image), torch.from_numpy(sample.noise[None]))
            for image, sample in zip(images, samples, strict=True)
        ],
    }
    with quiet():
        modules = {role: _quantized(source, role, feeds[role]) for role in ("encoder", "generator")}
    return dataclasses.replace(source, modules=modules)


def is_quantized(module: nn.Module) -> bool:
    """Whether a module, or one inside it, was made by `quantize_activations`."""
    return any(isinstance(part, fx.GraphModule) for part in module.modules())


def best_bound(counts: Tensor, largest: float, levels: float) -> float:
    """The bound for clipping an activation with the least total error of clipping and rounding.

    counts: (bins,) float, number of magnitudes in equal bins of [0, largest].
    largest: upper end of the last bin.
    levels: steps between 0 and the bound, 127.5 with a sign and 255 without.

    The squared error of a bound b is the sum over x > b of (x - b)^2, plus (b / levels)^2 / 12 for each other x."""
    centres = (torch.arange(len(counts), dtype=torch.float64) + 0.5) * largest / len(counts)
    bounds = torch.linspace(0.1, 1.0, TRIED, dtype=torch.float64) * largest
    over = (centres - bounds[:, None]).clamp(min=0)  # (tried, bins)
    counts = counts.double()
    inside = ((over == 0) * counts).sum(dim=1)
    error = (over.square() * counts).sum(dim=1) + inside * (bounds / levels).square() / 12
    return float(bounds[error.argmin()])


def _quantized(source: Source, role: str, feeds: Sequence[Arguments]) -> nn.Module:
    try:
        from coremltools.optimize.torch.quantization import (
            LinearQuantizer,
            LinearQuantizerConfig,
            ModuleLinearQuantizerConfig,
            ObserverType,
            QuantizationScheme,
        )
        from torch.ao.quantization import disable_fake_quant, disable_observer
    except ImportError as error:  # torch has announced the end of torch.ao.quantization
        raise SettingError(
            f"{W8A8}: expected coremltools.optimize.torch and a torch with torch.ao.quantization, such as 2.13, got torch "
            f"{torch.__version__} ({error}); install these, or leave the variant out"
        ) from error
    config = ModuleLinearQuantizerConfig(
        weight_observer=ObserverType.min_max,
        activation_observer=ObserverType.min_max,
        quantization_scheme=QuantizationScheme.symmetric,
    )
    quantizer = LinearQuantizer(source.modules[role], LinearQuantizerConfig(global_config=config))
    prepared = quantizer.prepare(example_inputs=feeds[0])
    _keep_picture_in_float(prepared, source.specs[role])
    prepared.apply(disable_fake_quant)
    _run(prepared, role, feeds)  # observers of weights and activations find the extremes
    prepared.apply(disable_observer)
    _clip(prepared, role, feeds)
    finished: nn.Module = quantizer.finalize(prepared, inplace=True)
    return finished.eval()


def _keep_picture_in_float(prepared: fx.GraphModule, spec: GraphSpec) -> None:
    """Remove the observers of values that belong to the picture, so that these are never quantized."""
    graph = prepared.graph
    picture = _picture(prepared, spec)
    for node, observed in list(_observers(prepared)):
        if observed in picture or all(user in picture or user.op == "output" for user in node.users):
            node.replace_all_uses_with(observed)
            graph.erase_node(node)
    prepared.delete_all_unused_submodules()
    graph.lint()
    prepared.recompile()


def _picture(prepared: fx.GraphModule, spec: GraphSpec) -> set[fx.Node]:
    """Nodes that stay in floating point: those that lead only to the base, those that use the base, and the photo up
    to the first layer."""
    graph = prepared.graph
    inputs = {node.target: node for node in graph.nodes if node.op == "placeholder"}
    (end,) = (node for node in graph.nodes if node.op == "output")
    results = end.args[0] if isinstance(end.args[0], tuple) else (end.args[0],)
    by_name = dict(zip((tensor.name for tensor in spec.outputs), results, strict=True))
    found: set[fx.Node] = set()
    if BASE in by_name:
        found |= _reached([by_name.pop(BASE)], lambda node: node.all_input_nodes)
        found -= _reached(by_name.values(), lambda node: node.all_input_nodes)
    if BASE in inputs:
        found |= _reached([inputs[BASE]], lambda node: node.users)
    if IMAGE in inputs:
        layers = {node for node in graph.nodes if _is_layer(prepared, node)}
        found |= _reached([inputs[IMAGE]], lambda node: set(node.users) - layers)
    return found


def _is_layer(prepared: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and hasattr(prepared.get_submodule(str(node.target)), "weight")


def _reached(start: Iterable[Any], step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """The start nodes and all nodes that repeated steps lead to."""
    found: set[fx.Node] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(step(node))
    return found


def _observers(prepared: fx.GraphModule) -> Iterable[tuple[fx.Node, fx.Node]]:
    """Each observing node with the node that it observes."""
    from torch.ao.quantization import FakeQuantize

    for node in prepared.graph.nodes:
        if node.op == "call_module" and isinstance(prepared.get_submodule(str(node.target)), FakeQuantize):
            yield node, node.all_input_nodes[0]


def _clip(prepared: fx.GraphModule, role: str, feeds: Sequence[Arguments]) -> None:
    """Narrow the range of each activation to the best bound. Its extremes come from only a few pixels."""
    quantizers: dict[str, FakeQuantize] = {}
    largest: dict[str, float] = {}
    counts: dict[str, Tensor] = {}
    for node, observed in _observers(prepared):
        quantizer = prepared.get_submodule(str(node.target))
        extremes = quantizer.activation_post_process
        most = max(abs(float(extremes.min_val)), abs(float(extremes.max_val)))
        if most > 0:  # an activation that is zero everywhere keeps the smallest scale
            quantizers[observed.name], largest[observed.name] = quantizer, most
            counts[observed.name] = torch.zeros(BINS, dtype=torch.float64)

    def count(node: fx.Node, value: Tensor) -> None:
        if node.name in counts:
            counts[node.name] += torch.histc(value.abs(), BINS, 0, largest[node.name]).double()

    _run(prepared, role, feeds, count)
    for name, quantizer in quantizers.items():
        extremes = quantizer.activation_post_process
        bound = best_bound(counts[name], largest[name], 255.0 if float(extremes.min_val) >= 0 else 127.5)
        extremes.min_val.clamp_(min=-bound)
        extremes.max_val.clamp_(max=bound)


@torch.no_grad()
def _run(
    prepared: fx.GraphModule,
    role: str,
    feeds: Sequence[Arguments],
    look: Callable[[fx.Node, Tensor], None] = lambda node, value: None,
) -> None:
    """Run all samples and look at each value. Raises CalibrationError at the first value that is not finite.

    prepared: the graph.
    role: encoder or generator, for errors.
    feeds: inputs of each sample.
    look: called with each node and its value."""
    for number, feed in enumerate(feeds, start=1):
        _Watched(prepared, f"{role}, calibration sample {number}", look).run(*feed)


class _Watched(fx.Interpreter):
    """Runs a graph node by node and passes each result to a function."""

    def __init__(self, module: fx.GraphModule, where: str, look: Callable[[fx.Node, Tensor], None]) -> None:
        super().__init__(module)
        self._where = where
        self._look = look

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            if not torch.isfinite(value).all():
                raise CalibrationError(
                    f"{self._where}: expected finite numbers, got NaN or infinity first from {n.op} {n.target}; check the photo and "
                    "the model's weights"
                )
            self._look(n, value)
        return value
