"""Core ML conversion: one graph of a model, for one size of LR tile, as an ML program in a package.

**Sizes are fixed**, with batch 1. The compiler for the Neural Engine plans memory ahead, and a program with flexible
sizes may not run there. A package can list several sizes (`sizes`), but only from iOS 18 on: earlier systems allow
enumerated shapes for a single input only, and a generator has several. Such a program has no fixed sizes inside, so a
package per size remains the better choice.

**Arrays are float16** at the inputs and outputs of an fp16 program (from iOS 16 on). Features then pass from encoder
to generator without conversion and in half the memory, and the first and last operations need no cast. With `images`,
photo and result are pixel buffers instead: Core ML passes the photo's 8-bit RGB times 1/255 and expects the result in 0..255."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from export.coreml.activations import is_quantized
from export.coreml.description import Size, describe
from export.coreml.package import fresh_names, operations, quiet, write_package
from export.mil.package.program import SUFFIX
from export.source import Source
from runtime.bundle.manifest import TensorSpec
from runtime.errors import GdposrError, SettingError

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Model

# Element type of inputs and outputs by precision.
ARRAYS: Final = {"fp16": np.float16, "fp32": np.float32}
# Least PSNR in dB against torch, by precision. The shipped student has 73.7; in fp32 an earlier one equalled torch.
FLOOR_DB: Final = {"fp16": 70.0, "fp32": 100.0}
# Highest PSNR in dB that a package with pixel buffers promises. Rounding to 8 bits alone gives 58.9 dB, and devices add errors.
IMAGE_FLOOR_DB: Final = 50.0
# Version of the model format, by the oldest system that reads it.
TARGETS: Final = {"iOS17": 8, "iOS18": 9}
# The Neural Engine does not run tensors with more axes.
MAX_RANK: Final = 4


class ConversionError(GdposrError):
    """A model cannot be expressed as a Core ML program that suits the Neural Engine."""


def convert(
    source: Source,
    role: str,
    folder: Path,
    *,
    height: int,
    width: int,
    sizes: Sequence[Size] = (),
    target: str = "iOS17",
    precision: str = "fp16",
    images: bool = False,
    floor_db: float | None = None,
    variant: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write folder/ROLE.VARIANT.mlpackage; returns its path. The same model gives the same bytes.

    source: the model.
    role: encoder, generator, or a chunk of it that `export.fold.chunks.cut` has added to the source.
    folder: for the package.
    height, width: of the tile in LR pixels.
    sizes: further (height, width) that the package takes.
    target: oldest system that must run it.
    precision: of weights, arithmetic and arrays.
    images: use pixel buffers for photo and result.
    floor_db: PSNR that the package promises; None for a student's. At most IMAGE_FLOOR_DB with images.
    variant: name of the variant; None for the precision.
    metadata: author, license, further user-defined entries."""
    variant = variant or precision
    choices = (("role", role, source.modules), ("target", target, TARGETS), ("precision", precision, ARRAYS))
    for name, value, known in choices:
        if value not in known:
            raise SettingError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    tiles = tuple(dict.fromkeys([(height, width), *sizes]))
    _check_tiles(source, tiles, target)
    with quiet(), fresh_names():
        model = _model(source, role, tiles, target, precision, images)
    spec = model.get_spec()
    _check(spec, source, role)
    floor = FLOOR_DB[precision] if floor_db is None else floor_db
    promised = {"floor_db": f"{min(floor, IMAGE_FLOOR_DB) if images else floor:g}"}
    describe(spec, source, role, tiles, target, variant, promised | dict(metadata or {}))
    return write_package(spec, Path(model.weights_dir), folder / f"{role}.{variant}{SUFFIX}")


