"""Other super-resolution models for the benchmark and the accuracy table: any ONNX file, or a plain ncnn network.

An ncnn network of the SRVGG kind (realesr-general-x4v3) is timed in ncnn if that package is installed. If `onnx` is installed it is
also rebuilt from the same weights and timed in ONNX Runtime, so that two models can be compared in the same library.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gdposr.console import UsageError

if TYPE_CHECKING:
    from calibration.measure.methods import Method

# (1, 3, h, w) float32 RGB in [0, 1] -> (1, 3, H, W) float32.
Run = Callable[[np.ndarray], np.ndarray]

# Layers without weights in ncnn's networks for pictures.
WEIGHTLESS = (
    *(
        "Input",
        "Split",
        "Slice",
        "Crop",
        "Padding",
        "Concat",
        "Flatten",
        "Reshape",
        "Permute",
        "Noop",
        "Dropout",
    ),
    *("BinaryOp", "UnaryOp", "Eltwise", "Interp", "PixelShuffle", "Reorg", "Pooling", "Clip", "Softmax"),
    *("ReLU", "Sigmoid", "TanH", "Swish", "HardSwish", "HardSigmoid", "GELU", "Mish", "ELU"),
)


@dataclass(frozen=True)
class Peer:
    """Another model, called as `Run`."""

    run: Run
    """(1, 3, h, w) float32 RGB in [0, 1] -> (1, 3, H, W) float32."""
    parameters: int | None
    """Number of weights; None: not known."""
    bytes: int | None
    """Size of its files, or of the graph rebuilt from them; None: not known."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return self.run(image)


def load_peers(onnx_files: Sequence[Path], param: Path | None, threads: int) -> dict[str, Peer]:
    """The models of --peer-onnx and --peer-ncnn by name, the ncnn one in every installed library."""
    peers = {f"{file.stem} (onnx)": Peer(onnx_peer(file, threads), *onnx_size(file)) for file in onnx_files}
    if param is not None:
        if find_spec("ncnn") is None and find_spec("onnx") is None:
            raise UsageError("--peer-ncnn needs the package ncnn or onnx: pip install ncnn onnx")
        try:
            peers |= _ncnn_peers(param, threads)
        except (FileNotFoundError, ValueError) as error:  # of reading the files
            raise UsageError(str(error)) from error
    return peers


def _ncnn_peers(param: Path, threads: int) -> dict[str, Peer]:
    from export.prior.ncnn import weights_of

    peers: dict[str, Peer] = {}
    weights, parameters = weights_of(param), count_ncnn(param)
    if find_spec("ncnn") is not None:
        size = param.stat().st_size + weights.stat().st_size
        peers[f"{param.stem} (ncnn)"] = Peer(ncnn_peer(param, threads), parameters, size)
    if find_spec("onnx") is not None:
        graph = ncnn_to_onnx(param)
        peers[f"{param.stem} (onnx)"] = Peer(onnx_peer(graph, threads), parameters, len(graph))
    return peers


def peer_methods(peers: Mapping[str, Peer]) -> "list[Method]":
    """Rows of an accuracy table."""
    from calibration.measure.methods import peer_method

    return [peer_method(name, on_pictures(peer), peer.parameters, peer.bytes) for name, peer in peers.items()]


