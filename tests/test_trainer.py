"""The training loop: exact resume, accumulation, averages, budgets, broken runs, several processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from safetensors.torch import load_file  # noqa: E402  (after importorskip)

from training.checkpoint import load_state, save_state  # noqa: E402
from training.data.batches import Batch, ItemSampler, batches  # noqa: E402
from training.data.photos import CropParams, PairDataset, PhotoSet, find_images  # noqa: E402
from training.loop import accelerator as accelerator_module  # noqa: E402
from training.loop.average import Average  # noqa: E402
from training.loop.budget import Budget  # noqa: E402
from training.loop.optimizers import learning_rate  # noqa: E402
from training.loop.resume import check, keep_step  # noqa: E402
from training.loop.stage import Carry, Losses, RunSettings, Stage  # noqa: E402
from training.loop.trainer import Trainer  # noqa: E402
from training.loop.validation import Validation, bicubic  # noqa: E402
from training.model.text import PromptSource  # noqa: E402
from training.randomness import integers, normal  # noqa: E402
from training.settings import to_dict  # noqa: E402

SETTINGS = RunSettings(batch=2, crop=64, lr=1e-2, warmup_steps=2, held_out=1, seed=5)


class Toy(Stage):
    """Phase "net" learns to enlarge; phase "critic" learns the mean of what "net" made, handed on in the carry."""

    def __init__(self, settings: RunSettings = SETTINGS, break_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.critic = torch.nn.Linear(1, 1)
        self.frozen = torch.nn.Conv2d(3, 3, 1).requires_grad_(False)
        self.settings, self.break_at = settings, break_at
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def phases(self, progress: float) -> tuple[str, ...]:
        return ("net", "critic")

    def groups(self) -> dict[str, tuple[list[torch.nn.Parameter], float]]:
        return {"net": (list(self.net.parameters()), 1e-2), "critic": (list(self.critic.parameters()), 1e-1)}

    def forward(self, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        self.seen.append((phase, batch.items))
        if phase == "critic":
            return {"loss": (self.critic(carry["mean"][:, None]) - 1).square().mean()}, {}
        noise = normal(self.settings.seed, batch.items, batch.lr.shape[1:], "toy").to(batch.lr)
        sr = self._enlarge(batch.lr + 0.01 * noise)
        loss = (sr - batch.hr).square().mean()
        if self.break_at in batch.items:
            loss = loss * float("nan")
        return {"loss": loss}, {"mean": sr.detach().mean((1, 2, 3))}

    def _enlarge(self, lr: torch.Tensor) -> torch.Tensor:
        return self.frozen(bicubic(lr)) * 0 + bicubic(lr) + self.net(bicubic(lr))

    def sample(self, lr: torch.Tensor, hr: torch.Tensor, k: int, prompts: Sequence[str] = ()) -> torch.Tensor:
        return self._enlarge(lr) + 0.01 * k

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.json").write_text(json.dumps(provenance))


def make(
    photos: Path,
    out: Path,
    budget: Budget,
    settings: RunSettings = SETTINGS,
    stage: Toy | None = None,
    **more: Any,
) -> Trainer:
    pairs = PairDataset(PhotoSet(find_images(photos)), CropParams(settings.crop), seed=settings.seed)
    return Trainer(stage or Toy(settings), settings, pairs, out, budget, workers=0, **more)


def state(out: Path, name: str = "state") -> dict[str, torch.Tensor]:
    return load_file(out / name / "state.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


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


def test_resumed_run_equals_an_uninterrupted_one(photos: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, accumulate=2, ema=0.9)
    make(photos, tmp_path / "whole", Budget(steps=6), settings).run()
    stopped = Budget(steps=6)
    stopped.progress = lambda step: 1.0 if step == 2 else step / 6  # type: ignore[method-assign]
    make(photos, tmp_path / "parts", stopped, settings).run()
    stage = Toy(settings)
    torch.nn.init.zeros_(stage.net.weight)  # whatever it begins with comes from the state
    make(photos, tmp_path / "parts", Budget(steps=6), settings, stage).run(resume=True)
    assert_same(state(tmp_path / "whole"), state(tmp_path / "parts"))


def test_accumulation_equals_a_larger_batch(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "large", Budget(steps=3), replace(SETTINGS, batch=4)).run()
    make(photos, tmp_path / "small", Budget(steps=3), replace(SETTINGS, batch=2, accumulate=2)).run()
    a, b = state(tmp_path / "large"), state(tmp_path / "small")
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-5, rtol=1e-4)


def test_a_step_keeps_its_pairs_when_batch_and_processes_change(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = Budget(steps=4)
    stopped.progress = lambda step: 1.0 if step == 2 else step / 4  # type: ignore[method-assign]
    large = replace(SETTINGS, batch=4)
    make(photos, tmp_path / "parts", stopped, large).run()
    folder = tmp_path / "parts" / "state"
    caplog.set_level("INFO", logger="train")
    assert keep_step(large, folder, 1) == large
    assert keep_step(large, tmp_path / "none", 3) == large
    assert keep_step(replace(large, batch=1), folder, 2) == replace(large, batch=1, accumulate=2)
    assert "accumulate=2, so that a step still trains on 4 pairs" in caplog.text
    with pytest.raises(ValueError, match="trains on 4 pairs a step, got 3 processes with batch=1"):
        keep_step(replace(large, batch=1), folder, 3)
    with pytest.raises(
        ValueError, match=r"settings\.accumulate: 1 -> 2"
    ):  # another step, not another way to it
        make(photos, tmp_path / "parts", Budget(steps=4), replace(large, accumulate=2)).run(resume=True)
    small = keep_step(replace(large, batch=2), folder, 1)
    make(photos, tmp_path / "parts", Budget(steps=4), small).run(resume=True)
    make(photos, tmp_path / "whole", Budget(steps=4), large).run()
    a, b = state(tmp_path / "whole"), state(tmp_path / "parts")
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-5, rtol=1e-4)


def test_a_run_from_before_a_setting_goes_on_with_what_auto_came_to(tmp_path: Path) -> None:
    now = {"processes": 1, "settings": to_dict(replace(SETTINGS, degrade="loader", tf32=True))}
    old = {name: value for name, value in now["settings"].items() if name not in ("degrade", "tf32")}
    check(tmp_path, {"processes": 1, "settings": old}, now, RunSettings())
    with pytest.raises(ValueError, match=r"settings\.tf32: True -> False"):
        check(tmp_path, {"processes": 1, "settings": old}, {**now, "settings": now["settings"] | {"tf32": False}},
              RunSettings())  # fmt: skip


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


def test_begun_run_is_neither_overwritten_nor_resumed_with_other_settings(
    photos: Path, tmp_path: Path
) -> None:
    make(photos, tmp_path / "run", Budget(steps=1)).run()
    with pytest.raises(FileExistsError, match="--resume"):
        make(photos, tmp_path / "run", Budget(steps=1)).run()
    with pytest.raises(ValueError, match=r"settings\.lr: 0\.01 -> 0\.5"):
        make(photos, tmp_path / "run", Budget(steps=2), replace(SETTINGS, lr=0.5)).run(resume=True)
    with pytest.raises(FileNotFoundError, match="without --resume"):
        make(photos, tmp_path / "none", Budget(steps=1)).run(resume=True)


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


def test_run_from_before_a_setting_existed_goes_on_with_its_default(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "run", Budget(steps=1)).run()
    path = tmp_path / "run" / "state" / "state.json"
    values = json.loads(path.read_text())
    del values["best"], values["about"]["settings"]["validate_steps"]
    path.write_text(json.dumps(values))
    result = make(photos, tmp_path / "run", Budget(steps=2)).run(resume=True)
    assert (result["finished"], result["step"]) == (True, 2)
    path.write_text(json.dumps(values))
    changed = make(photos, tmp_path / "run", Budget(steps=3), replace(SETTINGS, validate_steps=5))
    with pytest.raises(ValueError, match=r"settings\.validate_steps: 0 -> 5"):
        changed.run(resume=True)


def test_state_of_another_size_is_refused(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "run", Budget(steps=1)).run()
    stage = Toy()
    stage.net = torch.nn.Conv2d(3, 3, 5, padding=2)
    with pytest.raises(ValueError, match=r"net\.weight has shape \(3, 3, 3, 3\), expected \(3, 3, 5, 5\)"):
        make(photos, tmp_path / "run", Budget(steps=2), stage=stage).run(resume=True)


def test_interrupt_saves_and_leaves_no_model(photos: Path, tmp_path: Path) -> None:
    def press(step: int, values: dict[str, float]) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    result = make(photos, tmp_path / "run", Budget(steps=50), on_step=press).run()
    assert (result["finished"], result["step"]) == (False, 3)
    assert not (tmp_path / "run" / "model").exists()
    resumed = make(photos, tmp_path / "run", Budget(steps=5)).run(resume=True)
    assert (resumed["finished"], resumed["step"]) == (True, 5)


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


FULL_DISK = """
import resource, signal, sys
import torch
from pathlib import Path
from training.checkpoint import save_state
folder = Path(sys.argv[1])
save_state(folder, {"net": torch.nn.Linear(8, 8)}, {}, {"step": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    save_state(folder, {"net": torch.nn.Linear(80, 80)}, {}, {"step": 2})
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs limits on the size of files")
def test_full_disk_leaves_the_earlier_state(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder)], cwd=root, capture_output=True, text=True, check=True
    )
    assert "the earlier state is unchanged" in done.stdout
    assert "--resume" in done.stdout
    values = load_state(folder, {"net": torch.nn.Linear(8, 8)}, {})
    assert values["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_damaged_state_is_named(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "run", Budget(steps=1)).run()
    file = tmp_path / "run" / "state" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged or cut off"):
        make(photos, tmp_path / "run", Budget(steps=2)).run(resume=True)


def test_interrupted_swap_loses_neither_state(tmp_path: Path) -> None:
    """Killed between the two renames: .old is the only state there is, and the next save must not begin by deleting it."""
    net = torch.nn.Linear(2, 2)
    save_state(tmp_path / "s", {"net": net}, {}, {"step": 1})
    (tmp_path / "s").rename(tmp_path / "s.old")
    assert load_state(tmp_path / "s", {"net": net}, {})["step"] == 1
    save_state(tmp_path / "s", {"net": net}, {}, {"step": 2})
    assert load_state(tmp_path / "s", {"net": net}, {})["step"] == 2


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


def test_states_hold_no_pickle(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save_state(tmp_path / "s", {"net": net}, {"net": optimizer}, {"step": 1})
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["state.json", "state.safetensors"]


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
