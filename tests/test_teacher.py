"""Distillation from a teacher: one noise for both, the cache of its samples, what is learnt, and how it is measured."""

import json
import math
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from make_miniature_sd21 import make_miniature  # noqa: E402  (after importorskip)
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

from calibration.measure.diversity import agreement  # noqa: E402
from calibration.measure.onestep import restore  # noqa: E402
from export.distill import cache as caching  # noqa: E402
from export.distill import cli as distill  # noqa: E402
from export.distill import fidelity  # noqa: E402
from export.distill import pairs as lessons  # noqa: E402
from export.distill.cache import TeacherCache, cache_facts  # noqa: E402
from export.distill.losses import difference_loss, spread_loss, structure_loss  # noqa: E402
from export.distill.pairs import TaughtPairs, fill, turned  # noqa: E402
from export.distill.recipe import PRESETS, DistillConfig  # noqa: E402
from export.distill.stage import StudentDistill  # noqa: E402
from export.distill.teacher import Teacher, by_sample, fitted, item_noise, model_digest  # noqa: E402
from export.student.losses import low_pass  # noqa: E402
from export.student.network import Student, StudentConfig, load_student, nameless, save_student  # noqa: E402
from runtime.noise import noise_field  # noqa: E402
from training.data.batches import Batch, batches  # noqa: E402
from training.data.photos import CropParams, Pair, PairDataset, PhotoSet, find_images, split_photos  # noqa: E402
from training.loop.budget import Budget  # noqa: E402
from training.loop.command import photo_pairs  # noqa: E402
from training.metrics.squeezenet import SqueezeFeatures  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.model.pocket import UnetShape, VaeShape, build_unet, build_vae  # noqa: E402
from training.model.saving import save_merged  # noqa: E402
from training.model.schedule import NoiseSchedule  # noqa: E402
from training.model.text import DEFAULT_PROMPT, PromptSource  # noqa: E402
from training.pixels import from_bytes, to_bytes  # noqa: E402

TINY = PRESETS["tiny-teacher"]


