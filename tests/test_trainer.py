"""The training loop: items and their captions, phases, accumulation, averages, validation, budgets, broken runs."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from toy_stage import SETTINGS, Toy, make, state  # noqa: E402  (after importorskip)

from training.data.batches import ItemSampler, batches  # noqa: E402
from training.data.photos import CropParams, PairDataset, PhotoSet, find_images  # noqa: E402
from training.loop import accelerator as accelerator_module  # noqa: E402
from training.loop.average import Average  # noqa: E402
from training.loop.budget import Budget  # noqa: E402
from training.loop.optimizers import learning_rate  # noqa: E402
from training.loop.stage import RunSettings  # noqa: E402
from training.loop.validation import Validation  # noqa: E402
from training.model.text import PromptSource  # noqa: E402
from training.randomness import integers, normal  # noqa: E402


def test_randomness_is_a_function_of_seed_item_and_stream() -> None:
    whole = normal(3, [7, 8, 9], (2, 5), "a")
    assert torch.equal(whole[1:], normal(3, [8, 9], (2, 5), "a"))
    assert not torch.equal(whole, normal(3, [7, 8, 9], (2, 5), "b"))
    assert not torch.equal(whole, normal(4, [7, 8, 9], (2, 5), "a"))
    many = normal(0, range(200), (50,), "moments")
    assert abs(float(many.mean())) < 0.03
    assert abs(float(many.std()) - 1) < 0.03
    drawn = integers(0, range(300), 20, 30, "t")
    assert (int(drawn.min()), int(drawn.max())) == (20, 29)


def test_processes_share_the_items_of_one_with_a_larger_batch() -> None:
    def first(sampler: ItemSampler, steps: int) -> list[list[int]]:
        iterator = iter(sampler)
        return [next(iterator) for _ in range(steps)]

    alone = first(ItemSampler(4), 3)
    two = [first(ItemSampler(2, process=r, processes=2), 3) for r in range(2)]
    assert [sorted(a + b) for a, b in zip(*two, strict=True)] == alone
    assert first(ItemSampler(4, start=2), 1)[0] == alone[2]


def test_names_and_prompts_follow_the_pictures(photos: Path, tmp_path: Path) -> None:
    for path in sorted(photos.iterdir()):
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes())
        copy.with_suffix(".txt").write_text(f"caption of {path.stem}")
    pairs = PairDataset(PhotoSet(find_images(tmp_path)), CropParams(64), seed=1)
    batch = next(batches(pairs, PromptSource(tmp_path, None), 6, workers=0))
    assert len(set(batch.names)) > 1
    for k, (item, name, prompt) in enumerate(zip(batch.items, batch.names, batch.prompts, strict=True)):
        assert prompt == f"caption of {Path(name).stem}"
        assert Path(name) == pairs.item(item).photo
        assert torch.equal(batch.lr[k], pairs[item][0])


def test_stand_in_for_a_broken_photo_brings_its_own_name_and_caption(photos: Path, tmp_path: Path) -> None:
    for path in sorted(photos.iterdir()):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / path.name).with_suffix(".txt").write_text(f"caption of {path.stem}")
    pairs = PairDataset(PhotoSet(find_images(tmp_path), cache_bytes=0), CropParams(64), seed=1)
    (tmp_path / "1.png").write_bytes(b"gone")
    batch = next(batches(pairs, PromptSource(tmp_path, None), 12, workers=0))
    assert {Path(name).name for name in batch.names} == {"0.png", "2.png", "3.png"}
    assert batch.prompts == tuple(f"caption of {Path(name).stem}" for name in batch.names)


def test_learning_rate_warms_up_and_falls_to_the_final_one() -> None:
    assert learning_rate(1.0, 0.1, 4, 0, 0.0) == pytest.approx(0.25)
    assert learning_rate(1.0, 0.1, 4, 3, 0.0) == pytest.approx(1.0)
    assert learning_rate(1.0, 0.1, 4, 100, 0.5) == pytest.approx(0.55)
    assert learning_rate(1.0, 0.1, 4, 100, 1.0) == pytest.approx(0.1)


def test_run_learns_and_writes_its_folder(photos: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    validation = Validation(PhotoSet(find_images(photos)[:1]), tmp_path / "run" / "samples", size=96)
    trainer = make(
        photos,
        tmp_path / "run",
        Budget(steps=40),
        replace(SETTINGS, ema=0.9),
        on_step=lambda step, values: losses.append(values["net/loss"]),
        validation=validation,
        about={"stage": "toy"},
    )
    frozen = trainer.stage.frozen.weight.clone()  # type: ignore[union-attr]
    result = trainer.run()
    assert result["finished"]
    assert result["step"] == len(losses) == 40
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:4])
    assert torch.equal(trainer.stage.frozen.weight, frozen)  # type: ignore[union-attr]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["stage"] == "toy"
    assert config["settings"]["ema"] == 0.9
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["step"] == 40
    assert json.loads((tmp_path / "run" / "model" / "model.json").read_text())["steps"] == 40
    assert Image.open(next((tmp_path / "run" / "samples").glob("*.png"))).size == (4 * 96, 96)
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert not any("frozen" in key for key in state(tmp_path / "run"))


def test_accumulation_equals_a_larger_batch(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "large", Budget(steps=3), replace(SETTINGS, batch=4)).run()
    make(photos, tmp_path / "small", Budget(steps=3), replace(SETTINGS, batch=2, accumulate=2)).run()
    a, b = state(tmp_path / "large"), state(tmp_path / "small")
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["contiguous", "channels_last"])
def test_pictures_and_kernels_lie_as_the_setting_says(name: str, photos: Path, tmp_path: Path) -> None:
    trainer = make(photos, tmp_path, Budget(steps=1), replace(SETTINGS, memory_format=name))
    batch = trainer._prepared(next(batches(trainer.pairs, None, 2, workers=0)))
    for x in (batch.lr, batch.hr, trainer.stage.net.weight):  # type: ignore[union-attr]
        assert x.is_contiguous(memory_format=torch.channels_last) == (name == "channels_last")


def test_tf32_is_for_gpus_alone() -> None:
    both = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flags.allow_tf32 for flags in both]
    try:
        for on in (True, False):
            accelerator_module.set_tf32(torch.device("cuda"), on)
            assert [flags.allow_tf32 for flags in both] == [on, on]
            accelerator_module.set_tf32(torch.device("cpu"), not on)
            assert [flags.allow_tf32 for flags in both] == [on, on]
    finally:
        for flags, was in zip(both, before, strict=True):
            flags.allow_tf32 = was


def test_phases_run_in_turn_on_the_same_items(photos: Path, tmp_path: Path) -> None:
    stage = Toy()
    make(photos, tmp_path / "run", Budget(steps=2), replace(SETTINGS, accumulate=2), stage).run()
    assert stage.seen[:4] == [("net", (0, 1)), ("net", (2, 3)), ("critic", (0, 1)), ("critic", (2, 3))]
    assert stage.seen[4] == ("net", (4, 5))


def test_average_stands_in_only_inside_the_with() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    average = Average({"w": weight}, 0.5)
    weight.data += 1
    average.update(1000)
    with average.swapped_in():
        assert torch.allclose(weight, torch.full((3,), 0.5))
    assert torch.allclose(weight, torch.ones(3))
    with Average({"w": weight}, 0.0).swapped_in():
        assert torch.allclose(weight, torch.ones(3))


def test_loss_that_is_not_finite_stops_with_step_photos_and_state(photos: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, batch=1)
    stopped = Budget(steps=9)
    stopped.progress = lambda step: 1.0 if step == 2 else step / 9  # type: ignore[method-assign]
    make(photos, tmp_path / "good", stopped, settings).run()
    broken = make(photos, tmp_path / "run", Budget(steps=9), settings, Toy(settings, break_at=2))
    name = str(broken.pairs.item(2).photo)
    with pytest.raises(FloatingPointError, match=r"step 2, phase net") as caught:
        broken.run()
    assert name in str(caught.value)
    failed = state(tmp_path / "run", "failed")
    assert all(torch.isfinite(value).all() for value in failed.values())
    good = state(tmp_path / "good")
    assert torch.equal(failed["module/trained/net.weight"], good["module/trained/net.weight"])


class Scored(Toy):
    """Its validations bring the given scores, one after the other."""

    def __init__(self, settings: RunSettings, scores: Sequence[float]) -> None:
        super().__init__(settings)
        self.scores = list(scores)

    def measure(self, validation: Validation) -> dict[str, float]:
        return {"policy/score": self.scores.pop(0)}


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("best", "scores"),
    [("policy/score", [1, 3, 2, 3, 9]), ("-policy/score", [5, 2, float("nan"), 4, 0])],
)
def test_best_validation_is_kept_and_ends_a_run_that_no_longer_gets_better(
    best: str, scores: list[float], photos: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, validate_steps=2, best=best, patience=2)
    validation = Validation(PhotoSet(find_images(photos)[:1]), tmp_path / "samples", size=64)

    def go(out: Path, budget: Budget, scores: Sequence[float], resume: bool = False) -> dict[str, Any]:
        trainer = make(photos, out, budget, settings, Scored(settings, scores), validation=validation)
        return trainer.run(resume=resume)

    result = go(tmp_path / "whole", Budget(steps=20), scores)
    assert (result["finished"], result["step"]) == (True, 8)
    assert [row["step"] for row in rows_of(tmp_path / "whole")] == [2, 4, 6, 8]
    kept = json.loads((tmp_path / "whole" / "best" / "model.json").read_text())
    assert kept["steps"] == 4
    assert kept["validation"]["policy/score"] == scores[1]
    assert json.loads((tmp_path / "whole" / "model" / "model.json").read_text())["steps"] == 8

    # the best value and the validations since are part of the state
    stopped = Budget(steps=20)
    stopped.progress = lambda step: 1.0 if step == 7 else step / 20  # type: ignore[method-assign]
    go(tmp_path / "parts", stopped, [*scores[:3], scores[0]])  # the fourth: as it seemed to end
    saved = tmp_path / "parts" / "state" / "state.json"
    values = json.loads(saved.read_text())
    assert (values["best"]["step"], values["best"]["since"]) == (4, 1)
    assert go(tmp_path / "parts", Budget(steps=20), scores[3:], resume=True)["step"] == 8


def test_value_that_no_validation_has_is_named_with_those_there_are(photos: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, validate_steps=1, best="policy/lpips")
    validation = Validation(PhotoSet(find_images(photos)[:1]), tmp_path / "samples", size=64)
    trainer = make(photos, tmp_path / "run", Budget(steps=2), settings, validation=validation)
    with pytest.raises(
        ValueError, match=r"best=policy/lpips is no value .* choose one of psnr, niqe, residual"
    ):
        trainer.run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 2}, "patience=2 needs a value to wait for: set best"),
        ({"best": "psnr", "held_out": 0}, "best=psnr needs photos to validate on"),
        ({"validate_steps": -1}, "validate_steps must be at least 0, got -1"),
    ],
)
def test_settings_without_a_validation_to_go_by_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize(
    ("budget", "message"),
    [({}, "--minutes or --steps"), ({"steps": 0}, "--steps"), ({"minutes": -1.0}, "--minutes")],
)
def test_budget_must_be_given_and_positive(budget: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**budget)


def test_budget_ends_with_whichever_comes_first() -> None:
    assert Budget(steps=10, minutes=1000.0).progress(5) == pytest.approx(0.5, abs=1e-3)
    spent = Budget(minutes=1.0)
    spent.start(30.0)
    assert spent.progress(0) == pytest.approx(0.5, abs=0.01)
    spent.start(90.0)
    assert spent.progress(0) == 1.0


def test_phase_that_begins_later_has_a_warm_up_of_its_own(photos: Path, tmp_path: Path) -> None:
    class Late(Toy):
        def phases(self, progress: float) -> tuple[str, ...]:
            return ("net",) if progress < 0.5 else ("net", "critic")

    trainer = make(photos, tmp_path / "run", Budget(steps=6), replace(SETTINGS, warmup_steps=4), Late())
    rates: list[float] = []
    trainer.on_step = lambda step, losses: rates.append(
        trainer.optimizers.raw["critic"].param_groups[0]["lr"] if "critic/loss" in losses else 0.0
    )
    trainer.stage.forward = lambda phase, batch, carry: Toy.forward(  # type: ignore[method-assign]
        trainer.stage, phase, batch, carry or {"mean": torch.zeros(2)}
    )
    trainer.run()
    assert rates[:3] == [0.0, 0.0, 0.0]
    assert 0 < rates[3] < 0.3 * 1e-1
    assert trainer.optimizers.steps == {"net": 6, "critic": 3}


def test_precision_may_change_within_a_process(photos: Path, tmp_path: Path) -> None:
    for precision in ("bf16", "no", "auto", "bf16"):
        settings = replace(SETTINGS, precision=precision)
        result = make(photos, tmp_path / f"{len(list(tmp_path.iterdir()))}", Budget(steps=1), settings).run()
        assert result["finished"]


def test_precision_that_the_device_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("fp16 mixed precision requires a GPU")

    monkeypatch.setattr(accelerator_module, "Accelerator", refuse)
    with pytest.raises(ValueError, match="set precision=no"):
        accelerator_module.make_accelerator("fp16")
