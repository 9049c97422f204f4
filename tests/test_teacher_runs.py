"""Runs of distillation from a teacher: what they record, how they are resumed or refused, and how faithful a student is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from PIL import Image  # noqa: E402  (after importorskip)
from safetensors.torch import load_file  # noqa: E402
from teachers import TINY, run, tiny_model  # noqa: E402

from calibration.measure.diversity import agreement  # noqa: E402
from export.distill import cli as distill  # noqa: E402
from export.distill import fidelity  # noqa: E402
from export.distill.recipe import PRESETS  # noqa: E402
from export.distill.teacher import Teacher  # noqa: E402
from export.student.model.checkpoint import load_student, nameless, save_student  # noqa: E402
from export.student.model.network import Student  # noqa: E402
from training.loop.budget import Budget  # noqa: E402
from training.model.saving import save_merged  # noqa: E402

# ------------------------------------------------------------------------------------------------------------ runs


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


def test_teacher_without_diversity_is_refused(photos: Path, weights: Path, tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.vae.decoder.parameters():
            parameter.zero_()
    with pytest.raises(ValueError, match="no diversity to keep"):
        run(tmp_path / "run", photos, weights, Teacher(model, "flat"))


def test_command_distils_and_names_what_is_wrong(
    teacher_run: Path, photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
        ([*cache, "--teacher", str(teacher_run)], "made for something else"),
        (["--preset", "tiny"], "give the teacher no weight"),
    ):
        assert distill.main([*common, "--out", str(tmp_path / "other"), *wrong]) == 2
        assert message in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- figures


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


def test_fidelity_command_prints_figures_and_checks_the_floor(
    teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    arguments += ["--teacher", str(teacher_run), "--seeds", "2", "--every", "2"]
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
