"""The bootstrap: intervals that cover what they claim, paired differences, and the awkward cases by rule."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from calibration.measure.intervals import Difference, Interval, difference, differences, interval, intervals

INF = float("inf")
SECONDS = 0.3  # both intervals and differences of one row; measured 0.023 on one core


def normal(count: int, mean: float = 0.0, seed: int = 0) -> list[float]:
    return (mean + np.random.default_rng(seed).normal(size=count)).tolist()


def test_the_interval_is_that_of_normal_theory_where_it_holds() -> None:
    """Of a mean over 400 normal values: plus and minus 1.96 standard errors."""
    values = normal(400, 25)
    found, error = interval(values), np.std(values) / 20
    assert found.low == pytest.approx(np.mean(values) - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(np.mean(values) + 1.96 * error, abs=0.1 * error)


def test_the_interval_agrees_with_resampling_one_by_one() -> None:
    """The definition as a loop, with its own random numbers: the ends agree to the noise of resampling."""
    values = np.random.default_rng(3).exponential(size=30)
    rng = np.random.default_rng(9)
    means = [rng.choice(values, len(values)).mean() for _ in range(10_000)]
    low, high = np.quantile(means, [0.025, 0.975])
    found = interval(values.tolist())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    assert np.mean(values) - found.low < found.high - np.mean(values)  # skewed like the values


def ends(found: Interval | Difference) -> tuple[float, float]:
    return found.low, found.high


def test_scipy_gives_the_same_intervals() -> None:
    """Of values, of paired differences, and of crops whose photos are drawn whole, which scipy can do by their sums and sizes.

    The end of a percentile interval of 10,000 draws has a standard error of about 0.7 % of the width; of two such ends four errors of
    their difference are 4 %.
    """
    stats = pytest.importorskip("scipy.stats", reason="needs scipy, which scikit-image brings")
    rng = np.random.default_rng(4)

    def scipys(*data: np.ndarray, statistic: Any = np.mean) -> tuple[float, float]:
        found = stats.bootstrap(
            data, statistic, n_resamples=10_000, method="percentile", confidence_level=0.95, paired=len(data) > 1,
            rng=np.random.default_rng(11),
        ).confidence_interval  # fmt: skip
        return found.low, found.high

    # values: skewed
    values = rng.exponential(size=60)
    found = interval(values.tolist())
    assert ends(found) == pytest.approx(scipys(values), abs=0.04 * (found.high - found.low))
    # difference: of two methods on the same pictures
    other = values + rng.normal(0.1, 0.3, 60)
    change = difference(other.tolist(), values.tolist())
    expected = scipys(other, values, statistic=lambda a, b, axis=-1: np.mean(a - b, axis=axis))
    assert ends(change) == pytest.approx(expected, abs=0.04 * (change.high - change.low))
    # groups: 25 photos of 1 to 6 crops that resemble each other
    sizes = rng.integers(1, 7, 25)
    crops = [rng.normal(level, 0.2, size) for level, size in zip(rng.normal(27, 2, 25), sizes, strict=True)]
    groups = [str(photo) for photo, size in enumerate(sizes) for _ in range(size)]
    whole = intervals({"psnr": np.concatenate(crops).tolist()}, groups=groups)["psnr"]
    sums = np.array([crop.sum() for crop in crops])
    expected = scipys(sums, sizes, statistic=lambda s, n, axis=-1: s.sum(axis=axis) / n.sum(axis=axis))
    assert ends(whole) == pytest.approx(expected, abs=0.04 * (whole.high - whole.low))
    with pytest.raises(ValueError, match="two or more observations"):  # of a single picture
        scipys(values[:1])


def test_it_covers_the_true_mean_about_as_often_as_it_says() -> None:
    hits = [i.low <= 0 <= i.high for i in (interval(normal(40, seed=s), resamples=500) for s in range(400))]
    assert 0.90 <= np.mean(hits) <= 0.98


def test_more_confidence_and_fewer_pictures_widen_it() -> None:
    values = normal(100)
    usual, sure, few = interval(values), interval(values, confidence=0.99), interval(values[:20])
    assert sure.low < usual.low < usual.high < sure.high
    assert few.high - few.low > usual.high - usual.low


def test_the_same_values_give_the_same_interval_and_another_seed_a_close_one() -> None:
    values = normal(50)
    assert interval(values) == interval(values)
    other = interval(values, seed=1)
    assert other != interval(values)
    assert (other.low, other.high) == pytest.approx((interval(values).low, interval(values).high), abs=0.03)


def test_many_pictures_are_resampled_in_chunks_to_the_same_end() -> None:
    values = normal(3000)  # 10,000 resamples of these are 30 million draws, 15 chunks
    found = interval(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(values) / 3000**0.5, rel=0.05)


def test_several_metrics_share_their_resamples() -> None:
    a, b = normal(20, seed=1), normal(20, seed=2)
    both = intervals({"a": a, "b": b})
    for name, values in (("a", a), ("b", b)):
        alone = interval(values)
        assert (both[name].low, both[name].high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    assert intervals({}) == {}


# ---- groups


def test_crops_of_one_photo_count_as_one_picture() -> None:
    """Four equal crops of each of six photos know no more than the six photos."""
    photos = normal(6, 30)
    crops = [value for value in photos for _ in range(4)]
    groups = [str(k) for k in range(6) for _ in range(4)]
    found = intervals({"psnr": crops}, groups=groups)["psnr"]
    alone = interval(photos)
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    careless = interval(crops)
    assert careless.high - careless.low < 0.6 * (found.high - found.low)
    change = differences({"psnr": crops}, {"psnr": [30.0] * 24}, groups=groups)["psnr"]
    assert (change.low, change.high) == pytest.approx((alone.low - 30, alone.high - 30), abs=1e-12)


def test_groups_of_one_picture_change_nothing() -> None:
    values = normal(12)
    assert intervals({"values": values}, groups=[str(k) for k in range(12)])["values"] == interval(values)


def test_a_group_s_pictures_weigh_as_many_as_they_are() -> None:
    """Three pictures of 0 and one of 4, by photo: a resample has one photo, the other, or the mean of all."""
    found = intervals({"a": [0, 4, 0, 0], "b": [0, INF, 0, 0]}, groups=["x", "y", "x", "x"])
    assert found["a"] == Interval(0, 4)
    assert found["b"] == Interval(0, INF)
    middle = intervals({"a": [0, 4, 0, 0]}, groups=["x", "y", "x", "x"], confidence=0.4)["a"]
    assert middle == Interval(1, 1)
    with pytest.raises(ValueError, match="a group for each of 2 pictures, got 1"):
        intervals({"a": [1, 2]}, groups=["x"])


# ---- differences


def test_a_paired_difference_is_found_where_the_rows_themselves_vary_far_more() -> None:
    """0.02 dB between two precisions, while pictures differ by 3 dB: unpaired intervals overlap, the paired one does not."""
    reference = (25 + 3 * np.random.default_rng(0).normal(size=100)).tolist()
    loss = 0.02 + 0.01 * np.random.default_rng(1).normal(size=100)
    values = (np.array(reference) - loss).tolist()
    found = difference(values, reference)
    assert found.real
    assert found.low < found.mean < found.high < 0
    assert found.mean == pytest.approx(-0.02, abs=0.004)
    assert interval(values).high > interval(reference).low


def test_noise_is_no_difference() -> None:
    wrong = [
        difference(normal(40, seed=2 * s), normal(40, seed=2 * s + 1), resamples=500).real for s in range(300)
    ]
    assert np.mean(wrong) < 0.11  # 5 % by design, somewhat more with 40 pictures


def test_the_order_of_the_rows_turns_the_sign() -> None:
    a, b = normal(30, seed=1), normal(30, 1, seed=2)
    there, back = difference(a, b), difference(b, a)
    assert there.mean == pytest.approx(-back.mean)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.02)
    assert there.real
    assert back.real


@pytest.mark.parametrize(
    ("found", "real"),
    [
        (Difference(1, 0.1, 2), True),
        (Difference(-1, -2, -0.1), True),
        (Difference(0.5, -0.1, 1), False),
        (Difference(0.5, 0.0, 1), False),
        (Difference(0, 0, 0), False),
        (Difference(INF, 0.5, INF), True),
    ],
)  # fmt: skip
def test_a_difference_is_real_where_its_interval_excludes_zero(found: Difference, real: bool) -> None:
    assert found.real is real


def test_only_metrics_of_both_rows_are_compared() -> None:
    found = differences({"psnr": [1, 2], "niqe": [5, 6]}, {"psnr": [1, 1], "sqf": [0, 0]})
    assert list(found) == ["psnr"]
    assert found["psnr"].mean == 0.5
    assert differences({"a": [1]}, {"b": [1]}) == {}


# ---- by rule


def test_one_picture_gives_an_interval_of_no_width() -> None:
    assert interval([27.5]) == Interval(27.5, 27.5)
    assert difference([27.5], [27.0]) == Difference(0.5, 0.5, 0.5)


def test_a_constant_metric_has_exact_ends() -> None:
    assert interval([0.1] * 7) == Interval(0.1, 0.1)
    same = normal(9)
    assert difference(same, same) == Difference(0, 0, 0)


def test_infinite_values_follow_the_rules_of_limits() -> None:
    """Of ten pictures one is equal to HR: some resamples lack it, most have it."""
    values = [*normal(9, 30), INF]
    found = interval(values)
    assert 28 < found.low < 32
    assert found.high == INF
    assert interval([INF, INF]) == Interval(INF, INF)
    assert difference([INF, 3.0], [INF, 2.0]).mean == 0.5  # equal where both are infinite
    worse = difference([3.0, 3.0, 3.0], [INF, INF, INF])
    assert (worse.mean, worse.low, worse.high, worse.real) == (-INF, -INF, -INF, True)


@pytest.mark.parametrize(
    ("values", "reference", "message"),
    [
        ([], [], "one or more values"),
        ([1, 2], [1], "got 2 and 1"),
        ([1, float("nan")], [1, 1], "NaN in values"),
        ([INF, 1], [1, INF], "infinite ones of both signs"),
    ],
)  # fmt: skip
def test_what_has_no_mean_is_refused(
    values: Sequence[float], reference: Sequence[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        difference(values, reference)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="one or more values"):
        interval([])
    with pytest.raises(ValueError, match="as many of every metric"):
        intervals({"a": [1, 2], "b": [1]})
    with pytest.raises(ValueError, match="at least 1 resample"):
        interval([1, 2], resamples=0)
    with pytest.raises(ValueError, match="confidence between 0 and 1"):
        interval([1, 2], confidence=1)


def test_a_row_of_a_hundred_pictures_and_seven_metrics_is_quick() -> None:
    ours = {str(k): normal(100, seed=k) for k in range(7)}
    theirs = {str(k): normal(100, seed=50 + k) for k in range(7)}
    spent = []
    for _ in range(3):
        begin = time.thread_time()
        intervals(ours)
        differences(ours, theirs)
        spent.append(time.thread_time() - begin)
    assert min(spent) < SECONDS
