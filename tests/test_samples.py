"""Calibration and validation sets: the same every time, disjoint by photo, saved whole, refused with a reason."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip(
    "skimage", reason="needs the extra `export`, whose scikit-image holds the calibration photos"
)

from calibration import samples as module  # noqa: E402  (after importorskip)
from calibration.samples import (  # noqa: E402
    OPEN_PHOTOS,
    SampleError,
    SampleSets,
    check_fit,
    draw_samples,
    draw_sets,
    load_sets,
    save_sets,
)
from runtime.noise import noise_field  # noqa: E402


@pytest.fixture(scope="module")
def sets() -> SampleSets:
    return draw_sets(None, crops=8, size=32)


def equal(a: SampleSets, b: SampleSets) -> bool:
    pairs = zip((*a.calibration, *a.validation), (*b.calibration, *b.validation), strict=True)
    return all(
        x.photo == y.photo
        and all(np.array_equal(getattr(x, n), getattr(y, n)) for n in ("lr", "noise", "hr"))
        for x, y in pairs
    )


def test_sets_are_disjoint_by_photo_and_cover_all_of_them(sets: SampleSets) -> None:
    ours, others = ({s.photo for s in part} for part in (sets.calibration, sets.validation))
    assert not ours & others
    assert {Path(name).stem for name in ours | others} == set(OPEN_PHOTOS)
    assert (len(sets.calibration), len(sets.validation)) == (16, 8)


def test_photos_come_evenly_from_the_whole_folder_and_from_any_depth(
    tmp_path: Path, make_pixels: Callable[..., np.ndarray]
) -> None:
    for k in range(40):
        place = tmp_path / f"{k:02d}" / "photo.png"
        place.parent.mkdir()
        Image.fromarray(make_pixels(140, 140)).save(place)
    drawn = draw_sets(tmp_path, crops=8, size=32)
    photos = {s.photo for s in (*drawn.calibration, *drawn.validation)}
    assert len(photos) >= 11
    assert max(photos) >= "35/photo.png"
    assert not {s.photo for s in drawn.calibration} & {s.photo for s in drawn.validation}


def test_half_of_the_crops_are_mildly_degraded(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = module._pair, []

    def pair(*args: object, mild: bool) -> tuple[np.ndarray, np.ndarray]:
        seen.append(mild)
        return whole(*args, mild=mild)

    monkeypatch.setattr(module, "_pair", pair)
    draw_sets(None, crops=16, size=32)
    assert sum(seen[:16]) == 8
    assert sum(seen[16:]) == 4


def test_each_crop_comes_with_several_seeds_at_the_level_of_the_runtime(sets: SampleSets) -> None:
    first, second = sets.calibration[:2]
    assert np.array_equal(first.lr, second.lr)
    assert not np.array_equal(first.noise, second.noise)
    assert np.array_equal(first.noise, noise_field(0, 0, 16, 16, channels=4))
    assert np.std([s.noise for s in sets.calibration]) == pytest.approx(1.0, abs=0.02)
    noises = {s.noise.tobytes() for s in (*sets.calibration, *sets.validation)}
    assert len(noises) == 24  # validation has its own, too


def test_samples_have_the_promised_form(sets: SampleSets) -> None:
    for sample in (*sets.calibration, *sets.validation):
        assert sample.lr.shape == (3, 32, 32)
        assert sample.hr.shape == (3, 128, 128)
        assert sample.noise.shape == (4, 16, 16)
        for array in (sample.lr, sample.hr, sample.noise):
            assert array.dtype == np.float32
        assert 0 <= sample.lr.min() < sample.lr.max() <= 1


def test_the_same_seed_draws_the_same_and_another_seed_does_not(sets: SampleSets) -> None:
    assert equal(draw_sets(None, crops=8, size=32), sets)
    assert not equal(draw_sets(None, crops=8, size=32, seed=1), sets)


def test_sets_survive_the_file_to_the_bit(sets: SampleSets, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "sets.safetensors"
    save_sets(sets, path)
    assert equal(load_sets(path), sets)
    first = path.read_bytes()
    save_sets(sets, path)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_too_few_photos_are_refused_with_the_remedy(
    tmp_path: Path, make_pixels: Callable[..., np.ndarray]
) -> None:
    for k in range(3):
        Image.fromarray(make_pixels(140, 140)).save(tmp_path / f"{k}.png")
    with pytest.raises(
        SampleError, match=r"at least 4 photos, got 3 below .*; add more, or leave the folder"
    ):
        draw_sets(tmp_path, crops=8, size=32)
    Image.fromarray(make_pixels(140, 140)).save(tmp_path / "3.png")
    assert {s.photo for s in draw_sets(tmp_path, crops=8, size=32).validation} == {"1.png"}


def test_too_few_samples_and_shared_photos_are_refused(sets: SampleSets) -> None:
    with pytest.raises(SampleError, match="calibration needs at least 4 samples, got 3"):
        SampleSets(sets.calibration[:3], sets.validation)
    with pytest.raises(SampleError, match="is in both sets"):
        SampleSets(sets.calibration, sets.calibration)


def test_other_files_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(1, np.float32)}, path)
    with pytest.raises(SampleError, match=r"expected samples .*draw them with"):
        load_sets(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(SampleError, match="got something else"):
        load_sets(path)


def test_samples_of_another_model_are_refused(sets: SampleSets) -> None:
    check_fit(sets, multiple=2, channels=4, downscale=2)
    for change in ({"multiple": 64}, {"channels": 8}, {"downscale": 8}):
        with pytest.raises(SampleError, match="draw the samples for this model"):
            check_fit(sets, **({"multiple": 2, "channels": 4, "downscale": 2} | change))


def test_the_command_draws_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sets.safetensors"
    assert module.main(["--out", str(out), "--crops", "8", "--size", "32"]) == 0
    assert "16 samples for calibration, 8 for validation" in capsys.readouterr().out
    assert len(load_sets(out).calibration) == 16
    assert module.main(["--out", str(out), "--crops", "0"]) == 2
    assert "--crops: expected a positive number" in capsys.readouterr().err
    assert module.main(["--out", str(out), "--photos", str(tmp_path / "none")]) == 2
    assert len(load_sets(out).calibration) == 16


def test_single_draws_name_their_photo() -> None:
    assert [Path(s.photo).stem for s in draw_samples(2, size=32)] == list(OPEN_PHOTOS[:2])
    assert [Path(s.photo).stem for s in draw_samples(2, size=32, first=7)] == [OPEN_PHOTOS[7], OPEN_PHOTOS[0]]
