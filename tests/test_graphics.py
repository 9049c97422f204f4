"""Drawn and recoloured training pictures: functions of their generator, in range, and of the kinds they are meant to be."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the extra `train`")

from training.data import cards as graphics
from training.data.cards import Variety, draw_card, draw_shapes, recoloured
from training.data.photos import CropParams, PairDataset, PhotoSet


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_cards_are_functions_of_the_generator_and_never_empty() -> None:
    cards = [draw_card(rng(seed), 64) for seed in range(40)]
    for seed, card in enumerate(cards):
        assert card.shape == (64, 64, 3)
        assert card.dtype == np.uint8
        assert np.array_equal(card, draw_card(rng(seed), 64))
    assert len({card.tobytes() for card in cards}) == 40
    contrast = [np.ptp(card.astype(int), axis=(0, 1)).max() for card in cards]
    assert np.mean(np.array(contrast) > 50) > 0.9


def test_cards_come_in_gray_and_in_colour_and_with_smooth_edges() -> None:
    cards = [draw_card(rng(seed), 64).astype(int) for seed in range(60)]
    gray = [np.ptp(card, axis=2).max() <= 1 for card in cards]
    assert 0.2 < np.mean(gray) < 0.8
    plain = [len(np.unique(card.reshape(-1, 3), axis=0)) for card in cards]
    assert min(plain) > 2, "edges that jump would alias before they are degraded"


def test_edges_of_shapes_are_placed_finer_than_pixels() -> None:
    cards = [draw_shapes(rng(seed), 96).astype(float).mean(axis=2) for seed in range(80)]
    places = []
    for card in cards:
        # columns with one step, between two plain grays: how much of the pixel between them is of either
        steps = np.abs(np.diff(card, axis=0)) > 1
        for x in np.flatnonzero((steps.sum(axis=0) == 2) & (np.ptp(card, axis=0) > 20)):
            (first, second), column = np.flatnonzero(steps[:, x]), card[:, x]
            if second == first + 1:
                places.append((column[second] - column[first]) / (column[second + 1] - column[first]))
    shares, _ = np.histogram(places, bins=6, range=(0.2, 0.8))
    assert len(places) > 300
    assert shares.min() > 0.04 * len(places), "a drawing on a grid of half pixels has few places"


def test_a_share_of_the_cards_is_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = np.zeros((64, 64, 3), np.uint8)
    monkeypatch.setattr(graphics, "draw_shapes", lambda rng, size: blank)
    for share, least, most in ((0.0, 0, 0), (0.4, 10, 40), (1.0, 60, 60)):
        assert least <= sum(draw_card(rng(seed), 64, share) is blank for seed in range(60)) <= most


def test_no_text_is_smaller_than_lr_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    font = graphics._font
    monkeypatch.setattr(graphics, "_font", lambda size: sizes.append(size) or font(size))
    for seed in range(60):
        draw_card(rng(seed), 64)
    assert min(sizes) >= graphics.FINE * graphics.SMALLEST_TEXT
    assert max(sizes) > 2 * min(sizes)


def test_recoloured_photos_are_gray_exchanged_or_more_saturated() -> None:
    photo = rng(0).integers(60, 190, (16, 16, 3), dtype=np.uint8)
    kinds = {"gray": 0, "exchanged": 0, "saturated": 0}
    for seed in range(60):
        made = recoloured(photo, rng(seed))
        assert (made.shape, made.dtype) == (photo.shape, photo.dtype)
        if np.ptp(made.astype(int), axis=2).max() == 0:
            kinds["gray"] += 1
        elif np.array_equal(np.sort(made, axis=2), np.sort(photo, axis=2)):
            kinds["exchanged"] += 1
        else:
            assert np.ptp(made.astype(int), axis=2).mean() > np.ptp(photo.astype(int), axis=2).mean()
            kinds["saturated"] += 1
    assert all(count >= 6 for count in kinds.values()), kinds


def test_shares_decide_how_many_pictures_are_no_plain_photos(tmp_path: Path) -> None:
    Image.fromarray(np.full((96, 96, 3), (200, 90, 30), np.uint8)).save(tmp_path / "plain.png")
    photos = PhotoSet([tmp_path / "plain.png"])

    def plain(variety: Variety) -> float:
        pairs = PairDataset(photos, CropParams(64), variety=variety, seed=1)
        items = [pairs.item(k) for k in range(60)]
        same = [
            bool(((item.hr.permute(1, 2, 0).numpy() * 255).round() == (200, 90, 30)).all()) for item in items
        ]
        assert not any(plain and item.drawn for plain, item in zip(same, items, strict=True))
        drawn.append(float(np.mean([item.drawn for item in items])))
        return float(np.mean(same))

    drawn: list[float] = []
    assert plain(Variety()) == 1.0
    assert plain(Variety(cards=1.0)) == 0.0
    assert 0.3 < plain(Variety(cards=0.5)) < 0.7
    assert plain(Variety(recolour=1.0)) < 0.2  # exchanged channels may stay in their places
    assert drawn[:2] == [0.0, 1.0]
    assert 0.3 < drawn[2] < 0.7
    assert drawn[3] == 0.0


def test_wrong_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="graphics_share must be from 0 to 1, got 2"):
        Variety(cards=2.0)
    with pytest.raises(ValueError, match="shapes must be from 0 to 1, got -1"):
        Variety(shapes=-1.0)
