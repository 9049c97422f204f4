"""Graphs that name files outside themselves, found without the package onnx and before a session is made."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.backends.onnx import OnnxBackend
from runtime.bundle.entries import Graph, WeightFile
from runtime.bundle.external_data import MAX_DEPTH, External, check_external, external_data
from runtime.bundle.reader import DEFAULT_BUNDLE, Bundle
from runtime.errors import BundleError

HASH = "0" * 64


@pytest.fixture
def onnx() -> Any:
    return pytest.importorskip("onnx", reason="needs the extra `export`")


@pytest.fixture
def outside(onnx: Any) -> Callable[..., Any]:
    """outside("weights.data", offset=0, ...): a tensor whose values stand in that file."""

    def make(location: str = "weights.data", name: str = "w", **pairs: object) -> Any:
        tensor = onnx.TensorProto(name=name, dims=[2], data_type=1, data_location=1)
        for key, value in {"location": location, **pairs}.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    return make


@pytest.fixture
def model(onnx: Any) -> Any:
    """An empty model to put tensors into."""
    return onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(name="g"))


def found(model: Any) -> tuple[External, ...]:
    return external_data("g.onnx", model.SerializeToString())


def field(number: int, content: bytes) -> bytes:
    """A protobuf field with a length of at most 127 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def test_graphs_of_our_own_name_nothing(toy_bundle: Path) -> None:
    for path in [*toy_bundle.glob("*.onnx"), *DEFAULT_BUNDLE.glob("*.onnx")]:
        assert external_data(path.name, path.read_bytes()) == ()


def test_initializer(model: Any, outside: Callable) -> None:
    model.graph.initializer.append(outside("a.data", "conv.w", offset=64, length=8, checksum="ab"))
    assert found(model) == (External("conv.w", "a.data", 64, 8),)


def test_every_place_a_tensor_may_stand_in(onnx: Any, model: Any, outside: Callable) -> None:
    """Initializers, attributes, subgraphs, sparse tensors, functions and training graphs, also inside one another."""
    graph, wanted = model.graph, []

    def new() -> Any:
        wanted.append(f"{len(wanted)}.data")
        return outside(wanted[-1], name=f"t{len(wanted)}")

    graph.initializer.append(new())
    graph.sparse_initializer.add().values.CopyFrom(new())
    graph.sparse_initializer.add().indices.CopyFrom(new())
    node = graph.node.add(op_type="If")
    node.attribute.add(name="value").t.CopyFrom(new())
    node.attribute.add(name="values").tensors.append(new())
    node.attribute.add(name="sparse").sparse_tensor.values.CopyFrom(new())
    node.attribute.add(name="sparses").sparse_tensors.add().indices.CopyFrom(new())
    branch = node.attribute.add(name="then_branch").g
    branch.initializer.append(new())
    inner = branch.node.add(op_type="Loop").attribute.add(name="bodies").graphs.add()
    inner.initializer.append(new())
    inner.node.add(op_type="Constant").attribute.add(name="value").t.CopyFrom(new())
    function = model.functions.add(name="f")
    function.node.add(op_type="Constant").attribute.add(name="value").t.CopyFrom(new())
    function.attribute_proto.add(name="default").t.CopyFrom(new())
    training = model.training_info.add()
    training.initialization.initializer.append(new())
    training.algorithm.initializer.append(new())
    assert sorted(tensor.location for tensor in found(model)) == sorted(wanted)
    # and there is no other: every message of onnx.proto that leads to a tensor was visited
    assert _types_that_hold(onnx.TensorProto, onnx.ModelProto) == {
        "ModelProto", "GraphProto", "NodeProto", "AttributeProto", "SparseTensorProto", "FunctionProto", "TrainingInfoProto",
    }  # fmt: skip


def _types_that_hold(wanted: Any, top: Any) -> set[str]:
    """Names of the messages under top from which the message type wanted can be reached, without itself."""
    children: dict[str, set[str]] = {}
    waiting = [top.DESCRIPTOR]
    while waiting:
        kind = waiting.pop()
        if kind.name not in children:
            inner = [field.message_type for field in kind.fields if field.message_type is not None]
            children[kind.name] = {child.name for child in inner}
            waiting.extend(inner)
    holding = {wanted.DESCRIPTOR.name}
    while more := {name for name, inner in children.items() if inner & holding} - holding:
        holding |= more
    return holding - {wanted.DESCRIPTOR.name}


