"""Smaller Core ML packages: the weights of a float16 package stored in 8 bits or fewer.

Arithmetic stays float16. The device unpacks weights when it loads them, so a variant trades accuracy for size on disk
and memory traffic. `mixed` gives each weight its own width, see `export.coreml.mixed`. w8a8 also computes in 8 bits;
it is made from the model instead of a package, see `export.coreml.activations`."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from export.coreml.activations import W8A8
from export.coreml.convert import FLOOR_DB, IMAGE_FLOOR_DB, TARGETS
from export.coreml.description import PREFIX
from export.coreml.package import (
    argument,
    fresh_names,
    operations,
    quiet,
    read_model,
    read_spec,
    weights_folder,
    write_package,
)
from export.mil.package.tensor import PackageError
from export.source import IMAGE
from runtime.errors import SettingError

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Model

FP16: Final = "fp16"
MIXED: Final = "mixed"


@dataclass(frozen=True)
class Variant:
    """A way to store weights and, for `activations`, to compute."""

    name: str
    """Name of the variant."""
    method: str
    """none, linear, block, palette or activations."""
    bits: int | None
    """Bits of a weight; None if chosen per weight."""
    target: str
    """Oldest system that reads it."""
    floor_db: float
    """Least PSNR of the worst sample against torch, with encoder and generator in this variant."""


# The comments give the bytes of both packages and the PSNR as printed by `gdposr export --checkpoint export/weights/pocket
# --out build/c.gdposr --targets coreml --variant NAME`; for iOS 18 with --system iOS18. "refused": below its floor.
VARIANTS: Final[Mapping[str, Variant]] = {
    variant.name: variant
    for variant in (
        #       name        method     bits  target   floor             bytes      dB
        Variant(FP16,       "none",    16,   "iOS17", FLOOR_DB[FP16]),  #   812,927  71.2
        Variant("linear8",  "linear",  8,    "iOS17", 57.0),            #   447,134  57.2
        Variant("palette8", "palette", 8,    "iOS17", 60.0),            #   450,670  60.1
        Variant("palette6", "palette", 6,    "iOS17", 48.0),            #            47.6, refused; iOS 18: 354,427, 48.2
        Variant("palette4", "palette", 4,    "iOS17", 36.0),            #            35.3, refused
        Variant("linear4",  "block",   4,    "iOS18", 37.0),            #   iOS 18: 34.6, refused
        Variant(W8A8,   "activations", 8,    "iOS17", 45.0),            #   477,310  45.7
        Variant(MIXED,      "palette", None, "iOS17", 43.0),            #   327,808  44.3
    )
}  # fmt: skip
# Output channels that share a palette, from iOS 18 on.
GROUP: Final = 16
# Input channels that share a 4-bit scale.
BLOCK: Final = 16
# Weights with fewer elements stay float16: an 8-bit palette alone takes 512 bytes, and the 1,296 of the student's stem in 6 bits cost
# 9 dB.
MIN_ELEMENTS: Final = 2048
# Bit widths that `plan` may choose.
WIDTHS: Final = (4, 6, 8)
# Most iterations of Lloyd's algorithm; a few dozen are typical.
_ROUNDS = 300


@dataclass(frozen=True)
class Weight:
    """A weight of a program that may be compressed."""

    name: str
    """Name in the program."""
    shape: tuple[int, ...]
    """Shape in the program."""

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


def compress(
    package: Path,
    variant: str,
    out: Path,
    *,
    plan: Mapping[str, int] | None = None,
    floor_db: float | None = None,
) -> Path:
    """Write a copy of a float16 package with compressed weights; returns out.

    package: the float16 package.
    variant: key of `VARIANTS`.
    out: the package to write.
    plan: bits by weight name, for `mixed` only.
    floor_db: PSNR that the package promises; None for the variant's. A package with pixel buffers promises at most IMAGE_FLOOR_DB."""
    row, spec = _variant(variant), read_spec(package)
    if row.method == "activations":
        raise SettingError(
            f"{variant}: expected a variant of weights alone, got one whose activations have {row.bits} bits, which takes the model "
            "and photos; use `export.coreml.activations.quantize_activations` and convert"
        )
    if spec.specificationVersion < TARGETS[row.target]:
        raise SettingError(
            f"{variant}: expected a package for {row.target} or later, got version {spec.specificationVersion} of the model format; "
            f"convert with target {row.target}"
        )
    if (variant == MIXED) != (plan is not None):
        raise SettingError(
            f"{variant}: expected {'a plan' if variant == MIXED else 'no plan'} (bits by weight name), got "
            f"{'none' if plan is None else 'one'}; `sensitivity` and `plan` make one for {MIXED}"
        )
    configs = _configs(row, find_weights(spec), plan or {}, spec.specificationVersion >= TARGETS["iOS18"])
    floor = row.floor_db if floor_db is None else floor_db
    about = {
        "variant": variant,
        "floor_db": f"{min(floor, IMAGE_FLOOR_DB) if _has_images(spec) else floor:g}",
    }
    if not configs:
        return _write(spec, spec, weights_folder(package), out, about)
    with quiet(), fresh_names():
        import coremltools.optimize.coreml as cto

        config = cto.OptimizationConfig(op_name_configs=configs)
        shrink = cto.palettize_weights if row.method == "palette" else cto.linear_quantize_weights
        given = read_model(package)
        model = shrink(given, config)
    try:
        return _write(model.get_spec(), spec, Path(model.weights_dir), out, about)
    finally:  # without this, coremltools keeps both copies until the process ends
        for copy in (given, model):
            if copy.is_temp_package:
                shutil.rmtree(copy.package_path, ignore_errors=True)


