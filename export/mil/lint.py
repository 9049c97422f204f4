"""Lists the parts of a package, and those that may not run on the Apple Neural Engine.

Apple documents little about the engine, so each rule names its source, and none of them is proof. The device decides
when it compiles the package, and generations differ. Only Xcode's performance report or `MLComputePlan` on a device
shows the result. A package without flags has no known obstacle; a flagged one may still run. The sources:

- Apple: the article "Deploying Transformers on the Apple Neural Engine" (machinelearning.apple.com, 2022): four axes,
channels first, 1x1 convolutions instead of linear layers, and a last axis that is padded to 64 bytes.
- coremltools: its guides on typed execution (the engine computes in float16) and on flexible inputs (enumerated
shapes are compiled one by one; a range is not); Apple's engineers on the developer forum (thread 724930): of a range,
only the default shape runs there.
- community: measurements and disassembly published as "ane-guide" (limits of sizes and kernels, operations without a
hardware path) and hollance/neural-engine (recurrent layers, gather)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from export.mil.package.program import Constant, Operation, Program
from export.mil.package.tensor import TensorType

# Most axes of a tensor.
MAX_RANK: Final = 4
# Longest axis in elements.
MAX_SIDE: Final = 16384
# Largest side of a window in elements.
MAX_KERNEL: Final = 13
# Bytes to a multiple of which the last axis is padded.
ROW_BYTES: Final = 64
# Least padding of a tensor, in bytes, that raises a flag.
WASTE_BYTES: Final = 1 << 16

RULES: Final[Mapping[str, str]] = {
    "rank": f"more than {MAX_RANK} axes (Apple: four axes, channels first)",
    "float32": "computed in float32 (coremltools: the engine computes in float16)",
    "range": "shapes known at run time only (coremltools: fixed or enumerated shapes are compiled ahead)",
    "weights": "a convolution whose weights are computed (community: weights are part of the compiled program)",
    "gather": "indices that are computed (community: gather runs elsewhere)",
    "kernel": f"a window wider than {MAX_KERNEL} (community)",
    "size": f"an axis longer than {MAX_SIDE} (community)",
    "whole": "whole numbers in the data path (community: activations are float16)",
    "cast": "a cast of a cast (two conversions that the engine may not take)",
    "tokens": "a product with tokens before channels (Apple: 1x1 convolution on (B, C, 1, S))",
    "padding": f"a short last axis, padded to {ROW_BYTES} bytes (Apple)",
    "unsupported": "no hardware path (community)",
}
_UNSUPPORTED: Final = frozenset(
    (
        "lstm",
        "gru",
        "rnn",
        "reduce_prod",
        "non_zero",
        "non_maximum_suppression",
        "scatter",
        "scatter_nd",
        "scatter_along_axis",
    )
)
_GATHERS: Final = frozenset(("gather", "gather_nd", "gather_along_axis"))
_CONVOLUTIONS: Final = frozenset(("conv", "conv_transpose"))
_POOLS: Final = frozenset(("max_pool", "avg_pool", "l2_pool"))
_CONSTANTS: Final = "constexpr_"
# Bytes per element on the engine; 2 for all other types.
_BYTES: Final = {"fp32": 4, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}


@dataclass(frozen=True)
class Flag:
    """A rule that a part of the package breaks."""

    rule: str
    """Key of `RULES`."""
    op: str
    """Type of the operation, or "input"."""
    name: str
    """Name of the operation or input."""
    detail: str
    """The property that breaks the rule, such as a shape."""


@dataclass(frozen=True)
class Storage:
    """The weights stored in one way."""

    kind: str
    """How they are stored, such as "fp16" or "constexpr_lut_to_dense uint6"."""
    tensors: int
    """Number of tensors."""
    bytes: int
    """Their size."""


@dataclass(frozen=True)
class Report:
    """The result of `lint`."""

    package: str
    """Path of the package."""
    specification: int
    """Version of the model format."""
    opset: str
    """Version of the operations, such as CoreML7."""
    operations: dict[str, int]
    """Number of operations by type, without constants."""
    storage: tuple[Storage, ...]
    """How weights are stored."""
    flags: tuple[Flag, ...]
    """Broken rules."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def lint(program: Program) -> Report:
    """List the operations, the weights and the flags of a program."""
    counted = Counter(op.type for op in _computed(program))
    return Report(
        package=str(program.path),
        specification=program.specification,
        opset=program.opset,
        operations=dict(sorted(counted.items(), key=lambda item: (-item[1], item[0]))),
        storage=_storage(program),
        flags=tuple(_flags(program)),
    )


