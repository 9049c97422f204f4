"""How large the tiles of a picture are and how many are computed at once, within the memory.

Lengths are in LR pixels, sizes of memory in bytes.

The memory that a picture takes is estimated as a sum: the program and the weights, the caller's picture, the result if it is one
array, the rows of output under way, and the model calls, in proportion to the pixels shown to them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Final

from ..bundle.manifest import Manifest, SizeRule
from ..errors import SettingError
from ..image.arrays import Picture
from .tiling import least_tile, padded_size, plan_tiles, round_up, tile_size, tile_spans

# Bytes of encoder features kept for further samples of a picture.
FEATURE_BUDGET: Final = 512 << 20
# Bytes of output held while a row of tiles is computed.
STRIP_BUDGET: Final = 64 << 20
# Bytes of float32 output held between the two passes of adain.
WHOLE_BUDGET: Final = 64 << 20
# Bytes that model calls running at once may take if the caller gives no limit.
LANE_BUDGET: Final = 1 << 30
# If the caller names no side, a tile may have so many times the bundle's: larger tiles have a smaller share of context. 1000x1000
# pixels in INT8 on two cores of an AMD EPYC (AVX2, no VNNI), alternating, best of 4: tiles of 256 one call at a time 5.98 s, two at
# once 4.98 s; 334 two at once 4.79 s; 500 two at once 4.15 s, in 1.5 GB.
ROOMY: Final = 2

# Measured with a built-in bundle before the consistent ones, ONNX Runtime 1.32 on x86-64: the most memory of a fresh process that
# loads the model, computes its probe and gives the strips of 400x600 pixels, less those strips and the picture. One call at a
# time on tiles of 16, 48, 96, 192 (46, 78, 126, 222 with context): INT8 82, 90, 114, 201 MB, fp32 84, 95, 116, 211 MB; two at
# once: INT8 92, 114, 152, 313 MB, fp32 98, 124, 177, 354 MB. Along these a pixel shown takes at most 2690 bytes, 4.5 times the
# 604 bytes of its image, features, noise and output. An earlier bundle, whose cells were 2x2 pixels, took up to 5.1 times its 480
# bytes. The one that ships now, whose generator holds another picture to compare it with the image, breaks a limit of 200 MB by
# .1 MB at 5.8, and holds all at 6.4.
CALL_FACTOR: Final = 6.4
# Memory of the program alone, extrapolated to zero pixels and without weights: INT8 73 MB with 0.4 MB of graph files, fp32 74 MB with
# 1.2 MB. From Python 3.13 on it is more: `gdposr upscale` of noise of 400x600 pixels with --max-memory 120M broke that limit by up to
# 9 MB on 3.13, and kept it on 3.11 and 3.12 with the same ONNX Runtime.
PROGRAM: Final = 74_000_000 + (10_000_000 if sys.version_info >= (3, 13) else 0)
# The second of two calls at once: its thread and what ONNX Runtime keeps for it. INT8 9 MB, fp32 8 MB.
SECOND_CALL: Final = 9_000_000
# For the command itself, with the blocks of a PNG in its filters and deflate: `gdposr upscale` of noise of 400x600 pixels took 10 MB
# more than the estimate without this, with --max-memory 120M.
WRITING: Final = 12_000_000
# Memory of a loaded model over the bytes of its graph files. Before any call of an earlier built-in bundle: INT8 67 MB with 0.8 MB of
# files, fp32 75 MB with 2.8 MB.
WEIGHT_FACTOR: Final = 4
# Rows of float32 output that colour fix and scaling hold at most: windows, differences, temporaries.
STAGE_ROWS: Final = 1000
# Time with one call at a time over the time with a call in each lane; see `engine.py`.
ONE_LANE: Final = 1.35


@dataclass(frozen=True)
class Demand:
    """The part of a picture's memory that does not depend on its tiles."""

    size: tuple[int, int]
    """Height and width of the picture."""
    fixed: int
    """Bytes of the caller's picture and of a result in one array."""
    strip: int
    """Bytes of output for each LR row, in each strip."""
    strips: int
    """How many strips are alive at once if one call runs at a time. With more lanes there is one more."""
    work: int = 0
    """Bytes of the stages after the model."""


