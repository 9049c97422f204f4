"""The measurement behind `--select best`: agreement is counted rightly, choices are confirmed on pictures that did not make them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.measure.pairs import find_pairs
from calibration.studies.candidates import CANDIDATES
from calibration.studies.ranking import (
    COMBINATION,
    Measured,
    combined,
    halves,
    judged,
    kendall,
    measure,
    verdicts,
)
from calibration.studies.selection import main, report
from runtime.errors import ImageError
from runtime.image.grain import NAME, score
from runtime.upscale.upscaler import Upscaler

PICTURES, SAMPLES = 60, 8


def measured(**scores: np.ndarray) -> Measured:
    """Sixty pictures of very different SQF, the samples of each differing little."""
    rng = np.random.default_rng(0)
    level = rng.uniform(0.2, 0.9, (PICTURES, 1))
    truth = level + rng.normal(0, 0.002, (PICTURES, SAMPLES))
    psnr = 27 - level + rng.normal(0, 0.01, (PICTURES, SAMPLES))
    return Measured(truth, psnr, dict(scores), np.full(PICTURES, 3.0), np.linspace(0.1, 0.5, PICTURES))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (PICTURES, SAMPLES))


@pytest.fixture
def folders(tmp_path: Path, make_pixels: Callable[..., np.ndarray]) -> tuple[Path, Path]:
    """LR and HR of three pictures, 24x32 and 96x128."""
    for name, side in (("lr", (24, 32)), ("hr", (96, 128))):
        (tmp_path / name).mkdir()
        for seed in range(3):
            Image.fromarray(make_pixels(*side, seed=seed)).save(tmp_path / name / f"{seed}.png")
    return tmp_path / "lr", tmp_path / "hr"


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Path:
    """SqueezeNet with random weights, where torch is there to run it."""
    pytest.importorskip("torch", reason="needs the extra `export`")
    return Path(request.getfixturevalue("weights"))


def test_tau_counts_pairs_in_order() -> None:
    scores = np.array([[1.0, 2, 3, 4], [4, 3, 2, 1], [1, 2, 4, 3], [5, 5, 5, 5]])
    truth = np.array([[10.0, 20, 30, 40]] * 4)
    np.testing.assert_allclose(kendall(scores, truth), [1, -1, 4 / 6, 0])


def test_a_perfect_score_takes_all_there_is_to_gain() -> None:
    m = measured()
    for sign in (1, -1):
        verdict = judged("truth", sign * m.sqf, m)
        assert verdict.sign == sign
        assert verdict.tau.mean == verdict.chosen == verdict.confirmed == verdict.wins.mean == 1.0
        assert verdict.share == pytest.approx(1.0)
        assert verdict.tau.interval.low > 0


def test_differences_between_pictures_play_no_part() -> None:
    """SQF of the picture's mean sample says nothing about its samples, however well it orders the pictures."""
    m = measured()
    verdict = judged("level", np.repeat(m.sqf.mean(axis=1, keepdims=True), SAMPLES, axis=1), m)
    assert verdict.tau.mean == 0.0
    assert verdict.tau.interval.low <= 0


