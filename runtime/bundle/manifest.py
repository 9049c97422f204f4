"""The bundle manifest, which `export` writes and the runtime reads. It holds everything that a run needs to know, as data.

Each class checks its own values and raises BundleError. `from_dict` also refuses unknown and missing keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

from ..checks import Plain, arguments, check_mapping, check_real, check_text, check_whole, fail
from ..errors import BundleError
from .entries import Graph, GraphFile, Probe, check_pairs, read_pairs
from .packages import PackageList

# Of bundles whose Core ML graphs are one package of one size each, or that have none.
FORMAT_VERSION: Final = 1
# Of bundles whose Core ML graphs are cut into chunks or take several sizes, which readers of format 1 do not know.
NEWEST_VERSION: Final = 2
# In w8 and w4 only the weights have 8 or 4 bits, and the arithmetic is in float.
PRECISIONS: Final = ("fp32", "fp16", "int8", "w8", "w4")
COLOR_FIXES: Final = ("none", "adain", "wavelet")


@dataclass(frozen=True)
class TensorSpec(Plain):
    """A graph input or output: NCHW float32."""

    name: str
    """Its name in the graph."""
    channels: int
    """Size of its second axis."""
    scale: float
    """Its height and width relative to those of the LR image."""
    range: tuple[float, float] | None = None
    """Least and greatest value. None: unbounded."""

    def __post_init__(self) -> None:
        check_text("tensor name", self.name)
        check_whole(f"{self.name}: channels", self.channels, 1, 65536)
        if check_real(f"{self.name}: scale", self.scale) <= 0:
            raise fail(f"{self.name}: scale", "a positive number", self.scale)
        if self.range is not None:
            pair = isinstance(self.range, tuple) and len(self.range) == 2
            if not pair or not check_real(f"{self.name}: range", self.range[0]) < check_real(
                self.name, self.range[1]
            ):
                raise fail(f"{self.name}: range", "two rising numbers or null", self.range)

    @classmethod
    def from_dict(cls, data: object, where: str = "tensor") -> Self:
        values = arguments(cls, where, data)
        if isinstance(values.get("range"), list):
            values["range"] = tuple(values["range"])
        return cls(**values)


@dataclass(frozen=True)
class GraphSpec(Plain):
    """Inputs and outputs of a graph, by name."""

    inputs: tuple[TensorSpec, ...]
    """The inputs, at least one, under different names."""
    outputs: tuple[TensorSpec, ...]
    """The outputs, at least one, under different names."""

    def __post_init__(self) -> None:
        for where, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            if not isinstance(specs, tuple) or not specs or not all(isinstance(s, TensorSpec) for s in specs):
                raise fail(where, "one or more tensors", specs)
            if len({spec.name for spec in specs}) < len(specs):
                raise fail(where, "different names", [spec.name for spec in specs])

    @classmethod
    def from_dict(cls, data: object, where: str = "graph") -> Self:
        values = arguments(cls, where, data)
        for key, specs in values.items():
            if not isinstance(specs, list):
                raise fail(f"{where}.{key}", "a list of tensors", specs)
            values[key] = tuple(TensorSpec.from_dict(s, f"{where}.{key}[{i}]") for i, s in enumerate(specs))
        return cls(**values)


@dataclass(frozen=True)
class SizeRule(Plain):
    """The image sizes that the graphs take, and how larger ones are cut. All in LR pixels."""

    multiple_of: int
    """A graph takes heights and widths that are multiples of it."""
    minimum: int
    """Least height and width that a graph takes."""
    tile: int
    """Best side of a tile's core."""
    context: int
    """Pixels around a core on which its result may depend."""
    overlap: int = 0
    """Width of the blend between neighbouring cores. 0: they agree exactly and are placed side by side."""

    def __post_init__(self) -> None:
        check_whole("size.multiple_of", self.multiple_of, 1, 1024)
        check_whole("size.minimum", self.minimum, 1, 65536)
        check_whole("size.tile", self.tile, 1, 65536)
        check_whole("size.context", self.context, 0, 65536)
        check_whole("size.overlap", self.overlap, 0, 65536)
        for name in ("tile", "context", "overlap"):
            if getattr(self, name) % self.multiple_of:
                raise fail(f"size.{name}", f"a multiple of {self.multiple_of}", getattr(self, name))
        if self.tile < 2 * self.overlap:
            raise fail("size.tile", f"at least twice the overlap of {self.overlap}", self.tile)

    @classmethod
    def from_dict(cls, data: object, where: str = "size") -> Self:
        return cls(**arguments(cls, where, data))


