"""Degradation in batches on a device, against the CPU's: JPEG, resizes, noise, and each kind as a distribution."""

import io
import pickle
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra `train`")
import torch.nn.functional as F  # noqa: E402  (after importorskip)

from training.data import degradation as D  # noqa: E402
from training.data.batches import batches  # noqa: E402
from training.data.cards import Variety  # noqa: E402
from training.data.device import degradation as device  # noqa: E402
from training.data.device.jpeg import CHROMA_TABLE, LUMA_TABLE, jpeg, tables  # noqa: E402
from training.data.device.pairs import DevicePreparation, hr_pairs  # noqa: E402
from training.data.device.parameters import PLAIN, Chain, Mixture, Reduced, draw  # noqa: E402
from training.data.device.resize import SUPPORT, Stack, resize, weights  # noqa: E402
from training.data.everyday import KINDS, degrade_everyday, sensor_noise  # noqa: E402
from training.data.photos import CropParams, PairDataset, PhotoSet  # noqa: E402


def photo_like(height: int = 96, width: int = 96, seed: int = 0) -> torch.Tensor:
    """(3, h, w) in whole levels: areas of colour with edges, waves, and texture on a half of them."""
    rng = np.random.default_rng([7, seed])
    y, x = np.mgrid[:height, :width]
    picture = np.empty((height, width, 3))
    picture[:] = rng.uniform(40, 210, 3)
    for _ in range(6):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(8, 30)
        inside = np.hypot(y - cy, x - cx) < radius
        wave = 20 * np.sin(x * rng.uniform(0.1, 0.9) + y * rng.uniform(0.1, 0.9))
        texture = rng.normal(0, rng.choice([0, 12]), (height, width))
        picture[inside] = (rng.uniform(20, 235, 3) + (wave + texture)[..., None])[inside]
    return D.from_picture(Image.fromarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8)))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().clamp_min(1e-10).log10())


# ------------------------------------------------------------------------------------------------ JPEG


@pytest.mark.parametrize("size", [(96, 96), (53, 91)])
@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_jpeg_is_pillow_s(quality: int, size: tuple[int, int]) -> None:
    image = photo_like(*size)
    real, ours = D.jpeg(image, quality), jpeg(image[None], torch.tensor([quality]))[0]
    apart, lost = psnr(ours, real), psnr(real, image)
    assert apart > 42, f"{apart:.1f} dB to Pillow's, which is {lost:.1f} dB from the picture"
    assert apart > lost + 15
    assert (ours - real).mean((1, 2)).abs().max() < 1.2 / 255
    torch.testing.assert_close(ours * 255, (ours * 255).round(), atol=1e-3, rtol=0)


def test_each_picture_of_a_batch_has_its_own_quality() -> None:
    images = torch.stack([photo_like(seed=k) for k in range(3)])
    together = jpeg(images, torch.tensor([20, 60, 100]))
    for k, quality in enumerate((20, 60, 100)):
        assert torch.equal(together[k], jpeg(images[k : k + 1], torch.tensor([quality]))[0])


def test_tables_are_scaled_as_libjpeg_does() -> None:
    for quality in (1, 10, 49, 50, 77, 100):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, format="JPEG", quality=quality)
        expected = Image.open(file).quantization  # by number, in rows
        for number, base in ((0, LUMA_TABLE), (1, CHROMA_TABLE)):
            found = tables(base, torch.tensor([quality]))[0].int().flatten().tolist()
            assert found == list(expected[number])


# ------------------------------------------------------------------------------------------------ resizes


@pytest.mark.parametrize("size", [(24, 24), (61, 37), (110, 130), (96, 101)])
def test_filters_are_pillow_s_and_torch_s(size: tuple[int, int]) -> None:
    image = photo_like()
    stack = Stack(image[None], ((96, 96),))
    for name, chosen in zip(SUPPORT, D.FILTERS, strict=True):
        expected = D.from_picture(D.to_picture(image).resize(size[::-1], chosen))
        found = resize(stack, [size], [name], whole=True).pixels[0]
        assert (found - expected).abs().max() < 2.5 / 255, name
        assert (found - expected).abs().mean() < 0.25 / 255, name
    for name in D.RESIZE_MODES:
        torch.testing.assert_close(
            resize(stack, [size], [name]).pixels[0], D.resize(image, *size, name), atol=2e-6, rtol=0
        )
    for name, mode in (("triangle", "bilinear"), ("cubic", "bicubic")):
        expected = D.resize(image, *size, mode, antialias=True)
        torch.testing.assert_close(resize(stack, [size], [name]).pixels[0], expected, atol=2e-6, rtol=0)


