"""A Core ML package as plain data: its inputs, its outputs, and its operations in order.

Only the protobuf message classes of coremltools are used to parse it. The evaluator is therefore independent of the
converter that wrote the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from export.mil.package.blob import WeightFile
from export.mil.package.feature import Feature, read_features
from export.mil.package.proto import decode_error, messages
from export.mil.package.tensor import DTYPES, STRING, PackageError, TensorType, dtype_name, unpack

MANIFEST: Final = "Manifest.json"
SUFFIX: Final = ".mlpackage"
_MODEL_PREFIX: Final = "@model_path/"


@dataclass(frozen=True)
class Constant:
    """A constant of the program, stored in the program itself or in the weight file."""

    type: TensorType
    """Element type and shape."""
    value: np.ndarray | str | None = field(repr=False, compare=False)
    """The value; None if it is in the weight file."""
    weights: WeightFile | None = field(default=None, repr=False, compare=False)
    """The weight file; None if the value is in the program."""
    offset: int = 0
    """Position of its metadata in the weight file."""
    stored_bytes: int = 0
    """Size as stored."""

    def read(self) -> np.ndarray | str:
        """The value. An array in the weight file is read at every call."""
        if self.weights is not None:
            return self.weights.read(self.offset, self.type)
        assert self.value is not None
        return self.value


@dataclass(frozen=True)
class Output:
    """A named result of an operation."""

    name: str
    """Name of the value."""
    type: TensorType
    """Declared element type and shape."""


@dataclass(frozen=True)
class Operation:
    """One operation."""

    type: str
    """MIL type, such as "conv"."""
    name: str
    """Name of the operation."""
    arguments: Mapping[str, tuple[str | Constant, ...]]
    """Values by argument. Some arguments take several. A string is the name of another value."""
    outputs: tuple[Output, ...]
    """Results, in order."""

    @property
    def value(self) -> Constant:
        """The value of a `const` operation."""
        (value,) = self.arguments["val"]
        assert isinstance(value, Constant)
        return value

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the values that it uses."""
        return tuple(v for values in self.arguments.values() for v in values if isinstance(v, str))


@dataclass(frozen=True)
class Program:
    """One function of a package."""

    path: Path
    """Folder of the package."""
    function: str
    """Name of the function."""
    specification: int
    """Version of the model format: 7 for iOS 16, 8 for iOS 17, 9 for iOS 18."""
    opset: str
    """Version of the operations, such as CoreML7."""
    inputs: tuple[Feature, ...]
    """Inputs, in order."""
    outputs: tuple[Feature, ...]
    """Outputs, in order."""
    operations: tuple[Operation, ...]
    """Operations in order of execution."""
    metadata: Mapping[str, str]
    """User-defined metadata."""

    @property
    def constants(self) -> dict[str, Operation]:
        """The `const` operations by the name of their value."""
        return {op.outputs[0].name: op for op in self.operations if op.type == "const"}


def read_package(path: Path, function: str | None = None) -> Program:
    """Read an .mlpackage folder. Raises PackageError if it cannot be read.

    function: which function of a package with several; None for the default."""
    model_path = _model_path(path)
    model = _parse(model_path)
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise PackageError(
            f"{path}: expected an ML program, got a model of type {kind}; convert with convert_to='mlprogram'"
        )
    name = function or model.description.defaultFunctionName or "main"
    functions = model.mlProgram.functions
    if name not in functions:
        raise PackageError(
            f"{path}: expected a function {name!r}, got {sorted(functions)}; name one of these"
        )
    chosen = functions[name]
    if chosen.opset not in chosen.block_specializations:
        raise PackageError(
            f"{path}: function {name!r} lacks a body for its opset {chosen.opset!r}; convert again"
        )
    block = chosen.block_specializations[chosen.opset]
    reader = _Reader(model_path.parent)
    operations = tuple(reader.operation(op) for op in block.operations)
    types = {o.name: o.type for op in operations for o in op.outputs}
    types |= {value.name: reader.type(value.type, value.name) for value in chosen.inputs}
    described = next((f for f in model.description.functions if f.name == name), model.description)
    missing = [output for output in block.outputs if output not in types]
    if missing:
        raise PackageError(f"{path}: no operation makes the output {missing[0]!r}; convert again")
    return Program(
        path=path,
        function=name,
        specification=model.specificationVersion,
        opset=chosen.opset,
        inputs=read_features(described.input, [value.name for value in chosen.inputs], types, path),
        outputs=read_features(described.output, list(block.outputs), types, path),
        operations=operations,
        metadata=dict(model.description.metadata.userDefined),
    )


