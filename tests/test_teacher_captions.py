"""A teacher that listens to a prompt: each photo's caption reaches its samples, their cache and a run."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from teachers import TINY, pairs_of  # noqa: E402  (after importorskip)

from export.distill import cli as distill  # noqa: E402
from export.distill.cache import TeacherCache, cache_facts  # noqa: E402
from export.distill.pairs import TaughtPairs  # noqa: E402
from export.distill.stage import StudentDistill  # noqa: E402
from export.distill.teacher import Teacher, by_sample  # noqa: E402
from training.data.batches import batches  # noqa: E402
from training.data.photos import PhotoSet, find_images, split_photos  # noqa: E402
from training.loop.budget import Budget  # noqa: E402
from training.loop.command import photo_pairs  # noqa: E402
from training.metrics.squeezenet import SqueezeFeatures  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.model.text import DEFAULT_PROMPT, PromptSource  # noqa: E402


@pytest.fixture(scope="module")
def captioned(miniature: Path) -> Teacher:
    """A miniature Stable Diffusion 2.1 as the teacher: its samples depend on the prompt."""
    return Teacher.load(miniature)


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