@dataclass(frozen=True)
class Plan:
    """How a picture is computed."""

    tile: tuple[int, int]
    """Height and width of a core."""
    lanes: int
    """Number of model calls at once."""
    keep: bool
    """Whether features stay for further samples."""
    peak: int
    """The estimated bytes of the whole process, with the features if they stay. At most `max_memory`, if there is a limit."""


@dataclass(frozen=True)
class Costs:
    """The memory that a bundle takes in one precision."""

    weights: int
    """Bytes of its graph files."""
    pixel: int
    """Bytes for each pixel shown to a call."""
    kept: int
    """Bytes of features for each pixel."""

    @classmethod
    def of(cls, manifest: Manifest, precision: str) -> Costs:
        def area(channels: int, scale: float) -> float:
            return 4 * channels * scale * scale

        features = sum(area(t.channels, t.scale) for t in manifest.encoder.outputs)
        others = (manifest.image, manifest.noise_input, manifest.output)
        tensors = features + sum(area(t.channels, t.scale) for t in others)
        files = manifest.graphs.get(precision, {}).values()
        return cls(
            sum(file.total_bytes for file in files), math.ceil(CALL_FACTOR * tensors), math.ceil(features)
        )


def demand_of(
    picture: Picture, size: tuple[int, int], scale: int, *, whole: bool, placed: bool, held: bool
) -> Demand:
    """The memory that a picture takes besides the model calls.

    picture: the LR pixels.
    size: height and width of the result.
    scale: the model's.
    whole: whether the result is one array.
    placed: whether tiles are rounded into their places. Else float rows go through colour and scaling.
    held: whether the whole output is held in float32.
    """
    one = picture.empty(1, size[1]).nbytes  # a row of the result
    fixed = picture.color.nbytes + (0 if picture.alpha is None else picture.alpha.nbytes)
    fixed += size[0] * one if whole else 0
    if placed:
        # two strips are alive: one being computed, one being written
        return Demand((picture.height, picture.width), fixed, 0 if whole else one * scale, strips=2)
    row = 12 * scale * picture.width  # of float32 output
    work = row * (STAGE_ROWS + (scale * picture.height if held else 0))
    return Demand((picture.height, picture.width), fixed, row * scale, strips=2, work=work)