class _Pixels(nn.Module):
    """A generator whose image is in 0..255, as in pixel buffers."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        image: Tensor = self.module(*inputs)
        return image * 255.0


def _check_tiles(source: Source, tiles: Sequence[Size], target: str) -> None:
    least, unit = source.size.minimum, source.size.multiple_of
    for height, width in tiles:
        if min(height, width) < least or height % unit or width % unit:
            raise SettingError(
                f"expected tiles of at least {least} LR pixels each way in multiples of {unit}, got {height}x{width}; choose others"
            )
    if len(tiles) > 1 and TARGETS[target] < TARGETS["iOS18"]:
        raise SettingError(
            f"expected one tile size for {target}, got {len(tiles)}; write a package per size, or give target iOS18"
        )


def _is_image(tensor: TensorSpec) -> bool:
    return tensor.channels == 3 and tensor.range == (0.0, 1.0)


def _model(
    source: Source, role: str, tiles: Sequence[Size], target: str, precision: str, images: bool
) -> Any:
    """coremltools' model of a graph.

    source, role: the model and the graph.
    tiles: all (height, width) in LR pixels.
    target: oldest system.
    precision: of weights, arithmetic and arrays.
    images: use pixel buffers for photo and result."""
    import coremltools as ct

    spec, module = source.specs[role], source.modules[role]
    if images and _is_image(spec.outputs[0]):
        module = _Pixels(module).eval()
    array, layout = ARRAYS[precision], ct.colorlayout.RGB
    inputs = []
    for tensor in spec.inputs:
        shapes = [source.shape(tensor, *tile) for tile in tiles]
        shape = shapes[0] if len(shapes) == 1 else ct.EnumeratedShapes(shapes, default=shapes[0])
        if images and _is_image(tensor):
            inputs.append(ct.ImageType(name=tensor.name, shape=shape, scale=1 / 255.0, color_layout=layout))
        else:
            inputs.append(ct.TensorType(name=tensor.name, shape=shape, dtype=array))
    outputs = [
        ct.ImageType(name=tensor.name, color_layout=layout)
        if images and _is_image(tensor)
        else ct.TensorType(name=tensor.name, dtype=array)
        for tensor in spec.outputs
    ]
    try:
        return ct.convert(
            _program(source, module, spec.inputs, tiles),
            source="pytorch",
            convert_to="mlprogram",
            inputs=inputs,
            outputs=outputs,
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32,
            skip_model_load=True,
        )
    except (OSError, MemoryError):
        raise  # not an error of the model
    except Exception as error:  # torch.export and coremltools raise many kinds of exceptions
        raise ConversionError(_explain(role, error)) from error


def _program(
    source: Source, module: nn.Module, tensors: Sequence[TensorSpec], tiles: Sequence[Size]
) -> torch.export.ExportedProgram | torch.jit.ScriptModule:
    """The graph as exported by torch, without decompositions, which would turn pixel shuffles into reshapes with six axes.

    source: the model.
    module: the graph's module.
    tensors: its inputs.
    tiles: all (height, width). A side that differs between them is a multiple of a symbol.

    A module with quantized activations is traced, since torch.export does not support it."""
    largest = tuple(max(sides) for sides in zip(*tiles, strict=True))
    example = tuple(torch.zeros(source.shape(tensor, *largest)) for tensor in tensors)
    if is_quantized(module):
        traced: torch.jit.ScriptModule = torch.jit.trace(module, example, check_trace=False)
        return traced
    unit = source.size.multiple_of
    symbols: list[Any] = [None, None]
    shapes: Any = None
    for axis, name in enumerate(("rows", "columns")):
        cells = [tile[axis] // unit for tile in tiles]
        if len(set(cells)) > 1:
            symbols[axis] = torch.export.Dim(name, min=min(cells), max=max(cells))
    dynamic = tuple(
        {
            2 + axis: round(unit * tensor.scale) * symbol
            for axis, symbol in enumerate(symbols)
            if symbol is not None
        }
        for tensor in tensors
    )
    if symbols != [None, None]:
        kinds = {parameter.kind for parameter in inspect.signature(module.forward).parameters.values()}
        shapes = (dynamic,) if inspect.Parameter.VAR_POSITIONAL in kinds else dynamic
    exported = torch.export.export(module, example, dynamic_shapes=shapes)
    return exported.run_decompositions({})


def _explain(role: str, error: Exception) -> str:
    """An error message with the name of the operation, if coremltools gives it."""
    text = " ".join(str(error).split()) or type(error).__name__
    named = re.search(r"for op '([^']+)'|[Uu]nsupported (?:fx node|operation)[^\w]*(\w+)", text)
    op = next((name for name in (named.groups() if named else ()) if name), None)
    got = f"{op}, which it lacks" if op else f"what coremltools refuses: {text[:200]}"
    return (
        f"{role}: expected operations that Core ML has, on tensors of at most {MAX_RANK} axes, got {got}; express it with others "
        "(convolution, pixel shuffle, elementwise arithmetic, matmul) in the module"
    )


def _check(spec: Model, source: Source, role: str) -> None:
    """Check the names of inputs and outputs, and that no tensor has more axes than the Neural Engine takes."""
    graph, description = source.specs[role], spec.description
    for what, expected, got in (
        ("inputs", graph.inputs, description.input),
        ("outputs", graph.outputs, description.output),
    ):
        names = [tensor.name for tensor in expected]
        if [feature.name for feature in got] != names:
            raise ConversionError(
                f"{role}: expected {what} {names}, got {[feature.name for feature in got]}; give the source's specs in that order"
            )
    for operation in operations(spec):
        for output in operation.outputs:
            if not operation.type.startswith("const") and output.type.tensorType.rank > MAX_RANK:
                raise ConversionError(
                    f"{role}: expected tensors of at most {MAX_RANK} axes, got {output.type.tensorType.rank} in {operation.type} "
                    f"{output.name}; reshape to {MAX_RANK} axes in the module"
                )
