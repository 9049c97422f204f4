"""The cache of a teacher's samples: what it holds, its turns, fresh pairs between its items, interruptions and damage."""

import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from teachers import TINY, cache_of, first_batch, pairs_of, tiny_model  # noqa: E402  (after importorskip)

from export.distill import cache as caching  # noqa: E402
from export.distill import pairs as lessons  # noqa: E402
from export.distill.cache import TeacherCache, cache_facts  # noqa: E402
from export.distill.pairs import TaughtPairs, fill, turned  # noqa: E402
from export.distill.recipe import DistillConfig  # noqa: E402
from export.distill.teacher import Teacher, item_noise  # noqa: E402
from training.data.batches import Batch, batches  # noqa: E402
from training.data.photos import Pair, PhotoSet, find_images, split_photos  # noqa: E402
from training.loop.command import photo_pairs  # noqa: E402
from training.pixels import from_bytes, to_bytes  # noqa: E402


def test_cache_holds_what_the_teacher_gives_online(
    teacher: Teacher, photos: Path, weights: Path, tmp_path: Path
) -> None:
    cache = cache_of(tmp_path / "cache", 4, teacher, photos)
    assert cache.missing() == []
    config = replace(TINY, batch=4)
    online = first_batch(photos, weights, teacher, config)
    assert online.target is not None
    for item in range(4):
        kept = cache.read(item)
        assert torch.equal(from_bytes(kept["lr"]), online.lr[item])
        assert torch.equal(from_bytes(kept["hr"]), online.hr[item])
        for which in range(2):
            assert torch.equal(kept["samples"][which], online.target[item, which])
    cached = TaughtPairs(pairs_of(photos, config).pairs, config, 4, cache)
    order = [int(cached.item(k).photo.name.removeprefix("item ")) for k in range(8)]
    assert sorted(order[:4]) == sorted(order[4:]) == [0, 1, 2, 3]
    for k in range(4):
        assert torch.equal(cached.item(k).noise, item_noise(TINY.seed, order[k], (4, 8, 8)))


def stream_of(
    photos: Path, config: DistillConfig, teacher: Teacher, cache: tuple[Path, int] | None
) -> TaughtPairs:
    """What a run of one process learns from, the cache filled."""
    training, _ = split_photos(find_images(photos), config.held_out)
    pairs = photo_pairs(PhotoSet(training), config, config.variety)
    kept = cache and TeacherCache(*cache, cache_facts(teacher, config, training, photos))
    found = TaughtPairs(pairs, config, 4, kept, config.batch)
    if kept:
        fill(kept, found, teacher, 0, main=True)
    return found


@pytest.mark.parametrize("cached", [False, True])
def test_batches_tell_which_pictures_are_drawn(
    cached: bool, teacher: Teacher, photos: Path, tmp_path: Path
) -> None:
    config = replace(TINY, graphics_share=0.5, fresh=1)
    stream = stream_of(photos, config, teacher, (tmp_path / "cache", 8) if cached else None)
    pairs = stream.pairs
    items = [pairs.item(k) for k in (*range(8), *range(lessons.FRESH_FROM, lessons.FRESH_FROM + 8))]
    drawn = {item.hr.numpy().tobytes(): item.drawn for item in items}
    assert set(drawn.values()) == {False, True}
    for batch in islice(batches(stream, None, config.batch, workers=0), 8):
        assert batch.drawn.tolist() == [drawn[hr.numpy().tobytes()] for hr in batch.hr]


@pytest.mark.parametrize("cached", [False, True])
def test_fresh_pairs_stand_between_those_of_the_teacher(
    cached: bool, teacher: Teacher, photos: Path, tmp_path: Path
) -> None:
    config = replace(TINY, fresh=2)
    cache = (tmp_path / "cache", 4) if cached else None

    def steps(first: int, wanted: DistillConfig = config) -> list[Batch]:
        pairs = stream_of(photos, wanted, teacher, cache)
        return list(islice(batches(pairs, None, wanted.batch, start=first, workers=0), 7 - first))

    whole = steps(0)
    assert [batch.noise is None for batch in whole] == [False, True, True, False, True, True, False]
    assert [batch.target is not None for batch in whole] == [cached and b.noise is not None for b in whole]
    alone = steps(0, replace(config, fresh=0))
    for mixed, taught in zip(whole[::3], alone, strict=False):
        assert torch.equal(mixed.lr, taught.lr)
        assert torch.equal(mixed.noise, taught.noise)
    pictures = [batch.hr for batch in whole if batch.noise is None]
    assert len({picture.numpy().tobytes() for picture in pictures}) == 4
    for first in range(1, 7):  # a run that is resumed there
        for resumed, batch in zip(steps(first), whole[first:], strict=True):
            assert torch.equal(resumed.hr, batch.hr)
            assert (resumed.noise is None) == (batch.noise is None)