@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/passwd", "C:\\secret", "weights.data/../../secret", "./weights.data", "WEIGHTS.data", "other.data",
     "*/_ORT_MEM_ADDR_/*", "weights.data ", "écoute", "x" * 5000],
)  # fmt: skip
def test_any_file_but_the_one_the_manifest_names_is_refused(
    model: Any, outside: Callable, location: str
) -> None:
    model.graph.initializer.append(outside(location))
    for data in (None, WeightFile("weights.data", 100, HASH)):
        with pytest.raises(
            BundleError, match=r"g\.onnx: tensor 'w': expected values .*nothing was opened"
        ) as caught:
            check_external("g.onnx", model.SerializeToString(), data)
        assert len(str(caught.value)) < 400


def test_the_file_the_manifest_names_is_taken_as_far_as_it_reaches(model: Any, outside: Callable) -> None:
    model.graph.initializer.append(outside(offset=92, length=8))
    content = model.SerializeToString()
    check_external("g.onnx", content, WeightFile("weights.data", 100, HASH))
    with pytest.raises(BundleError, match=r"within the 99 bytes of weights\.data, got bytes 92 to 100"):
        check_external("g.onnx", content, WeightFile("weights.data", 99, HASH))


@pytest.mark.parametrize(
    "pairs", [{"offset": -1}, {"offset": "1e3"}, {"offset": " 1"}, {"length": "9" * 30}, {"length": "\u0661"},
              {"offset": ""}, {"prepacked_0": "1"}],
)  # fmt: skip
def test_pairs_that_readers_may_take_differently(model: Any, outside: Callable, pairs: dict) -> None:
    model.graph.initializer.append(outside(**pairs))
    with pytest.raises(BundleError, match=r"g\.onnx: expected an ONNX graph, got external data with"):
        found(model)


def test_location_that_is_missing_or_stated_twice(onnx: Any, model: Any, outside: Callable) -> None:
    tensor = outside()
    tensor.external_data.add(key="location", value="../secret")
    model.graph.initializer.append(tensor)
    with pytest.raises(BundleError, match="'location' twice"):
        found(model)
    for bare in (onnx.TensorProto(name="w", data_location=1), outside("")):
        del model.graph.initializer[:]
        model.graph.initializer.append(bare)
        with pytest.raises(BundleError, match="without a location"):
            found(model)


def test_location_of_a_tensor_that_does_not_say_it_is_outside(model: Any, outside: Callable) -> None:
    """Readers of other versions may look at the location alone."""
    tensor = outside("../secret")
    tensor.ClearField("data_location")
    model.graph.initializer.append(tensor)
    assert [tensor.location for tensor in found(model)] == ["../secret"]


def test_tensor_in_two_pieces_that_protobuf_would_join(onnx: Any, outside: Callable) -> None:
    """A field that stands once may be written twice: its parts are merged, and each alone looks harmless."""
    pieces = [onnx.TensorProto(name="w", data_location=1), outside("a")]
    attribute = b"".join(field(5, piece.SerializeToString()) for piece in pieces)
    content = field(7, field(1, field(5, attribute)))
    merged = onnx.ModelProto.FromString(content).graph.node[0].attribute[0].t
    assert [pair.value for pair in merged.external_data] == ["a"]
    with pytest.raises(BundleError, match="field 5 of message attribute twice"):
        external_data("g.onnx", content)


