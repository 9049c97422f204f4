"""Detail share of a photo: against a plain loop, at borders, in batches, and with the channels in the right order."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from training.metrics.attributes import (  # noqa: E402  (after importorskip)
    BINS,
    PATCH,
    THRESHOLD,
    TOP,
    detail_map,
    detail_share,
    patch_entropy,
    published_share,
)
from training.metrics.luma import gray_levels  # noqa: E402


def tensor(pixels: np.ndarray) -> "torch.Tensor":
    """(H, W, 3) uint8 -> (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)


def grainy(height: int, width: int, deviation: float, seed: int = 0) -> np.ndarray:
    """Gray of level 128 with white noise of that deviation in levels, (H, W, 3) uint8."""
    plane = 128 + deviation * np.random.default_rng(seed).standard_normal((height, width, 1))
    return np.repeat(np.clip(np.rint(plane), 0, 255).astype(np.uint8), 3, axis=2)


def varied(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Colour noise whose strength grows from left to right, so that some patches are detailed and some are not."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((height, width, 3)) * np.linspace(0, 30, width)[:, None]
    return np.clip(np.rint(120 + noise), 0, 255).astype(np.uint8)


def reference_map(pixels: np.ndarray) -> np.ndarray:
    """The same decision in float64, one patch after another: (H, W, 3) uint8 -> (H, W) bool."""
    height, width = pixels.shape[:2]
    gray = np.round(pixels.astype(np.float64) @ np.array([299.0, 587.0, 114.0]) / 1000)
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    padded = np.pad(gray, 1, mode="edge")
    across, down = np.zeros_like(gray), np.zeros_like(gray)
    for y in range(3):
        for x in range(3):
            across += kernel[y, x] * padded[y : y + height, x : x + width]
            down += kernel[x, y] * padded[y : y + height, x : x + width]
    magnitude = np.hypot(across, down)
    magnitude = np.pad(magnitude, ((0, -height % PATCH), (0, -width % PATCH)), mode="symmetric")
    detailed = np.zeros((height, width), bool)
    for y in range(0, height, PATCH):
        for x in range(0, width, PATCH):
            window = np.clip(magnitude[y : y + PATCH, x : x + PATCH], 0, TOP - 1)
            share = np.histogram(window, bins=BINS, range=(0, TOP))[0] / PATCH**2
            entropy = -np.sum(share[share > 0] * np.log2(share[share > 0]))
            detailed[y : y + PATCH, x : x + PATCH] = entropy >= THRESHOLD
    return detailed


@pytest.mark.parametrize("size", [(100, 120), (96, 131), (57, 43), (11, 9), (7, 3), (1, 1)])
def test_a_plain_loop_over_patches_gives_the_same(size: tuple[int, int]) -> None:
    pixels = varied(*size)
    expected = reference_map(pixels)
    found = detail_map(tensor(pixels))
    assert found.dtype == torch.bool
    np.testing.assert_array_equal(found[0].numpy(), expected)
    share = detail_share(tensor(pixels))
    assert (share.shape, share.dtype) == ((1,), torch.float32)
    assert share.item() == np.float32(expected.sum()) / np.float32(expected.size)
    if min(size) > 40:
        assert 0.1 < share.item() < 0.9  # else the comparison would say little


def test_flat_and_softly_shaded_pictures_have_no_detail() -> None:
    ramp = np.repeat(np.arange(60, dtype=np.uint8)[None, :, None] * np.uint8(3), 50, axis=0).repeat(3, axis=2)
    for pixels in (np.zeros((50, 60, 3), np.uint8), np.full((50, 60, 3), 255, np.uint8), ramp):
        assert detail_share(tensor(pixels)).item() == 0.0


def test_strong_noise_is_all_detail_and_camera_noise_is_none() -> None:
    assert detail_share(tensor(grainy(60, 60, 40))).item() == 1.0
    assert detail_share(torch.rand(1, 3, 60, 60, generator=torch.Generator().manual_seed(0))).item() == 1.0
    assert detail_share(tensor(grainy(60, 60, 3))).item() == 0.0


def test_half_and_half() -> None:
    pixels = np.full((100, 100, 3), 128, np.uint8)
    pixels[:, 50:] = grainy(100, 50, 40)
    assert detail_share(tensor(pixels)).item() == pytest.approx(0.5, abs=0.01)
    found = detail_map(tensor(pixels))[0]
    assert not found[:, :40].any()
    assert found[:, 60:].all()


@pytest.mark.parametrize("size", [(25, 33), (21, 29), (40, 42), (5, 64)])
def test_cut_off_patches_are_judged_like_whole_ones(size: tuple[int, int]) -> None:
    assert detail_share(tensor(grainy(*size, 40))).item() == 1.0
    assert detail_share(tensor(grainy(*size, 0))).item() == 0.0


def test_red_is_the_first_channel() -> None:
    """Noise in blue alone weighs 0.114 of luma, too little to be detail; the same noise in red is."""
    blue = np.full((50, 50, 3), 128, np.uint8)
    blue[..., 2] = grainy(50, 50, 60)[..., 0]
    assert detail_share(tensor(blue)).item() == 0.0
    assert detail_share(tensor(blue[..., ::-1].copy())).item() == 1.0
    levels = gray_levels(torch.eye(3)[:, :, None, None])
    assert levels.flatten().tolist() == [76, 150, 29]


def test_each_picture_of_a_batch_keeps_its_place_and_its_value() -> None:
    pictures = [grainy(45, 37, 40), varied(45, 37), grainy(45, 37, 0), varied(45, 37, seed=1)]
    single = [detail_share(tensor(p)).item() for p in pictures]
    batch = torch.cat([tensor(p) for p in pictures])
    assert detail_share(batch).tolist() == single
    assert detail_share(batch.flip(0)).tolist() == single[::-1]
    assert len(set(single)) == 4


def test_settings_do_what_they_say() -> None:
    picture = tensor(varied(60, 60))
    shares = [detail_share(picture, threshold=bits).item() for bits in (0.5, 2.5, 3.5, 5.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]
    assert patch_entropy(picture, patch=20, bins=64).shape == (1, 3, 3)
    assert patch_entropy(picture).max() <= np.log2(PATCH**2)


def test_autocast_changes_nothing() -> None:
    picture = tensor(varied(64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        share = detail_share(picture)
    assert share.dtype == torch.float32
    assert share.item() == detail_share(picture).item()


def test_wrong_pictures_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\) float, got \(3, 8, 8\)"):
        detail_share(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="uint8"):
        detail_share(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"within \[0, 1\], got -1 to 0"):
        detail_share(torch.linspace(-1, 0, 192).view(1, 3, 8, 8))
    with pytest.raises(ValueError, match="nan"):
        detail_share(torch.full((1, 3, 8, 8), float("nan")))
    with pytest.raises(ValueError, match="above 0 bits"):
        detail_share(torch.zeros(1, 3, 8, 8), threshold=0.0)
    with pytest.raises(ValueError, match="at least 2 bins"):
        detail_share(torch.zeros(1, 3, 8, 8), bins=1)


def published_reference(pixels: np.ndarray) -> float:
    """The public code's measure, patch after patch in float64, without its two faults: (H, W, 3) uint8 -> rho_d."""
    height, width = pixels.shape[:2]
    gray = np.round(pixels.astype(np.float64) @ np.array([299.0, 587.0, 114.0]) / 1000) / 255
    detailed = 0

    def enlarged(line: np.ndarray) -> np.ndarray:
        """Bilinear from pixel centre to pixel centre, as cv2.resize; beyond the outer ones the border's value."""
        size = len(line)
        return np.interp((np.arange(64) + 0.5) * size / 64 - 0.5, np.arange(size), line)

    for y in range(0, height, 10):
        for x in range(0, width, 10):
            patch = gray[y : y + 10, x : x + 10]
            large = np.apply_along_axis(enlarged, 1, np.apply_along_axis(enlarged, 0, patch))
            p = np.pad(large, 1, mode="edge")
            rows, columns = p[:-2] + 2 * p[1:-1] + p[2:], p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
            magnitude = np.hypot(rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2])
            share = np.histogram(magnitude, bins=512, range=(-5.5, 5.5))[0] / 64**2
            entropy = -np.sum(share[share > 0] * np.log2(share[share > 0]))
            detailed += patch.size * (entropy * 100 > 50)
    return detailed / (height * width)


@pytest.mark.parametrize("size", [(40, 50), (43, 29), (12, 10), (7, 3), (1, 1)])
def test_published_share_is_that_of_a_plain_loop(size: tuple[int, int]) -> None:
    pixels = np.clip(varied(*size).astype(int) // 2 + 60, 0, 255).astype(np.uint8)
    share = published_share(tensor(pixels))
    assert (share.shape, share.dtype) == ((1,), torch.float32)
    assert share.item() == pytest.approx(published_reference(pixels), abs=1e-6)
    if size[0] > 40:
        assert 0 < share.item() < 1


def test_published_share_finds_more_detail_than_ours() -> None:
    """Grain of 6 levels: none of it is detailed in our sense, all of it in the published one."""
    pixels = tensor(grainy(60, 60, 6))
    assert detail_share(pixels).item() == 0.0
    assert published_share(pixels).item() == 1.0
    assert published_share(tensor(grainy(60, 60, 0))).item() == 0.0
    blue = np.zeros((20, 20, 3), np.uint8)
    blue[..., 2] = np.random.default_rng(0).integers(
        0, 31, (20, 20)
    )  # its luma changes by 3 levels, as red by 9
    batch = torch.cat([tensor(blue), tensor(blue[..., ::-1].copy())])
    assert published_share(batch).tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="must be within"):
        published_share(torch.full((1, 3, 8, 8), 2.0))
