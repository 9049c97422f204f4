"""The files that an ONNX graph names, found before the graph goes to a library that could open them.

A walk over the protobuf wire format (protobuf.dev/programming-guides/encoding). It visits exactly the messages that may hold a tensor.
It is stricter than protobuf: anything that two readers could understand differently is refused.

Not read with onnx's protobuf classes: the runtime does not depend on onnx, and they merge repeated fields and copy every weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..checks import shortened
from ..errors import BundleError
from .entries import WeightFile

# Nested messages. Protobuf has the same limit.
MAX_DEPTH: Final = 100
# Bounds the time to a few seconds. A graph of 10,000 nodes has about 200,000 fields.
MAX_FIELDS: Final = 4_000_000
# Wire types, for the fixed ones with their bytes. ONNX does not use the remaining types, which are groups.
_VARINT, _BYTES, _FIXED = 0, 2, {1: 8, 5: 4}
# Message -> field number -> message: every path from a model to its tensors (onnx.proto, IR version 13).
_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
# Fields that may occur once. Protobuf would merge two of them into one.
_SINGLE: Final = {
    "model": {7}, "training": {1, 2}, "function": set(), "graph": set(), "node": {4}, "attribute": {5, 6, 22},
    "sparse": {1, 2}, "tensor": {8, 14}, "entry": {1, 2},
}  # fmt: skip
# Keys of a tensor's external data.
_KEYS: Final = {"location", "offset", "length", "checksum"}
_Value = int | memoryview


@dataclass(frozen=True)
class External:
    """A tensor with its values in another file."""

    tensor: str
    """Name of the tensor."""
    location: str
    """Name of the file."""
    offset: int
    """First byte of its values in that file."""
    length: int | None
    """Bytes. None: as its shape says."""


class _Fault(Exception):
    """What is wrong with a graph. `external_data` makes a BundleError of it."""


def check_external(what: str, content: bytes, data: WeightFile | None) -> None:
    """BundleError unless every tensor of a graph is inside it, or inside data, the file that the manifest names for it."""
    for tensor in external_data(what, content):
        where = f"{what}: tensor {shortened(tensor.tensor)}"
        if data is None or tensor.location != data.file:
            wanted = "values inside the graph" if data is None else f"values in {data.file}"
            raise BundleError(
                f"{where}: expected {wanted}, got values in the file {shortened(tensor.location)}, which the manifest does "
                "not name for this graph; nothing was opened: export the bundle again, or do not trust it"
            )
        if tensor.offset + (tensor.length or 0) > data.bytes:
            raise BundleError(
                f"{where}: expected values within the {data.bytes} bytes of {data.file}, got bytes {tensor.offset} to "
                f"{tensor.offset + (tensor.length or 0)}; export the bundle again"
            )


def external_data(what: str, content: bytes) -> tuple[External, ...]:
    """The tensors of a serialized ONNX model that name another file, also in subgraphs, attributes, functions and sparse tensors.

    what: names the graph in messages. BundleError if content is not an ONNX model, or if a node reads a file itself (EPContext).
    """
    try:
        return tuple(_walk(memoryview(content)))
    except _Fault as fault:
        raise BundleError(f"{what}: expected an ONNX graph, got {fault}; export the bundle again") from fault


def _walk(content: memoryview) -> Iterator[External]:
    left, graphs = MAX_FIELDS, 0
    waiting = [("model", content, 1)]
    while waiting:
        kind, message, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _Fault(f"messages nested more than {MAX_DEPTH} deep")
        seen: set[int] = set()
        entries: list[memoryview] = []
        name, stated = "", 0
        for number, value in _fields(message):
            left -= 1
            if left < 0:
                raise _Fault(f"more than {MAX_FIELDS} fields")
            if number in _SINGLE[kind]:
                if number in seen:
                    raise _Fault(f"field {number} of message {kind} twice")
                seen.add(number)
            child = _CHILDREN[kind].get(number)
            if child == "entry":
                entries.append(_bytes(kind, number, value))
            elif child is not None:
                graphs += kind == "model" and child == "graph"
                waiting.append((child, _bytes(kind, number, value), depth + 1))
            elif kind == "node" and number == 4:
                if _text(_bytes(kind, number, value)) == "EPContext":
                    raise _Fault("a node EPContext, which names a compiled model in a file of its own")
            elif kind == "tensor" and number == 8:
                name = _text(_bytes(kind, number, value))
            elif kind == "tensor" and number == 14:
                if not isinstance(value, int):
                    raise _Fault("a data_location that is no number")
                stated = value
        if entries or stated:
            yield _external(name, entries)
    if not graphs:
        raise _Fault("something else, or a model without a graph")


def _external(name: str, entries: list[memoryview]) -> External:
    """The key-value pairs of a tensor's external_data, each key once."""
    found: dict[str, str] = {}
    for entry in entries:
        pair = {1: "", 2: ""}
        for number, value in _fields(entry):
            if number not in pair or pair[number]:
                raise _Fault("external data that is no pair of texts")
            pair[number] = _text(_bytes("entry", number, value))
        if pair[1] in found:
            raise _Fault(f"external data with {shortened(pair[1])} twice")
        if pair[1] not in _KEYS:
            raise _Fault(f"external data with the unknown key {shortened(pair[1])}")
        found[pair[1]] = pair[2]
    if not found.get("location"):
        raise _Fault(f"external data of tensor {shortened(name)} without a location")
    length = None if "length" not in found else _whole(found["length"])
    return External(name, found["location"], _whole(found.get("offset", "0")), length)


def _fields(message: memoryview) -> Iterator[tuple[int, _Value]]:
    """(field number, value) of a message in its order: numbers as int, everything with a length as its bytes."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if tag >= 1 << 32 or number == 0:
            raise _Fault("bytes that are no protobuf")
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in _FIXED:
            size = _FIXED[wire]
        else:
            raise _Fault("bytes that are no protobuf")
        if size > end - at:
            raise _Fault("a protobuf that is cut off")
        value_bytes = message[at : at + size]
        yield number, value_bytes if wire == _BYTES else int.from_bytes(value_bytes, "little")
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A base-128 number of at most 64 bits, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _Fault("a protobuf that is cut off")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _Fault("bytes that are no protobuf")


def _bytes(kind: str, number: int, value: _Value) -> memoryview:
    if isinstance(value, int):
        raise _Fault(f"a number as field {number} of message {kind}")
    return value


def _text(value: memoryview) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise _Fault("a name that is not UTF-8") from None


def _whole(text: str) -> int:
    """A number of digits only. Readers differ on a sign, blanks or a fraction."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise _Fault(f"external data with the number {shortened(text)}")
    return int(text)
