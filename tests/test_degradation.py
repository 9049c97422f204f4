"""The degradation: kernels, each step alone, the published table, seeds."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from training.data import degradation as D  # noqa: E402  (after importorskip)
from training.data import kernels as K  # noqa: E402


def picture(height: int = 64, width: int = 96, seed: int = 0) -> "torch.Tensor":
    """A smooth colour ramp with some texture, (3, h, w)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [x / width, y / height, 0.5 + 0.4 * np.sin(x / 5) * np.cos(y / 7)]
    return torch.from_numpy(
        np.clip(np.stack(planes) + 0.03 * rng.standard_normal((3, height, width)), 0, 1).astype(np.float32)
    )


ALL_KERNELS = {
    "gaussian": lambda n: K.gaussian_kernel(n, 1.5),
    "gaussian aniso": lambda n: K.gaussian_kernel(n, 2.0, 0.7, 0.6),
    "generalized": lambda n: K.generalized_gaussian_kernel(n, 1.5, None, 0.0, 0.7),
    "plateau": lambda n: K.plateau_kernel(n, 1.5, 2.5, 0.3, 1.4),
    "sinc": lambda n: K.sinc_kernel(n, 2.0),
}


@pytest.mark.parametrize("name", ALL_KERNELS)
def test_kernels_sum_to_one_and_are_point_symmetric(name: str) -> None:
    kernel = ALL_KERNELS[name](15)
    assert kernel.shape == (15, 15)
    assert kernel.dtype == np.float32
    assert kernel.sum() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-6)


def test_gaussian_kernel_has_the_stated_deviation_along_its_axes() -> None:
    kernel = K.gaussian_kernel(41, 4.0, 2.0, 0.0).astype(np.float64)
    axis = np.arange(41) - 20
    assert np.sqrt((kernel.sum(0) * axis**2).sum()) == pytest.approx(4.0, rel=0.01)  # x
    assert np.sqrt((kernel.sum(1) * axis**2).sum()) == pytest.approx(2.0, rel=0.01)  # y
    turned = K.gaussian_kernel(41, 4.0, 2.0, np.pi / 2)
    np.testing.assert_allclose(turned, kernel.T, atol=1e-6)


def test_beta_one_is_the_gaussian() -> None:
    np.testing.assert_allclose(
        K.generalized_gaussian_kernel(13, 1.3, 2.1, 0.4, 1.0), K.gaussian_kernel(13, 1.3, 2.1, 0.4), atol=1e-7
    )


def test_sinc_kernel_is_a_low_pass_at_its_cutoff() -> None:
    response = np.abs(np.fft.fft2(K.sinc_kernel(61, np.pi / 2), s=(256, 256)))[0]
    assert response[:40].min() > 0.9
    assert response[90:128].max() < 0.1


@pytest.mark.parametrize("size", [0, 4, -3])
def test_even_kernel_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="odd and positive"):
        K.gaussian_kernel(size, 1.0)


def test_random_kernels_follow_their_probabilities() -> None:
    only_sinc = K.KernelParams((7, 7), (0.2, 3.0), sinc_prob=1.0)
    kernels = [K.random_kernel(np.random.default_rng(k), only_sinc) for k in range(20)]
    assert all(kernel.shape == (7, 7) and kernel.min() < 0 for kernel in kernels)  # only the sinc rings
    never = K.KernelParams((3, 21), (0.2, 3.0), sinc_prob=0.0)
    drawn = [K.random_kernel(np.random.default_rng(k), never) for k in range(300)]
    assert all(kernel.min() >= 0 for kernel in drawn)
    assert {kernel.shape[0] for kernel in drawn} == set(range(3, 22, 2))


def test_paper_preset_equals_the_published_table() -> None:
    first, second = D.PAPER.first, D.PAPER.second
    assert (first.resize_range, first.noise_range, first.jpeg_range) == ((0.3, 1.5), (1.0, 15.0), (60, 95))
    assert (second.resize_range, second.noise_range, second.jpeg_range) == (
        (0.6, 1.2),
        (1.0, 12.0),
        (60, 100),
    )
    assert (first.kernel.sinc_prob, second.kernel.sinc_prob, D.PAPER.final_sinc_prob) == (0.1, 0.1, 0.8)
    assert (first.resize_prob, second.resize_prob) == ((0.2, 0.7, 0.1), (0.3, 0.4, 0.3))
    assert (first.poisson_range, second.poisson_range) == ((0.05, 2.0), (0.05, 1.0))


def test_blur_keeps_a_constant_and_smooths_the_rest() -> None:
    flat = torch.full((3, 20, 30), 0.4)
    torch.testing.assert_close(D.blur(flat, K.gaussian_kernel(9, 2.0)), flat)
    image = picture()
    assert (
        D.blur(image, K.gaussian_kernel(9, 2.0)).diff(dim=2).abs().mean() < image.diff(dim=2).abs().mean() / 2
    )


@pytest.mark.parametrize("mode", D.RESIZE_MODES)
def test_resize_gives_the_size_asked_for(mode: str) -> None:
    assert D.resize(picture(), 17, 101, mode).shape == (3, 17, 101)
    flat = torch.full((3, 20, 30), 0.4)
    torch.testing.assert_close(D.resize(flat, 7, 50, mode), torch.full((3, 7, 50), 0.4))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialiasing_takes_away_a_pattern_that_aliases_without(mode: str) -> None:
    stripes = (torch.arange(60) % 5 < 2).float().expand(3, 60, 60)
    assert D.resize(stripes, 14, 14, mode).std() > 3 * D.resize(stripes, 14, 14, mode, antialias=True).std()


