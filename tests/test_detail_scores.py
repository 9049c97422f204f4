"""Scores of detail on synthetic pictures whose values are known."""

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from torch import Tensor  # noqa: E402  (after importorskip)

from training.metrics import detail  # noqa: E402
from training.metrics.luma import FULL_RANGE  # noqa: E402

SIDE = 64


def flat(level: float = 0.5) -> Tensor:
    return torch.full((1, 3, SIDE, SIDE), level)


def grain(sigma: float, seed: int = 0) -> Tensor:
    """Gray white noise of that many levels, (1, 1, SIDE, SIDE)."""
    return torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * sigma / 255


def colour_noise(sigma: float) -> Tensor:
    """Noise whose luma is 0, with Cb and Cr of that many levels, (1, 3, SIDE, SIDE)."""
    blue, red = grain(sigma / 0.564, 1), grain(sigma / 0.713, 2)  # B - Y and R - Y where Y stays
    green = -(FULL_RANGE[0] * red + FULL_RANGE[2] * blue) / FULL_RANGE[1]
    return torch.cat([red, green, blue], dim=1)


def stripes(period: int = 8, low: float = 0.2, high: float = 0.8) -> Tensor:
    """Vertical bars with hard edges."""
    bars = (torch.arange(SIDE) // (period // 2)) % 2
    return (low + (high - low) * bars.float()).expand(1, 3, SIDE, SIDE).contiguous()


def half_and_half() -> Tensor:
    """Left half flat, right half striped."""
    picture = stripes()
    picture[..., : SIDE // 2] = 0.5
    return picture


def photo(seed: int = 0) -> Tensor:
    """A ramp, an edge, grain and a flat corner."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    picture = 0.3 + 0.2 * y * x + 0.3 * (x > 0.5) * (y > 0.3)
    noisy = picture + (grain(5.0, seed) + colour_noise(3.0 + seed)) * (y > 0.7)
    return (noisy + grain(1.0, seed + 10)).clamp(0, 1)


def test_flat_and_textured_parts_are_told_apart() -> None:
    mask, texture = detail.flat_mask(half_and_half()), detail.texture_mask(half_and_half())
    reach = detail.WINDOW // 2
    assert mask.shape == (1, 1, SIDE, SIDE)
    assert mask[..., : SIDE // 2 - reach].all()
    assert not mask[..., SIDE // 2 :].any()
    assert texture[..., SIDE // 2 :].all()
    assert not (mask & texture).any()


@pytest.mark.parametrize(("sigma", "is_flat"), [(2.0, True), (8.0, False)])
def test_the_threshold_is_in_levels(sigma: float, is_flat: bool) -> None:
    share = float(detail.flat_mask(flat() + grain(sigma)).float().mean())
    assert (share > 0.99) if is_flat else (share < 0.01)


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_grain_on_a_flat_card_is_measured_in_levels(sigma: float) -> None:
    found = detail.fine_grain(flat() + grain(sigma), flat() + grain(0.5, seed=3))
    assert float(found.value) == pytest.approx(sigma * np.sqrt(1 - 1 / 25), rel=0.04)
    assert float(found.ratio) == pytest.approx(2 * sigma, rel=0.08)
    assert float(found.distance) == pytest.approx(float(found.value - found.truth), rel=1e-5)


def test_gray_grain_is_no_chroma_and_colour_noise_no_grain() -> None:
    gray, coloured = flat() + grain(3.0), flat() + colour_noise(3.0)
    assert float(detail.fine_chroma(gray, flat()).value) < 1e-4
    assert float(detail.fine_grain(coloured, flat()).value) < 1e-4
    assert float(detail.fine_chroma(coloured, flat()).value) == pytest.approx(3 * np.sqrt(0.96), rel=0.05)


def test_grain_on_texture_does_not_count() -> None:
    hr = half_and_half()
    sr = hr.clone()
    sr[..., SIDE // 2 + detail.BLUR :] += grain(20.0)[..., SIDE // 2 + detail.BLUR :] / 2
    assert float(detail.fine_grain(sr.clamp(0, 1), hr).value) < 1e-4


def test_ratio_of_nothing_to_nothing_is_one() -> None:
    assert float(detail.fine_grain(flat(), flat(0.4)).ratio) == pytest.approx(1.0)
    clean = detail.Fine(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0]))
    assert clean.ratio.tolist() == [1.0, float("inf")]


def test_without_a_flat_part_there_is_no_value() -> None:
    hr = stripes()
    for found in (detail.fine_grain(hr, hr), detail.fine_chroma(hr, hr)):
        assert found.value.isnan().all()
        assert found.ratio.isnan().all()
    assert detail.seed_diversity(hr, hr, hr).flat.isnan().all()
    assert detail.seed_diversity(flat(), flat(), flat()).texture.isnan().all()


def test_gradients_of_a_step_by_hand() -> None:
    hr = flat(0.2)
    hr[..., SIDE // 2 :] = 0.6
    assert float(detail.gradient_distance(flat(), hr)) == pytest.approx(0.4 * 255 / (SIDE - 1) / 2, rel=1e-4)
    assert float(detail.gradient_distance(flat(0.7), flat(0.1))) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("score", [detail.gradient_distance, detail.wavelet_distance, detail.gmsd])
def test_equal_pictures_have_no_distance_and_shifted_or_soft_edges_have_one(score: Callable) -> None:
    hr = stripes(16)
    soft = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(hr, (1, 1, 1, 1), mode="replicate"), 3, 1)
    softer = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(hr, (2, 2, 2, 2), mode="replicate"), 5, 1)
    assert float(score(hr, hr)) == 0
    assert 0 < float(score(soft, hr)) < float(score(softer, hr))
    assert float(score(hr.roll(1, dims=3), hr)) > float(score(soft, hr)) / 2


def test_wavelet_bands_of_a_grating_by_hand() -> None:
    apart = 0.1 * (1.0 - 2.0 * (torch.arange(SIDE) % 2).float())  # +-25.5 levels, column by column
    sr = flat() + apart
    # the first octave's band across columns is 25.5 everywhere; it leaves nothing to the others: 1 of 9 bands
    assert float(detail.wavelet_distance(sr, flat())) == pytest.approx(25.5 / 9, rel=1e-4)


def test_gmsd_agrees_with_the_definition() -> None:
    convolve = pytest.importorskip("scipy.ndimage", reason="needs scipy").convolve

    hr, sr = photo(0), (photo(0) + grain(8.0, 5)).clamp(0, 1)
    kernel = np.array([[1, 0, -1]] * 3) / 3
    magnitudes = []
    for image in (sr, hr):
        luma = np.tensordot(np.array(FULL_RANGE) * 255, image[0].double().numpy(), axes=1)
        halved = luma.reshape(SIDE // 2, 2, SIDE // 2, 2).mean(axis=(1, 3))
        gradients = [convolve(halved, k)[1:-1, 1:-1] for k in (kernel, kernel.T)]
        magnitudes.append(np.hypot(*gradients))
    first, second = magnitudes
    expected = np.std((2 * first * second + 170) / (first**2 + second**2 + 170))
    assert float(detail.gmsd(sr, hr)) == pytest.approx(expected, rel=1e-4)


def test_samples_that_differ_in_the_low_pass_alone() -> None:
    hr = half_and_half()
    found = detail.seed_diversity(hr, hr + 2 / 255, hr)
    assert [float(x) for x in (found.texture, found.flat, found.low)] == pytest.approx([2, 2, 2], rel=1e-4)


def test_samples_that_differ_in_texture_alone() -> None:
    hr = half_and_half()
    change = torch.zeros_like(hr)
    signs = 1.0 - 2.0 * ((torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2)  # no 8x8 mean moves
    change[..., SIDE // 2 :] = 4 / 255 * signs[:, SIDE // 2 :]
    found = detail.seed_diversity(hr, hr + change, hr)
    assert float(found.flat) == 0
    assert float(found.low) == pytest.approx(0, abs=1e-4)
    assert 3.5 < float(found.texture) <= 4.0001


@pytest.mark.parametrize("axis", [2, 3])
def test_a_mirrored_picture_scores_alike(axis: int) -> None:
    hr, a, b = photo(0), photo(1), photo(2)

    def values(hr: Tensor, a: Tensor, b: Tensor) -> list[float]:
        diversity = detail.seed_diversity(a, b, hr)
        found = [detail.gradient_distance(a, hr), detail.wavelet_distance(a, hr), detail.gmsd(a, hr)]
        found += [diversity.texture, diversity.flat, diversity.low]
        found += [score(a, hr).value for score in (detail.fine_grain, detail.fine_chroma)]
        return [float(value) for value in found]

    assert values(hr.flip(axis), a.flip(axis), b.flip(axis)) == pytest.approx(
        values(hr, a, b), rel=1e-4, abs=1e-4
    )


def test_a_batch_scores_like_its_pictures() -> None:
    hr, sr = torch.cat([photo(0), flat()]), torch.cat([photo(1), flat() + grain(2.0)])
    for score in (detail.gradient_distance, detail.wavelet_distance, detail.gmsd):
        singly = [float(score(sr[k : k + 1], hr[k : k + 1])) for k in range(2)]
        assert score(sr, hr).tolist() == pytest.approx(singly, rel=1e-4)
    singly = [float(detail.fine_grain(sr[k : k + 1], hr[k : k + 1]).ratio) for k in range(2)]
    assert detail.fine_grain(sr, hr).ratio.tolist() == pytest.approx(singly, rel=1e-3)


@pytest.mark.parametrize(
    "score",
    [detail.fine_grain, detail.fine_chroma, detail.gradient_distance, detail.wavelet_distance, detail.gmsd],
)
def test_wrong_pictures_are_refused(score: Callable) -> None:
    with pytest.raises(ValueError, match="one size"):
        score(flat(), flat()[..., 1:])
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        score(flat() + 1, flat())
    with pytest.raises(ValueError, match="at least"):
        score(flat()[..., :1], flat()[..., :1])
    with pytest.raises(ValueError, match="must be"):
        score(flat()[0], flat()[0])