def find_packages(path: Path) -> list[Path]:
    """The package at path, or the packages directly inside a bundle's folder. Raises PackageError if there is none."""
    if path.suffix == SUFFIX:
        return [path]
    found = sorted(entry for entry in path.glob(f"*{SUFFIX}") if entry.is_dir()) if path.is_dir() else []
    if not found:
        raise PackageError(
            f"{path}: expected a folder NAME{SUFFIX} or a bundle with some inside, got none; check the path"
        )
    return found


def _model_path(path: Path) -> Path:
    """The model file that the package's manifest names as its root."""
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise PackageError(f"{path}: expected an .mlpackage folder with {MANIFEST}, got none; check the path")
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        model_path = path / "Data" / str(entry)
    except (ValueError, KeyError, TypeError) as error:
        raise PackageError(
            f"{manifest_path}: expected the package's items, got something else ({error!r})"
        ) from error
    if not model_path.resolve().is_relative_to((path / "Data").resolve()):
        raise PackageError(f"{manifest_path}: expected a file inside the package, got {entry!r}")
    if not model_path.is_file():
        raise PackageError(f"{model_path}: expected the model's program, got nothing; copy the whole package")
    return model_path


def _parse(path: Path) -> Any:
    model = messages()[0].Model()
    try:
        model.ParseFromString(path.read_bytes())
    except decode_error() as error:
        raise PackageError(
            f"{path}: expected a Core ML model, got other bytes ({error}); convert again"
        ) from error
    return model


class _Reader:
    """Converts protobuf messages to our types. Opens each weight file once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._weights: dict[str, WeightFile] = {}
        self._dtype_names = {value.number: value.name for value in messages()[1].DataType.DESCRIPTOR.values}

    def operation(self, op: Any) -> Operation:
        name = _text(op.attributes, "name") or (op.outputs[0].name if op.outputs else "")
        where = f"{op.type} {name!r}"
        if op.blocks:
            raise PackageError(
                f"{where}: expected straight-line operations, got control flow; export without branches"
            )
        arguments = {
            key: tuple(
                b.name if b.WhichOneof("binding") == "name" else self.constant(b.value, where)
                for b in a.arguments
            )
            for key, a in op.inputs.items()
        }
        # `const` and, before iOS 18, the constexpr operations carry their arguments as attributes.
        carries = op.type == "const" or op.type.startswith("constexpr_")
        attributes = op.attributes.items() if carries else ()
        given = {key: (self.constant(v, where),) for key, v in attributes if key != "name"}
        outputs = tuple(Output(o.name, self.type(o.type, where)) for o in op.outputs)
        return Operation(op.type, name, arguments | given, outputs)

    def type(self, value: Any, where: str) -> TensorType:
        kind = value.WhichOneof("type")
        if kind != "tensorType":
            raise PackageError(f"{where}: expected a tensor, got a {kind}; export without states and lists")
        tensor = value.tensorType
        shape = tuple(
            d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions
        )
        return TensorType(dtype_name(self._dtype_names.get(tensor.dataType, str(tensor.dataType))), shape)

    def constant(self, value: Any, where: str) -> Constant:
        type = self.type(value.type, where)
        if value.WhichOneof("value") == "blobFileValue":
            weights = self._open(value.blobFileValue.fileName, where)
            offset = int(value.blobFileValue.offset)
            return Constant(type, None, weights, offset, weights.check(offset, type))
        array = _immediate(value.immediateValue, type, where)
        return Constant(type, array, stored_bytes=0 if isinstance(array, str) else array.nbytes)

    def _open(self, name: str, where: str) -> WeightFile:
        if name not in self._weights:
            path = self._folder / name.removeprefix(_MODEL_PREFIX)
            if not path.resolve().is_relative_to(self._folder.resolve()):
                raise PackageError(f"{where}: expected a weight file inside the package, got {name!r}")
            self._weights[name] = WeightFile(path)
        return self._weights[name]


def _text(attributes: Any, key: str) -> str:
    return str(attributes[key].immediateValue.tensor.strings.values[0]) if key in attributes else ""


def _immediate(value: Any, type: TensorType, where: str) -> np.ndarray | str:
    """A constant stored in the program itself."""
    if value.WhichOneof("value") != "tensor":
        raise PackageError(
            f"{where}: expected a constant tensor, got a {value.WhichOneof('value')}; convert again"
        )
    kind = value.tensor.WhichOneof("value")
    values: Any = getattr(value.tensor, kind).values if kind else ()
    if type.dtype == STRING:
        if type.shape != () or len(values) != 1:
            raise PackageError(f"{where}: expected one string, got {len(values)}; convert again")
        return str(values[0])
    dtype = DTYPES[type.dtype]
    try:
        if kind == "bytes":
            array = unpack(np.frombuffer(values, np.uint8), dtype, type.count)
        else:
            array = np.array(values, dtype=dtype.array)
        return array.reshape(type.known)
    except ValueError as error:
        raise PackageError(
            f"{where}: expected a constant {type}, got other values ({error}); convert again"
        ) from error