def test_interrupted_fill_goes_on_to_equal_bytes(
    teacher: Teacher, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "SHARD", 8)
    cache_of(tmp_path / "whole", 18, teacher, photos)

    def stop(done: int, total: int, rate: float) -> None:
        if done == 12:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="12 of 18 items"):
        cache_of(tmp_path / "parts", 18, teacher, photos, on_progress=stop)
    counted: list[int] = []
    cache_of(
        tmp_path / "parts", 14, teacher, photos, on_progress=lambda done, total, rate: counted.append(done)
    )
    assert counted == [14]  # only what was missing; then a longer cache goes on from the shorter one
    cache_of(tmp_path / "parts", 18, teacher, photos)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == ["00000.safetensors", "00001.safetensors", "00002.safetensors", "cache.json"]
    for name in names:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_cache_of_something_else_is_refused(teacher: Teacher, photos: Path, tmp_path: Path) -> None:
    cache_of(tmp_path / "cache", 1, teacher, photos)
    other = Teacher(tiny_model(seed=1), "other")
    with pytest.raises(ValueError, match=r"made for something else \(made_for.teacher"):
        cache_of(tmp_path / "cache", 1, other, photos, fill=False)
    with pytest.raises(ValueError, match=r"made_for.seed: 0 -> 3"):
        cache_of(tmp_path / "cache", 1, teacher, photos, replace(TINY, seed=3), fill=False)
    with pytest.raises(ValueError, match="holds other files"):
        cache_of(photos, 1, teacher, photos, fill=False)
    with pytest.raises(ValueError, match="--cache-items 0"):
        cache_of(tmp_path / "none", 0, teacher, photos, fill=False)


def test_damaged_file_of_a_cache_is_named(teacher: Teacher, photos: Path, tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", 2, teacher, photos)
    path = tmp_path / "cache" / "00000.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    for use in (lambda: cache.read(0), cache.missing):
        with pytest.raises(ValueError, match=r"00000.safetensors is damaged .* delete it"):
            use()


def test_full_disk_leaves_what_is_done(
    teacher: Teacher, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "SHARD", 4)
    save = caching.save_file

    def full(tensors: dict, path: Path) -> None:
        if path.name.startswith("00001"):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(caching, "save_file", full)
    with pytest.raises(OSError, match=r"No space left .* the 4 items there stay usable"):
        cache_of(tmp_path / "cache", 8, teacher, photos)
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["00000.safetensors", "cache.json"]
    assert cache_of(tmp_path / "cache", 4, teacher, photos, fill=False).missing() == []


def test_turns_move_pictures_samples_and_noise_alike() -> None:
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    plane = (10 * y + x)[None].repeat(3, 1, 1)

    def enlarged(k: int) -> torch.Tensor:
        return plane.repeat_interleave(k, -1).repeat_interleave(k, -2)

    noise, samples = plane.repeat(2, 1, 1, 1), enlarged(8).repeat(2, 1, 1, 1)
    pair = Pair(enlarged(2), enlarged(8), Path("photo"), False, samples, noise)
    found = []
    for turn in range(lessons.TURNS):
        moved = turned(pair, turn)
        for name in ("lr", "hr", "target"):  # each cell of the noise still lies on its own pixels
            image = getattr(moved, name)
            step = image.shape[-1] // 8
            assert torch.equal(
                image[..., ::step, ::step], moved.noise[0] if image.ndim == 3 else moved.noise
            ), name
        found.append(moved.noise[0, 0])
    assert torch.equal(found[0], plane[0])
    assert len({tuple(x.flatten().tolist()) for x in found}) == 8


def test_turned_items_come_with_their_turned_noise(teacher: Teacher, photos: Path, tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", 2, teacher, photos)
    configs = (replace(TINY, cache_turns=True), TINY)
    rows, plain = (TaughtPairs(pairs_of(photos).pairs, config, 4, cache) for config in configs)
    several = [(rows.item(k), plain.item(k)) for k in range(6)]
    assert any(not torch.equal(a.noise, b.noise) for a, b in several)
    for a, b in several:
        assert any(
            torch.equal(a.noise, turned(b, t).noise) and torch.equal(a.target, turned(b, t).target)
            for t in range(lessons.TURNS)
        )


def test_eight_bits_there_and_back_are_exact() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(levels)), levels)