def check_variant(name: str, target: str) -> Variant:
    """The variant of that name. Raises SettingError if there is none, or if a package for target cannot hold it."""
    row = _variant(name)
    if TARGETS[target] < TARGETS[row.target]:
        raise SettingError(
            f"{name}: expected {row.target} or later, got {target}; choose another variant or --system {row.target}"
        )
    return row


def find_weights(spec: Model) -> list[Weight]:
    """Weights that may be compressed, in the program's order.

    Small weights are left out, and those of a convolution directly on the image. That is the bicubic upscale, whose
    weights are nearly exact in float16 and whose errors would be visible."""
    found, used, exact = [], set(), set()
    makers = {output.name: operation for operation in operations(spec) for output in operation.outputs}
    if any(operation.type.startswith("constexpr") for operation in makers.values()):
        raise PackageError(
            "expected a package with float16 weights, got one that is compressed; give the fp16 package"
        )
    pictures = {feature.name for feature in spec.description.input if feature.name == IMAGE}
    for operation in makers.values():
        fed = argument(operation, "x")
        while fed in makers and makers[fed].type in ("cast", "pad", "mul"):
            fed = argument(makers[fed], "x")
        if operation.type == "conv" and fed in pictures:
            exact.add(argument(operation, "weight"))
    for operation in makers.values():
        used |= {
            argument(operation, "weight"),
            argument(operation, "y") if operation.type == "matmul" else None,
        }
    for name, operation in makers.items():
        if operation.type == "const" and name in used - exact:
            dimensions = operation.outputs[0].type.tensorType.dimensions
            weight = Weight(name, tuple(dimension.constant.size for dimension in dimensions))
            if len(weight.shape) > 1 and weight.parameters >= MIN_ELEMENTS:
                found.append(weight)
    return found


