"""The methods an accuracy table compares: bicubic, the bundle itself, folders of pictures, other models."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from calibration.measure.pairs import Pair, complete, named_photos, read_rgb
from runtime.bundle.manifest import SizeRule
from runtime.bundle.reader import Bundle
from runtime.upscale.tiling import plan_tiles
from runtime.upscale.upscaler import Upscaler

PRECISION_ORDER = ("fp32", "fp16", "int8", "w8", "w4")
# Side of a tile's core in LR pixels while seams are measured. It is small so that a picture of 128 pixels has three seams each way.
SEAM_TILE = 32


@dataclass(frozen=True)
class Tiled:
    """A picture that was put together from tiles."""

    picture: np.ndarray
    """The picture, (H, W, 3) uint8."""
    rows: tuple[int, ...]
    """First row of each tile, without the picture's own edge."""
    columns: tuple[int, ...]
    """First column of each tile, without the picture's own edge."""


@dataclass(frozen=True)
class Method:
    """One way to enlarge a picture."""

    name: str
    """Name of its row."""
    kind: str
    """"bicubic", "model", "folder" or "peer"."""
    upscale: Callable[[str, np.ndarray], np.ndarray]
    """Name of a pair and its LR picture, (h, w, 3) uint8 -> (H, W, 3) uint8."""
    samples: Callable[[np.ndarray, int], Sequence[np.ndarray]] | None = None
    """LR picture and a count -> so many samples; None: the method has no randomness."""
    parameters: int | None = None
    """Number of weights; None: not known."""
    bytes: int | None = None
    """Size of the files with graphs or weights."""
    device: str | None = None
    """Device that runs it; None: no model that runs here."""
    notes: tuple[str, ...] = ()
    """Notes for the report, such as a device that was replaced."""
    target: str = ""
    """"onnx", "coreml", or "torch" for a trained one-step model; empty for everything else."""
    tiled: Callable[[np.ndarray], Tiled] | None = None
    """LR picture -> the picture made of small tiles; None: the method has no tiles."""


def bicubic(lr: np.ndarray, scale: int) -> np.ndarray:
    """Pillow's bicubic enlargement, (h, w, 3) uint8 -> (h * scale, w * scale, 3) uint8."""
    height, width = lr.shape[:2]
    return np.array(Image.fromarray(lr).resize((width * scale, height * scale), Image.Resampling.BICUBIC))


def bicubic_method(scale: int) -> Method:
    """Bicubic as a method."""
    return Method("bicubic", "bicubic", lambda name, lr: bicubic(lr, scale), parameters=0, bytes=0)


def folder_method(name: str, folder: Path, pairs: Sequence[Pair]) -> Method:
    """A folder of enlarged pictures, named like the pairs, as a method. ImageError if one is missing."""
    pictures = complete(name, folder, named_photos(folder), pairs)
    return Method(name, "folder", lambda picture, lr: read_rgb(pictures[picture]))


def peer_method(
    name: str,
    run: Callable[[np.ndarray], np.ndarray],
    parameters: int | None = None,
    bytes: int | None = None,
) -> Method:
    """Another model as a method.

    name: of its row.
    run: (h, w, 3) uint8 -> (H, W, 3) uint8.
    parameters: number of weights; None: not known.
    bytes: of its files; None: not known.
    """
    return Method(name, "peer", lambda picture, lr: run(lr), parameters=parameters, bytes=bytes)


def model_method(precision: str, upscaler: Upscaler, bundle: Bundle, seed: int) -> Method:
    """A loaded bundle in one precision.

    precision: the upscaler's, which names the row.
    upscaler: runs the bundle.
    bundle: for its size rule, weights and files.
    seed: of the noise.
    """
    files = bundle.manifest.graphs[precision].values()
    cut = copy.copy(upscaler)  # shares the loaded model
    cut.tile = SEAM_TILE

    def tiled(lr: np.ndarray) -> Tiled:
        height, width = lr.shape[:2]
        rows, columns = tile_borders(height, width, SEAM_TILE, bundle.manifest.size, bundle.manifest.scale)
        return Tiled(cut.up(lr, seed=seed)[0], rows, columns)

    return Method(
        name=precision,
        kind="model",
        upscale=lambda name, lr: upscaler.up(lr, seed=seed)[0],
        samples=lambda lr, count: upscaler.up(lr, seed=seed, samples=count),
        parameters=count_parameters(bundle),
        bytes=sum(file.total_bytes for file in files),
        device=upscaler.device,
        notes=tuple(upscaler.notes),
        target="onnx",
        tiled=tiled,
    )


def tile_borders(
    height: int, width: int, tile: int, rule: SizeRule, scale: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows and columns of the output at which a tile's core begins, without the picture's own edge.

    height, width: of the picture, in LR pixels.
    tile: side of a core, in LR pixels.
    rule: sizes that the model takes.
    scale: output pixels for each LR pixel.
    """
    cores = [planned.core for planned in plan_tiles(height, width, tile, rule)]
    rows, columns = {core.y0 for core in cores}, {core.x0 for core in cores}
    return tuple(scale * y for y in sorted(rows - {0})), tuple(scale * x for x in sorted(columns - {0}))


def count_parameters(bundle: Bundle) -> int | None:
    """Weights of both graphs: as the provenance states, else counted in the finest precision. None: neither is possible."""
    stated = bundle.manifest.provenance.get("parameters")
    if isinstance(stated, int):
        return stated
    try:
        import onnx
    except ImportError:
        return None
    if not bundle.manifest.graphs:
        return None
    graphs = bundle.manifest.graphs[min(bundle.manifest.graphs, key=precision_rank)]
    models = [onnx.load_model_from_string(bundle.read(file)) for file in graphs.values()]
    # integers are shapes
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    tensors = [tensor for model in models for tensor in model.graph.initializer]
    return sum(math.prod(tensor.dims) for tensor in tensors if tensor.dims and tensor.data_type in floats)


def precision_rank(name: str) -> int:
    """Place of a precision in `PRECISION_ORDER`. An unknown one comes last."""
    return PRECISION_ORDER.index(name) if name in PRECISION_ORDER else len(PRECISION_ORDER)
