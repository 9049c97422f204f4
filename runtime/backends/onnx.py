"""The graphs in ONNX Runtime, on the CPU or through one of its providers for accelerators."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import numpy as np

from ..bundle.entries import Graph
from ..bundle.manifest import GraphSpec, TensorSpec
from ..bundle.reader import Bundle
from ..checks import setting
from ..errors import BundleError, DeviceError, OutOfMemory
from ..image.bands import Floats
from ..text import first_line
from .devices import (
    CPU_PROVIDER,
    Device,
    Features,
    check_precision,
    device_spec,
    onnx_runtime,
    require,
    shapes_of,
    usable_processors,
)

# Parts of the messages of allocators, in lower case.
_MEMORY_SIGNS: Final = (
    "failed to allocate memory",  # BFCArena
    "bad allocation",  # std::bad_alloc on Windows
    "bad_alloc",
    "out of memory",  # CUDA, cuDNN and cuBLAS in words
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


class OnnxBackend:
    """The graphs in ONNX Runtime, loaded from verified bytes.

    bundle: with the graphs.
    device: its name, not "auto".
    precision: its name, not "auto".
    threads: None: all processors that this process may use.

    If the device has its own memory, the features stay there between the two graphs, as tensors of ONNX Runtime.
    """

    def __init__(self, bundle: Bundle, device: str, precision: str, threads: int | None = None) -> None:
        self.threads = usable_processors() if threads is None else setting("threads", threads, 1)
        spec = device_spec(device)
        require(spec)
        pair = bundle.manifest.graphs[check_precision(bundle, precision)]
        self.device, self.precision, self._memory = spec.name, precision, spec.memory
        self.largest = None
        encoder, generator = bundle.manifest.encoder, bundle.manifest.generator
        self._image, self._noise = bundle.manifest.image.name, bundle.manifest.noise_input.name
        self._features = [tensor.name for tensor in encoder.outputs]
        self._inputs = [tensor.name for tensor in generator.inputs if tensor.name != self._noise]
        self._output = bundle.manifest.output.name
        self._encoder = _session(bundle, "encoder", pair["encoder"], encoder, spec, self)
        self._generator = _session(bundle, "generator", pair["generator"], generator, spec, self)
        self.placement = _placement(self._encoder, self._generator)

    def encode(self, image: Floats) -> Features:
        values = self._run(self._encoder, self._features, {self._image: image}, self._memory)
        return dict(zip(self._features, values, strict=True))

    def generate(self, features: Features, noise: Floats) -> Floats:
        feeds = {name: features[name] for name in self._inputs} | {self._noise: noise}
        output = self._run(self._generator, [self._output], feeds, None if self._memory is None else "cpu")[0]
        return output if self._memory is None else output.numpy()

    def _run(self, session: Any, outputs: list[str], feeds: Features, memory: str | None) -> list[Any]:
        """Run a graph.

        session: the graph.
        outputs: names of the tensors to give.
        feeds: input by name.
        memory: the outputs stay there, as tensors of ONNX Runtime. None: they are numpy arrays.
        """
        feeds = {
            name: np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value
            for name, value in feeds.items()
        }
        try:
            return session.run(outputs, feeds) if memory is None else _bound(session, outputs, feeds, memory)
        except Exception as error:  # ONNX Runtime's exceptions have no common base but this
            kind = OutOfMemory if _lacks_memory(error) else DeviceError
            raise kind(
                f"{self.device} ({self.precision}) failed on inputs {shapes_of(feeds)}: {first_line(error)}; "
                "try a smaller tile, another precision or the device cpu"
            ) from error


def _bound(session: Any, outputs: list[str], feeds: Features, memory: str) -> list[Any]:
    """Run with bound inputs and outputs, so that a tensor on the device is not copied to the CPU and back."""
    binding = session.io_binding()
    for name, value in feeds.items():
        if isinstance(value, np.ndarray):
            binding.bind_cpu_input(name, value)
        else:
            binding.bind_ortvalue_input(name, value)
    for name in outputs:
        binding.bind_output(name, memory)  # ONNX Runtime allocates it, as the shape depends on the picture
    session.run_with_iobinding(binding)
    return binding.get_outputs()


def _session(
    bundle: Bundle, role: str, file: Graph, graph: GraphSpec, device: Device, backend: OnnxBackend
) -> Any:
    """An ONNX Runtime session on this very device, with the inputs and outputs that the manifest names.

    role: encoder or generator, for messages.
    file, graph: its entries in the manifest.
    """
    ort = onnx_runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = backend.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only: warnings about partitioning do not help a user
    # Each session has its own threads. They must not spin while the other session computes.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Refuses ONNX Runtime's own format, which `graph_bytes` has not checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # for _placement
    providers: list[Any] = [(device.provider, device.options)]
    if device.provider != CPU_PROVIDER:
        providers.append(CPU_PROVIDER)  # for single operators that the provider lacks
    if device.name == "cuda" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds the CUDA libraries that came as Python packages
    what = f"{bundle.path}: the {backend.precision} {role}"
    content = bundle.graph_bytes(file)
    weights = b"" if file.data is None else bundle.read(file.data)
    try:
        if file.data is not None:
            # given as verified bytes, so that ONNX Runtime opens no file that the graph names
            options.add_external_initializers_from_files_in_memory(
                [file.data.file], [weights], [len(weights)]
            )
        session = ort.InferenceSession(content, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base but this
        raise DeviceError(
            f"{what} cannot be loaded on {device.name}: {first_line(error)}; upgrade onnxruntime or use another device"
        ) from error
    if device.provider not in session.get_providers():  # ONNX Runtime falls back without a word
        raise DeviceError(f"{what}: expected to run on {device.name}, got another device; {device.remedy}")
    _check_names(what, "inputs", graph.inputs, session.get_inputs())
    _check_names(what, "outputs", graph.outputs, session.get_outputs())
    return session


def _placement(*sessions: Any) -> dict[str, int] | None:
    """How many nodes each provider got, before it fused them. None: ONNX Runtime before 1.24 does not tell."""
    counts: Counter[str] = Counter()
    for session in sessions:
        if not hasattr(session, "get_provider_graph_assignment_info"):
            return None
        for part in session.get_provider_graph_assignment_info():
            counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)


def _check_names(what: str, side: str, specs: tuple[TensorSpec, ...], found: Any) -> None:
    names = {value.name: value.type for value in found}
    wanted = {spec.name: "tensor(float)" for spec in specs}
    if names != wanted:
        raise BundleError(f"{what}: expected {side} {wanted}, got {names}; export the bundle again")


def _lacks_memory(error: Exception) -> bool:
    """Whether an error of ONNX Runtime comes from an allocator, by its message. The type of the exception does not tell."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _MEMORY_SIGNS)
