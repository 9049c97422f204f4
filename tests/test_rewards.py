"""Metrics by name, the rules of normalisation, and rewards that stay with their pictures."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from training.metrics.attributes import detail_share, published_share  # noqa: E402
from training.metrics.fidelity import PSNR_CAP, MetricError, psnr_y, ssim_y  # noqa: E402
from training.metrics.niqe import niqe  # noqa: E402
from training.metrics.registry import Metric, create_metrics  # noqa: E402
from training.stages.normalisation import normalise  # noqa: E402
from training.stages.rewards import group_rewards  # noqa: E402
from training.stages.sheets import group_sheet  # noqa: E402

INF, NAN = float("inf"), float("nan")
Pixels = Callable[..., np.ndarray]


def tensor(*pictures: np.ndarray) -> "torch.Tensor":
    """(H, W, 3) uint8 each -> (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 255)


def noisy(picture: np.ndarray, levels: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-levels, levels + 1, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def pair(make_pixels: Pixels) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Three SR and HR pictures of 52x60."""
    hr = [make_pixels(52, 60, seed=seed) for seed in range(3)]
    return [noisy(picture, 3 + 9 * k, seed=k) for k, picture in enumerate(hr)], hr


def brightness(reference: bool = False, higher_is_better: bool = True) -> Metric:
    """A metric whose value can be read off the picture: mean over all pixels."""
    return Metric(
        "full" if reference else "none", reference, higher_is_better, lambda sr, *_: sr.mean((1, 2, 3))
    )


def gray(*levels: float) -> "torch.Tensor":
    """One group of flat 16x16 pictures of those 8-bit levels, (1, G, 3, 16, 16)."""
    return torch.tensor(levels).view(1, -1, 1, 1, 1).expand(1, len(levels), 3, 16, 16) / 255


def test_niqe_of_a_flat_picture_is_infinite() -> None:
    (metric,) = create_metrics(["niqe"], "cpu")
    assert metric(tensor(np.full((100, 96, 3), 90, np.uint8))).item() == INF


def test_pictures_are_judged_as_the_user_gets_them(pair: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    """A fraction of a level and what lies outside [0, 1] are gone before any metric sees them."""
    sr, hr = tensor(*pair[0]), tensor(*pair[1])
    sr[0], hr[0] = 1.0, 1.0
    offset = torch.full_like(sr, 0.3 / 255)
    offset[0] = 0.7
    for metric in create_metrics(["psnr", "ssim"], "cpu"):
        assert metric(sr + offset, hr).tolist() == metric(sr, hr).tolist()
    assert metric(sr, hr)[0].item() == pytest.approx(1.0)


def test_equal_pictures_have_a_finite_psnr(make_pixels: Pixels) -> None:
    hr = tensor(make_pixels(16, 16))
    assert create_metrics(["psnr"], "cpu")[0](hr, hr).item() == PSNR_CAP
    sr = torch.stack([hr, tensor(noisy(make_pixels(16, 16), 9)), tensor(noisy(make_pixels(16, 16), 2))], 1)
    report = group_rewards(sr, hr, create_metrics(["psnr"], "cpu"))
    assert report.rewards.isfinite().all()
    assert report.rewards[0, 0] == 1.0
    assert report.rewards[0, 1] == 0.0


def test_autocast_and_gradients_change_nothing(pair: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    sr, hr = tensor(*pair[0]), tensor(*pair[1])
    weight = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    product = Metric("product", False, True, lambda sr: (weight @ sr.flatten(2)).mean((1, 2)))
    metrics = [*create_metrics(["psnr", "ssim", "niqe"], "cpu"), product]
    plain = group_rewards(sr[None], hr[:1], metrics)
    with torch.autocast("cpu", torch.bfloat16):
        assert (weight @ weight).dtype == torch.bfloat16  # the context is in force
        cast = group_rewards(sr[None].requires_grad_(), hr[:1], metrics)
    for metric in metrics:
        assert cast.scores[metric.name].tolist() == plain.scores[metric.name].tolist()
        assert not metric(sr.requires_grad_(), hr).requires_grad
    assert cast.rewards.tolist() == plain.rewards.tolist()
    assert cast.rewards.dtype == torch.float32
    assert not cast.rewards.requires_grad


def test_a_picture_that_is_not_finite_gets_the_worst_reward(
    pair: tuple[list[np.ndarray], list[np.ndarray]],
) -> None:
    sr, hr = tensor(*pair[0]), tensor(*pair[1])
    sr[1, 0, 3, 3] = NAN
    for metric in create_metrics(["psnr", "ssim", "niqe"], "cpu"):
        assert metric(sr, hr).isnan().tolist() == [False, True, False]
    report = group_rewards(sr[None], hr[:1], create_metrics(["psnr", "niqe"], "cpu"))
    assert report.rewards.isfinite().all()
    assert report.rewards[0, 1] == 0.0


@pytest.mark.parametrize(
    ("scores", "higher", "wanted"),
    [
        ([20.0, 25.0, 30.0], True, [0.0, 0.5, 1.0]),
        ([20.0, 25.0, 30.0], False, [1.0, 0.5, 0.0]),
        ([-3.0, -1.0, -2.0], True, [0.0, 1.0, 0.5]),
        ([7.0, 7.0, 7.0], True, [0.5, 0.5, 0.5]),  # constant
        ([0.0, 0.0], False, [0.5, 0.5]),
        ([25.0, 25.000002, 25.0], True, [0.5, 0.5, 0.5]),  # constant up to rounding
        ([1.0, NAN, 3.0], True, [0.0, 0.0, 1.0]),
        ([1.0, NAN, 3.0], False, [1.0, 0.0, 0.0]),
        ([INF, 1.0, 3.0, -INF], True, [0.0, 0.0, 1.0, 0.0]),
        ([INF, 4.0, 4.0], False, [0.0, 0.5, 0.5]),  # constant beside one that is not finite
        ([NAN, INF], True, [0.0, 0.0]),
        ([3.0e38, -3.0e38], True, [1.0, 0.0]),
        ([5.0], True, [0.5]),
    ],
)
def test_normalisation(scores: list[float], higher: bool, wanted: list[float]) -> None:
    found = normalise(torch.tensor(scores), higher)
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)
    assert found.dtype == torch.float32


def test_normalisation_is_per_group() -> None:
    scores = torch.tensor([[[1.0, 2.0], [400.0, 300.0]], [[5.0, 5.0], [NAN, 1.0]]])
    found = normalise(scores, True)
    assert found.tolist() == [[[0.0, 1.0], [1.0, 0.0]], [[0.5, 0.5], [0.0, 0.5]]]
    with pytest.raises(ValueError, match="at least 1"):
        normalise(torch.zeros(2, 0), True)


def test_every_sample_keeps_its_place(make_pixels: Pixels) -> None:
    """B = 2, G = 3, a chunk that cuts across groups: the same as one call per picture."""
    hr = [make_pixels(40, 44, seed=seed) for seed in (1, 2)]
    sr = [[noisy(picture, level, level) for level in (12, 3, 30)] for picture in hr]
    metrics = create_metrics(["psnr", "ssim", "niqe"], "cpu")
    report = group_rewards(torch.stack([tensor(*group) for group in sr]), tensor(*hr), metrics, chunk=4)
    assert report.rewards.shape == (2, 3)
    assert list(report.scores) == ["psnr", "ssim", "niqe"]
    for b in range(2):
        alone = group_rewards(tensor(*sr[b])[None], tensor(hr[b]), metrics)
        assert report.rewards[b].tolist() == pytest.approx(alone.rewards[0].tolist(), abs=1e-5)
        for g in range(3):
            assert report.scores["psnr"][b, g].item() == pytest.approx(psnr_y(sr[b][g], hr[b]), abs=1e-4)
            assert report.scores["ssim"][b, g].item() == pytest.approx(ssim_y(sr[b][g], hr[b]), abs=1e-4)
            assert report.scores["niqe"][b, g].item() == pytest.approx(niqe(sr[b][g]), rel=1e-5)


def test_detail_weighs_the_no_reference_metrics(make_pixels: Pixels) -> None:
    """rho_s * FR + rho_d * NR: the two metrics disagree, so the reward shows the weights."""
    smooth, textured = np.full((16, 16, 3), 120, np.uint8), noisy(np.full((16, 16, 3), 128, np.uint8), 120)
    half = np.concatenate([smooth] * 4 + [textured] * 4, axis=1)
    both = np.concatenate([smooth] * 8, axis=1), np.concatenate([textured] * 8, axis=1), half
    hr = tensor(*both)
    sr = torch.tensor([10.0, 200.0]).view(1, 2, 1, 1, 1).expand(3, 2, 3, 16, 128) / 255
    metrics = [brightness(reference=True), brightness(higher_is_better=False)]
    rho = detail_share(hr)
    assert rho[0] == 0.0
    assert rho[1] == 1.0
    assert 0.4 < rho[2] < 0.6
    report = group_rewards(sr, hr, metrics)
    assert torch.equal(report.detail, rho)
    np.testing.assert_allclose(report.rewards, torch.stack([rho, 1 - rho], 1), atol=1e-6)
    fixed = group_rewards(sr, hr, metrics, weighting="fixed")
    assert fixed.rewards.tolist() == [[0.5, 0.5]] * 3
    # weak grain is detail to the published measure alone
    grain = tensor(np.repeat(noisy(np.full((16, 128, 1), 128, np.uint8), 10), 3, axis=2))
    details = [
        group_rewards(sr[:1], grain, metrics, name).detail.item() for name in ("attribute", "published")
    ]
    assert details == [0.0, 1.0]
    assert published_share(grain).item() == 1.0


def test_metrics_of_one_family_are_averaged() -> None:
    psnr, second = brightness(True), Metric("second", True, False, lambda sr, hr: (sr * 2).mean((1, 2, 3)))
    report = group_rewards(gray(0, 100, 200), gray(0)[0], [psnr, second], weighting="fixed")
    assert report.rewards.tolist() == [[0.5, 0.5, 0.5]]
    assert set(report.scores) == {"full", "second"}


@pytest.mark.parametrize("weighting", ["attribute", "fixed"])
@pytest.mark.parametrize("reference", [True, False])
def test_one_family_alone_has_the_whole_weight(reference: bool, weighting: str) -> None:
    report = group_rewards(gray(0, 50, 200), gray(9)[0], [brightness(reference)], weighting)
    assert report.rewards.tolist()[0] == pytest.approx([0.0, 0.25, 1.0])
    assert report.detail.item() == (0.0 if reference else 1.0)


def test_a_constant_or_broken_metric_leaves_the_other_in_charge() -> None:
    for value in (3.0, NAN, INF):
        useless = Metric("useless", True, True, lambda sr, hr, value=value: torch.full((len(sr),), value))
        report = group_rewards(gray(0, 255, 51), gray(0)[0], [brightness(), useless], weighting="fixed")
        rewards = report.rewards[0]
        assert rewards.isfinite().all()
        assert (rewards - rewards[0]).tolist() == pytest.approx([0.0, 0.5, 0.1])


def test_wrong_groups_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected SR \(B, G, 3, H, W\) for HR \(2, 3, 16, 16\)"):
        group_rewards(gray(0, 1), torch.zeros(2, 3, 16, 16), [brightness()])
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        group_rewards(gray(0, 1), torch.full((1, 3, 16, 16), -0.5), [brightness()])
    with pytest.raises(ValueError, match=r"attribute or published or fixed, .* got 'half'"):
        group_rewards(gray(0, 1), gray(0)[0], [brightness()], weighting="half")
    with pytest.raises(ValueError, match="0 metrics"):
        group_rewards(gray(0, 1), gray(0)[0], [])


def test_wrong_pictures_are_named() -> None:
    psnr, ssim = create_metrics(["psnr", "ssim"], "cpu")
    with pytest.raises(MetricError, match=r"psnr needs SR of \(N, 3, H, W\)"):
        psnr(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))
    with pytest.raises(MetricError, match="HR picture of the same size, got none"):
        psnr(torch.zeros(1, 3, 16, 16))
    with pytest.raises(MetricError, match=r"got \(1, 3, 8, 8\)"):
        psnr(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 8, 8))
    with pytest.raises(MetricError, match="at least 11 pixels a side, got 16x8"):
        ssim(torch.zeros(1, 3, 8, 16), torch.zeros(1, 3, 8, 16))
    with pytest.raises(MetricError, match="one value per picture"):
        Metric("map", False, True, lambda sr: sr)(torch.zeros(1, 3, 8, 8))


def test_wrong_names_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)  # as if it were not installed
    with pytest.raises(MetricError, match=r"'musiq' is not built in .* pip install pyiqa, or use psnr, ssim"):
        create_metrics(["psnr", "musiq"], "cpu")
    with pytest.raises(MetricError, match="got psnr, niqe, psnr: name each once"):
        create_metrics(["psnr", "niqe", "psnr"], "cpu")
    with pytest.raises(MetricError, match="got none"):
        create_metrics([], "cpu")
    with pytest.raises(MetricError, match="perceptual_weights"):
        create_metrics(["sqf"], "cpu")
    with pytest.raises(MetricError, match=r"w\.safetensors"):
        create_metrics(["sqf"], "cpu", perceptual_weights=tmp_path / "w.safetensors")


class FakePyiqa:
    """Stands in for pyiqa: `musiq` is no-reference, `lpips` full-reference and lower is better, both careless with randomness."""

    def __init__(self) -> None:
        self.made: list[tuple] = []

    def create_metric(self, name: str, device: object, as_loss: bool) -> Callable[..., "torch.Tensor"]:
        if name == "offline":
            raise OSError("no route to host")
        kinds = {"musiq": ("NR", False), "lpips": ("FR", True), "vague": ("NR", None), "fid": ("set", True)}
        mode, lower_better = kinds[name]
        self.made.append((name, device, as_loss))
        torch.manual_seed(123)
        np.random.seed(123)
        random.seed(123)

        class Network:
            def __call__(self, sr: "torch.Tensor", hr: "torch.Tensor | None" = None) -> "torch.Tensor":
                drawn = torch.rand(()) * 0 + np.random.rand() * 0 + random.random() * 0
                return (sr if hr is None else (sr - hr).abs()).mean((1, 2, 3))[:, None] + drawn

        network = Network()
        network.metric_mode, network.lower_better = mode, lower_better  # type: ignore[attr-defined]
        return network


def test_other_names_come_from_pyiqa(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakePyiqa()
    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=fake.create_metric))
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    lpips, _, musiq = create_metrics(["lpips", "psnr", "musiq"], "cpu")
    assert fake.made == [("lpips", torch.device("cpu"), False), ("musiq", torch.device("cpu"), False)]
    assert (lpips.name, lpips.reference, lpips.higher_is_better) == ("lpips", True, False)
    assert (musiq.name, musiq.reference, musiq.higher_is_better) == ("musiq", False, True)
    report = group_rewards(gray(0, 100, 50), gray(0)[0], [lpips, musiq], weighting="fixed")
    assert report.scores["lpips"].tolist()[0] == pytest.approx([0, 100 / 255, 50 / 255])
    assert report.rewards.tolist()[0] == pytest.approx([0.5, 0.5, 0.5])
    assert torch.equal(torch.get_rng_state(), before[0])  # the training's random numbers are left alone
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_what_pyiqa_cannot_make_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=FakePyiqa().create_metric))
    with pytest.raises(MetricError, match=r"'mussiq' \(KeyError: 'mussiq'\): check the name"):
        create_metrics(["mussiq"], "cpu")
    with pytest.raises(MetricError, match="no route to host"):
        create_metrics(["offline"], "cpu")
    with pytest.raises(MetricError, match="known direction, got 'vague'"):
        create_metrics(["vague"], "cpu")
    with pytest.raises(MetricError, match="mode 'set'"):
        create_metrics(["fid"], "cpu")


def test_sheet_of_a_group_goes_from_the_best_to_the_worst() -> None:
    sr, hr = gray(10, 200, 90), gray(120)[0]
    report = group_rewards(sr, hr, [brightness()])
    sheet = group_sheet(sr, hr, report)
    side = hr.shape[-1]
    assert sheet.shape == (side + 2 * 12 + 2, 4 * side, 3)
    assert sheet[0, ::side, 0].tolist() == [120, 200, 90, 10]
    for tile in range(1, 4):  # two lines of text below each sample
        below = sheet[side:, tile * side : (tile + 1) * side]
        assert below.max() > 100
