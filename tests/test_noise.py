"""The noise field: exact bits, absolute coordinates, and the distribution it claims."""

import hashlib
import json
import math
import re
import time
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from runtime.errors import GdposrError, SettingError
from runtime.noise import log, noise_field, normal_from_word, philox4x32


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "noise.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reference(page: str) -> dict[str, Any]:
    """The scalar code of docs/noise.md, run as it stands."""
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    return names


def bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32)


def test_philox_known_answers(root: Path, page: str) -> None:
    """Those of examples/vectors, which are the page's."""
    cases = json.loads((root / "examples" / "vectors" / "noise.json").read_text(encoding="utf-8"))["philox"]
    assert len(cases) == 3
    for case in cases:
        texts = [case[name] for name in ("counter", "key", "result")]
        counter, key, result = (np.array([int(word, 16) for word in text], dtype=np.uint32) for text in texts)
        got = philox4x32(counter, key)
        assert got.dtype == np.uint32
        np.testing.assert_array_equal(got, result)
        many = philox4x32(np.broadcast_to(counter, (3, 2, 4)), key)
        np.testing.assert_array_equal(many, np.broadcast_to(got, (3, 2, 4)))
        assert f"| {' | '.join(map(' '.join, texts))} |" in page


def test_page_vector(page: str, reference: dict[str, Any]) -> None:
    rows = re.findall(
        r"^\| (\d+) +\| (\d+) +\| (\d+) +\| (\d+) +\| (\d+) +\| ([0-9a-f]{8}) \| +(\S+)", page, re.MULTILINE
    )
    assert len(rows) == 11
    for *numbers, wanted, shown in rows:
        seed, sample, y, x, channel = map(int, numbers)
        value = noise_field(seed, sample, 1, 1, channels=channel + 1, y0=y, x0=x)[channel]
        assert f"{bits(value)[0, 0]:08x}" == wanted
        assert float(value[0, 0]) == pytest.approx(float(shown), rel=1e-6)
        assert reference["noise"](seed, sample, y, x, channel) == float(value[0, 0])


def test_golden_field(page: str) -> None:
    field = noise_field(20260325, 3, 64, 48, channels=6, y0=100, x0=200)
    digest = hashlib.sha256(field.astype("<f4").tobytes()).hexdigest()
    assert digest in page


def test_vectorised_equals_scalar_bit_for_bit(reference: dict[str, Any]) -> None:
    seed = 0xFEDCBA9876543210
    field = noise_field(seed, 9, 24, 31, channels=5, y0=1000, x0=2**31)
    for (channel, y, x), value in np.ndenumerate(field):
        assert reference["noise"](seed, 9, 1000 + y, 2**31 + x, channel) == float(value)


def test_extreme_words_bit_for_bit(reference: dict[str, Any]) -> None:
    edges = [round(p * 2**32) + d for p in (0.02425, 0.5, 1 - 0.02425) for d in range(-3, 4)]
    words = np.array([0, 1, 2, 3, 2**32 - 2, 2**32 - 1, *edges], dtype=np.uint64)
    got = normal_from_word(words)
    assert got.tolist() == [reference["normal"](int(word)) for word in words]
    assert math.isclose(got[0], NormalDist().inv_cdf(0.5 / 2**32), rel_tol=2e-9)
    np.testing.assert_array_equal(normal_from_word(np.uint64(2**32 - 1) - words), -got)  # symmetric, exactly


