"""Inputs and outputs of a package as declared in its description: arrays or images, of one size or several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.mil.package.tensor import PackageError, TensorType


@dataclass(frozen=True)
class Feature:
    """An input or output of the package. Images are (1, 3, h, w), or (1, 1, h, w) for gray, with values in [0, 255]."""

    name: str
    """Name of the input or output."""
    type: TensorType
    """Type of the matching value in the program."""
    image: str | None = None
    """Colour layout such as RGB, BGR or GRAYSCALE; None for an array."""
    flexible: str | None = None
    """Kind of flexible size, "range" or "enumerated"; None if there is one size only."""
    ranges: tuple[tuple[int, int | None], ...] = ()
    """Lower and upper bound of each dimension of a range; None for no upper bound."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Possible shapes of an enumeration."""


def read_features(
    described: Any, names: list[str], types: Mapping[str, TensorType], path: Path
) -> tuple[Feature, ...]:
    """The package's inputs or outputs in the program's order. Raises PackageError if the names differ.

    described: features of the description.
    names: of the program's values, in order.
    types: of the program's values.
    path: of the package, for errors."""
    by_name = {feature.name: feature for feature in described}
    if set(by_name) != set(names):
        raise PackageError(
            f"{path}: the description names {sorted(by_name)}, the program {sorted(names)}; convert again"
        )
    return tuple(_feature(by_name[name], types[name]) for name in names)


def _feature(feature: Any, type: TensorType) -> Feature:
    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        image = feature.type.imageType
        layout = (
            image.DESCRIPTOR.fields_by_name["colorSpace"].enum_type.values_by_number[image.colorSpace].name
        )
        flexible = image.WhichOneof("SizeFlexibility")
        channels = 1 if layout.startswith("GRAYSCALE") else 3
        if flexible == "enumeratedSizes":
            shapes: tuple[tuple[int, ...], ...] = tuple(
                (1, channels, int(s.height), int(s.width)) for s in image.enumeratedSizes.sizes
            )
            return Feature(feature.name, type, layout, "enumerated", shapes=shapes)
        if flexible == "imageSizeRange":
            sides = (_bounds(image.imageSizeRange.heightRange), _bounds(image.imageSizeRange.widthRange))
            return Feature(feature.name, type, layout, "range", ranges=((1, 1), (channels, channels), *sides))
        return Feature(feature.name, type, layout)
    if kind == "multiArrayType":
        array = feature.type.multiArrayType
        flexible = array.WhichOneof("ShapeFlexibility")
        if flexible == "enumeratedShapes":
            shapes = tuple(tuple(int(d) for d in s.shape) for s in array.enumeratedShapes.shapes)
            return Feature(feature.name, type, None, "enumerated", shapes=shapes)
        if flexible == "shapeRange":
            ranges = tuple(_bounds(r) for r in array.shapeRange.sizeRanges)
            return Feature(feature.name, type, None, "range", ranges=ranges)
    return Feature(feature.name, type)


def _bounds(size: Any) -> tuple[int, int | None]:
    return int(size.lowerBound), None if size.upperBound < 0 else int(size.upperBound)
