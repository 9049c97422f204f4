"""Tile plans cover an image, keep the size rule, and blends leave agreement untouched."""

from itertools import pairwise, product

import numpy as np
import pytest

from runtime.bundle.manifest import SizeRule
from runtime.upscale.tiling import (
    Box,
    Tile,
    pad_edge,
    padded_size,
    paste,
    plan_tiles,
    ramp,
    tile_rows,
    tile_size,
)

PLACED = SizeRule(multiple_of=2, minimum=16, tile=64, context=6)
BLENDED = SizeRule(multiple_of=4, minimum=8, tile=32, context=8, overlap=8)
COARSE = SizeRule(multiple_of=8, minimum=64, tile=64, context=0)
SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 200]


@pytest.mark.parametrize("rule", [PLACED, BLENDED, COARSE], ids=["placed", "blended", "coarse"])
def test_every_plan_keeps_the_rule(rule: SizeRule) -> None:
    for height, width, tile in product(SIZES, SIZES, (1, 16, 30, 64, 1000)):
        if height * width > 40 * 200 and tile == 1:
            continue
        tiles = plan_tiles(height, width, tile, rule)
        limit = tile_size(tile, rule)
        covered = np.zeros((height, width), int)
        for t in tiles:
            core, padded = t.core, t.padded
            assert 0 <= core.y0 < core.y1 <= height
            assert 0 <= core.x0 < core.x1 <= width
            assert core.height <= limit
            assert core.width <= limit
            covered[core.y0 : core.y1, core.x0 : core.x1] += 1
            for low, high, start, end, length in (
                (padded.y0, padded.y1, core.y0, core.y1, height),
                (padded.x0, padded.x1, core.x0, core.x1, width),
            ):
                whole = padded_size(length, rule)
                assert low % rule.multiple_of == high % rule.multiple_of == 0
                assert 0 <= low <= max(0, start - rule.context)
                assert min(whole, end + rule.context) <= high <= whole
                assert high - low >= rule.minimum
        assert covered.min() == 1
        if rule.overlap == 0:
            assert covered.max() == 1
        else:
            assert covered.max() <= 4


def test_one_tile_where_it_fits() -> None:
    assert plan_tiles(33, 64, 64, PLACED) == [Tile(Box(0, 33, 0, 64), Box(0, 34, 0, 64))]
    assert plan_tiles(1, 1, 64, PLACED) == [Tile(Box(0, 1, 0, 1), Box(0, 16, 0, 16))]


def test_neighbours_share_the_overlap() -> None:
    for height in range(1, 150):
        rows = tile_rows(plan_tiles(height, 10, 32, BLENDED))
        boxes = [row[0].core for row in rows]
        for above, below in pairwise(boxes):
            assert above.y1 - below.y0 == BLENDED.overlap
            assert below.y0 - above.y0 >= BLENDED.overlap  # so that no pixel lies in three tiles of a column


def test_rows_and_columns_may_differ() -> None:
    tiles = plan_tiles(100, 100, (10, 50), PLACED)
    assert len(tiles) == 20
    assert [len(row) for row in tile_rows(tiles)] == [2] * 10
    assert all(t.core.height == 10 and t.core.width == 50 for t in tiles)


def test_a_plan_may_begin_below_the_top() -> None:
    """The rows that a plan of large tiles has left are covered by one of small tiles."""
    for height, top in ((100, 64), (65, 64), (130, 128)):
        rest = plan_tiles(height, 70, 30, PLACED, top)
        assert rest[0].core.y0 == top
        assert rest[-1].core.y1 == height
        covered = np.zeros((height, 70), int)
        for tile in rest:
            covered[tile.core.y0 : tile.core.y1, tile.core.x0 : tile.core.x1] += 1
            assert tile.padded.y0 == max(0, min(tile.core.y0 - PLACED.context, tile.padded.y1 - 16))
        assert (covered[top:] == 1).all()
        assert (covered[:top] == 0).all()


def test_tile_size_is_rounded_up() -> None:
    assert [tile_size(t, PLACED) for t in (1, 2, 3, 64)] == [2, 2, 4, 64]
    assert [tile_size(t, BLENDED) for t in (1, 16, 17)] == [16, 16, 20]


def test_pad_edge() -> None:
    image = np.arange(12).reshape(3, 2, 2)
    padded = pad_edge(image, 4, 3)
    assert padded.shape == (3, 4, 3)
    np.testing.assert_array_equal(padded[:, :2, :2], image)
    np.testing.assert_array_equal(padded[:, 3, 2], image[:, 1, 1])
    np.testing.assert_array_equal(padded[:, 0, 2], image[:, 0, 1])
    assert pad_edge(image, 2, 2) is image


def test_ramp() -> None:
    weights = ramp(32)
    assert weights.dtype == np.float32
    assert (np.diff(weights) > 0).all()
    assert 0 < weights[0] < weights[-1] < 1
    np.testing.assert_allclose(weights + weights[::-1], 1, atol=1e-7)
    assert np.diff(weights).max() < 2 / 32  # no jump anywhere
    assert ramp(0).shape == (0,)
    np.testing.assert_array_equal(ramp(1), np.float32([0.5]))


def test_paste_is_exact_where_both_agree() -> None:
    rng = np.random.default_rng(0)
    whole = rng.random((3, 5, 40), dtype=np.float32)
    canvas = np.empty_like(whole)
    paste(canvas, whole[..., :20], 0, 0)
    paste(canvas, whole[..., 12:30], 12, 8)
    paste(canvas, whole[..., 30:], 30, 0)
    np.testing.assert_array_equal(canvas, whole)


def test_paste_blends_smoothly() -> None:
    canvas = np.zeros((1, 1, 30), np.float32)
    paste(canvas, np.zeros((1, 1, 20), np.float32), 0, 0)
    paste(canvas, np.ones((1, 1, 20), np.float32), 10, 10)
    line = canvas[0, 0]
    assert (line[:10] == 0).all()
    assert (line[20:] == 1).all()
    assert (np.diff(line) >= 0).all()
    assert np.diff(line).max() < 0.2