def on_pictures(run: Run) -> Callable[[np.ndarray], np.ndarray]:
    """A peer as a function from (h, w, 3) uint8 to (H, W, 3) uint8."""

    def enlarge(picture: np.ndarray) -> np.ndarray:
        output = run(picture.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255))[0]
        return np.rint(np.clip(output, 0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)

    return enlarge


def onnx_peer(model: Path | bytes, threads: int) -> Run:
    """A model with one NCHW input and one output, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # as in our backend: idle threads let others run
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if isinstance(model, Path) and not model.is_file():
        raise UsageError(f"{model}: expected an ONNX file, there is nothing: check the path")
    try:
        session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's own exception types share no base but Exception
        raise UsageError(
            f"{model if isinstance(model, Path) else 'peer'}: not a usable ONNX file: {error}"
        ) from error
    if len(session.get_inputs()) != 1:
        names = [tensor.name for tensor in session.get_inputs()]
        raise UsageError(
            f"{model if isinstance(model, Path) else 'peer'}: expected one image input, got {names}"
        )
    name = session.get_inputs()[0].name
    return lambda image: np.asarray(session.run(None, {name: image})[0])


def ncnn_peer(param: Path, threads: int) -> Run:
    """An ncnn network with input blob `data` and output blob `output`. Its weights are in the .bin file beside it."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    if net.load_param(str(param)) != 0 or net.load_model(str(param.with_suffix(".bin"))) != 0:
        raise UsageError(f"{param}: ncnn cannot load it: expected a .param file and its .bin beside it")

    def run(image: np.ndarray) -> np.ndarray:
        planes = np.ascontiguousarray(image[0])  # ncnn.Mat borrows this memory: it must outlive the run
        with net.create_extractor() as extractor:
            extractor.input("data", ncnn.Mat(planes))
            return np.array(extractor.extract("output")[1])[None]

    return run


def onnx_size(file: Path) -> tuple[int | None, int | None]:
    """(parameters, bytes) of an ONNX file with the files beside it that hold its weights. None without the package `onnx`, and for
    ONNX Runtime's own format.

    Parameters are the constants in floating point and the matrices and kernels in 8 bits, except the factors of a Resize.
    """
    if find_spec("onnx") is None or file.suffix == ".ort":
        return None, None
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    factors = {
        name for node in graph.node if node.op_type in ("Resize", "Upsample") for name in node.input[1:]
    }
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            tensors.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
    kinds = onnx.TensorProto
    floats = (kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE)
    octets = (kinds.INT8, kinds.UINT8)
    axes = dict.fromkeys(floats, 1) | dict.fromkeys(octets, 2)  # with fewer: a scalar, a zero point
    parameters = sum(
        math.prod(tensor.dims)
        for name, tensor in tensors.items()
        if name not in factors and len(tensor.dims) >= axes.get(tensor.data_type, math.inf)
    )
    beside = {
        item.value for tensor in tensors.values() for item in tensor.external_data if item.key == "location"
    }
    return parameters, sum(path.stat().st_size for path in (file, *(file.parent / name for name in beside)))


def count_ncnn(param: Path) -> int | None:
    """Number of weights and biases of an ncnn network, from its .param file. None if a layer of an unknown kind may have some."""
    from export.prior.ncnn import read_layers

    count = 0
    for layer in read_layers(param):
        if layer.kind in ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise"):
            count += layer.integer(6) + layer.integer(0) * layer.integer(5)
        elif layer.kind == "InnerProduct":
            count += layer.integer(2) + layer.integer(0) * layer.integer(1)
        elif layer.kind == "PReLU":
            count += layer.integer(0)
        elif layer.kind not in WEIGHTLESS:
            return None
    return count


def ncnn_to_onnx(param: Path) -> bytes:
    """An SRVGG network (a chain of 3x3 convolutions and PReLU, pixel shuffle, plus the enlarged input) as an ONNX model."""
    from onnx import TensorProto, helper, numpy_helper

    from export.prior.ncnn import NEAREST, Weights, read_layers, weights_of

    # layers: each reads its weights from the .bin in order
    weights = Weights(weights_of(param))
    nodes: list[Any] = []
    constants: list[Any] = []
    tensor, shuffle, enlarge = "image", 0, 0
    for layer in read_layers(param):
        kind, name = layer.kind, layer.name
        if kind == "Convolution":
            weight, bias = weights.convolution(layer)
            constants += [
                numpy_helper.from_array(weight, f"{name}_w"),
                numpy_helper.from_array(bias, f"{name}_b"),
            ]
            pads = [layer.integer(4)] * 4
            nodes.append(helper.make_node("Conv", [tensor, f"{name}_w", f"{name}_b"], [name], pads=pads))
        elif kind == "PReLU":
            slope = weights.float(layer.integer(0)).reshape(-1, 1, 1)
            constants.append(numpy_helper.from_array(slope, f"{name}_s"))
            nodes.append(helper.make_node("PRelu", [tensor, f"{name}_s"], [name]))
        elif kind == "PixelShuffle":
            shuffle = layer.integer(0)
            nodes.append(helper.make_node("DepthToSpace", [tensor], [name], blocksize=shuffle, mode="CRD"))
        elif kind == "Interp" and layer.integer(0) == NEAREST:
            enlarge = int(float(layer.options[1]))
            scales = numpy_helper.from_array(np.array([1, 1, enlarge, enlarge], np.float32), "scales")
            constants.append(scales)
            node = helper.make_node(
                "Resize", ["image", "", "scales"], [name],
                mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
            )  # fmt: skip
            nodes.append(node)
            enlarged = name
            continue
        elif kind == "BinaryOp":
            nodes.append(helper.make_node("Add", [tensor, enlarged], ["output"]))
        elif kind in ("Input", "Split"):
            continue
        else:
            raise UsageError(
                f"{param}: layer {kind} is not part of an SRVGG network: give the peer as --peer-onnx instead"
            )
        tensor = name
    # check that all weights were read and both ways enlarge alike
    if weights.offset != len(weights.data) or not shuffle or shuffle != enlarge:
        raise UsageError(
            f"{param}: not an SRVGG network, or its .bin belongs to another: use --peer-onnx instead"
        )
    # model: one input, one output, any size
    side: list[Any] = ["n", 3, "h", "w"]
    graph = helper.make_graph(
        nodes,
        "peer",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, side)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 3, "sh", "sw"])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())