def is_compressed(program: Program) -> bool:
    """Whether a constexpr operation unpacks any weights."""
    return any(op.type.startswith(_CONSTANTS) and op.type != "constexpr_cast" for op in program.operations)


def every_operation(program: Program) -> Iterator[tuple[str, str, str]]:
    """(type, name, outputs with element type and shape) of each operation except constants, in order."""
    for op in program.operations:
        if op.type != "const":
            yield op.type, op.name, ", ".join(str(output.type) for output in op.outputs)


def _computed(program: Program) -> Iterator[Operation]:
    return (op for op in program.operations if op.type != "const" and not op.type.startswith(_CONSTANTS))


def _storage(program: Program) -> tuple[Storage, ...]:
    """Bytes of all constants in the weight file and in the program. Parts of a constexpr operation count together, others by type."""
    constants, packed = program.constants, set[str]()
    tensors, size = Counter[str](), Counter[str]()
    for op in program.operations:
        if op.type.startswith(_CONSTANTS):
            names = [name for name in op.sources if name in constants]
            packed.update(names)
            parts = [constants[name].value for name in names]
            parts += [
                value for values in op.arguments.values() for value in values if isinstance(value, Constant)
            ]
            kind = f"{op.type} {_packed_as(op, constants)}"
            tensors[kind] += 1
            size[kind] += sum(part.stored_bytes for part in parts)
    for name, op in constants.items():
        if name not in packed and op.value.weights is not None:
            tensors[op.value.type.dtype] += 1
            size[op.value.type.dtype] += op.value.stored_bytes
    return tuple(Storage(kind, tensors[kind], size[kind]) for kind in sorted(tensors, key=lambda k: -size[k]))


def _packed_as(op: Operation, constants: Mapping[str, Operation]) -> str:
    """Element type of a constexpr operation's packed data. For look-up indices stored in bytes: the bits that the table needs."""
    found: dict[str, TensorType] = {}
    for key, values in op.arguments.items():
        for value in values:
            if isinstance(value, Constant):
                found[key] = value.type
            elif value in constants:
                found[key] = constants[value].value.type
    if "lut" in found and "shape" in found:
        return f"uint{(found['lut'].count - 1).bit_length()}"
    names = ("indices", "indices_nonzero_data", "data", "quantized_data", "nonzero_data", "source_val")
    return next((found[name].dtype for name in names if name in found), op.outputs[0].type.dtype)


def _flags(program: Program) -> Iterator[Flag]:
    for feature in program.inputs:
        if feature.flexible == "range":
            yield Flag("range", "input", feature.name, f"{feature.type}")
    producers = {output.name: op for op in program.operations for output in op.outputs}
    fixed = _fixed(program)
    ends = {feature.name for feature in (*program.inputs, *program.outputs)}
    for op in _computed(program):
        yield from _op_flags(op, producers, fixed)
        for output in op.outputs:
            yield from _output_flags(op, output.type, edge=_is_edge(op, ends))


def _is_edge(op: Operation, ends: set[str]) -> bool:
    """Whether the operation casts an input or output between the app's float32 and the program's float16."""
    return op.type == "cast" and bool({*op.sources, *(output.name for output in op.outputs)} & ends)


def _fixed(program: Program) -> dict[str, Constant | None]:
    """Names of constants and of weights unpacked from constants; None if the value itself is not available."""
    fixed: dict[str, Constant | None] = {}
    for op in program.operations:
        if op.type == "const":
            fixed[op.outputs[0].name] = op.value
        elif op.type.startswith(_CONSTANTS) and all(name in fixed for name in op.sources):
            fixed.update((output.name, None) for output in op.outputs)
    return fixed


