"""Half precision: weights and activations in float16, and in float32 the nodes ("islands") whose values float16 cannot represent.

The islands are found by measuring on real inputs. The result is judged by the emulation in `export.onnx.graph.ranges`."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from export.onnx.graph.convert import INSIDE_BYTES, check_file, data_file, save_checked
from export.onnx.graph.ranges import Feed, agreement, emulation, reduced, run
from runtime.errors import GdposrError

# Largest finite value of float16.
FP16_MAX = 65504.0
# Factor of safety, since other photos may have larger values than the measured ones.
MARGIN = 4.0
# Least PSNR in dB of the emulation against float32. The peak is the output's own.
FLOOR_DB = 45.0
# Most attempts. Each adds islands.
ROUNDS = 8
# Operations that become islands if values are finite but too coarse, in this order: statistics of norms, attention, sums.
DELICATE = (("ReduceMean", "Sqrt", "Reciprocal", "Div"), ("Softmax", "MatMul"), ("Sub", "Mul", "Add"))


class HalfError(GdposrError):
    """A graph cannot be converted to half precision well enough."""


@dataclass(frozen=True)
class HalfReport:
    """A converted graph."""

    path: Path
    """File of the graph."""
    islands: tuple[str, ...]
    """Names of the nodes kept in float32, in the order of the graph."""
    kinds: Mapping[str, int]
    """Number of islands by operation."""
    psnr: float
    """Worst PSNR of the emulation over the feeds, in dB."""


def convert_fp16(
    source: Path,
    target: Path,
    feeds: Sequence[Feed],
    *,
    floor_db: float = FLOOR_DB,
    inside_bytes: int = INSIDE_BYTES,
) -> HalfReport:
    """Write a half-precision copy of a float32 graph. Inputs and outputs stay float32.

    source: the float32 graph.
    target: the file to write.
    feeds: real inputs by name.
    floor_db: least PSNR.
    inside_bytes: larger weights go to a separate file.

    Raises HalfError if the result misses floor_db."""
    if not feeds:
        raise ValueError("half precision must be measured on real inputs, got none: pass at least one feed")
    graph = onnx.load(source, load_external_data=False)
    expected = [run(source, feed) for feed in feeds]
    islands = overflowing(graph, magnitudes(source, graph, feeds), FP16_MAX / MARGIN)
    steps = list(DELICATE)
    for _ in range(ROUNDS):
        worst, broken = judge(source, graph, islands, feeds, expected)
        if worst >= floor_db:
            break
        more = broken - islands
        while not more and steps and not broken:
            kinds = steps.pop(0)
            more = frozenset(node.name for node in graph.graph.node if node.op_type in kinds) - islands
        if not more:
            break
        islands = islands | more
    if worst < floor_db:
        raise HalfError(
            f"{source.name}: expected at least {floor_db:g} dB in half precision, got {worst:.1f} dB with {len(islands)} of "
            f"{len(graph.graph.node)} nodes in float32 ({_listed(sorted(broken or islands))}); export float32 instead"
        )
    write_half(source, target, islands, inside_bytes)
    real = min(agreement(run(target, feed), value) for feed, value in zip(feeds, expected, strict=True))
    if real < floor_db:
        raise HalfError(
            f"{target.name}: expected at least {floor_db:g} dB against float32, got {real:.1f} dB in ONNX Runtime; "
            "export float32 instead"
        )
    kept = [node for node in graph.graph.node if node.name in islands]
    kinds_kept = dict(sorted(Counter(node.op_type for node in kept).items()))
    return HalfReport(target, tuple(node.name for node in kept), kinds_kept, worst)


def overflowing(graph: onnx.ModelProto, largest: Mapping[str, float], limit: float) -> frozenset[str]:
    """Names of the nodes with an input or output beyond limit. largest: largest absolute value by tensor."""
    high = {name for name, value in largest.items() if not value <= limit}
    return frozenset(node.name for node in graph.graph.node if high & {*node.input, *node.output})


def magnitudes(source: Path, graph: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, float]:
    """Largest absolute value of every float tensor over all feeds: inputs, results and weights."""
    largest = reduced(source, graph, feeds, "ReduceMax")
    wrong = [name for name, value in largest.items() if not np.isfinite(value)]
    if wrong:
        raise HalfError(f"{source.name} gives NaN or infinity in float32 already, first at {wrong[0]}")
    for feed in feeds:
        for name, value in feed.items():
            largest[name] = max(largest.get(name, 0.0), float(np.abs(value).max()))
    for tensor in graph.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:  # weights in a separate file are read one at a time
            weight = onnx.numpy_helper.to_array(tensor, base_dir=str(source.parent))
            largest[tensor.name] = float(np.abs(weight).max(initial=0.0))
    return largest


def judge(
    source: Path,
    graph: onnx.ModelProto,
    islands: Collection[str],
    feeds: Sequence[Feed],
    expected: Sequence[Mapping[str, np.ndarray]],
) -> tuple[float, frozenset[str]]:
    """Worst PSNR of the emulated half-precision graph and, if it gives NaN or infinity, the nodes around the first such tensor.

    source, graph: the float32 graph's file and content.
    islands: names of the nodes kept in float32.
    feeds: real inputs by name.
    expected: float32 outputs for each feed."""
    emulated = emulation(graph, islands)
    worst = np.inf
    for feed, value in zip(feeds, expected, strict=True):
        worst = min(worst, agreement(run(source, feed, emulated), value))
    if np.isfinite(worst):
        return float(worst), frozenset()
    sums = reduced(source, emulated, feeds, "ReduceSum")
    for node in graph.graph.node:
        for output in node.output:
            if not np.isfinite(sums.get(output, 0.0)):
                takers = {other.name for other in graph.graph.node if output in other.input}
                return -np.inf, frozenset({node.name, *takers})
    return -np.inf, frozenset()


def write_half(
    source: Path, target: Path, islands: Collection[str], inside_bytes: int = INSIDE_BYTES
) -> None:
    """Convert a graph except for its islands, check it and write it.

    source: the float32 graph.
    target: the file to write.
    islands: names of the nodes kept in float32.
    inside_bytes: larger weights go to a separate file."""
    # A large graph is read by its path, so that its shapes can be inferred.
    model = str(source) if data_file(source).exists() else onnx.load(source)
    with warnings.catch_warnings():
        # one warning for each tiny weight that is raised to the smallest half
        warnings.simplefilter("ignore")
        converted = OnnxModel(
            convert_float_to_float16(model, keep_io_types=True, node_block_list=sorted(islands))
        )
    drop_cast_pairs(converted.model.graph)
    converted.topological_sort()  # the converter appends its casts at the end
    data_file(target).unlink(missing_ok=True)
    size = sum(tensor.ByteSize() for tensor in converted.model.graph.initializer)
    if size <= inside_bytes:
        save_checked(converted.model, target)
        return
    onnx.save(
        converted.model,
        target,
        save_as_external_data=True,
        location=data_file(target).name,
        size_threshold=1024,
    )
    check_file(target)


def drop_cast_pairs(graph: onnx.GraphProto) -> None:
    """Remove casts float32 -> float16 -> float32 between neighbouring islands, which would overflow or lose precision."""
    wide: dict[str, str] = {}  # float16 tensor -> the float32 tensor that it was cast from
    for node in graph.node:
        if node.op_type == "Cast" and _cast_to(node) == TensorProto.FLOAT16:
            wide[node.output[0]] = node.input[0]
    outputs = {value.name for value in graph.output}
    back = [
        node for node in graph.node
        if node.op_type == "Cast" and _cast_to(node) == TensorProto.FLOAT and node.input[0] in wide
    ]  # fmt: skip
    if not back:
        return
    renamed = {}
    for node in back:
        old, new = node.output[0], wide[node.input[0]]
        if old in outputs:
            old, new = new, old  # the graph's output keeps its name
        renamed[old] = new
        graph.node.remove(node)
    for node in graph.node:
        for names in (node.input, node.output):
            for index in range(len(names)):
                while names[index] in renamed:
                    names[index] = renamed[names[index]]
    taken = {name for node in graph.node for name in node.input} | outputs
    for node in [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in taken]:
        graph.node.remove(node)


def _cast_to(node: onnx.NodeProto) -> int:
    return int(next(attribute.i for attribute in node.attribute if attribute.name == "to"))


def _listed(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