def tiny_model(channels: int = 4, seed: int = 0) -> OneStepModel:
    """Random weights, with a decoder loud enough that two samples differ by about 10/255."""
    vae = build_vae(
        VaeShape(width=8, latent_channels=channels, encoder_blocks=(1,) * 4, decoder_blocks=(1,) * 4), seed
    )
    unet = build_unet(UnetShape(widths=(16, 32), layers=1, norm_groups=8), channels, seed)
    last = [m for m in vae.decoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.mul_(8.0)
    return OneStepModel(vae, unet, None, NoiseSchedule.scaled_linear())


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    save_merged(tiny_model(), folder / "model")
    return folder


@pytest.fixture(scope="module")
def teacher(run_folder: Path) -> Teacher:
    return Teacher.load(run_folder)


def pairs_of(photos: Path, config: DistillConfig = TINY, channels: int = 4) -> TaughtPairs:
    training, _ = split_photos(find_images(photos), config.held_out)
    pairs = PairDataset(PhotoSet(training), CropParams(config.crop), seed=config.seed)
    return TaughtPairs(pairs, config, channels)


def stage_of(weights: Path, teacher: Teacher, config: DistillConfig = TINY) -> StudentDistill:
    return StudentDistill(config, SqueezeFeatures(weights), teacher)


def first_batch(
    photos: Path, weights: Path, teacher: Teacher, config: DistillConfig = TINY, channels: int = 4
) -> Batch:
    """With the teacher's samples, drawn now."""
    found = next(batches(pairs_of(photos, config, channels), None, config.batch, workers=0))
    return stage_of(weights, teacher, config).prepare(found)


def cache_of(
    folder: Path,
    items: int,
    teacher: Teacher,
    photos: Path,
    config: DistillConfig = TINY,
    *,
    fill: bool = True,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> TeacherCache:
    training, _ = split_photos(find_images(photos), config.held_out)
    cache = TeacherCache(folder, items, cache_facts(teacher, config, training, photos))
    if fill:
        cache.fill(pairs_of(photos, config), teacher, workers=0, on_progress=on_progress)
    return cache


def run(
    out: Path,
    photos: Path,
    weights: Path,
    teacher: Teacher | None,
    *,
    steps: int = 2,
    config: DistillConfig = TINY,
    cache: tuple[Path, int] | None = None,
    resume: bool = False,
) -> dict:
    budget = Budget(steps=steps)
    return distill.run(
        config, photos, weights, out, budget, teacher=teacher, cache=cache, resume=resume, workers=0
    )


# ---------------------------------------------------------------------------------------------------- one noise


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Under "teacher" the noise that the teacher was last given."""
    noises: dict[str, torch.Tensor] = {}
    start = OneStepModel.start

    def watch(self: OneStepModel, latent: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        noises["teacher"] = noise
        return start(self, latent, noise)

    monkeypatch.setattr(OneStepModel, "start", watch)
    return noises


def test_teacher_and_student_get_the_same_noise(
    teacher: Teacher, photos: Path, weights: Path, seen: dict[str, torch.Tensor]
) -> None:
    batch = first_batch(photos, weights, teacher)
    stage = stage_of(weights, teacher)
    stage.student.generator.noise.register_forward_pre_hook(
        lambda module, inputs: seen.update(student=inputs[0])
    )
    losses, _ = stage("student", batch, {})
    assert torch.equal(seen["teacher"], seen["student"])
    assert seen["student"].shape == (2 * TINY.batch, 4, 8, 8)
    for place in range(2 * TINY.batch):  # first samples of all items, then the second ones
        item, which = place % TINY.batch, place // TINY.batch
        field = noise_field(TINY.seed, 2 * item + which, 8, 8, channels=4)
        assert np.array_equal(seen["student"][place].numpy(), field)
    assert {"teacher", "teacher_feature", "teacher_difference", "diversity", "pixel"} <= losses.keys()


def test_teacher_encodes_a_picture_once_and_agrees_with_the_model(teacher: Teacher) -> None:
    lr = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.cat([item_noise(5, k, (4, 8, 8)) for k in range(2)])
    got = teacher(lr, noise)
    with torch.no_grad():
        expected = teacher.model(lr.repeat(2, 1, 1, 1), noise).clamp(0, 1)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="each sample of 2 pictures, got 3"):
        teacher(lr, noise[:3])


def test_student_takes_the_shape_of_the_noise_from_the_teacher_unless_told_otherwise() -> None:
    wide = Teacher(tiny_model(channels=16), "wide")
    assert fitted(StudentConfig(), wide, []) == {"noise_channels": 16}
    assert fitted(StudentConfig(), wide, ["student.noise_channels"]) == {}
    with pytest.raises(ValueError, match=r"--set student\.noise_channels=16"):
        wide.check(StudentConfig(noise_channels=17), 48)
    with pytest.raises(ValueError, match="multiple of 16"):
        wide.check(StudentConfig(noise_channels=16), 18)


def test_a_teacher_of_few_noise_channels_gives_its_student_all_of_them(photos: Path, weights: Path) -> None:
    model = tiny_model(channels=16)
    wide = model_digest(model)
    model.set_noise_channels(4)
    teacher = Teacher(model, "few")
    assert teacher.digest != wide
    assert teacher.noise_channels == 4
    assert fitted(TINY.student, teacher, []) == {}
    batch = first_batch(photos, weights, teacher)
    spread = by_sample(batch.noise).repeat(1, 4, 1, 1)
    model.set_noise_channels(16)
    expected = from_bytes(to_bytes(teacher(batch.lr, spread)))
    torch.testing.assert_close(from_bytes(by_sample(batch.target)), expected, atol=1.01 / 255, rtol=0)


def test_student_with_fewer_noise_channels_gets_the_first_of_the_teachers(
    photos: Path, weights: Path
) -> None:
    wide = Teacher(tiny_model(channels=16), "wide")
    wide.check(TINY.student, 16)
    batch = first_batch(photos, weights, wide, channels=16)
    whole = torch.stack([item_noise(TINY.seed, item, (16, 8, 8)) for item in range(TINY.batch)])
    assert batch.target is not None
    assert torch.equal(stage_of(weights, wide)._noise(batch), by_sample(whole[:, :, :4]))
    expected = wide.samples(batch.lr, by_sample(whole), range(TINY.batch))
    assert torch.equal(by_sample(batch.target), expected)


def test_digest_is_of_everything_a_sample_depends_on(run_folder: Path, teacher: Teacher) -> None:
    assert Teacher.load(run_folder / "model").digest == teacher.digest
    assert Teacher(tiny_model(seed=1), "other").digest != teacher.digest
    later = tiny_model()
    later.set_timesteps(300, 100)
    assert Teacher(later, "later").digest != teacher.digest


def test_broken_teacher_is_named_with_its_item(photos: Path, weights: Path, tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        next(model.unet.parameters()).fill_(math.nan)
    broken = Teacher(model, "broken")
    with pytest.raises(FloatingPointError, match=r"teacher broken .* not finite for item 0, 1 of"):
        first_batch(photos, weights, broken)
    with pytest.raises(FloatingPointError, match="item 0, 1, 2, 3 of"):
        cache_of(tmp_path / "cache", 4, broken, photos)


# ------------------------------------------------------------------------------------------------------- the cache


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


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    """A miniature Stable Diffusion 2.1 as the teacher: its samples depend on the prompt."""
    return Teacher.load(make_miniature(tmp_path_factory.mktemp("sd21") / "miniature"))


def test_teacher_samples_each_photo_with_its_own_caption(
    captioned: Teacher, photos: Path, weights: Path, tmp_path: Path
) -> None:
    """From a text file, a function and the default; online, in the cache and, for a drawn card, the default."""
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    paths = find_images(folder)
    for path in paths[2:]:
        path.with_suffix(".txt").write_text("a cat")
    source = PromptSource(folder, caption=lambda path: "waves, water" if path == paths[1] else "")
    wanted = dict(zip(map(str, paths), (DEFAULT_PROMPT, "waves, water", "a cat", "a cat"), strict=True))
    config = replace(TINY, graphics_share=0.4, batch=8)
    pairs = TaughtPairs(
        photo_pairs(PhotoSet(paths), config, config.variety), config, captioned.noise_channels
    )
    batch = next(batches(pairs, source, config.batch, workers=0))
    assert batch.drawn is not None
    assert batch.noise is not None
    cards = batch.drawn.tolist()
    expected = tuple(
        DEFAULT_PROMPT if card else wanted[n] for n, card in zip(batch.names, cards, strict=True)
    )
    assert batch.prompts == expected
    assert len(set(expected)) == 3
    assert any(cards)
    online = StudentDistill(config, SqueezeFeatures(weights), captioned).prepare(batch)
    cache = TeacherCache(
        tmp_path / "cache", config.batch, cache_facts(captioned, config, paths, folder, source)
    )
    cache.fill(pairs, captioned, prompts=source, workers=0)
    assert online.target is not None
    for k, prompt in enumerate(expected):
        lr, noise = batch.lr[k : k + 1], by_sample(batch.noise[k : k + 1])
        alone = captioned.samples(lr, noise, [k], [prompt])
        for found in (online.target[k], cache.read(k)["samples"]):
            apart = (found.int() - alone.int()).abs()
            assert float((apart > 1).float().mean()) < 1e-3, (
                prompt
            )  # another batch, rounded otherwise now and then
        general = captioned.samples(lr, noise, [k]).int()
        assert ((general - alone.int()).abs().max() > 2) == (prompt != DEFAULT_PROMPT)


def test_cache_of_other_captions_is_refused(captioned: Teacher, photos: Path, tmp_path: Path) -> None:
    paths = find_images(photos)

    def facts(**captions: Any) -> dict[str, Any]:
        return cache_facts(captioned, TINY, paths, photos, PromptSource(photos, **captions))

    cache = TeacherCache(tmp_path, 2, facts(caption=lambda path: path.stem))
    cache.fill(pairs_of(photos), captioned, prompts=PromptSource(photos), workers=0)
    TeacherCache(tmp_path, 2, facts(caption=lambda path: path.stem))
    with pytest.raises(ValueError, match=r"made for something else .*captions"):
        TeacherCache(tmp_path, 2, facts(fixed="a cat"))
    assert facts() == cache_facts(captioned, TINY, paths, photos)  # caches of the default prompt stay valid


def test_captions_reach_a_run_of_distillation(
    captioned: Teacher,
    photos: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The comparison with the teacher first, then the batches."""
    seen: list[tuple[str, ...]] = []
    condition: Callable[..., Any] = OneStepModel.condition

    def noted(self: OneStepModel, prompts: Any, batch: int) -> Any:
        seen.append(tuple(prompts))
        return condition(self, prompts, batch)

    monkeypatch.setattr(OneStepModel, "condition", noted)
    caplog.set_level("INFO", logger="train")
    distill.run(
        TINY,
        photos,
        weights,
        tmp_path,
        Budget(steps=1),
        teacher=captioned,
        workers=0,
        caption=lambda p: p.stem,
    )
    _, held_out = split_photos(find_images(photos), TINY.held_out)
    assert seen[:2] == [tuple(path.stem for path in held_out)] * 2
    trained = {name for prompts in seen[2:] for name in prompts}
    assert trained
    assert trained <= {path.stem for path in find_images(photos)} - {path.stem for path in held_out}
    assert "captions: 4 of 4 images have one (4 from a function)" in caplog.text


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


# ------------------------------------------------------------------------------------------------- losses, learning


def test_losses_against_the_teacher_are_zero_when_the_student_equals_it() -> None:
    draw = torch.Generator().manual_seed(0)
    teacher, hr = torch.rand(4, 3, 64, 64, generator=draw), torch.rand(2, 3, 64, 64, generator=draw)
    assert float(difference_loss(teacher, teacher)) == 0
    assert float(spread_loss(teacher, teacher)) == 0
    # A shift that both samples share is no matter of their difference; a lost difference is.
    assert float(difference_loss(teacher + 0.1, teacher)) == pytest.approx(0, abs=1e-6)
    same = teacher[:2].repeat(2, 1, 1, 1)
    assert float(difference_loss(same, teacher)) > 0.1
    assert float(spread_loss(same, teacher)) > 0.1
    # The right amount of the wrong pattern satisfies the spread, not the difference.
    swapped = teacher.roll(2, 0)
    assert float(spread_loss(swapped, teacher)) == 0
    assert float(difference_loss(swapped, teacher)) > 0.1
    blurred = low_pass(teacher - hr.repeat(2, 1, 1, 1)).abs().mean()
    assert float(structure_loss(teacher, hr, teacher)) == pytest.approx(float(blurred))


@pytest.mark.slow
def test_student_learns_to_follow_the_teacher(photos: Path, weights: Path, tmp_path: Path) -> None:
    model = tiny_model()
    last = [m for m in model.vae.decoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    # A teacher that is easy to follow: its latent is the noised one, its colours lie around gray.
    with torch.no_grad():
        for parameter in model.unet.conv_out.parameters():
            parameter.zero_()
        gray = model(torch.full((2, 3, 16, 16), 0.5), item_noise(9, 0, (4, 8, 8))).mean((0, 2, 3))
        last.bias.sub_(gray - 0.5)
    teacher = Teacher(model, "plain")
    config = replace(
        TINY,
        student=replace(TINY.student, width=16),
        **{"lr": 3e-3, "clip": 5.0, "ema": 0.9, "adversary": 0.0},
        **dict.fromkeys(
            ("pixel", "structure", "colour", "chroma", "grid", "feature", "teacher_feature"), 0.0
        ),
    )
    out = tmp_path / "run"
    cache = (tmp_path / "cache", 24)
    run(out, photos, weights, teacher, steps=1, config=config, cache=cache)
    run(out, photos, weights, teacher, steps=100, config=config, cache=cache, resume=True)
    before, *_, after = (json.loads(line) for line in (out / "log.jsonl").read_text().splitlines())
    assert after["teacher_psnr"] > before["teacher_psnr"] + 4  # measured: 14.8 to 22.7 dB
    assert after["follows"] > before["follows"] + 0.4  # 0.03 to 0.76
    assert after["diversity"] > before["diversity"] + 0.5  # 0.15 to 1.02


def test_rows_config_and_provenance_tell_of_the_teacher(
    teacher: Teacher, photos: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    last = run(out, photos, weights, teacher, cache=(tmp_path / "cache", 2))
    wanted = {"teacher_psnr", "diversity", "texture_diversity", "follows", "psnr", "sqf", "niqe"}
    row = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    _, provenance = load_student(out / "student")
    for found in (last, row, provenance["validation"]):
        assert wanted <= found.keys()
    config = json.loads((out / "config.json").read_text())
    assert provenance["teacher"] == nameless(teacher.describe())
    assert config["teacher"] == teacher.describe()
    assert config["teacher_source"] == teacher.source
    assert provenance["teacher_source"] == nameless(teacher.source), "a student may be published"
    assert config["settings"]["teacher"] == TINY.teacher
    assert config["cache"] == [str(tmp_path / "cache"), 2]


@pytest.mark.parametrize("cached", [False, True])
def test_resumed_run_equals_an_uninterrupted_one(
    cached: bool, teacher: Teacher, photos: Path, weights: Path, tmp_path: Path
) -> None:
    config = replace(TINY, adversary_from=0.0, cache_turns=True)
    cache = (tmp_path / "cache", 5) if cached else None
    run(tmp_path / "whole", photos, weights, teacher, steps=4, config=config, cache=cache)
    stopped = Budget(steps=4)
    stopped.progress = lambda step: 1.0 if step == 2 else step / 4  # type: ignore[method-assign]
    distill.run(config, photos, weights, tmp_path / "parts", stopped, teacher=teacher, cache=cache, workers=0)
    run(tmp_path / "parts", photos, weights, teacher, steps=4, config=config, cache=cache, resume=True)
    a, b = (load_file(tmp_path / name / "state" / "state.safetensors") for name in ("whole", "parts"))
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_resume_with_another_teacher_is_refused(
    teacher: Teacher, photos: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(out, photos, weights, teacher, steps=1)
    other = Teacher(tiny_model(seed=1), "other")
    with pytest.raises(ValueError, match=rf"teacher\.weights_sha256: {teacher.digest} -> {other.digest}"):
        run(out, photos, weights, other, resume=True)
    with pytest.raises(ValueError, match=r"begun with other settings \(.*teacher: "):
        run(out, photos, weights, None, resume=True, config=PRESETS["tiny"])


def test_resume_with_another_weight_of_the_teacher_or_cache_is_refused(
    teacher: Teacher, photos: Path, weights: Path, tmp_path: Path
) -> None:
    out, cache = tmp_path / "run", (tmp_path / "cache", 2)
    run(out, photos, weights, teacher, steps=1, cache=cache)
    before = (out / "config.json").read_text()
    other = replace(TINY, teacher=TINY.teacher + 1)
    changed = rf"\(settings\.teacher: {TINY.teacher} -> {other.teacher}\)"
    with pytest.raises(ValueError, match=changed):
        run(out, photos, weights, teacher, config=other, cache=cache, resume=True)
    for given in (None, (tmp_path / "cache", 3), (tmp_path / "elsewhere", 2)):
        with pytest.raises(ValueError, match=r"begun with other settings \(cache: "):
            run(out, photos, weights, teacher, cache=given, resume=True)
    assert (out / "config.json").read_text() == before
    assert not (tmp_path / "elsewhere").exists()
    moved = Teacher(teacher.model, "moved", precision=teacher.precision)
    assert moved.digest == teacher.digest
    assert run(out, photos, weights, moved, steps=2, cache=cache, resume=True)["step"] == 2


def test_weights_teacher_and_cache_must_belong_together(
    teacher: Teacher, photos: Path, weights: Path, tmp_path: Path
) -> None:
    alone = PRESETS["tiny"]
    for config, given, cache, message in (
        (TINY, None, None, "give --teacher RUN"),
        (alone, teacher, None, "preset whose name ends in -teacher"),
        (alone, None, (tmp_path / "cache", 4), "--cache stores a teacher's samples"),
        (replace(TINY, crop=72), teacher, None, "set crop to a multiple of 16"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path / "run", photos, weights, given, config=config, cache=cache)
    assert not (tmp_path / "run").exists()


def test_teacher_without_weight_on_whole_samples_leads_in_texture_alone(
    teacher: Teacher, photos: Path, weights: Path
) -> None:
    """Then the photo alone says what the structure is and how much samples differ: equal losses for every teacher."""
    config = replace(TINY, teacher=0.0, teacher_feature=0.0)
    batch = first_batch(photos, weights, teacher, config)
    assert batch.target is not None
    other = replace(batch, target=batch.target.flip(0))
    losses = [stage_of(weights, teacher, config)("student", x, {})[0] for x in (batch, other)]
    assert not {"teacher", "teacher_feature"} & losses[0].keys()
    for name in ("pixel", "structure", "feature", "diversity", "grid"):
        assert losses[0][name] == losses[1][name], name
    assert losses[0]["teacher_difference"] != losses[1]["teacher_difference"]


def test_a_shift_of_all_samples_has_no_pull_unless_the_mean_may_pass(
    teacher: Teacher, photos: Path, weights: Path
) -> None:
    """The recipe that takes only texture from the teacher; drawn pictures keep their own mean in any case."""
    config = replace(TINY, **dict.fromkeys(("teacher", "teacher_feature", "adversary"), 0.0))
    batch = first_batch(photos, weights, teacher, config)
    target = from_bytes(by_sample(batch.target)) * 0.5 + 0.2  # room for the shift
    draw = torch.Generator().manual_seed(0)
    samples = torch.rand(target.shape, generator=draw).requires_grad_(True)
    photo = torch.tensor([True] * (len(batch.hr) - 1) + [False])

    def moved(share: float) -> Tensor:
        """How far the pull at each picture's first sample differs between the teacher and the shifted one, (n,)."""
        stage = stage_of(weights, teacher, replace(config, teacher_mean=share))
        pulls = [
            stage._pull(samples, batch.hr, photo, [(0, 0)] * len(batch.hr), x)[1][: len(batch.hr)]
            for x in (target, target + 0.2)
        ]
        return (pulls[0] - pulls[1]).abs().amax((1, 2, 3))

    off, on = moved(0.0), moved(1.0)
    assert float(off.max()) < 1e-6
    assert float(on[:-1].min()) > 1e-5
    assert float(on[-1]) < 1e-6


def test_a_shift_of_the_teachers_mean_arrives_in_the_student(photos: Path, weights: Path) -> None:
    """A teacher whose pictures are all brighter than the photos by 15 levels, as tuning might make them.

    Its weight in the recipe alone, `teacher`, does not get it through: colour, structure and pixels hold to the photo."""
    shift, config = 15 / 255, replace(TINY, adversary=0.0)
    model = tiny_model()
    last = [m for m in model.vae.decoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    batch = first_batch(photos, weights, Teacher(model, "as built"), config)
    for _ in range(3):  # clamping at 0 and 1 makes the way there less than linear
        mean = from_bytes(by_sample(batch.target)).mean((0, 2, 3))
        with torch.no_grad():
            last.bias.add_(batch.hr.mean((0, 2, 3)) + shift - mean)
        batch = first_batch(photos, weights, Teacher(model, "brighter"), config)
    brighter = from_bytes(batch.target).mean() - batch.hr.mean()
    assert float(brighter) == pytest.approx(shift, abs=0.01)

    arrived = {}
    for share in (0.0, 1.0):
        stage = stage_of(weights, Teacher(model, "brighter"), replace(config, teacher_mean=share))
        optimizer = torch.optim.Adam(stage.student.parameters(), lr=5e-3)
        for _ in range(20):
            optimizer.zero_grad()
            stage("student", batch, {})[0]["loss"].backward()
            optimizer.step()
        with torch.no_grad():
            picture = stage.student(batch.lr, batch.noise[:, 0, : stage.student.config.noise_channels])
        arrived[share] = float((picture.mean() - batch.hr.mean()) / brighter)
    assert abs(arrived[0.0]) < 0.25  # measured: 0.05
    assert 0.75 < arrived[1.0] < 1.35  # measured after these few steps: 1.16


def test_the_mean_passes_in_every_batch_or_is_refused() -> None:
    assert replace(TINY, teacher=0.0, teacher_feature=0.0, teacher_difference=0.0, teacher_mean=0.5).taught
    with pytest.raises(
        ValueError, match=r"fresh must be 0 where teacher_mean is above 0, got 2.*--set fresh=0"
    ):
        replace(PRESETS["pocket-texture"], teacher_mean=1.0)
    with pytest.raises(ValueError, match=r"teacher_mean must be from 0 to 1, got 2"):
        replace(TINY, teacher_mean=2.0)


def test_teacher_without_diversity_is_refused(photos: Path, weights: Path, tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.vae.decoder.parameters():
            parameter.zero_()
    with pytest.raises(ValueError, match="no diversity to keep"):
        run(tmp_path / "run", photos, weights, Teacher(model, "flat"))


def test_init_with_other_noise_channels_keeps_all_but_the_noise_convolution(
    weights: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    earlier = Student(TINY.student)
    save_student(earlier, tmp_path)
    config = replace(TINY, student=replace(TINY.student, noise_channels=16))
    stage = StudentDistill(config, SqueezeFeatures(weights), init=tmp_path)
    state, before = stage.student.state_dict(), earlier.state_dict()
    assert state["generator.noise.weight"].shape[1] == 16
    for name, value in before.items():
        assert name == "generator.noise.weight" or torch.equal(state[name], value), name


# ------------------------------------------------------------------------------------------------------- figures


def test_agreement_tells_equal_samples_unrelated_ones_and_half_the_diversity() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(60, 190, (32, 32, 3))
    theirs = [base + rng.normal(0, 10, base.shape) for _ in range(3)]
    equal = agreement([(theirs, theirs)])
    assert (equal.teacher_psnr, equal.diversity, equal.texture_diversity) == (100.0, 1.0, 1.0)
    assert equal.follows == equal.texture_follows == pytest.approx(1.0)
    half = agreement([([base + (x - base) / 2 for x in theirs], theirs)])
    assert (half.diversity, half.follows) == pytest.approx((0.5, 1.0))
    strangers = agreement([([base + rng.normal(0, 10, base.shape) for _ in range(3)], theirs)])
    assert strangers.diversity == pytest.approx(1.0, abs=0.05)
    assert abs(strangers.follows) < 0.05
    smooth = agreement([([base + 20 * k for k in range(3)], theirs)])  # differs, but not in texture
    assert smooth.texture_diversity == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="no diversity to keep"):
        agreement([(theirs, [base] * 3)])


def test_student_sample_and_teacher_sample_of_a_seed_share_the_runtimes_noise(
    teacher: Teacher, seen: dict[str, torch.Tensor]
) -> None:
    student = Student(TINY.student).eval()
    student.generator.noise.register_forward_pre_hook(lambda module, inputs: seen.update(student=inputs[0]))
    lr = np.random.default_rng(0).integers(0, 256, (13, 18, 3)).astype(np.uint8)
    assert fidelity.sample(student, lr, 7).shape == restore(teacher.model, lr, 7).shape == (52, 72, 3)
    rows, columns = seen["student"].shape[-2:]
    assert (rows, columns) == (7, 9)
    assert torch.equal(seen["student"], seen["teacher"][..., :rows, :columns])


def test_fidelity_command_prints_figures_and_checks_the_floor(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name, side in (("lr", 16), ("hr", 64)):
        (tmp_path / name).mkdir()
        for k in range(3):
            pixels = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{k}.png")
    torch.manual_seed(0)
    save_student(Student(TINY.student), tmp_path / "student")
    arguments = [
        "--student",
        str(tmp_path / "student"),
        "--lr",
        str(tmp_path / "lr"),
        "--hr",
        str(tmp_path / "hr"),
    ]
    arguments += ["--teacher", str(run_folder), "--seeds", "2", "--every", "2"]
    assert fidelity.main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["pictures"], figures["seeds"]) == (2, 2)
    assert figures["diversity"] < 0.9
    assert abs(figures["follows"]) < 0.5
    assert fidelity.main([*arguments, "--check"]) == 1
    assert "diversity kept" in capsys.readouterr().out
    for wrong, message in (
        (["--seeds", "1"], "at least 2 seeds"),
        (["--teacher", "nowhere"], "no model at nowhere"),
        (["--student", str(tmp_path)], "not a student checkpoint"),
        (["--lr", str(tmp_path / "none")], "expected a folder of photos"),
    ):
        assert fidelity.main([*arguments, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_command_distils_and_names_what_is_wrong(
    run_folder: Path, photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_merged(tiny_model(channels=16), tmp_path / "wide")
    common = ["--preset", "tiny-teacher", "--data", str(photos), "--perceptual-weights", str(weights)]
    common += ["--steps", "1", "--workers", "0", "--teacher", str(tmp_path / "wide")]
    cache = ["--cache", str(tmp_path / "cache"), "--cache-items", "2"]
    assert distill.main([*common, *cache, "--out", str(tmp_path / "run")]) == 0
    student, _ = load_student(tmp_path / "run" / "student")
    assert student.config.noise_channels == 16
    capsys.readouterr()
    for wrong, message in (
        (["--teacher", str(tmp_path / "nowhere")], "no model at"),
        (["--set", "student.noise_channels=20"], "--set student.noise_channels=16"),
        (cache[:2], "--cache and --cache-items need each other"),
        ([*cache, "--teacher", str(run_folder)], "made for something else"),
        (["--preset", "tiny"], "give the teacher no weight"),
    ):
        assert distill.main([*common, "--out", str(tmp_path / "other"), *wrong]) == 2
        assert message in capsys.readouterr().err


def test_eight_bits_there_and_back_are_exact() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(levels)), levels)