def test_normal_is_the_inverse_distribution() -> None:
    words = np.arange(0, 2**32, 2**32 // 4000 + 7, dtype=np.uint64)
    expected = np.array([NormalDist().inv_cdf((int(word) + 0.5) / 2**32) for word in words])
    np.testing.assert_allclose(normal_from_word(words), expected, rtol=2e-9, atol=2e-9)
    assert (np.diff(normal_from_word(words)) > 0).all()


def test_log_is_within_a_few_ulp() -> None:
    x = np.concatenate([np.geomspace(1e-10, 0.03, 3001), [0.5, 1.0, 2.0, math.sqrt(0.5)]])
    np.testing.assert_allclose(log(x), [math.log(v) for v in x], rtol=5e-16, atol=1e-17)


def test_window_equals_slice_of_the_full_field() -> None:
    full = noise_field(77, 2, 70, 300, channels=6)
    for y0, x0, height, width in [(0, 0, 1, 1), (13, 40, 9, 17), (69, 299, 1, 1), (5, 0, 65, 300)]:
        window = noise_field(77, 2, height, width, channels=6, y0=y0, x0=x0)
        np.testing.assert_array_equal(bits(window), bits(full[:, y0 : y0 + height, x0 : x0 + width].copy()))
    np.testing.assert_array_equal(
        noise_field(77, 2, 70, 300, channels=3), full[:3]
    )  # fewer channels: the first ones


def test_bands_do_not_show() -> None:
    """Fields are computed in bands of rows; a tall and a wide one agree with single rows."""
    for height, width in [(300, 120), (3, 40000)]:
        field = noise_field(5, 0, height, width, channels=1)
        for y in (0, 1, height // 2, height - 1):
            np.testing.assert_array_equal(field[:, y], noise_field(5, 0, 1, width, channels=1, y0=y)[:, 0])


def test_shape_and_type() -> None:
    field = noise_field(np.uint64(2**64 - 1), np.int64(4), 3, 5)  # type: ignore[arg-type]
    assert field.shape == (4, 3, 5)
    assert field.dtype == np.float32
    assert noise_field(1, 0, 0, 7).shape == (4, 0, 7)
    assert noise_field(1, 0, 7, 0).shape == (4, 7, 0)


def test_moments() -> None:
    z = noise_field(123, 0, 500, 500).astype(np.float64).ravel()  # a million deviates
    n = z.size
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert 4.0 < np.abs(z).max() < 6.5


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_distribution_against_the_error_function(seed: int) -> None:
    """Kolmogorov-Smirnov: the largest distance between the empirical and the normal distribution function."""
    z = np.sort(noise_field(seed, 0, 100, 250).astype(np.float64).ravel())
    cdf = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z])
    steps = np.arange(z.size + 1) / z.size
    distance = max(np.abs(cdf - steps[:-1]).max(), np.abs(cdf - steps[1:]).max())
    assert distance < 1.95 / math.sqrt(z.size), f"distance {distance:.5f} of {z.size} deviates"  # 0.1 % level


def test_independence() -> None:
    """Channels (within and across groups of four), samples, seeds and neighbours do not correlate, nor do their squares."""
    base = noise_field(7, 0, 128, 128, channels=6)
    planes = {f"channel {c}": base[c] for c in range(6)}
    planes |= {f"sample {k}": noise_field(7, k, 128, 128, channels=1)[0] for k in (1, 2, 3)}
    planes |= {f"seed {s}": noise_field(s, 0, 128, 128, channels=1)[0] for s in (8, 6, 7 + 2**32)}
    planes |= {
        "right": noise_field(7, 0, 128, 128, channels=1, x0=1)[0],
        "below": noise_field(7, 0, 128, 128, channels=1, y0=1)[0],
    }
    limit = 4.5 / math.sqrt(128 * 128)
    for (name, a), (other, b) in combinations(planes.items(), 2):
        for power in (1, 2):
            u, v = (np.asarray(p, np.float64).ravel() ** power for p in (a, b))
            r = float(np.corrcoef(u, v)[0, 1])
            assert abs(r) < limit, f"{name} and {other}, power {power}: correlation {r:.4f}"


def test_rows_are_not_columns() -> None:
    """Exchanging x and y gives other noise."""
    a = noise_field(7, 0, 128, 128, channels=1)[0].astype(np.float64)
    upper = np.triu_indices(128, 1)
    r = float(np.corrcoef(a[upper], a.T[upper])[0, 1])
    assert abs(r) < 4.5 / math.sqrt(len(upper[0]))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((-1, 0, 2, 2), "seed"),
        ((2**64, 0, 2, 2), "seed"),
        ((1.5, 0, 2, 2), "seed"),
        ((True, 0, 2, 2), "seed"),
        ((0, -1, 2, 2), "sample"),
        ((0, 2**32, 2, 2), "sample"),
        ((0, 0, -2, 2), "height"),
        ((0, 0, 2, "2"), "width"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], name: str) -> None:
    with pytest.raises(SettingError, match=f"^{name}: expected a whole number"):
        noise_field(*arguments)


def test_bad_window() -> None:
    for options in ({"y0": -1}, {"x0": 2**32 - 1}, {"channels": 0}):
        with pytest.raises((GdposrError, ValueError), match=next(iter(options))):
            noise_field(0, 0, 2, 2, **options)


def test_fast_enough() -> None:
    """The field of a 512 x 512 photo takes a few milliseconds; the limit leaves room for a busy machine."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        noise_field(1, 0, 256, 256)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1, f"{min(times) * 1000:.1f} ms"