def test_noise_is_not_better_than_chance() -> None:
    m = measured()
    found = [judged("noise", noise(seed), m, sign=1) for seed in range(1, 41)]
    assert sum(verdict.tau.interval.low > 0 for verdict in found) <= 4  # one in forty is expected
    assert np.mean([verdict.wins.mean for verdict in found]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([verdict.gain.mean for verdict in found]) == pytest.approx(0.0, abs=1e-4)
    assert sum(verdict.wins.interval.low <= 0.5 <= verdict.wins.interval.high for verdict in found) >= 35


def test_equal_scores_pick_the_first_sample() -> None:
    m = measured()
    verdict = judged("nothing", np.zeros_like(m.sqf), m)
    expected = (m.sqf.mean(axis=1) - m.sqf[:, 0]).mean()
    assert verdict.gain.mean == pytest.approx(expected)


def test_a_direction_that_one_half_chose_can_fail_on_the_other() -> None:
    m = measured()
    torn = m.sqf.copy()
    first, second = halves(PICTURES)
    torn[second] *= -1
    for swapped, sign in ((False, 1), (True, -1)):
        verdict = judged("torn", torn, m, swapped=swapped)
        assert (verdict.sign, verdict.chosen, verdict.confirmed) == (sign, 1.0, -1.0)
        assert verdict.tau.interval.low <= 0
    assert sorted([*first, *second]) == list(range(PICTURES))


def test_the_combination_finds_the_candidate_that_tells() -> None:
    truth = measured().sqf
    m = measured(hint=-(truth + np.random.default_rng(9).normal(0, 0.001, truth.shape)), noise=noise(1))
    assert kendall(combined(m), m.sqf).mean() > 0.6


def test_the_combination_gains_nothing_from_noise() -> None:
    """Fitted to its own pictures, thirty columns of noise agree; on the other half they must not."""
    m = measured(**{f"noise {seed}": noise(seed) for seed in range(1, 31)})
    columns = np.stack(list(m.scores.values()), axis=2).reshape(-1, 30)
    target = m.sqf - m.sqf.mean(axis=1, keepdims=True)
    own = (columns @ np.linalg.lstsq(columns, target.ravel(), rcond=None)[0]).reshape(target.shape)
    assert kendall(own, m.sqf).mean() > 0.1
    assert abs(kendall(combined(m), m.sqf).mean()) < 0.08


def test_verdicts_come_in_the_order_of_the_choosing_half() -> None:
    truth = measured().sqf
    rng = np.random.default_rng(3)
    m = measured(weak=truth + rng.normal(0, 0.01, truth.shape), strong=-truth, noise=noise(1))
    assert [v.name for v in verdicts(m)] == ["strong", "weak", "noise", COMBINATION]


def test_the_report_states_the_margin_and_the_spread() -> None:
    m = measured(strong=-measured().sqf, noise=noise(1))
    text = report(m)
    gain = (m.sqf.mean(axis=1) - m.sqf.min(axis=1)).mean()
    assert f"{100 * gain / m.sqf.mean():.2f} %" in text
    assert "3.00/255" in text
    assert "0.30/255 after a low-pass" in text
    assert "0.50 in the picture" in text
    row = next(line for line in text.splitlines() if line.startswith("| strong"))
    assert row.startswith("| strong | more | +1.000 | +1.000 | +1.000 [+1.000, +1.000] |")
    assert row.endswith("| 100 % |")
    assert "Best on the second half: strong, +1.000; on the other +1.000." in text


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_candidate_is_finite_and_tells_samples_apart(
    name: str, make_pixels: Callable[..., np.ndarray]
) -> None:
    lr = make_pixels(30, 36, seed=4)
    samples = [make_pixels(120, 144, seed=seed) for seed in range(3)]
    values = CANDIDATES[name](samples, lr)
    assert len(values) == 3
    assert np.isfinite(values).all()
    assert len(set(values)) == 3
    flat = CANDIDATES[name]([np.full((120, 144, 3), level, np.uint8) for level in (90, 91)], lr)
    assert len(flat) == 2
    assert name == "niqe" or np.isfinite(flat).all()  # NIQE has nothing to judge there: infinite


def test_distances_to_the_other_samples_find_the_medoid(make_pixels: Callable[..., np.ndarray]) -> None:
    base = make_pixels(96, 96).astype(np.int16)
    samples = [np.clip(base + shift, 0, 255).astype(np.uint8) for shift in (-9, -4, 0, 5, 20)]
    for name in ("distance to the mean", "distance to the others"):
        values = CANDIDATES[name](samples, make_pixels(24, 24))
        assert np.argmin(values) in (2, 3)
        assert np.argmax(values) == 4


def test_measures_the_samples_that_the_command_would_draw(
    toy_bundle: Path, folders: tuple[Path, Path], network: Path
) -> None:
    lr, hr = folders
    chosen = {NAME: CANDIDATES[NAME]}
    with Upscaler(toy_bundle) as upscaler:
        m = measure(upscaler, find_pairs(lr, hr), network, samples=3, first=2, seed=5, candidates=chosen)
        drawn = upscaler.up(np.asarray(Image.open(lr / "1.png")), 5, 3, first=2)
    assert m.sqf.shape == m.psnr.shape == m.scores[NAME].shape == (3, 3)
    assert m.scores[NAME][1].tolist() == [score(sample) for sample in drawn]
    assert (m.sqf > 0).all()
    assert len({*m.sqf.ravel()}) == 9
    assert (m.low < m.distance).all()


def test_the_command_prints_the_table(
    toy_bundle: Path, folders: tuple[Path, Path], network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lr, hr = folders
    arguments = [
        "--lr",
        lr,
        "--hr",
        hr,
        "--sqf-weights",
        network,
        "--bundle",
        toy_bundle,
        "--samples",
        "2",
        "--precision",
        "auto",
    ]
    assert main([str(argument) for argument in arguments]) == 0
    text = capsys.readouterr().out
    assert "3 pictures, 2 samples of each" in text
    for name in (*CANDIDATES, COMBINATION):
        assert f"| {name}" in text
    assert f"| {NAME} (chosen) |" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--limit", "1"], "at least 2 pairs"),
        (["--samples", "1"], "at least 2 samples"),
        (["--precision", "fp99"], "fp99"),
        (["--lr", "nowhere"], "nowhere"),
        (["--sqf-weights", "missing.safetensors"], "SQF"),
    ],
)
def test_what_is_missing_is_said(
    changes: list[str], message: str, toy_bundle: Path, folders: tuple[Path, Path], network: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base = ["--lr", folders[0], "--hr", folders[1], "--sqf-weights", network, "--bundle", toy_bundle]
    assert main([*map(str, base), "--precision", "auto", *changes]) == 2
    assert message in capsys.readouterr().err


def test_fewer_than_two_samples_are_no_choice(toy_bundle: Path, network: Path) -> None:
    with Upscaler(toy_bundle) as upscaler, pytest.raises(ImageError, match="at least 2 samples"):
        measure(upscaler, [], network, samples=1)


def test_an_infinite_score_counts_as_the_worst(
    toy_bundle: Path, folders: tuple[Path, Path], network: Path
) -> None:
    chosen = {"flat": lambda samples, lr: [float("inf"), 5.0, float("inf")]}
    with Upscaler(toy_bundle) as upscaler:
        m = measure(upscaler, find_pairs(*folders), network, samples=3, candidates=chosen)
    assert (m.scores["flat"].argmin(axis=1) == 1).all()
    assert np.isfinite([judged("flat", m.scores["flat"], m).tau.mean, combined(m).sum()]).all()
