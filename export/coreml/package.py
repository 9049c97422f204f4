"""Core ML packages on disk: the same bytes for the same content, and written completely or not at all.

A package is a folder. Manifest.json names the model (a protobuf) and the folder with its weights. coremltools gives
both random identifiers, stores the date in the model and writes the protobuf's maps in random order. All of this is removed here."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import json
import logging
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from export.mil.package.program import MANIFEST, SUFFIX
from export.mil.package.tensor import PackageError
from training.checkpoint import swapped_in

if TYPE_CHECKING:
    from coremltools.models import MLModel
    from coremltools.proto.MIL_pb2 import Operation
    from coremltools.proto.Model_pb2 import Model

_DATA = Path("Data")
_MODEL = Path("com.apple.CoreML") / "model.mlmodel"
_WEIGHTS = Path("com.apple.CoreML") / "weights"
_AUTHOR = "com.apple.CoreML"
_DATE: Final = "com.github.apple.coremltools.conversion_date"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "gdposr mlpackage")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress coremltools' progress bars, warnings and log, also during its import."""
    log = logging.getLogger("coremltools")
    level = log.level
    log.setLevel(logging.ERROR + 1)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def fresh_names() -> Iterator[None]:
    """Restart coremltools' numbering of constants at 0, so that a package does not depend on earlier conversions in the process."""
    from coremltools.converters.mil.mil.builder import Builder

    before, Builder.name_count = Builder.name_count, collections.defaultdict(int)
    try:
        yield
    finally:
        Builder.name_count = before


def write_package(spec: Model, weights: Path | None, path: Path) -> Path:
    """Write a model and the files of its weights folder as a package, replacing an existing one.

    The package contains no trace of machine or date. If writing fails, the existing package stays and nothing else is left."""
    if path.suffix != SUFFIX:
        raise PackageError(f"expected a package name that ends in {SUFFIX}, got {path.name}; rename it")
    model = _undated(spec).SerializeToString(deterministic=True)
    with swapped_in(path) as fresh:
        (fresh / _DATA / _MODEL).parent.mkdir(parents=True)
        (fresh / _DATA / _MODEL).write_bytes(model)
        items = {_MODEL: ("CoreML Model Specification", hashlib.sha256(model))}
        if weights is not None and weights.is_dir():
            items[_WEIGHTS] = ("CoreML Model Weights", hashlib.sha256())
            (fresh / _DATA / _WEIGHTS).mkdir()
            for file in sorted(weights.iterdir()):
                shutil.copyfile(file, fresh / _DATA / _WEIGHTS / file.name)
                with file.open("rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").hexdigest()
                items[_WEIGHTS][1].update(f"{file.name} {digest}\n".encode())
        (fresh / MANIFEST).write_text(_manifest({p: (d, h.hexdigest()) for p, (d, h) in items.items()}))
    return path


def read_model(path: Path) -> MLModel:
    """A copy of the package as coremltools' model, not compiled and not loaded on a device.

    Opened by its path, coremltools would rewrite the package's Manifest.json."""
    spec, weights = read_spec(path), weights_folder(path)
    with quiet():
        from coremltools.models import MLModel

        return MLModel(spec, weights_dir=str(weights) if weights.is_dir() else None, skip_model_load=True)


def read_spec(path: Path) -> Model:
    """The package's protobuf. Weights stay in their file."""
    _check(path)
    with quiet():
        from coremltools.proto.Model_pb2 import Model
    spec = Model()
    spec.ParseFromString((path / _DATA / _MODEL).read_bytes())
    return spec


def weights_folder(path: Path) -> Path:
    """The folder with the package's weight files."""
    return path / _DATA / _WEIGHTS


def operations(spec: Model) -> Iterator[Operation]:
    """Every operation of the program, including nested blocks, in order of the functions' names."""

    def walk(block: Any) -> Iterator[Operation]:
        for operation in block.operations:
            yield operation
            for inner in operation.blocks:
                yield from walk(inner)

    if spec.WhichOneof("Type") != "mlProgram":
        raise PackageError(f"expected an ML program, got a {spec.WhichOneof('Type')}; convert it again")
    for _, function in sorted(spec.mlProgram.functions.items()):
        for _, block in sorted(function.block_specializations.items()):
            yield from walk(block)


def argument(operation: Operation, name: str) -> str | None:
    """The name of the value for an operation's argument; None if it has no such argument or an inline value."""
    if name not in operation.inputs:
        return None
    bindings = operation.inputs[name].arguments
    return (bindings[0].name or None) if len(bindings) else None


def _check(path: Path) -> None:
    for name in (Path(MANIFEST), _DATA / _MODEL):
        if not (path / name).is_file():
            raise PackageError(
                f"{path} is not a Core ML package: expected {name.as_posix()} inside it; give a folder written by `gdposr export`"
            )


def _undated(spec: Model) -> Model:
    """A copy of the model without its date."""
    copy = type(spec)()
    copy.CopyFrom(spec)
    copy.description.metadata.userDefined.pop(_DATE, None)
    return copy


def _manifest(items: Mapping[Path, tuple[str, str]]) -> str:
    """Manifest.json for (description, digest) by path. An item's identifier is a function of its path and content."""
    identifiers = {
        path: str(uuid.uuid5(_NAMESPACE, f"{path.as_posix()} {digest}")).upper()
        for path, (_, digest) in items.items()
    }
    entries = {
        identifiers[path]: {
            "author": _AUTHOR,
            "description": description,
            "name": path.name,
            "path": path.as_posix(),
        }
        for path, (description, _) in items.items()
    }
    document = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": identifiers[_MODEL],
    }
    return json.dumps(document, indent=2, sort_keys=True) + "\n"
