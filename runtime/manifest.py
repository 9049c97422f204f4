"""The bundle manifest: what `export` writes and the runtime reads. Everything a run needs to know is here, as data.

Each class checks its own values and raises BundleError; `from_dict` also refuses unknown and missing keys.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from .errors import BundleError

FORMAT_VERSION: Final = 1
MANIFEST_NAME: Final = "manifest.json"
PRECISIONS: Final = ("fp32", "fp16", "int8")
COLOR_FIXES: Final = ("none", "adain", "wavelet")
MAX_GRAPH_BYTES: Final = 2**31 - 1  # an ONNX graph in one file cannot be larger
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _fail(where: str, expected: str, came: object) -> BundleError:
    text = repr(came)
    shown = text if len(text) <= 80 else text[:77] + "..."
    return BundleError(f"manifest: {where}: expected {expected}, came {shown}; export the bundle again")


def _whole(where: str, value: object, low: int, high: int | None = None) -> None:
    inside = isinstance(value, int) and not isinstance(value, bool) and value >= low
    if not inside or (high is not None and isinstance(value, int) and value > high):
        raise _fail(
            where, f"a whole number of at least {low}" + ("" if high is None else f", at most {high}"), value
        )


def _real(where: str, value: object) -> float:
    if (
        isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300
    ):  # NaN fails too
        raise _fail(where, "a finite number", value)
    return float(value)


def _text(where: str, value: object) -> None:
    if not isinstance(value, str) or not value or len(value) > 256:
        raise _fail(where, "a text of 1 to 256 characters", value)


def _mapping(where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _fail(where, "an object with text keys", value)
    return value


def _fields(cls: type, where: str, data: object) -> dict[str, Any]:
    """data as keyword arguments of the dataclass cls: no unknown key, no missing one unless it has a default."""
    values = _mapping(where, data)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise BundleError(
            f"manifest: {where}: unknown key {unknown[0]!r}, expected some of {sorted(fields)}; correct the spelling"
        )
    missing = [n for n, f in fields.items() if n not in values and f.default is dataclasses.MISSING]
    if missing:
        raise BundleError(f"manifest: {where}: key {missing[0]!r} is missing; export the bundle again")
    return dict(values)


class _Plain:
    """to_dict for the dataclasses below."""

    def to_dict(self) -> dict[str, Any]:
        """The same values as dictionaries, lists and scalars, ready for JSON."""
        assert dataclasses.is_dataclass(self)
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, _Plain):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class GraphFile(_Plain):
    """One file of the bundle, by its plain name, its size in bytes and its SHA-256 in lower-case hex."""

    file: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if (
            not isinstance(self.file, str)
            or not _PLAIN_NAME.fullmatch(self.file)
            or self.file == MANIFEST_NAME
        ):
            raise _fail("file", "a plain file name without folders", self.file)
        _whole(f"{self.file}: bytes", self.bytes, 1, MAX_GRAPH_BYTES)
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise _fail(f"{self.file}: sha256", "64 lower-case hex digits", self.sha256)

    @classmethod
    def from_dict(cls, data: object, where: str = "file") -> Self:
        return cls(**_fields(cls, where, data))


@dataclass(frozen=True)
class TensorSpec(_Plain):
    """A graph input or output: NCHW float32. scale: its height and width relative to the LR image's."""

    name: str
    channels: int
    scale: float
    range: tuple[float, float] | None = None  # None: unbounded

    def __post_init__(self) -> None:
        _text("tensor name", self.name)
        _whole(f"{self.name}: channels", self.channels, 1)
        if _real(f"{self.name}: scale", self.scale) <= 0:
            raise _fail(f"{self.name}: scale", "a positive number", self.scale)
        if self.range is not None:
            pair = isinstance(self.range, tuple) and len(self.range) == 2
            if not pair or not _real(f"{self.name}: range", self.range[0]) < _real(self.name, self.range[1]):
                raise _fail(f"{self.name}: range", "two rising numbers or null", self.range)

    @classmethod
    def from_dict(cls, data: object, where: str = "tensor") -> Self:
        values = _fields(cls, where, data)
        if isinstance(values.get("range"), list):
            values["range"] = tuple(values["range"])
        return cls(**values)