def test_sharpening_overshoots_at_an_edge_and_leaves_flat_places_alone() -> None:
    edge = torch.full((3, 32, 32), 0.25)
    edge[..., 16:] = 0.75
    got = D.sharpen(edge, 1.0, 1.0)
    assert got[..., 15].max() < 0.2
    assert got[..., 16].min() > 0.8
    torch.testing.assert_close(got[..., :8], edge[..., :8], atol=1e-6, rtol=0)
    torch.testing.assert_close(D.sharpen(edge, 1.0, 0.0), edge)


def test_mild_pictures_alias_less_than_without_antialiasing() -> None:
    """Stripes finer than LR can hold, behind a lens too sharp to blur them, become other stripes where nothing averages."""
    stripes = (torch.arange(256) % 5 < 2).float().expand(3, 256, 256)

    def left(antialias: bool) -> float:
        lens = replace(D.MILD.first.kernel, sigma_range=(0.2, 0.3))
        first = replace(D.MILD.first, kernel=lens, gaussian_prob=1.0, noise_range=(0.0, 0.0))
        params = replace(D.MILD, first=first, antialias=antialias, sharpen_prob=0.0)
        pictures = [D.degrade(stripes, np.random.default_rng(k), params) for k in range(16)]
        return float(np.median([p[:, 8:-8, 8:-8].std() for p in pictures]))

    assert left(True) < 0.5 * left(False)


def test_resize_factor_stays_in_its_branch() -> None:
    draw = [D.random_resize_factor(np.random.default_rng(k), (1.0, 0.0, 0.0), (0.3, 1.5)) for k in range(50)]
    assert min(draw) >= 1.0
    assert max(draw) <= 1.5
    draw = [D.random_resize_factor(np.random.default_rng(k), (0.0, 1.0, 0.0), (0.3, 1.5)) for k in range(50)]
    assert min(draw) >= 0.3
    assert max(draw) <= 1.0
    assert D.random_resize_factor(np.random.default_rng(0), (0.0, 0.0, 1.0), (0.3, 1.5)) == 1.0
    with pytest.raises(ValueError, match="resize mode"):
        D.resize(picture(), 8, 8, "nearest")


def test_gaussian_noise_has_its_sigma_and_gray_noise_is_gray() -> None:
    flat = torch.full((3, 200, 200), 0.5)
    colour = D.gaussian_noise(flat, np.random.default_rng(0), 10.0, gray=False) - flat
    assert float(colour.std()) * 255 == pytest.approx(10.0, rel=0.02)
    assert abs(float(torch.corrcoef(colour.reshape(3, -1))[0, 1])) < 0.02
    gray = D.gaussian_noise(flat, np.random.default_rng(0), 10.0, gray=True) - flat
    torch.testing.assert_close(gray[0], gray[2])


def test_poisson_noise_grows_with_the_signal() -> None:
    levels = torch.linspace(0, 1, 256).repeat(3, 400, 1)  # all 256 levels: peak 256 photons
    noise = D.poisson_noise(levels, np.random.default_rng(0), 1.0, gray=False) - levels
    dark, bright = noise[..., 20:40].var(), noise[..., 220:240].var()
    assert float(bright / dark) == pytest.approx(230 / 30, rel=0.15)
    assert float(noise[..., 220:240].std()) == pytest.approx((230 / 255 / 256) ** 0.5, rel=0.05)


def test_jpeg_is_a_real_jpeg() -> None:
    image = picture()
    fine, coarse = (float((D.jpeg(image, q) - image).square().mean()) for q in (98, 30))
    assert 0 < fine < coarse


def test_degrade_is_a_function_of_picture_and_seed() -> None:
    hr = picture(96, 128)
    one, same, other = (D.degrade(hr, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert one.shape == (3, 24, 32)
    assert one.dtype == torch.float32
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1
    torch.testing.assert_close(one * 255, (one * 255).round(), atol=1e-4, rtol=0)


def test_degrade_never_leaves_the_range_over_many_seeds() -> None:
    hr = picture(64, 64)
    for seed in range(40):
        lr = D.degrade(hr, np.random.default_rng(seed))
        assert torch.isfinite(lr).all()
        assert float(lr.min()) >= 0
        assert float(lr.max()) <= 1


def test_degrade_refuses_sizes_off_the_grid() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        D.degrade(picture(62, 64), np.random.default_rng(0))


def test_a_plain_reduction_is_a_function_of_picture_and_seed_in_steps_of_eight_bits() -> None:
    hr = picture(64, 96)
    first, again, other = (D.reduce_plainly(hr, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.shape == (3, 16, 24)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.testing.assert_close(first * 255, (first * 255).round(), atol=1e-4, rtol=0)
    for seed in range(20):
        lr = D.reduce_plainly(hr, np.random.default_rng(seed))
        torch.testing.assert_close(lr.mean(), hr.mean(), atol=4 / 255, rtol=0)


def test_a_plain_reduction_neither_blurs_nor_aliases() -> None:
    """Of stripes that LR can hold most of the contrast stays, of stripes it cannot hold little."""
    x = np.arange(128)
    for period, low, high in ((24, 0.7, 1.2), (5, 0.0, 0.3)):
        row = (0.5 + 0.4 * np.cos(2 * np.pi * x / period)).astype(np.float32)
        hr = torch.from_numpy(np.broadcast_to(row, (3, 64, 128)).copy())
        contrast = [float(D.reduce_plainly(hr, np.random.default_rng(k)).std() / hr.std()) for k in range(20)]
        assert low <= min(contrast)
        assert max(contrast) <= high


def test_a_plain_reduction_refuses_sizes_off_the_grid() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        D.reduce_plainly(torch.zeros(3, 30, 32), np.random.default_rng(0))
