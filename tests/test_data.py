"""Photos from a folder: order, broken and small files, the pair stream."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from training.data.photos import CropParams, PairDataset, PhotoSet, find_images, random_crop, split_photos  # noqa: E402  (after importorskip)
from training.loop.validation import bicubic  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name, size in {"b.png": (80, 120), "a.jpg": (200, 160), "deep/er/c.png": (20, 30)}.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a photo")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but no more")
    return tmp_path


def test_images_are_found_recursively_and_sorted(folder: Path) -> None:
    names = [p.relative_to(folder).as_posix() for p in find_images(folder)]
    assert names == ["a.jpg", "b.png", "broken.png", "deep/er/c.png"]


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no image below"):
        find_images(tmp_path)


def test_broken_files_are_reported_and_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        photos = PhotoSet(find_images(folder))
    assert len(photos) == 3
    assert "broken.png" in caplog.text
    with pytest.raises(ValueError, match="none of the 1 images"):
        PhotoSet([folder / "broken.png"])


def test_cache_budget_changes_nothing_but_memory(folder: Path) -> None:
    cached, uncached = PhotoSet(find_images(folder)), PhotoSet(find_images(folder), cache_bytes=0)
    for k in range(len(cached)):
        np.testing.assert_array_equal(cached[k], uncached[k])


def test_links_are_followed_and_what_leads_nowhere_is_named(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path_factory.mktemp("other")
    Image.new("RGB", (40, 20)).save(other / "linked.png")
    (folder / "day").symlink_to(other)
    (other / "back").symlink_to(folder)  # a loop
    (folder / "gone\x1b[2J.png").symlink_to(folder / "nobody.png")
    with caplog.at_level(logging.WARNING):
        names = [p.relative_to(folder).as_posix() for p in find_images(folder)]
    assert names == ["a.jpg", "b.png", "broken.png", "day/linked.png", "deep/er/c.png"]
    assert "gone\\x1b[2J.png" in caplog.text
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_gray_of_16_bits_and_mistyped_tags_are_read(tmp_path: Path, cache_bytes: int) -> None:
    """Both are also read at use, where the file is not cached."""
    ramp = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    Image.fromarray(ramp).save(tmp_path / "gray.png")
    exif = Image.Exif()
    exif[0x0112], exif[0x0128] = 6, 2
    block = exif.tobytes()
    kind = next(k for k in range(len(block) - 3) if block[k : k + 2] in (b"\x28\x01", b"\x01\x28")) + 2
    odd = block[:kind] + (b"\2\0" if block[6:8] == b"II" else b"\0\2") + block[kind + 2 :]
    Image.new("RGB", (40, 20)).save(tmp_path / "odd.jpg", exif=odd)
    gray, turned = (PhotoSet(find_images(tmp_path), cache_bytes)[k] for k in range(2))
    assert gray.mean() == pytest.approx(127.5, abs=0.1)
    assert turned.shape == (40, 20, 3)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert PhotoSet([tmp_path / "turned.jpg"])[0].shape == (40, 20, 3)


@pytest.mark.parametrize("size", [(20, 30), (64, 64), (65, 200), (500, 90)])
def test_crops_have_their_size_whatever_the_photo(size: tuple[int, int]) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    for seed in range(8):
        crop = random_crop(photo, np.random.default_rng(seed), CropParams(64))
        assert crop.shape == (64, 64, 3)
        assert crop.dtype == np.uint8


def test_crop_without_zoom_or_augmentation_is_a_window_of_the_photo() -> None:
    photo = np.arange(90 * 100 * 3, dtype=np.uint32).astype(np.uint8).reshape(90, 100, 3)
    crop = random_crop(photo, np.random.default_rng(2), CropParams(64, zoom_range=(1.0, 1.0), augment=False))
    windows = np.lib.stride_tricks.sliding_window_view(photo, (64, 64, 3))[:, :, 0]
    assert (windows == crop).all(axis=(2, 3, 4)).any()


def test_split_is_disjoint_and_complete(folder: Path) -> None:
    paths = [Path(f"{k:03}.png") for k in range(37)]
    training, held_out = split_photos(paths, 5)
    assert len(held_out) == 5
    assert sorted(training + held_out) == paths
    with pytest.raises(ValueError, match="held_out"):
        split_photos(paths, 37)


def test_pairs_are_a_pure_function_of_seed_and_index(folder: Path) -> None:
    photos = PhotoSet(find_images(folder))
    pairs = PairDataset(photos, CropParams(64), seed=3)
    resumed = PairDataset(photos, CropParams(64), seed=3, start=5)
    lr, hr = pairs[7]
    assert lr.shape == (3, 16, 16)
    assert hr.shape == (3, 64, 64)
    assert torch.equal(lr, resumed[2][0])
    assert torch.equal(hr, resumed[2][1])
    assert not torch.equal(lr, pairs[8][0])
    assert not torch.equal(lr, PairDataset(photos, CropParams(64), seed=4)[7][0])


def test_stream_does_not_depend_on_the_number_of_workers(folder: Path) -> None:
    pairs = PairDataset(PhotoSet(find_images(folder)), CropParams(64), seed=3, length=6)
    streams = [
        torch.cat([lr for lr, _ in torch.utils.data.DataLoader(pairs, batch_size=2, num_workers=workers)])
        for workers in (0, 2)
    ]
    assert torch.equal(*streams)


def test_photo_that_breaks_during_training_is_replaced(
    make_pixels: Callable[..., np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for k in range(3):
        Image.fromarray(make_pixels(80, 90, seed=k)).save(tmp_path / f"{k}.png")
    photos = PhotoSet(find_images(tmp_path), cache_bytes=0)
    second = photos[2]
    (tmp_path / "1.png").write_bytes(b"\x89PNG gone")
    with caplog.at_level(logging.WARNING):  # NNCF leaves handlers at ERROR
        assert np.array_equal(photos[1], second)
    assert "can no longer be read" in caplog.text
    assert "1.png" in caplog.text
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(OSError, match="none of the 3 photos"):
        photos[0]


def test_mild_share_mixes_in_the_milder_degradation(folder: Path) -> None:
    photos = PhotoSet(find_images(folder))
    hard, mixed, mild = (
        PairDataset(photos, CropParams(64), mild_share=share, seed=2) for share in (0.0, 0.5, 1.0)
    )
    as_mild = [torch.equal(mixed[k][0], mild[k][0]) for k in range(12)]
    assert 0 < sum(as_mild) < 12
    assert all(torch.equal(mixed[k][1], hard[k][1]) for k in range(12))
    errors = [
        np.mean([float((bicubic(pairs[k][0][None]) - pairs[k][1]).square().mean()) for k in range(12)])
        for pairs in (hard, mild)
    ]
    assert errors[1] < errors[0]


def test_plain_share_mixes_in_pictures_that_are_only_made_smaller(folder: Path) -> None:
    photos = PhotoSet(find_images(folder))
    shares = {"hard": (0.0, 0.0), "mild": (1.0, 0.0), "plain": (0.0, 1.0), "mixed": (0.4, 0.3)}
    pairs = {
        name: PairDataset(photos, CropParams(64), mild_share=mild, plain_share=plain, seed=2)
        for name, (mild, plain) in shares.items()
    }
    assert all(torch.equal(pairs[name][k][1], pairs["hard"][k][1]) for name in shares for k in range(12))
    seen = {
        name: sum(torch.equal(pairs["mixed"][k][0], pairs[name][k][0]) for k in range(24))
        for name in ("mild", "plain")
    }
    assert min(seen.values()) >= 3, seen
    assert sum(seen.values()) < 24, "the rest is of the published degradation"
