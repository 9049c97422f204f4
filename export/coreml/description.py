"""The texts in a Core ML package for Xcode and programs: description, inputs and outputs, metadata."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from export.source import BASE, STUDENT, Source
from runtime.bundle.manifest import TensorSpec

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import Model

AUTHOR: Final = "The gdposr authors"
LICENSE: Final = "Apache-2.0"
# Author and license for weights that are not ours.
OTHERS: Final = ("see the checkpoint", "that of the checkpoint's weights")
# Prefix of our user-defined metadata.
PREFIX: Final = "gdposr."
# Height and width in LR pixels.
Size = tuple[int, int]


def describe(
    spec: Model,
    source: Source,
    role: str,
    tiles: Sequence[Size],
    target: str,
    variant: str,
    metadata: Mapping[str, str],
) -> None:
    """Fill in the package's description and metadata; the parameters are those of `convert`.

    spec: the program to describe.
    source, role: the model and the graph.
    tiles: all (height, width).
    target: oldest system.
    variant: name of the variant.
    metadata: author, license, further entries."""
    graph, description = source.specs[role], spec.description
    part, _, chunk = role.partition("-")
    about, given = description.metadata, dict(metadata)
    author, license = (AUTHOR, LICENSE) if source.kind == STUDENT else OTHERS
    about.author, about.license = given.pop("author", author), given.pop("license", license)
    about.versionString = _version()
    about.shortDescription = (
        f"{source.kind}, {' '.join(role.split('-'))}: {source.scale}x super-resolution of tiles of {_sizes(tiles, ' or ')} pixels. "
        "The encoder runs once per photo, the generator once per sample."
    )
    for features, tensors in ((description.input, graph.inputs), (description.output, graph.outputs)):
        for feature, tensor in zip(features, tensors, strict=True):
            shapes = [source.shape(tensor, *tile) for tile in tiles]
            form = _form(feature.type.WhichOneof("Type"), tensor, shapes)
            feature.shortDescription = f"{_meaning(source, tensor)} {form}"
    entries = {key if key.startswith(PREFIX) else PREFIX + key: text for key, text in given.items()}
    entries |= {
        PREFIX + key: str(value)
        for key, value in {
            "kind": source.kind,
            "role": part,
            **({"chunk": chunk} if chunk else {}),
            "scale": source.scale,
            "tile": _sizes(tiles, ","),
            "target": target,
            "variant": variant,
            "t_n": "none" if source.t_n is None else source.t_n,
            "t_d": "none" if source.t_d is None else source.t_d,
            "checkpoint_sha256": source.checkpoint_sha256,
            "noise_version": source.noise.version,
            "noise_channels": source.noise.channels,
            "noise_downscale": source.noise.downscale,
        }.items()
    }
    about.userDefined.update(entries)


def _meaning(source: Source, tensor: TensorSpec) -> str:
    """What a tensor contains, for users."""
    first, last = source.specs["encoder"].inputs[0], source.specs["generator"].inputs[-1]
    if tensor.name == first.name:
        return "LR image, RGB."
    if tensor.name == last.name:
        return (
            f"Normal deviates, mean 0, variance 1: noise field version {source.noise.version} (Philox4x32-10, runtime/noise.py, "
            "docs/noise.md), a function of seed, sample and the place in the whole image."
        )
    if tensor in source.specs["generator"].outputs:
        return f"SR image, RGB, {source.scale} times as high and wide as the LR image."
    if tensor.name == BASE:
        image = ", then the LR image" if tensor.channels > 3 * source.scale**2 else ""
        return f"Bicubic enlargement by {source.scale} before its pixel shuffle{image}, handed to the generator unchanged."
    if tensor in source.specs["encoder"].outputs:
        return "Features, handed to the generator unchanged."
    return "Values between two chunks, handed on unchanged."


def _form(kind: str, tensor: TensorSpec, shapes: Sequence[tuple[int, ...]]) -> str:
    """Shape and range of a feature, for users."""
    if kind == "imageType":
        sizes = " or ".join(f"{shape[3]} wide and {shape[2]} high" for shape in shapes)
        return f"Pixel buffer, {sizes}, 8 bits per channel."
    span = "unbounded" if tensor.range is None else f"in [{tensor.range[0]:g}, {tensor.range[1]:g}]"
    return f"Array (n, channels, height, width) = {' or '.join(map(str, shapes))}, {span}."


def _sizes(tiles: Sequence[Size], between: str) -> str:
    return between.join(f"{height}x{width}" for height, width in tiles)


def _version() -> str:
    try:
        return importlib.metadata.version("gdposr")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # not installed