@dataclass(frozen=True)
class GraphSpec(_Plain):
    """Inputs and outputs of a graph, by name."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for where, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            if not isinstance(specs, tuple) or not specs or not all(isinstance(s, TensorSpec) for s in specs):
                raise _fail(where, "one or more tensors", specs)
            if len({spec.name for spec in specs}) < len(specs):
                raise _fail(where, "different names", [spec.name for spec in specs])

    @classmethod
    def from_dict(cls, data: object, where: str = "graph") -> Self:
        values = _fields(cls, where, data)
        for key, specs in values.items():
            if not isinstance(specs, list):
                raise _fail(f"{where}.{key}", "a list of tensors", specs)
            values[key] = tuple(TensorSpec.from_dict(s, f"{where}.{key}[{i}]") for i, s in enumerate(specs))
        return cls(**values)


@dataclass(frozen=True)
class SizeRule(_Plain):
    """Which image sizes the graphs take, and how to cut larger ones. All in LR pixels."""

    multiple_of: int
    minimum: int
    tile: int  # best core size
    context: int  # pixels around a tile's core that its result may depend on
    overlap: int = 0  # width of the blend between neighbouring cores; 0: tiles agree exactly and are placed

    def __post_init__(self) -> None:
        _whole("size.multiple_of", self.multiple_of, 1, 1024)
        _whole("size.minimum", self.minimum, 1, 65536)
        _whole("size.tile", self.tile, 1, 65536)
        _whole("size.context", self.context, 0, 65536)
        _whole("size.overlap", self.overlap, 0, 65536)
        for name in ("tile", "context", "overlap"):
            if getattr(self, name) % self.multiple_of:
                raise _fail(f"size.{name}", f"a multiple of {self.multiple_of}", getattr(self, name))
        if self.tile < 2 * self.overlap:
            raise _fail("size.tile", f"at least twice the overlap of {self.overlap}", self.tile)

    @classmethod
    def from_dict(cls, data: object, where: str = "size") -> Self:
        return cls(**_fields(cls, where, data))


@dataclass(frozen=True)
class NoiseSpec(_Plain):
    """Which noise the generator takes. version 1 is `noise.py`; downscale: LR pixels per noise cell."""

    version: int
    channels: int
    downscale: int

    SUPPORTED: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _whole("noise.version", self.version, 1)
        _whole("noise.channels", self.channels, 1, 4096)
        _whole("noise.downscale", self.downscale, 1, 1024)
        if self.version > self.SUPPORTED:
            raise BundleError(
                f"manifest: noise.version: expected at most {self.SUPPORTED}, came {self.version}; upgrade gdposr"
            )

    @classmethod
    def from_dict(cls, data: object, where: str = "noise") -> Self:
        return cls(**_fields(cls, where, data))


@dataclass(frozen=True)
class Probe(_Plain):
    """A small input, the fp32 model's output for it (two 8-bit RGB PNG files), and the PSNR floor of each precision in dB."""

    input: GraphFile
    output: GraphFile
    seed: int
    floor_db: dict[str, float]

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            if not isinstance(getattr(self, name), GraphFile):
                raise _fail(f"probe.{name}", "a file", getattr(self, name))
        _whole("probe.seed", self.seed, 0, 2**64 - 1)
        for precision, floor in _mapping("probe.floor_db", self.floor_db).items():
            _real(f"probe.floor_db.{precision}", floor)

    @classmethod
    def from_dict(cls, data: object, where: str = "probe") -> Self:
        values = _fields(cls, where, data)
        for name in ("input", "output"):
            values[name] = GraphFile.from_dict(values[name], f"{where}.{name}")
        return cls(**values)