def palette(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means in one dimension: 2^bits values and, for each element in flat order, the index of its value (uint8).

    Lloyd's algorithm on sorted distinct values. It starts with points spaced by the cube root of the density, which
    is optimal for many points (Panter and Dite 1951). No random start is needed, so the same weights give the same
    palette. Its squared error for the large weights of an earlier shipped student was within 2 % of the optimum with 4 and
    6 bits, and 6 % with 8."""
    values, inverse, counts = distinct(weight)
    size, points = 2**bits, values.astype(np.float64)
    if len(points) <= size:
        table = np.concatenate([points, np.full(size - len(points), points[-1])])
        return table.astype(weight.dtype), inverse.astype(np.uint8)
    share = np.cumsum(np.cbrt(counts) * np.cbrt(np.gradient(points) ** 2))
    table = np.interp((np.arange(size) + 0.5) / size, share / share[-1], points)
    number = np.concatenate([[0.0], np.cumsum(counts)])
    total = np.concatenate([[0.0], np.cumsum(counts * points)])
    edges = np.zeros(size + 1, np.int64)
    for _ in range(_ROUNDS):
        inner = np.searchsorted(points, (table[1:] + table[:-1]) / 2)
        moved = np.concatenate([[0], inner, [len(points)]])
        if np.array_equal(moved, edges):
            break
        edges = moved
        held = number[edges[1:]] - number[edges[:-1]]
        mean = (total[edges[1:]] - total[edges[:-1]]) / np.maximum(held, 1)
        table = np.where(held > 0, mean, table)
    index = np.repeat(np.arange(size, dtype=np.uint8), np.diff(edges))[inverse]
    return table.astype(weight.dtype), index


def distinct(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sorted distinct values, for each element in flat order the index of its value, and how often each occurs.

    Float16 has 65,536 values, which are counted instead of sorted: 90 times as fast for a weight of three million."""
    if weight.dtype != np.float16:
        values, inverse, counts = np.unique(weight, return_inverse=True, return_counts=True)
        return values, inverse.ravel(), counts
    bits = (weight.ravel() + np.float16(0)).view(np.uint16)  # the sum has no -0
    occurrences = np.bincount(bits, minlength=1 << 16)
    present = np.flatnonzero(occurrences).astype(np.uint16)
    present = present[np.argsort(present.view(np.float16))]
    places = np.zeros(1 << 16, np.int64)
    places[present] = np.arange(len(present))
    return present.view(np.float16), places[bits], occurrences[present]


def _has_images(spec: Model) -> bool:
    features = (*spec.description.input, *spec.description.output)
    return any(feature.type.WhichOneof("Type") == "imageType" for feature in features)


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise SettingError(f"variant: expected one of {', '.join(VARIANTS)}, got {name!r}")
    return VARIANTS[name]


def _configs(
    row: Variant, weights: Sequence[Weight], bits: Mapping[str, int], grouped: bool
) -> dict[str, Any]:
    """Settings of coremltools for each weight, by name. Weights without an entry stay as they are.

    row: the variant.
    weights: those that may be compressed.
    bits: by weight name, for `mixed`.
    grouped: whether the system reads palettes per group of channels."""
    import coremltools.optimize.coreml as cto

    unknown = sorted(set(bits) - {weight.name for weight in weights})
    if unknown:
        raise SettingError(
            f"plan: expected weights among {', '.join(weight.name for weight in weights)}, got {', '.join(unknown)}; make it again"
        )
    configs: dict[str, Any] = {}
    for weight in weights:
        width = row.bits if row.bits is not None else bits.get(weight.name)
        if row.method == "none" or width is None:
            continue
        if row.method == "palette":
            if width not in WIDTHS:
                raise SettingError(f"{weight.name}: expected a width of {WIDTHS} bits, got {width}")
            together = grouped and weight.shape[0] % GROUP == 0 and weight.shape[0] > GROUP
            configs[weight.name] = cto.OpPalettizerConfig(
                mode="custom",
                lut_function=functools.partial(palette, bits=width),
                granularity="per_grouped_channel" if together else "per_tensor",
                group_size=GROUP,
                weight_threshold=0,
            )
        else:
            blocks = row.method == "block" and weight.shape[1] % BLOCK == 0
            configs[weight.name] = cto.OpLinearQuantizerConfig(
                mode="linear_symmetric",
                dtype="int4" if blocks else "int8",
                granularity="per_block" if blocks else "per_channel",
                block_size=BLOCK,
                weight_threshold=0,
            )
    return configs


def _write(spec: Model, original: Model, weights: Path, out: Path, about: Mapping[str, str]) -> Path:
    """Write a compressed program with the description of the original, which compression must not change.

    spec: the compressed program.
    original: the original program.
    weights: folder of the weight files.
    out: the package to write.
    about: metadata entries to change."""
    named = type(spec)()
    named.CopyFrom(spec)
    named.description.CopyFrom(original.description)
    named.description.metadata.userDefined.update({PREFIX + key: value for key, value in about.items()})
    return write_package(named, weights, out)
