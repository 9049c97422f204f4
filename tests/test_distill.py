"""Distillation of a student as a run: its recorded losses, its folder, resume, an interrupt, and what is refused."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from distill_cases import RECORDED, TINY, run  # noqa: E402  (after importorskip)
from safetensors.torch import load_file  # noqa: E402

from export.distill import cli as distill  # noqa: E402
from export.distill import stage as stages  # noqa: E402
from export.distill.recipe import DistillConfig  # noqa: E402
from export.student.model.checkpoint import load_student  # noqa: E402
from training import settings  # noqa: E402
from training.loop.budget import Budget  # noqa: E402


def test_two_steps_give_the_recorded_losses(photos: Path, weights: Path, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    config = replace(TINY, adversary_from=0.4)

    def record(step: int, losses: dict[str, float]) -> None:
        seen.append(losses)

    distill.run(config, photos, weights, tmp_path / "run", Budget(steps=2), workers=0, on_step=record)
    assert ["student/adversary" in losses for losses in seen] == [False, True]
    for losses, recorded in zip(seen, RECORDED, strict=True):
        assert {name: losses[f"student/{name}"] for name in recorded} == pytest.approx(
            recorded, rel=2e-3, abs=2e-6
        )


def test_dead_student_stops_the_run(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "DEAD_BELOW", 1e6)
    with pytest.raises(FloatingPointError, match="noise has lost its effect"):
        run(tmp_path / "run", photos, weights, steps=2)


def test_init_starts_from_a_student_and_keeps_its_history(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    run(tmp_path / "first", photos, weights, steps=2)
    begin = tmp_path / "first" / "student"
    distill.run(TINY, photos, weights, tmp_path / "second", Budget(steps=1), workers=0, init=begin)
    _, provenance = load_student(tmp_path / "second" / "student")
    assert [entry["steps"] for entry in provenance["history"]] == [2]
    other = replace(TINY, student=replace(TINY.student, width=4))
    third, budget = tmp_path / "third", Budget(steps=1)
    with pytest.raises(ValueError, match="set student"):
        distill.run(other, photos, weights, third, budget, workers=0, init=begin)


def test_resumed_run_equals_an_uninterrupted_one(photos: Path, weights: Path, tmp_path: Path) -> None:
    config = replace(TINY, adversary_from=0.0)
    whole = run(tmp_path / "whole", photos, weights, steps=6, config=config)
    stopped = Budget(steps=6)
    stopped.progress = lambda step: 1.0 if step == 3 else step / 6  # type: ignore[method-assign]
    distill.run(config, photos, weights, tmp_path / "parts", stopped, workers=0)
    parts = run(tmp_path / "parts", photos, weights, steps=6, resume=True, config=config)
    assert whole["step"] == parts["step"] == 6
    a, b = (load_file(tmp_path / name / "state" / "state.safetensors") for name in ("whole", "parts"))
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_interrupt_saves_and_leaves_no_student(
    photos: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else `make chain` would take a student that was stopped for a finished one."""

    def press(step: int, losses: dict[str, float]) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "run"
    stopped = distill.run(TINY, photos, weights, out, Budget(steps=50), workers=0, on_step=press)
    assert (stopped["finished"], stopped["step"]) == (False, 3)
    assert not (out / "student").exists()
    resumed = run(out, photos, weights, steps=5, resume=True)
    assert (resumed["finished"], resumed["step"]) == (True, 5)
    assert (out / "student" / "config.json").is_file()

    monkeypatch.setattr(distill, "run", lambda *args, **more: {"step": 3, "finished": False})
    common = ["--data", str(photos), "--perceptual-weights", str(weights), "--out", str(out)]
    assert distill.main([*common, "--steps", "1"]) == 130


def test_resume_with_other_settings_or_photos_is_refused(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    run(out, photos, weights, steps=1)
    before = (out / "config.json").read_text()
    other = replace(TINY, lr=0.125, student=replace(TINY.student, width=TINY.student.width + 1))
    with pytest.raises(ValueError, match=rf"\(settings\.lr: {TINY.lr} -> 0\.125; settings\.student\.width: "):
        run(out, photos, weights, steps=2, resume=True, config=other)
    copy = shutil.copytree(photos, tmp_path / "copy")
    with pytest.raises(ValueError, match=rf"\(data: {photos.resolve()} -> {copy.resolve()}\)"):
        run(out, copy, weights, steps=2, resume=True)
    assert (out / "config.json").read_text() == before
    monkeypatch.chdir(photos.parent)
    assert run(out, Path(photos.name), weights, steps=2, resume=True)["step"] == 2  # the same folder
    (out / "config.json").unlink()
    assert run(out, photos, weights, steps=3, resume=True)["step"] == 3
    assert (out / "config.json").read_text() == before


def test_run_folder_holds_config_log_samples_and_student(photos: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    last = run(out, photos, weights, steps=2)
    config = json.loads((out / "config.json").read_text())
    assert settings.from_dict(DistillConfig, config["settings"]) == replace(
        TINY, degrade="loader", memory_format="contiguous"
    )
    assert config["data"] == str(photos.resolve())
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"] == 2
    assert len(list((out / "samples").glob("*.png"))) == 1
    student, provenance = load_student(out / "student")
    assert student.config == TINY.student
    assert provenance["steps"] == 2
    assert {"psnr", "sqf", "niqe", "residual", "samples_differ", "structure_differs"} <= last.keys()


def test_existing_run_is_not_overwritten(photos: Path, weights: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", photos, weights, steps=1)
    with pytest.raises(FileExistsError, match="--resume"):
        run(tmp_path / "run", photos, weights, steps=1)


def test_loss_that_is_not_finite_stops_with_a_saved_state(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    config = replace(TINY, lr=1e30, warmup_steps=1)
    with pytest.raises(FloatingPointError, match="not finite"):
        run(tmp_path / "run", photos, weights, steps=20, config=config)
    failed = load_file(tmp_path / "run" / "failed" / "state.safetensors")
    assert all(torch.isfinite(value).all() for value in failed.values())
    assert not (tmp_path / "run" / "state").exists()  # a good state would not be overwritten by a broken one


def test_command_says_what_is_wrong(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--preset",
        "tiny",
        "--perceptual-weights",
        str(weights),
        "--out",
        str(tmp_path / "o"),
        "--data",
        str(tmp_path),
    ]
    assert distill.main(arguments) == 2
    assert "--minutes or --steps" in capsys.readouterr().err
    assert distill.main([*arguments, "--steps", "1"]) == 2
    assert "no image below" in capsys.readouterr().err


def test_accumulation_equals_a_larger_batch(photos: Path, weights: Path, tmp_path: Path) -> None:
    config = replace(TINY, adversary=0.0)
    found = []
    for batch, accumulate in ((4, 1), (2, 2)):
        out = tmp_path / str(batch)
        run(
            out,
            photos,
            weights,
            steps=2,
            config=replace(config, batch=batch, accumulate=accumulate, held_out=1),
        )
        found.append(load_student(out / "student")[0].state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=1e-3)
