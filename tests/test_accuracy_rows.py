"""A row of the accuracy table: pairs matched by name with clear errors, and what is measured of a method on them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import accuracy_cases
import numpy as np
import pytest

from calibration.measure.accuracy import measure_row
from calibration.measure.methods import Method, Tiled, bicubic, tile_borders
from calibration.measure.pairs import find_pairs, read_rgb
from calibration.measure.table import evenly
from runtime.bundle.manifest import SizeRule
from runtime.errors import ImageError

folders = accuracy_cases.folders  # a fixture

# ---- what is measured of a method


def test_diversity_and_seam_are_of_pictures_from_the_whole_list(folders: tuple[Path, Path]) -> None:
    assert evenly(24, 8) == [0, 3, 7, 10, 13, 16, 20, 23]
    assert (evenly(3, 8), evenly(5, 1), evenly(5, 0)) == ([0, 1, 2], [0], [])
    pairs = find_pairs(*folders)
    step = {read_rgb(pair.lr).tobytes(): 10 * (1 + k) for k, pair in enumerate(pairs)}

    def samples(lr: np.ndarray, count: int) -> list[np.ndarray]:
        return [np.full((4, 4, 3), k * step[lr.tobytes()], np.uint8) for k in range(count)]

    method = Method("random", "model", lambda name, lr: bicubic(lr, 4), samples=samples)
    row = measure_row(method, pairs, 4, None, 2, 2)
    assert row.diversity == pytest.approx((10 + 30) / 2)  # of the first and the last picture
    assert (row.intervals["diversity"].low, row.intervals["diversity"].high) == pytest.approx((10, 30))
    together = measure_row(method, pairs, 4, None, 2, 2, group=lambda name: "one photo").intervals[
        "diversity"
    ]
    assert (together.low, together.high) == pytest.approx((20, 20))


def test_the_seam_is_that_of_small_tiles(folders: tuple[Path, Path]) -> None:
    """A method whose tiles differ by 40 levels, on the first picture only."""

    def tiled(lr: np.ndarray) -> Tiled:
        picture = bicubic(lr, 4) // 2
        picture[64:] += 40
        return Tiled(picture, (64,), ())

    method = Method("cut", "peer", lambda name, lr: bicubic(lr, 4), tiled=tiled)
    row = measure_row(method, find_pairs(*folders), 4, None, 1)
    assert row.seam is not None
    assert row.seam > 3
    assert measure_row(method, find_pairs(*folders), 4, None, 0).seam is None
    flat = dataclasses.replace(method, tiled=lambda lr: Tiled(np.zeros((144, 128, 3), np.uint8), (64,), ()))
    assert measure_row(flat, find_pairs(*folders), 4, None).seam is None


def test_borders_are_where_the_runtime_cuts() -> None:
    rule = SizeRule(multiple_of=2, minimum=8, tile=64, context=6)
    assert tile_borders(40, 100, 32, rule, 4) == ((128,), (128, 256, 384))
    assert tile_borders(32, 20, 32, rule, 4) == ((), ())
    blended = dataclasses.replace(rule, overlap=8)
    assert tile_borders(40, 64, 32, blended, 4) == ((96,), (96, 192))


def test_a_result_of_the_wrong_size_is_named(folders: tuple[Path, Path]) -> None:
    method = Method("odd", "peer", lambda name, lr: bicubic(lr, 2))
    with pytest.raises(
        ImageError, match=r"odd: a: expected \(144, 128, 3\) uint8 like HR, got \(72, 64, 3\)"
    ):
        measure_row(method, find_pairs(*folders), 4, None)


def test_an_hr_photo_of_the_wrong_size_is_named(folders: tuple[Path, Path]) -> None:
    method = Method("bicubic", "bicubic", lambda name, lr: bicubic(lr, 2))
    with pytest.raises(ImageError, match="a: HR must be 2 times LR, expected 64x72, got 128x144"):
        measure_row(method, find_pairs(*folders), 2, None)


# ---- pairs


def test_pairs_match_by_name_across_suffixes_and_subfolders(
    tmp_path: Path, make_photo: Callable[..., Path]
) -> None:
    for name in ("lr/x/1.png", "lr/0.png", "hr/x/1.bmp", "hr/0.tif"):
        make_photo(name)
    pairs = find_pairs(tmp_path / "lr", tmp_path / "hr")
    assert [pair.name for pair in pairs] == ["0", "x/1"]
    assert pairs[1].hr == tmp_path / "hr/x/1.bmp"
    assert len(find_pairs(tmp_path / "lr", tmp_path / "hr", limit=1)) == 1


def test_lonely_doubled_and_missing_photos_are_named(tmp_path: Path, make_photo: Callable[..., Path]) -> None:
    for name in ("lr/1.png", "lr/2.png", "hr/2.png", "hr/3.png", "twice/1.png", "twice/1.jpg"):
        make_photo(name)
    (tmp_path / "empty").mkdir()
    for lr, hr, message in (
        ("lr", "hr", r"2 have no partner: 1 \(only in .*lr\), 3 \(only in .*hr\)"),
        ("twice", "lr", "have the same name"),
        ("empty", "hr", "got none"),
        ("none", "hr", "expected a folder"),
    ):
        with pytest.raises(ImageError, match=message):
            find_pairs(tmp_path / lr, tmp_path / hr)


def test_gray_is_repeated_and_alpha_refused(make_photo: Callable[..., Path]) -> None:
    gray = read_rgb(make_photo("gray.png", channels=1))
    assert gray.shape == (24, 32, 3)
    assert (gray[..., 0] == gray[..., 2]).all()
    with pytest.raises(ImageError, match="without transparency"):
        read_rgb(make_photo("clear.png", channels=4))