def test_node_that_reads_a_compiled_model_from_a_file(model: Any) -> None:
    model.graph.node.add(op_type="EPContext", domain="com.microsoft")
    with pytest.raises(BundleError, match="EPContext"):
        found(model)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x89PNG\r\n\x1a\n", b"<?xml version='1.0'?><net/>", b"\x18\x00\x00\x00ORTM" + bytes(64), b"\x08\x08",
        b"\x3a", b"\x3a\xff", b"\x3a\x05ab", b"\x38\x01", b"\x0b\x0c", b"\x00\x00", b"\x80" * 11, b"\xff" * 9 + b"\x7f",
        b"\xba\x80\x80\x80\x10\x00", b"\x3a\x00\x3a\x00", b"\x3a\x02\x28\x01", b"\x3a\x06\x0a\x04\x22\x02\xff\xff",
    ],
)  # fmt: skip
def test_bytes_that_are_no_onnx(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"g\.onnx: expected an ONNX graph, got"):
        external_data("g.onnx", content)


def test_a_tag_that_only_some_readers_cut_to_32_bits_hides_nothing(onnx: Any) -> None:
    """0x1_0000_003A is field 7, the graph, for a reader that drops the high bits, and an unknown field for another."""
    with pytest.raises(BundleError, match="no protobuf"):
        external_data("g.onnx", b"\x3a\x00" + b"\xba\x80\x80\x80\x10" + b"\x00")


def test_unknown_fields_are_passed_over(model: Any, outside: Callable) -> None:
    """A later version of ONNX may add some; ONNX Runtime passes over them too."""
    model.graph.initializer.append(outside("a"))
    extra = b"\xa0\x3f\x07" + b"\xa1\x3f" + bytes(8) + b"\xa5\x3f" + bytes(4) + b"\xa2\x3f\x03abc"
    content = extra + model.SerializeToString() + extra
    assert [tensor.location for tensor in external_data("g.onnx", content)] == ["a"]


def test_nesting_is_bounded() -> None:
    """Graphs within graphs, by way of a node (field 1 of a graph), its attribute (5) and the graph in that (6)."""
    graph = b""
    for _ in range(MAX_DEPTH // 3):
        graph = _long(1, _long(5, _long(6, graph)))
    assert external_data("g.onnx", _long(7, b"")) == ()
    with pytest.raises(BundleError, match=f"nested more than {MAX_DEPTH} deep"):
        external_data("g.onnx", _long(7, graph))


def _long(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_number_of_fields_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.bundle.external_data.MAX_FIELDS", 1000)
    external_data("g.onnx", b"\x08\x01" * 998 + b"\x3a\x00")
    with pytest.raises(BundleError, match="more than 1000 fields"):
        external_data("g.onnx", b"\x08\x01" * 1000 + b"\x3a\x00")


def test_weights_are_not_looked_into(onnx: Any, model: Any) -> None:
    """Bytes of a weight that read like external data are a weight."""
    model.graph.initializer.add(
        name="w", dims=[24], data_type=2, raw_data=b"\x6a\x16\x0a\x08location\x12\x0a../secret"
    )
    assert found(model) == ()


def test_graph_is_refused_before_anything_could_open_the_file(
    onnx: Any, toy_copy: Path, outside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is there and readable, in the working folder and beside the graph; no session is even made."""
    path = toy_copy / "encoder.fp32.onnx"
    graph = onnx.load(path)
    secret = toy_copy.parent / "secret"
    secret.write_bytes(graph.graph.initializer[0].raw_data)
    graph.graph.initializer[0].CopyFrom(outside("../secret", graph.graph.initializer[0].name))
    path.write_bytes(graph.SerializeToString())
    bundle = Bundle.open(toy_copy)
    content = path.read_bytes()
    bundle.manifest.graphs["fp32"]["encoder"] = Graph(
        path.name, len(content), hashlib.sha256(content).hexdigest()
    )
    made = []
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *args, **options: made.append(args))
    monkeypatch.chdir(toy_copy)
    with pytest.raises(BundleError, match=r"got values in the file '\.\./secret'.*nothing was opened"):
        OnnxBackend(bundle, "cpu", "fp32", threads=1)
    assert not made


def test_scanning_random_changes_ends_in_an_answer_or_a_bundle_error(toy_bundle: Path) -> None:
    draw = random.Random(5)
    contents = [path.read_bytes() for path in sorted(toy_bundle.glob("*.onnx"))]
    refused = 0
    for _ in range(500):
        content = bytearray(draw.choice(contents))
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        try:
            external_data(
                "g.onnx", bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
            )
        except BundleError:
            refused += 1
    assert refused > 250