def _op_flags(
    op: Operation, producers: Mapping[str, Operation], fixed: Mapping[str, Constant | None]
) -> Iterator[Flag]:
    def is_fixed(key: str) -> bool:
        return all(isinstance(value, Constant) or value in fixed for value in op.arguments.get(key, ()))

    if op.type in _UNSUPPORTED or op.type.startswith("random_"):
        yield Flag("unsupported", op.type, op.name, str(op.outputs[0].type))
    if op.type in _CONVOLUTIONS and not is_fixed("weight"):
        yield Flag("weights", op.type, op.name, f"weight {op.arguments['weight'][0]}")
    if op.type in _GATHERS and not is_fixed("indices"):
        yield Flag("gather", op.type, op.name, f"indices {op.arguments['indices'][0]}")
    if op.type == "linear" or (op.type == "matmul" and _has_matrix(op, producers, fixed)):
        yield Flag("tokens", op.type, op.name, str(op.outputs[0].type))
    if op.type == "cast":
        before = [producers[name] for name in op.sources if name in producers]
        if any(other.type == "cast" for other in before):
            yield Flag("cast", op.type, op.name, str(op.outputs[0].type))
    window = _window(op, producers, fixed)
    if window and max(window) > MAX_KERNEL:
        yield Flag("kernel", op.type, op.name, "x".join(str(side) for side in window))


def _has_matrix(
    op: Operation, producers: Mapping[str, Operation], fixed: Mapping[str, Constant | None]
) -> bool:
    """Whether an argument is a constant matrix, as in a linear layer. Constants with more axes are keys or values of attention."""
    for value in (value for key in ("x", "y") for value in op.arguments.get(key, ())):
        if isinstance(value, Constant):
            types = [value.type]
        else:
            types = [o.type for o in producers[value].outputs if o.name == value] if value in fixed else []
        if any(len(type.shape) == 2 for type in types):
            return True
    return False


def _window(
    op: Operation, producers: Mapping[str, Operation], fixed: Mapping[str, Constant | None]
) -> tuple[int, ...]:
    """Sides of the window of a convolution or pool; empty for other operations."""
    if op.type in _CONVOLUTIONS:
        (weight,) = op.arguments["weight"]
        if isinstance(weight, Constant):
            return weight.type.known[2:]
        types = [o.type for o in producers[weight].outputs if o.name == weight] if weight in producers else []
        return tuple(size or 0 for type in types for size in type.shape[2:])
    if op.type in _POOLS:
        (kernel,) = op.arguments["kernel_sizes"]
        constant = kernel if isinstance(kernel, Constant) else fixed.get(kernel)
        value = None if constant is None else constant.read()
        return (
            () if value is None or isinstance(value, str) else tuple(int(side) for side in value.reshape(-1))
        )
    return ()


def _output_flags(op: Operation, type: TensorType, edge: bool) -> Iterator[Flag]:
    if len(type.shape) > MAX_RANK:
        yield Flag("rank", op.type, op.name, str(type))
    if None in type.shape:
        yield Flag("range", op.type, op.name, str(type))
    if type.dtype == "fp32" and not edge:
        yield Flag("float32", op.type, op.name, str(type))
    if type.dtype.startswith(("int", "uint")) and op.type != "quantize":
        yield Flag("whole", op.type, op.name, str(type))
    sizes = [size for size in type.shape if size is not None]
    if any(size > MAX_SIDE for size in sizes):
        yield Flag("size", op.type, op.name, str(type))
    if len(sizes) == len(type.shape) >= 3:
        row = sizes[-1] * _BYTES.get(type.dtype, 2)
        padded = -(-row // ROW_BYTES) * ROW_BYTES
        rows = type.count // max(1, sizes[-1])
        if padded >= 2 * row and rows * (padded - row) > WASTE_BYTES:
            yield Flag("padding", op.type, op.name, f"{type}: {padded / row:.0f} times its size")


def summary(flags: tuple[Flag, ...]) -> dict[str, list[Flag]]:
    """Flags by rule, in the order of the rules."""
    by_rule: defaultdict[str, list[Flag]] = defaultdict(list)
    for flag in flags:
        by_rule[flag.rule].append(flag)
    return {rule: by_rule[rule] for rule in RULES if rule in by_rule}
