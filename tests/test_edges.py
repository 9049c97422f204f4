"""The measure of straight edges that `test_shipped_model.py` uses."""

import math

import cards
import edges
import numpy as np
import pytest


@pytest.mark.parametrize("name", edges.EDGES)
def test_wobble_is_measured(name: str) -> None:
    """A waving edge has the wobble it was given."""
    hr = edges.edge(name)
    assert edges.wobble(hr, name) < 0.02
    moved = np.rint(1.2 * np.sin(np.arange(len(hr)) / 5)).astype(int)
    waving = np.stack([np.roll(hr[:, x], moved[x], axis=0) for x in range(len(hr))], axis=1)
    assert 0.9 * cards.rms(moved) < edges.wobble(waving, name) < 1.1 * cards.rms(moved)
    assert edges.wobble(np.zeros_like(hr), name) == math.inf
