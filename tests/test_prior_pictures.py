"""The prior's pictures that the student's core learns from: made, kept, refused, read."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("accelerate", reason="needs the extra `train`")


from export.prior import cli as teach  # noqa: E402
from export.prior.network import Prior  # noqa: E402
from export.prior.pictures import CachedPairs, PictureCache  # noqa: E402


def test_pictures_are_the_prior_s_of_degraded_photos(ncnn_network: Path, pictures: Path) -> None:
    cache = PictureCache(pictures)
    assert (len(cache), cache.side()) == (4, 24)
    whole = cache.read(1, 0, 0, 24)
    assert whole["lr"].shape == (3, 24, 24)
    assert whole["hr"].shape == whole["target"].shape == (3, 96, 96)
    expected = Prior.load(ncnn_network)(whole["lr"][None].float() / 255)[0] * 255
    assert (expected - whole["target"].float()).abs().max() <= 0.51
    part = cache.read(1, 5, 7, 8)
    assert torch.equal(part["target"], whole["target"][:, 20:52, 28:60])


def test_missing_pictures_are_made_and_the_others_kept(
    ncnn_network: Path, photos: Path, pictures: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in pictures.glob("*.safetensors")}
    lost = pictures / "000002.safetensors"
    content = lost.read_bytes()
    lost.unlink()
    args = [
        "--data",
        str(photos),
        "--prior",
        str(ncnn_network),
        "--out",
        str(pictures),
        "--held-out",
        "0",
        "--set",
        "size=96",
    ]
    assert teach.main([*args, "--items", "5"]) == 0
    assert lost.read_bytes() == content
    assert len(PictureCache(pictures)) == 5
    assert all(path == lost or path.stat().st_mtime_ns == when for path, when in before.items())


def test_pictures_for_something_else_are_refused(
    ncnn_network: Path,
    photos: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ["--data", str(photos), "--prior", str(ncnn_network), "--items", "1", "--held-out", "0"]
    assert teach.main([*args, "--out", str(pictures), "--set", "size=128"]) == 2
    assert "pictures.size: 96 -> 128" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "text.txt").write_text("mine")
    assert teach.main([*args, "--out", str(tmp_path / "other")]) == 2
    assert "holds other files" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="gdposr train pictures"):
        PictureCache(tmp_path / "none")


def test_pictures_of_another_format_are_named(pictures: Path) -> None:
    about = pictures / "pictures.json"
    about.write_text(about.read_text().replace('"format_version": 2', '"format_version": 1'))
    with pytest.raises(ValueError, match=r"pictures\.json: expected a prior's pictures of format 2, got 1"):
        PictureCache(pictures)


def test_damaged_picture_is_named(pictures: Path) -> None:
    (pictures / "000001.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"000001\.safetensors is damaged"):
        PictureCache(pictures).read(1, 0, 0, 8)


def test_cached_pairs_are_a_pure_function_of_seed_and_number_and_fit_each_other(pictures: Path) -> None:
    first, second = (CachedPairs([PictureCache(pictures)], 64, seed=1) for _ in range(2))
    for k in range(12):
        pair, again = first.item(k), second.item(k)
        assert torch.equal(pair.lr, again.lr)
        assert pair.target is not None
        reduced = torch.nn.functional.avg_pool2d(pair.hr[None], 4)[0]  # turned alike
        wrong = reduced.flip(2)
        assert (reduced - pair.lr).abs().mean() < (wrong - pair.lr).abs().mean()
    assert not torch.equal(first.item(0).lr, CachedPairs([PictureCache(pictures)], 64, seed=2).item(0).lr)
    with pytest.raises(ValueError, match="larger than the pictures"):
        CachedPairs([PictureCache(pictures)], 128)


def test_cards_are_drawn_anew_and_are_their_own_target(pictures: Path) -> None:
    caches = [PictureCache(pictures)]
    cards = CachedPairs(caches, 64, seed=1, cards=1.0)
    first, again, other = cards.item(0), cards.item(0), cards.item(1)
    assert first.drawn
    assert first.lr.shape == (3, 16, 16)
    assert first.target is not None
    assert torch.equal(first.target, first.hr)
    assert torch.equal(first.lr, again.lr)
    assert not torch.equal(first.hr, other.hr)
    shapes = CachedPairs(caches, 64, seed=1, cards=1.0, shapes=1.0).item(0)
    assert shapes.drawn
    assert not torch.equal(shapes.hr, first.hr)
    mixed = CachedPairs(caches, 64, seed=1, cards=0.2)
    assert 5 <= sum(mixed.item(k).drawn for k in range(60)) <= 20