def choose(
    demand: Demand, costs: Costs, rule: SizeRule, *,
    tile: int | None, lanes: int, largest: int | None, further: bool, limit: int | None,
) -> Plan:  # fmt: skip
    """The plan for a picture. SettingError if the limit is too low for any.

    demand: the memory that the picture takes.
    costs: the memory that the model calls take.
    rule: the sizes that the model takes.
    tile: side of the core that the caller wants. None: the fastest, up to `ROOMY` times the bundle's. Blended cores keep the bundle's,
        since the result depends on them.
    lanes: model calls at once that the caller wants.
    largest: side of what one call takes. None: any.
    further: whether more samples may follow, for which features can be kept.
    limit: bytes for the whole process. None: the budgets above apply.
    """
    usual = tile_size(rule.tile if tile is None else tile, rule)
    roomy = tile is None and (limit is not None or rule.overlap == 0)
    core = tile_size(ROOMY * rule.tile, rule) if roomy else usual
    if largest is not None:
        room = (largest - 2 * rule.context) // rule.multiple_of * rule.multiple_of
        core, usual = (max(rule.multiple_of, min(side, room)) for side in (core, usual))
    rows = STRIP_BUDGET // max(1, demand.strip) // rule.multiple_of * rule.multiple_of
    calls = LANE_BUDGET // costs.pixel  # pixels that they may be shown at once

    def fits(shape: tuple[int, int], count: int) -> bool:
        if limit is None:
            return shape[0] <= rows and count * shown(demand, rule, shape) <= calls
        return peak(demand, costs, rule, shape, count) <= limit

    best: tuple[float, tuple[int, int], int] | None = None
    least = min(core, least_tile(rule))
    if limit is not None or roomy:
        for shape, pixels, tiles in _cuts(demand.size, core, least, rule):
            for count in sorted({1, lanes}):
                # one call at a time works on all threads
                time = pixels * (-(-tiles // lanes) / tiles if count == lanes else ONE_LANE / lanes)
                if (best is None or time < best[0]) and fits(shape, count):
                    best = time, shape, count
    if best is not None:
        _, shape, lanes = best
    elif limit is None:
        shape = (min(usual, max(rule.multiple_of, rows)), usual)
        lanes = max(1, min(lanes, calls // shown(demand, rule, shape)))
    else:
        wanted = peak(demand, costs, rule, (least, least), 1)
        raise SettingError(
            f"max_memory: expected at least {math.ceil(wanted / 2**20)}M for this picture of {demand.size[1]}x{demand.size[0]} "
            f"pixels, got {limit / 2**20:.0f}M; raise the limit or use a smaller picture"
        )
    estimate, kept = peak(demand, costs, rule, shape, lanes), features(demand, costs, rule, shape)
    keep = further and kept <= (FEATURE_BUDGET if limit is None else min(FEATURE_BUDGET, limit - estimate))
    return Plan(shape, lanes, keep, estimate + keep * kept)


@lru_cache(maxsize=4)
def _cuts(
    size: tuple[int, int], core: int, least: int, rule: SizeRule
) -> tuple[tuple[tuple[int, int], int, int], ...]:
    """The ways to cut a picture: height and width of its cores, the pixels that all calls are shown, and their number.

    Kept, since pictures often come in one size and a small one is enlarged in a few milliseconds.

    size: of the picture.
    core, least: the largest and the smallest side of a core.
    rule: the sizes that the model takes.

    Along an axis all cores have about one size. Blended cores are square.
    """

    def axis(length: int, sides: Iterable[int]) -> Iterator[tuple[int, int, int]]:
        for side in sides:
            spans = tile_spans(length, side, rule)
            yield side, sum(last - first for _, _, first, last in spans), len(spans)

    def even(length: int) -> Iterable[int]:
        counts = range(-(-length // core), -(-length // least) + 1)
        return dict.fromkeys(min(core, round_up(-(-length // count), rule.multiple_of)) for count in counts)

    if rule.overlap:
        sides = range(core, least - 1, -rule.multiple_of)
        pairs: Iterable[Any] = zip(*(axis(length, sides) for length in size), strict=True)
    else:
        pairs = product(*(list(axis(length, even(length))) for length in size))
    return tuple(
        ((height, width), down * across, rows * columns)
        for (height, down, rows), (width, across, columns) in pairs
    )


def peak(demand: Demand, costs: Costs, rule: SizeRule, tile: tuple[int, int], lanes: int) -> int:
    """The estimated bytes of the whole process, without kept features.

    demand, costs, rule: as for `choose`.
    tile: height and width of a core.
    lanes: model calls at once.
    """
    program = PROGRAM + WRITING + WEIGHT_FACTOR * costs.weights
    if lanes > 1:  # a second backend, see `Engine.for_lanes`
        program += SECOND_CALL + WEIGHT_FACTOR * costs.weights
    strip = demand.strip * min(tile[0], demand.size[0])
    strips = strip * (demand.strips + (lanes > 1))
    return program + demand.fixed + demand.work + strips + lanes * costs.pixel * shown(demand, rule, tile)


def shown(demand: Demand, rule: SizeRule, tile: tuple[int, int]) -> int:
    """Pixels of the largest tile with its context."""
    sides = [
        min(padded_size(length, rule), max(rule.minimum, side + 2 * rule.context))
        for length, side in zip(demand.size, tile, strict=True)
    ]
    return sides[0] * sides[1]


def features(demand: Demand, costs: Costs, rule: SizeRule, tile: tuple[int, int]) -> int:
    """Bytes of the features of all tiles.

    demand, costs, rule: as for `choose`.
    tile: height and width of a core.
    """
    tiles = plan_tiles(*demand.size, tile, rule)
    return costs.kept * sum(t.padded.height * t.padded.width for t in tiles)
