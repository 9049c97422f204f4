"""What other models cost in an accuracy table: parameters, bytes, time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import write_pairs

from gdposr.bench.peers import Peer, count_ncnn, onnx_size, peer_methods


def write_srvgg(folder: Path) -> tuple[Path, int]:
    """A miniature SRVGG network for ncnn, factor 4, and how many weights it has."""
    lines = [
        "Input data 0 1 data",
        "Split split 1 2 data a b",
        "Convolution first 1 1 a c 0=8 1=3 4=1 5=1 6=216",
        "PReLU bend 1 1 c d 0=8",
        "Convolution last 1 1 d e 0=48 1=3 4=1 5=1 6=3456",
        "PixelShuffle shuffle 1 1 e f 0=4",
        "Interp enlarge 1 1 b g 0=1 1=4.0 2=4.0",
        "BinaryOp add 2 1 f g output 0=0",
    ]
    folder.mkdir()
    param = folder / "net.param"
    param.write_text("\n".join(["7767517", f"{len(lines)} 9", *lines]) + "\n")
    rng = np.random.default_rng(0)
    groups = [(216, True), (8, False), (8, False), (3456, True), (48, False)]
    with param.with_suffix(".bin").open("wb") as stream:
        for count, tagged in groups:
            stream.write(b"\0\0\0\0" if tagged else b"")
            stream.write(rng.normal(0, 0.05, count).astype("<f4").tobytes())
    return param, sum(count for count, _ in groups)


def test_an_ncnn_network_is_counted_from_its_param_file(tmp_path: Path) -> None:
    param, count = write_srvgg(tmp_path / "net")
    assert count_ncnn(param) == count
    text = param.read_text()
    param.write_text(text + "InnerProduct dense 1 1 output more 0=10 1=0 2=480\n\n")
    assert count_ncnn(param) == count + 480
    param.write_text(text + "DeformableConv2D strange 1 1 output more 0=8\n")
    assert count_ncnn(param) is None  # better none than a wrong one


def test_the_known_peer_has_its_published_size(shared_data: Any) -> None:
    assert count_ncnn(shared_data("peers/RealESRGAN_General_x4_v3.param")) == 1_213_296


@pytest.mark.parametrize("outside", [False, True])
def test_an_onnx_file_is_counted_with_the_files_beside_it(need: Any, tmp_path: Path, outside: bool) -> None:
    need("onnx")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.zeros((12, 3, 3, 3), np.float32)
    constants = [
        numpy_helper.from_array(kernel, "kernel"),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "factors"),
        numpy_helper.from_array(np.zeros((4, 5), np.int8), "quantized"),
        numpy_helper.from_array(np.zeros(4, np.int8), "zero points"),
        numpy_helper.from_array(np.array(0.1, np.float32), "scalar"),
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "shape"),
    ]
    bias = numpy_helper.from_array(np.zeros(12, np.float32), "held in a node")
    nodes = [
        helper.make_node("Constant", [], ["bias"], value=bias),
        helper.make_node("Conv", ["image", "kernel", "bias"], ["wide"], pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["wide", "", "factors"], ["large"]),
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("image", "large")]
    graph = helper.make_graph(nodes, "net", tensors[:1], tensors[1:], constants)
    options = (
        {"save_as_external_data": True, "location": "net.weights", "size_threshold": 0} if outside else {}
    )
    file = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph), file, **options)
    assert (tmp_path / "net.weights").exists() is outside
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert onnx_size(file) == (kernel.size + 12 + 20, size)


def test_a_peer_s_row_has_its_size() -> None:
    (method,) = peer_methods({"net": Peer(lambda image: image.repeat(4, 2).repeat(4, 3), 7, 99)})
    assert (method.name, method.kind, method.parameters, method.bytes) == ("net", "peer", 7, 99)
    lr = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(method.upscale("a", lr), lr.repeat(4, 0).repeat(4, 1))


def test_the_command_counts_and_times_peers(
    gdposr: Any, toy_bundle: Path, make_pixels: Callable[..., np.ndarray], tmp_path: Path, need: Any
) -> None:
    need("onnx")
    from gdposr.bench.peers import ncnn_to_onnx

    param, count = write_srvgg(tmp_path / "net")
    graph = ncnn_to_onnx(param)
    (tmp_path / "other.onnx").write_bytes(graph)
    code, out, err = gdposr(
        "accuracy", toy_bundle, *write_pairs(make_pixels, tmp_path), "--precision", "fp32", "--rounds", 1, "--threads", 1, "--json",
        "--peer-ncnn", param, "--peer-onnx", tmp_path / "other.onnx",
    )  # fmt: skip
    assert code == 0, err
    found = {row["name"]: row for row in json.loads(out)["rows"] if row["kind"] == "peer"}
    sizes = {
        "other (onnx)": len(graph),
        "net (ncnn)": sum(path.stat().st_size for path in param.parent.iterdir()),
        "net (onnx)": len(graph),
    }
    assert {"other (onnx)", "net (onnx)"} <= set(found) <= set(sizes)  # ncnn itself may be missing
    for name, row in found.items():
        assert (row["parameters"], row["bytes"]) == (count, sizes[name])
        assert row["milliseconds"] > 0
