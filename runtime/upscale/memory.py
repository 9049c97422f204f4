"""How much memory a picture takes, and the tiles that keep it within a limit. Sizes in bytes, lengths in LR pixels.

The estimate is a sum: the program and the weights, the caller's picture, the result where one array holds it, the rows of output
on their way, and what the model calls take, in proportion to the pixels shown to them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from ..bundle.manifest import Manifest, SizeRule
from ..errors import SettingError
from ..image.arrays import Picture
from .tiling import Tile, padded_size, plan_tiles, tile_size

FEATURE_BUDGET: Final = 512 << 20  # bytes of encoder features kept for further samples of a picture
STRIP_BUDGET: Final = 64 << 20  # bytes of output held while a row of tiles is computed
WHOLE_BUDGET: Final = 64 << 20  # bytes of float32 output held between the two passes of adain
LANE_BUDGET: Final = 512 << 20  # bytes that model calls running at once may take where no limit is given

# Measured with the built-in bundle, ONNX Runtime 1.32 on x86-64: ru_maxrss of a fresh process after three encodes and generates of
# one tile, less that after loading. Tiles of 128, 256, 512 (180, 308, 564 with context): INT8 76, 221, 622 MB, fp32 72, 232, 626 MB.
# That is at most 2440 bytes per pixel shown, 5.1 times the 480 bytes of its image, features, noise and output.
CALL_FACTOR: Final = 5.2
# The same process before the calls: INT8 67 MB with 0.8 MB of graph files, fp32 75 MB with 2.8 MB.
PROGRAM: Final = 66_000_000
WEIGHT_FACTOR: Final = 4
STAGE_ROWS: Final = (
    1000  # of float32 output that colour fix and scaling hold at most: windows, differences, temporaries
)
ONE_LANE: Final = 1.35  # time of one call at a time over that of a call in each lane; see `backends/base.py`
_SIZE: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
_LETTERS: Final = " KMGT"


@dataclass(frozen=True)
class Demand:
    """What a picture takes whatever its tiles.

    size: its height and width. fixed: bytes of the caller's picture and of a result in one array. strip: bytes of output per LR row,
    for each strip. strips: how many are alive at once where one call runs at a time; each further lane works on one more. work: bytes
    of the stages after the model.
    """

    size: tuple[int, int]
    fixed: int
    strip: int
    strips: int
    work: int = 0


@dataclass(frozen=True)
class Plan:
    """tile: height and width of a core. lanes: model calls at once. keep: whether features stay for further samples. peak: the
    estimate, with the features where they are kept."""

    tile: tuple[int, int]
    lanes: int
    keep: bool
    peak: int

    def tiles(self, size: tuple[int, int], rule: SizeRule, top: int = 0) -> list[Tile]:
        """The tiles of a picture from row `top` on."""
        return plan_tiles(*size, self.tile, rule, top)


@dataclass(frozen=True)
class Costs:
    """What a bundle takes in one precision. weights: bytes of its graph files. pixel: bytes per pixel shown to a call. kept: bytes of
    features per pixel."""

    weights: int
    pixel: int
    kept: int

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
    """What a picture takes besides the model calls. size: of the result. scale: the model's. whole: the result is one array. placed:
    tiles are rounded into their places, else float rows go through stages. held: the whole output is held in float32.
    """
    one = picture.empty(1, size[1]).nbytes  # a row of the result
    fixed = picture.color.nbytes + (0 if picture.alpha is None else picture.alpha.nbytes)
    fixed += size[0] * one if whole else 0
    if placed:
        return Demand(
            (picture.height, picture.width), fixed, 0 if whole else one * scale, strips=2
        )  # the taker holds one
    row = 12 * scale * picture.width  # of float32 output
    work = row * (STAGE_ROWS + (scale * picture.height if held else 0))
    return Demand((picture.height, picture.width), fixed, row * scale, strips=2, work=work)


def parse_size(text: str) -> int:
    """Bytes of a text such as "900M", "1.5G" or "2 GiB": a number with K, M, G or T for powers of 1024, or none for bytes."""
    match = _SIZE.fullmatch(text.strip())
    number = (
        0 if match is None else math.floor(float(match[1]) * 1024 ** _LETTERS.index(match[2].upper() or " "))
    )
    if match is None or (match[3] and not match[2]) or number < 1:
        raise SettingError(f"size: expected a number with K, M or G such as 1.5G, came {text!r}; write it so")
    return number


def least_tile(rule: SizeRule) -> int:
    """The smallest core chosen here. Below the context, a tile would be shown more than nine times its own pixels."""
    return tile_size(max(rule.context, rule.multiple_of), rule)


def choose(
    demand: Demand, costs: Costs, rule: SizeRule, *,
    tile: int, lanes: int, largest: int | None, further: bool, limit: int | None,
) -> Plan:  # fmt: skip
    """The plan for a picture.

    tile: the core wished for. lanes: model calls at once wished for. largest: what a call takes, None = any. further: whether more
    samples may follow. limit: bytes for the whole process; None: the budgets above. SettingError below the least possible.
    """
    core = tile_size(tile, rule)
    if largest is not None:
        room = (largest - 2 * rule.context) // rule.multiple_of * rule.multiple_of
        core = max(rule.multiple_of, min(core, room))
    if limit is None:
        rows = STRIP_BUDGET // max(1, demand.strip) // rule.multiple_of * rule.multiple_of
        shape = (min(core, max(rule.multiple_of, rows)), core)
        call = shown(demand, rule, shape) * costs.pixel
        lanes = max(1, min(lanes, LANE_BUDGET // call))
        kept = features(demand, costs, rule, shape)
        keep = further and kept <= FEATURE_BUDGET
        return Plan(shape, lanes, keep, peak(demand, costs, rule, shape, lanes) + keep * kept)
    least = min(core, least_tile(rule))
    best: tuple[float, Plan] | None = None
    for count in sorted({1, lanes}):
        for side in range(core, least - 1, -rule.multiple_of):
            estimate = peak(demand, costs, rule, (side, side), count)
            if estimate <= limit:
                time = (1 + 2 * rule.context / side) ** 2 * (ONE_LANE if count < lanes else 1)
                if best is None or time < best[0]:
                    best = time, Plan((side, side), count, False, estimate)
                break  # smaller tiles only take longer
    if best is None:
        wanted = peak(demand, costs, rule, (least, least), 1)
        raise SettingError(
            f"max_memory: expected at least {math.ceil(wanted / 2**20)}M for this picture of {demand.size[1]}x{demand.size[0]} "
            f"pixels, came {limit / 2**20:.0f}M; raise the limit or use a smaller picture"
        )
    plan = best[1]
    kept = features(demand, costs, rule, plan.tile)
    keep = further and kept <= min(FEATURE_BUDGET, limit - plan.peak)
    return Plan(plan.tile, plan.lanes, keep, plan.peak + keep * kept)


def peak(demand: Demand, costs: Costs, rule: SizeRule, tile: tuple[int, int], lanes: int) -> int:
    """The estimate, without kept features: bytes of the whole process."""
    program = PROGRAM + WEIGHT_FACTOR * costs.weights * (1 if lanes == 1 else 2)  # two backends, see `Engine`
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
    """Bytes of the features of all tiles."""
    tiles = plan_tiles(*demand.size, tile, rule)
    return costs.kept * sum(t.padded.height * t.padded.width for t in tiles)
