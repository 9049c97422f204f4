"""The graphs in OpenVINO, on the CPU."""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np

from ..bundle.entries import Graph
from ..bundle.manifest import GraphSpec
from ..bundle.reader import Bundle
from ..checks import setting
from ..errors import BundleError, DeviceError
from ..image.bands import Floats
from .devices import (
    Features,
    check_precision,
    device_spec,
    require,
    shapes_of,
    usable_processors,
    whole_package,
)

_TELEMETRY: Final = "openvino_telemetry"
# Nodes of a compiled graph that compute nothing.
_NOT_COMPUTED: Final = ("Input", "Output", "Const")


class OpenVinoBackend:
    """The graphs in OpenVINO, read from verified bytes.

    bundle: with the graphs.
    device: "openvino".
    precision: its name, not "auto".
    threads: None: all processors that this process may use.

    Shapes stay dynamic. A graph compiled for one tile shape was 2 to 8 % faster, but compiling takes 0.1 s for each shape.
    Features are (n, c, h, w), but channels-last in memory, as OpenVINO computes. Turning them back and forth took a fifth of an INT8
    run.
    """

    def __init__(self, bundle: Bundle, device: str, precision: str, threads: int | None = None) -> None:
        self.threads = usable_processors() if threads is None else setting("threads", threads, 1)
        spec = device_spec(device)
        require(spec)
        pair = bundle.manifest.graphs[check_precision(bundle, precision)]
        self.device, self.precision = spec.name, precision
        self.largest = None
        encoder, generator = bundle.manifest.encoder, bundle.manifest.generator
        self._image, self._noise = bundle.manifest.image.name, bundle.manifest.noise_input.name
        self._features = [tensor.name for tensor in encoder.outputs]
        self._inputs = [tensor.name for tensor in generator.inputs if tensor.name != self._noise]
        self._output = bundle.manifest.output.name
        what = f"{bundle.path}: the {precision}"
        core = _openvino().Core()
        model = _read(core, bundle, f"{what} encoder", pair["encoder"], encoder, self._features)
        self._encoder = _Compiled(core, model, self.threads)
        model = _read(core, bundle, f"{what} generator", pair["generator"], generator, self._features)
        self._generator = _Compiled(core, model, self.threads)
        self.placement = {spec.provider: self._encoder.nodes + self._generator.nodes}

    def encode(self, image: Floats) -> Features:
        values = self._run(self._encoder, self._features, {self._image: image})
        return {name: value.transpose(0, 3, 1, 2) for name, value in zip(self._features, values, strict=True)}

    def generate(self, features: Features, noise: Floats) -> Floats:
        feeds = {name: features[name].transpose(0, 2, 3, 1) for name in self._inputs}
        return self._run(self._generator, [self._output], {**feeds, self._noise: noise})[0]

    def _run(self, graph: _Compiled, outputs: list[str], feeds: Features) -> list[Floats]:
        try:
            return graph.run(outputs, {name: np.ascontiguousarray(value) for name, value in feeds.items()})
        except RuntimeError as error:
            raise DeviceError(
                f"{self.device} ({self.precision}) failed on inputs {shapes_of(feeds)}: {_one_line(error)}; "
                "try a smaller tile, another precision or the device cpu"
            ) from error


class _Compiled:
    """A compiled graph with its idle infer requests. A request serves one thread at a time. nodes: how many it computes."""

    def __init__(self, core: Any, model: Any, threads: int) -> None:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16, on a processor that has it
            "ENABLE_CPU_PINNING": False,  # else two processes share the first cores and leave the others idle
        }
        self._model = core.compile_model(model, "CPU", settings)
        self._idle: list[Any] = []
        kinds = [
            node.get_rt_info()["layerType"].astype(str) for node in self._model.get_runtime_model().get_ops()
        ]
        self.nodes = sum(kind not in _NOT_COMPUTED for kind in kinds)

    def run(self, outputs: list[str], feeds: dict[str, Floats]) -> list[Floats]:
        """The named outputs, as arrays that belong to the caller."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        result = request.infer(feeds, share_inputs=True)  # the outputs are copied
        self._idle.append(request)
        return [result[name] for name in outputs]


def _read(core: Any, bundle: Bundle, what: str, file: Graph, spec: GraphSpec, features: list[str]) -> Any:
    """The graph as OpenVINO's model, with the tensors that the manifest names, its features channels-last.

    core: OpenVINO's Core.
    what: names the graph in messages.
    file, spec: its entries in the manifest.
    features: names of the tensors to turn to channels-last.
    """
    content = bundle.graph_bytes(file)
    # OpenVINO cannot take such weights from memory, and would open the file that the graph names
    if file.data is not None:
        raise DeviceError(
            f"{what}: expected a graph with its weights inside, got one with weights in a file of their own, which "
            "openvino cannot read from verified bytes; use the device cpu"
        )
    try:
        model = core.read_model(content, b"")
    except RuntimeError as error:
        raise DeviceError(
            f"{what} cannot be loaded on openvino: {_one_line(error)}; upgrade openvino or use another device"
        ) from error
    for side, specs, found in (
        ("inputs", spec.inputs, model.inputs),
        ("outputs", spec.outputs, model.outputs),
    ):
        names = {name: v.get_element_type().get_type_name() for v in found for name in v.get_names()}
        wanted = {tensor.name: "f32" for tensor in specs}
        if len(found) != len(specs) or not wanted.items() <= names.items():
            raise BundleError(f"{what}: expected {side} {wanted}, got {names}; export the bundle again")
    openvino = _openvino()
    builder = openvino.preprocess.PrePostProcessor(model)
    last, first = openvino.Layout("NHWC"), openvino.Layout("NCHW")
    for part, found in ((builder.input, model.inputs), (builder.output, model.outputs)):
        for tensor in found:
            for name in tensor.get_names() & set(features):
                part(name).tensor().set_layout(last)
                part(name).model().set_layout(first)
    return builder.build()


def _openvino() -> Any:
    """The package openvino, imported without `openvino_telemetry`.

    With that package, importing openvino reports to a web service and writes into the home folder. If it cannot be imported, openvino
    uses a silent stand-in of its own.
    """
    hidden = _TELEMETRY not in sys.modules and "openvino" not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # tells Python that it cannot be imported
    remedy = "run: pip install --force-reinstall openvino"
    try:
        import openvino
    except (ImportError, AttributeError, OSError) as error:
        raise DeviceError(f"expected the package openvino, got: {error}; {remedy}") from error
    finally:
        if hidden:
            sys.modules.pop(_TELEMETRY, None)
    return whole_package(openvino, ("Core",), remedy)


def _one_line(error: Exception) -> str:
    """The message without the source lines that OpenVINO puts before it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("Exception from"))[:300]