@dataclass(frozen=True)
class Manifest(_Plain):
    """Everything the runtime knows about a bundle."""

    format_version: int
    name: str
    scale: int
    encoder: GraphSpec
    generator: GraphSpec
    graphs: dict[str, dict[str, GraphFile]]  # precision -> {"encoder": ..., "generator": ...}
    size: SizeRule
    noise: NoiseSpec
    t_n: int | None  # timestep of the added noise; None: the student is trained from photos alone
    t_d: int | None  # timestep the network is told
    color_fix: str
    default_precision: dict[str, str]  # device -> precision
    probe: Probe
    provenance: dict[str, Any]
    accuracy: dict[str, Any]

    def __post_init__(self) -> None:
        _check_version(self.format_version)
        _text("name", self.name)
        _whole("scale", self.scale, 1, 64)
        for name, kind in (("encoder", GraphSpec), ("generator", GraphSpec), ("size", SizeRule),
                           ("noise", NoiseSpec), ("probe", Probe)):  # fmt: skip
            if not isinstance(getattr(self, name), kind):
                raise _fail(name, f"a {kind.__name__}", getattr(self, name))
        for name in ("t_n", "t_d"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 0)
        _mapping("provenance", self.provenance)
        _mapping("accuracy", self.accuracy)
        if self.color_fix not in COLOR_FIXES:
            raise _fail("color_fix", f"one of {COLOR_FIXES}", self.color_fix)
        self._check_graphs()
        self._check_tensors()

    def _check_graphs(self) -> None:
        if not _mapping("graphs", self.graphs):
            raise _fail("graphs", "at least one precision", self.graphs)
        for precision, pair in self.graphs.items():
            if precision not in PRECISIONS:
                raise _fail("graphs", f"precisions among {PRECISIONS}", precision)
            if set(_mapping(f"graphs.{precision}", pair)) != {"encoder", "generator"}:
                raise _fail(f"graphs.{precision}", "exactly the keys encoder and generator", sorted(pair))
            if not all(isinstance(file, GraphFile) for file in pair.values()):
                raise _fail(f"graphs.{precision}", "two files", pair)
            if precision not in self.probe.floor_db:
                raise _fail("probe.floor_db", f"a floor for {precision}", self.probe.floor_db)
        for device, precision in _mapping("default_precision", self.default_precision).items():
            if precision not in self.graphs:
                raise _fail(f"default_precision.{device}", f"one of {sorted(self.graphs)}", precision)

    def _check_tensors(self) -> None:
        if len(self.encoder.inputs) != 1 or self.encoder.inputs[0].channels != 3:
            raise _fail("encoder.inputs", "one RGB image", [t.to_dict() for t in self.encoder.inputs])
        if len(self.generator.outputs) != 1 or self.generator.outputs[0].channels != 3:
            raise _fail("generator.outputs", "one RGB image", [t.to_dict() for t in self.generator.outputs])
        if self.output.scale != self.scale:
            raise _fail(f"{self.output.name}: scale", f"the model's scale {self.scale}", self.output.scale)
        features = {tensor.name: tensor for tensor in self.encoder.outputs}
        others = [tensor for tensor in self.generator.inputs if tensor.name not in features]
        if len(others) != 1:
            raise _fail(
                "generator.inputs",
                "the encoder's outputs and one noise",
                [t.name for t in self.generator.inputs],
            )
        for tensor in self.generator.inputs:
            ours = features.get(tensor.name)
            if ours is not None and (ours.channels, ours.scale) != (tensor.channels, tensor.scale):
                raise _fail(
                    f"generator input {tensor.name}", f"as the encoder's {ours.to_dict()}", tensor.to_dict()
                )
        if others[0].channels != self.noise.channels or others[0].scale * self.noise.downscale != 1:
            raise _fail(f"{others[0].name}", f"as the noise rule {self.noise.to_dict()}", others[0].to_dict())
        if self.size.multiple_of % self.noise.downscale:
            raise _fail(
                "noise.downscale", f"a divisor of multiple_of {self.size.multiple_of}", self.noise.downscale
            )

    @property
    def image(self) -> TensorSpec:
        """The encoder's input."""
        return self.encoder.inputs[0]

    @property
    def noise_input(self) -> TensorSpec:
        """The generator's noise input: the one that no encoder output feeds."""
        features = {tensor.name for tensor in self.encoder.outputs}
        return next(tensor for tensor in self.generator.inputs if tensor.name not in features)

    @property
    def output(self) -> TensorSpec:
        """The generator's output."""
        return self.generator.outputs[0]

    @property
    def files(self) -> tuple[GraphFile, ...]:
        """Every file the manifest names, each once, in a fixed order."""
        named = [file for _, pair in sorted(self.graphs.items()) for _, file in sorted(pair.items())]
        return tuple(dict.fromkeys([*named, self.probe.input, self.probe.output]))

    @classmethod
    def from_dict(cls, data: object) -> Self:
        values = _mapping("the top level", data)
        _check_version(values.get("format_version"))  # first: a newer version may have other keys
        values = _fields(cls, "the top level", values)
        values["encoder"] = GraphSpec.from_dict(values["encoder"], "encoder")
        values["generator"] = GraphSpec.from_dict(values["generator"], "generator")
        values["graphs"] = {
            precision: {
                role: GraphFile.from_dict(file, f"graphs.{precision}.{role}")
                for role, file in _mapping(f"graphs.{precision}", pair).items()
            }
            for precision, pair in _mapping("graphs", values["graphs"]).items()
        }
        values["size"] = SizeRule.from_dict(values["size"])
        values["noise"] = NoiseSpec.from_dict(values["noise"])
        values["probe"] = Probe.from_dict(values["probe"])
        return cls(**values)


def _check_version(version: object) -> None:
    _whole("format_version", version, 1)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"manifest: format_version: expected at most {FORMAT_VERSION}, came {version}; upgrade gdposr to read this bundle"
        )