@dataclass(frozen=True)
class NoiseSpec(Plain):
    """The noise that the generator takes."""

    version: int
    """Version of the noise. 1: that of `noise.py`."""
    channels: int
    """Channels of a field of noise."""
    downscale: int
    """Side of a noise cell in LR pixels."""

    SUPPORTED: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_whole("noise.version", self.version, 1)
        check_whole("noise.channels", self.channels, 1, 4096)
        check_whole("noise.downscale", self.downscale, 1, 1024)
        if self.version > self.SUPPORTED:
            raise BundleError(
                f"manifest: noise.version: expected at most {self.SUPPORTED}, got {self.version}; upgrade gdposr"
            )

    @classmethod
    def from_dict(cls, data: object, where: str = "noise") -> Self:
        return cls(**arguments(cls, where, data))


@dataclass(frozen=True)
class Manifest(Plain):
    """Everything the runtime knows about a bundle."""

    format_version: int
    """1, or 2 if Core ML graphs are in chunks or take several sizes."""
    name: str
    """Name of the model, for messages and reports."""
    scale: int
    """Height and width of SR over those of LR."""
    encoder: GraphSpec
    """The graph that runs once for each picture."""
    generator: GraphSpec
    """The graph that runs for each sample, on the encoder's outputs and the noise."""
    graphs: dict[str, dict[str, Graph]]
    """Precision -> {"encoder": ..., "generator": ...}."""
    size: SizeRule
    """The sizes that the graphs take, and how larger pictures are cut."""
    noise: NoiseSpec
    """The noise that the generator takes."""
    t_n: int | None
    """Timestep of the added noise. None: the student is trained from photos alone."""
    t_d: int | None
    """Timestep that the network is given."""
    color_fix: str
    """One of `COLOR_FIXES`, applied unless the caller names another."""
    default_precision: dict[str, str]
    """Device -> the precision that "auto" takes."""
    probe: Probe
    """A picture with its known result, computed when the model is loaded."""
    provenance: dict[str, Any]
    """Where the model comes from: kind, hash of its checkpoint, parameters, training, versions of the tools."""
    accuracy: dict[str, Any]
    """Measurements of the export by subject, such as `int8` or `sensitivity`. The runtime does not need them."""
    coreml: dict[str, dict[str, PackageList]] = field(default_factory=dict)
    """Variant -> {"encoder": ..., "generator": ...}, for Apple's devices. In JSON a package, or a list of chunks."""
    budgets: dict[str, dict[str, float]] = field(default_factory=dict)
    """Row of an accuracy table, such as int8 -> gate -> limit. See `calibration/measure/gates.py`."""

    def __post_init__(self) -> None:
        _check_version(self.format_version)
        check_text("name", self.name)
        check_whole("scale", self.scale, 1, 64)
        for name, kind in (("encoder", GraphSpec), ("generator", GraphSpec), ("size", SizeRule),
                           ("noise", NoiseSpec), ("probe", Probe)):  # fmt: skip
            if not isinstance(getattr(self, name), kind):
                raise fail(name, f"a {kind.__name__}", getattr(self, name))
        for name in ("t_n", "t_d"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 0, 1_000_000)
        check_mapping("provenance", self.provenance)
        check_mapping("accuracy", self.accuracy)
        for row, limits in check_mapping("budgets", self.budgets).items():
            for gate, limit in check_mapping(f"budgets.{row}", limits).items():
                check_real(f"budgets.{row}.{gate}", limit)
        if self.color_fix not in COLOR_FIXES:
            raise fail("color_fix", f"one of {COLOR_FIXES}", self.color_fix)
        self._check_graphs()
        self._check_tensors()

    def _check_graphs(self) -> None:
        for precision in check_mapping("graphs", self.graphs):
            if precision not in PRECISIONS:
                raise fail("graphs", f"precisions among {PRECISIONS}", precision)
        if not check_pairs(Graph, "graphs", self.graphs) | check_pairs(PackageList, "coreml", self.coreml):
            raise fail("graphs", "at least one precision, or Core ML packages", self.graphs)
        for precision in self.graphs:
            if precision not in self.probe.floor_db:
                raise fail("probe.floor_db", f"a floor for {precision}", self.probe.floor_db)
        for variant, packages in self.coreml.items():
            if len({(p.every_size, p.target, p.images) for p in packages.values()}) > 1:
                raise fail(
                    f"coreml.{variant}", "the same tile, system and kind in both roles", list(packages)
                )
            for role, package in packages.items():
                for size in package.every_size:
                    if any(side % self.size.multiple_of for side in size):
                        expected = f"multiples of {self.size.multiple_of}"
                        raise fail(f"coreml.{variant}: height and width", expected, size)
                spec = self.encoder if role == "encoder" else self.generator
                names = [[tensor.name for tensor in side] for side in (spec.inputs, spec.outputs)]
                package.check_flow(f"coreml.{variant}.{role}", *names)
                if package.needs_newest and self.format_version < NEWEST_VERSION:
                    raise fail(
                        f"coreml.{variant}.{role}",
                        f"one package of one size in format {FORMAT_VERSION}",
                        role,
                    )
        for device, precision in check_mapping("default_precision", self.default_precision).items():
            if not isinstance(precision, str) or precision not in self.graphs:
                raise fail(f"default_precision.{device}", f"one of {sorted(self.graphs)}", precision)

    def _check_tensors(self) -> None:
        inputs = self.encoder.inputs
        if len(inputs) != 1 or inputs[0].channels != 3 or inputs[0].scale != 1:
            raise fail(
                "encoder.inputs", "one RGB image of scale 1", [t.to_dict() for t in self.encoder.inputs]
            )
        if len(self.generator.outputs) != 1 or self.generator.outputs[0].channels != 3:
            raise fail("generator.outputs", "one RGB image", [t.to_dict() for t in self.generator.outputs])
        if self.output.scale != self.scale:
            raise fail(f"{self.output.name}: scale", f"the model's scale {self.scale}", self.output.scale)
        features = {tensor.name: tensor for tensor in self.encoder.outputs}
        others = [tensor for tensor in self.generator.inputs if tensor.name not in features]
        if len(others) != 1:
            raise fail(
                "generator.inputs",
                "the encoder's outputs and one noise",
                [t.name for t in self.generator.inputs],
            )
        for tensor in self.generator.inputs:
            ours = features.get(tensor.name)
            if ours is not None and (ours.channels, ours.scale) != (tensor.channels, tensor.scale):
                raise fail(
                    f"generator input {tensor.name}", f"as the encoder's {ours.to_dict()}", tensor.to_dict()
                )
        if others[0].channels != self.noise.channels or others[0].scale * self.noise.downscale != 1:
            raise fail(f"{others[0].name}", f"as the noise rule {self.noise.to_dict()}", others[0].to_dict())
        if self.size.multiple_of % self.noise.downscale:
            raise fail(
                "noise.downscale", f"a divisor of multiple_of {self.size.multiple_of}", self.noise.downscale
            )

    @property
    def image(self) -> TensorSpec:
        """The encoder's input."""
        return self.encoder.inputs[0]

    @property
    def noise_input(self) -> TensorSpec:
        """The generator's noise input, the only one that is not an output of the encoder."""
        features = {tensor.name for tensor in self.encoder.outputs}
        return next(tensor for tensor in self.generator.inputs if tensor.name not in features)

    @property
    def output(self) -> TensorSpec:
        """The generator's output."""
        return self.generator.outputs[0]

    @property
    def files(self) -> tuple[GraphFile, ...]:
        """Every file the manifest names, each once, in a fixed order."""
        graphs: list[Any] = [
            graph for _, pair in sorted(self.graphs.items()) for _, graph in sorted(pair.items())
        ]
        packages: list[Any] = [
            package for _, pair in sorted(self.coreml.items()) for _, package in sorted(pair.items())
        ]
        named = [file for entry in (*graphs, *packages) for file in entry.files]
        return tuple(dict.fromkeys([*named, self.probe.input, self.probe.output]))

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        values["coreml"] = {
            variant: {role: packages.to_json() for role, packages in pair.items()}
            for variant, pair in self.coreml.items()
        }
        return {key: value for key, value in values.items() if value or key not in ("coreml", "budgets")}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        values = check_mapping("the top level", data)
        _check_version(values.get("format_version"))  # first, because a newer version may have other keys
        values = arguments(cls, "the top level", values)
        values["encoder"] = GraphSpec.from_dict(values["encoder"], "encoder")
        values["generator"] = GraphSpec.from_dict(values["generator"], "generator")
        values["graphs"] = read_pairs(Graph, "graphs", values["graphs"])
        values["coreml"] = read_pairs(PackageList, "coreml", values.get("coreml", {}))
        values["size"] = SizeRule.from_dict(values["size"])
        values["noise"] = NoiseSpec.from_dict(values["noise"])
        values["probe"] = Probe.from_dict(values["probe"])
        return cls(**values)


def _check_version(version: object) -> None:
    check_whole("format_version", version, 1)
    if isinstance(version, int) and version > NEWEST_VERSION:
        raise BundleError(
            f"manifest: format_version: expected at most {NEWEST_VERSION}, got {version}; upgrade gdposr to read this bundle"
        )