def test_pictures_of_different_sizes_are_resized_as_each_alone() -> None:
    images = torch.stack([photo_like(seed=k) for k in range(3)])
    sizes, names = [(40, 30), (70, 96), (96, 20)], ["bicubic", "area", "lanczos"]
    first = resize(Stack(images, ((96, 96),) * 3), sizes, names)
    assert first.pixels.shape == (3, 3, 96, 96)
    again = resize(first, [(24, 24)] * 3, ["triangle"] * 3)
    for k in range(3):
        alone = resize(Stack(images[k : k + 1], ((96, 96),)), sizes[k : k + 1], names[k : k + 1])
        h, w = sizes[k]
        torch.testing.assert_close(first.pixels[k, :, :h, :w], alone.pixels[0])
        torch.testing.assert_close(again.pixels[k], resize(alone, [(24, 24)], ["triangle"]).pixels[0])
        continued = first.continued()[k]
        assert torch.equal(continued[:, h:, :w], continued[:, h - 1 : h, :w].expand(-1, 96 - h, -1))


def test_unknown_filter_is_named() -> None:
    with pytest.raises(ValueError, match="filter must be one of box"):
        weights(["nearest"], [8], [4], 8, 4)


# ------------------------------------------------------------------------------------------------ blur and noise


def test_each_picture_has_its_own_kernel() -> None:
    images = torch.stack([photo_like(64, 48, seed=k) for k in range(3)])
    kernels = [D.gaussian_kernel(5, 1.0), D.sinc_kernel(21, 2.0), D.gaussian_kernel(11, 2.0, 0.7, 0.5)]
    found = device.blur(images, kernels)
    for k, kernel in enumerate(kernels):
        torch.testing.assert_close(found[k], D.blur(images[k], kernel), atol=1e-5, rtol=0)


def chains(kind: str, count: int) -> list[Chain]:
    plans = [draw(0, item, (64, 64), kind) for item in range(count)]
    return [plan for plan in plans if isinstance(plan, Chain)]


def test_noise_has_the_strength_of_its_plan() -> None:
    plans = chains("heavy", 24)
    orders = [plan.first for plan in plans]
    levels = torch.linspace(0.25, 0.75, 256).mul(255).round().div(255)
    flat = levels.expand(24, 3, 128, 256).contiguous()
    noise = device.Noise(0, flat.device)
    stack = Stack(flat, ((128, 256),) * 24)
    added = device._stage_noise(stack, orders, range(24), noise, "first") - flat
    count = len(levels.unique())
    peak = 2.0 ** np.ceil(np.log2(count))
    for k, order in enumerate(orders):
        if order.noise.gaussian:
            expected = order.noise.strength / 255
        else:
            expected = order.noise.strength * (0.5 / peak) ** 0.5
        if expected < 0.1:  # clipping takes of what is stronger
            assert float(added[k].std()) == pytest.approx(expected, rel=0.06), order.noise
        assert torch.allclose(added[k, 0], added[k, 1], atol=1e-6) == order.noise.gray


def test_sensor_noise_has_the_strength_and_the_colour_of_the_cpu_s() -> None:
    flat = torch.full((3, 48, 48), 0.5)
    plans = [draw(0, item, (192, 192), "sensor") for item in range(160)]
    given = [(plan.item, plan.noise) for plan in plans if isinstance(plan, Reduced) and plan.noise]
    noise = device.Noise(0, flat.device)
    ours = device._sensor_noise(flat.expand(len(given), -1, -1, -1), given, noise) - flat
    cpu = torch.stack([sensor_noise(flat, np.random.default_rng([3, k])) - flat for k in range(160)])

    def measured(x: torch.Tensor) -> torch.Tensor:
        gray = x.mean(1, keepdim=True)
        coarse = F.avg_pool2d(x, 2).std((1, 2, 3))
        return torch.stack([x.std((1, 2, 3)), (x - gray).std((1, 2, 3)), coarse])  # (3, n)

    torch.testing.assert_close(measured(ours).mean(1), measured(cpu).mean(1), rtol=0.15, atol=0)
    torch.testing.assert_close(measured(ours).std(1), measured(cpu).std(1), rtol=0.25, atol=0)


# ------------------------------------------------------------------------------------------------ whole chains

COUNT = 192
LARGEST_DISTANCE = (
    0.167  # of two distributions of 192: 1 % of equal ones are further apart (Kolmogorov and Smirnov)
)


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    return torch.stack([photo_like(64, 64, seed=k) for k in range(COUNT)])


def statistics(lr: torch.Tensor, plain: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of each picture: error of the mean, energy of fine luma and fine colour, noise power against a plain reduction."""
    luma = (lr * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)

    def fine(x: torch.Tensor) -> torch.Tensor:
        return (x - F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)).square().mean((1, 2, 3))

    return {
        "mean": (lr - plain).mean((1, 2, 3)),
        "fine luma": fine(luma),
        "fine colour": fine(lr - luma),
        "error": (lr - plain).square().mean((1, 2, 3)),
    }


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of the two cumulative distributions."""
    at = torch.cat([a, b])
    return float(((a[:, None] <= at).float().mean(0) - (b[:, None] <= at).float().mean(0)).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, PLAIN])
