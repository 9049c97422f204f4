"""coremltools' protobuf classes, loaded without the rest of coremltools.

Importing coremltools takes seconds, imports torch and prints warnings. The classes are the same as in
`coremltools.proto`, since protobuf keeps one set per process."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, Final

_NAME: Final = "export.mil.package._coremltools_proto"


def messages() -> tuple[Any, Any]:
    """The modules Model_pb2 and MIL_pb2. Raises ModuleNotFoundError if coremltools is not installed."""
    found = importlib.util.find_spec("coremltools")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "expected coremltools, got nothing; install the extra: pip install 'gdposr[coreml]'",
            name="coremltools",
        )
    if _NAME not in sys.modules:
        folder = Path(found.submodule_search_locations[0]) / "proto"
        spec = importlib.util.spec_from_file_location(
            _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules[_NAME] = package  # its modules import each other through it
        try:
            spec.loader.exec_module(package)
        except BaseException:
            del sys.modules[_NAME]
            raise
    return importlib.import_module(f"{_NAME}.Model_pb2"), importlib.import_module(f"{_NAME}.MIL_pb2")


def decode_error() -> type[Exception]:
    """The exception for bytes that cannot be parsed as a message."""
    error: type[Exception] = importlib.import_module("google.protobuf.message").DecodeError
    return error
