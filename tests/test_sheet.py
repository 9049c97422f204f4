"""The contact sheet of several versions of one photo."""

from typing import Any

import numpy as np
import pytest


def test_sheet_adds_a_detail_where_large_versions_differ(make_pixels: Any) -> None:
    from gdposr.batch.sheet import contact_sheet, most_varied

    first = make_pixels(300, 400)
    second = first.copy()
    second[200:260, 300:380] = 255 - second[200:260, 300:380]
    y0, y1, x0, x1 = most_varied([first, second], 100, 100)
    assert y0 <= 200
    assert y1 >= 260
    assert x0 <= 300
    assert x1 >= 380
    small = contact_sheet([first, second], ["first", "second"], cell=400)
    large = contact_sheet([first, second], ["first", "second"], cell=100)
    assert small.shape[1] > 800
    assert small.dtype == large.dtype == np.uint8
    assert np.array_equal(small[34:334, 8:408], first), "shown whole and unscaled where it fits"


def test_sheet_takes_every_kind_of_pixels(make_pixels: Any) -> None:
    from gdposr.batch.sheet import contact_sheet

    for channels in (1, 2, 3, 4):
        for dtype in (np.uint8, np.uint16):
            sheet = contact_sheet([make_pixels(10, 12, channels, dtype=dtype)], ["one"])
            assert sheet.shape[2] == 3
            assert sheet.dtype == np.uint8
    with pytest.raises(ValueError, match="one size"):
        contact_sheet([make_pixels(10, 12), make_pixels(12, 10)], ["a", "b"])


def test_labels_of_small_versions_do_not_run_into_each_other(make_pixels: Any) -> None:
    from gdposr.batch.sheet import contact_sheet

    labels = [f"seed {2**64 - 1} sample {index}" for index in range(2)]
    both = contact_sheet([make_pixels(8, 8), make_pixels(8, 8)], labels)
    ink = np.flatnonzero((both[10:30] < 128).all(axis=2).any(axis=0))
    assert np.diff(ink).max() > 8, "a gap between the two"
    assert ink.max() < both.shape[1] - 8, "nothing is cut off"