def test_each_kind_has_the_cpu_s_distribution(kind: str, crops: torch.Tensor) -> None:
    """Two samples of fixed seeds; means agree within 4 standard errors of their difference over the same pictures."""
    plain = F.avg_pool2d(crops, 4)
    one = D.reduce_plainly if kind == PLAIN else partial(degrade_everyday, kind=kind)
    cpu = torch.stack([one(crop, np.random.default_rng([1, k])) for k, crop in enumerate(crops)])
    ours = torch.cat(
        [device.degrade_batch(crops[k : k + 48], 1, range(k, k + 48), kind) for k in range(0, COUNT, 48)]
    )
    assert ours.shape == cpu.shape
    torch.testing.assert_close(ours * 255, (ours * 255).round(), atol=1e-3, rtol=0)
    first, second = statistics(cpu, plain), statistics(ours, plain)
    for name in first:
        apart = distance(first[name], second[name])
        assert apart < LARGEST_DISTANCE, f"{name}: distance {apart:.3f}"
        change = (second[name] - first[name]).double()
        error = change.std() / COUNT**0.5
        assert change.mean().abs() < 4 * error + 1e-7, f"{name}: {change.mean():.2e} +- {error:.1e}"


def test_a_plan_is_a_pure_function_of_seed_and_item() -> None:
    plans = [draw(3, item, (64, 96)) for item in range(280)]
    assert pickle.dumps(plans) == pickle.dumps([draw(3, item, (64, 96)) for item in range(280)])
    assert pickle.dumps(plans[0]) != pickle.dumps(draw(4, 0, (64, 96)))
    kinds = [plan.kind for plan in plans]
    assert min(kinds.count(kind) for kind in KINDS) > 20  # of 40 each


def test_a_mixture_has_its_shares_and_the_kinds_pixels(crops: torch.Tensor) -> None:
    """The shares within 4 standard deviations of 2,000 draws."""
    mixture, count = Mixture(0.55, 0.2), 2000
    kinds = [mixture.kind(7, item) for item in range(count)]
    for kind, share in (("camera", 0.55), (PLAIN, 0.2), ("heavy", 0.25)):
        spread = (share * (1 - share) / count) ** 0.5
        assert kinds.count(kind) / count == pytest.approx(share, abs=4 * spread)
    assert {Mixture(0.0, 0.0).kind(7, item) for item in range(50)} == {"heavy"}
    plans = [draw(7, item, (64, 64), kinds[item]) for item in range(12)]
    assert torch.equal(
        device.degrade_batch(crops[:12], 7, range(12), mixture), device.carried_out(crops[:12], 7, plans)
    )


def test_a_picture_does_not_depend_on_its_batch(crops: torch.Tensor) -> None:
    together = device.degrade_batch(crops[:21], 5, range(100, 121))
    again = torch.cat(
        [
            device.degrade_batch(crops[:8], 5, range(100, 108)),
            device.degrade_batch(crops[8:21], 5, range(108, 121)),
        ]
    )
    levels = (together - again).abs() * 255
    assert (
        levels > 0.5
    ).float().mean() < 0.01  # sums in another order, now and then rounded to another level
    assert not torch.equal(together, device.degrade_batch(crops[:21], 6, range(100, 121)))


def test_wrong_requests_are_named(crops: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        device.degrade_batch(torch.zeros(1, 3, 30, 32), 0, [0])
    with pytest.raises(ValueError, match="as many item numbers as pictures"):
        device.degrade_batch(crops[:2], 0, [0])
    with pytest.raises(ValueError, match="kind must be one of"):
        device.degrade_batch(crops[:1], 0, [0], "fog")


# ------------------------------------------------------------------------------------------------ the data path


def test_pairs_keep_their_hr_pictures_and_leave_lr_to_the_device(make_photo: Callable[..., object]) -> None:
    photos = PhotoSet([make_photo(f"{k}.png", 80, 90, seed=k) for k in range(3)])
    variety = Variety(0.3, 0.3)
    pairs = hr_pairs(photos, CropParams(64), variety, seed=2)
    usual = PairDataset(photos, CropParams(64), variety=variety, seed=2, reduce=degrade_everyday)
    for k in range(6):
        assert torch.equal(pairs.item(k).hr, usual.item(k).hr)
        assert pairs.item(k).lr.shape == (3, 16, 16)
    prepare = DevicePreparation(2, lambda lr: lr.repeat_interleave(4, 2).repeat_interleave(4, 3))
    stream = batches(pairs, None, 4, workers=0)
    first, second = (prepare(next(stream)) for _ in range(2))
    assert first.items == (0, 1, 2, 3)
    assert torch.equal(first.lr, device.degrade_batch(first.hr, 2, range(4)))
    assert first.target is not None
    assert first.target.shape == first.hr.shape
    resumed = prepare(next(batches(pairs, None, 4, start=1, workers=0)))
    assert torch.equal(resumed.lr, second.lr)
    assert DevicePreparation(2)(first).target is first.target
