"""The student's stages on the common trainer: settings, where LR pictures are made, and the commands; resumed too."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from safetensors.torch import load_file  # noqa: E402  (after importorskip)
from student_cases import SHAPE, a_student  # noqa: E402

from export.prior.network import Prior  # noqa: E402
from export.student import cli  # noqa: E402
from export.student.core import CoreSettings, StudentCore  # noqa: E402
from export.student.kinds import CORE, KINDS, Sources, preparation  # noqa: E402
from export.student.model.checkpoint import load_student, save_student  # noqa: E402
from export.student.noise import NoiseSettings  # noqa: E402
from gdposr.cli import main as gdposr  # noqa: E402
from training.data.batches import Batch, batches  # noqa: E402
from training.data.device.degradation import degrade_batch  # noqa: E402
from training.data.photos import PhotoSet, find_images  # noqa: E402
from training.loop.stage import Carry, Losses  # noqa: E402


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CoreSettings(crop=72), "multiple of 16"),
        (lambda: CoreSettings(feature=-1.0), "feature must be at least 0"),
        (lambda: CoreSettings(crispness=0.0), "crispness must be above 0"),
        (lambda: CoreSettings(truth=1.5), "truth must be from 0 to 1"),
        (lambda: CoreSettings(truth_error=0.0), "truth_error must be above 0"),
        (lambda: CoreSettings(adversary_from=2.0), "from 0 to 1"),
        (lambda: CoreSettings(feature_layers=(1.0,)), "feature_layers must be 5"),
        (lambda: NoiseSettings(samples=1), "at least 2"),
        (lambda: NoiseSettings(truth_error=0.0), "truth_error must be above 0"),
        (lambda: NoiseSettings(noise_channels=0), "noise_channels must be at least 1"),
        (lambda: NoiseSettings(score=-1.0), "score must be at least 0"),
    ],
)
def test_wrong_settings_are_named(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------------------------ where LR pictures are made


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_lr_pictures_come_from_the_device_if_the_setting_says_so(
    kind: str, pictures: Path, photos: Path, ncnn_network: Path
) -> None:
    """Pictures of a prior have theirs; a core without such needs a prior, which runs on the device."""
    prior = Prior.load(ncnn_network) if kind == "student-core" else None
    sources = Sources(None, None, (), PhotoSet(find_images(photos)), prior=prior)
    for where in ("loader", "device"):
        settings = replace(KINDS[kind].presets["tiny"], degrade=where)
        pairs, prepare = KINDS[kind].pairs(settings, sources), preparation(settings, sources)
        batch = next(batches(pairs, None, 2, workers=0))
        if prior is None and where == "loader":
            assert prepare is None
            assert batch.lr.any()
            continue
        assert prepare is not None
        assert not batch.lr.any()
        made = prepare(batch)
        assert torch.equal(made.lr, degrade_batch(batch.hr, settings.seed, batch.items))
        assert (made.target is None) == (prior is None)
        assert preparation(settings, replace(sources, pictures=(pictures,))) is None


# ------------------------------------------------------------------------------------------------ the commands


def core_command(pictures: Path, photos: Path, out: Path, *more: str) -> list[str]:
    return [
        *(
            "student-core",
            "--preset",
            "tiny",
            "--data",
            str(photos),
            "--pictures",
            str(pictures),
            "--out",
            str(out),
        ),
        *("--workers", "0", "--set", "feature=0", *more),
    ]


def test_core_trains_in_bfloat16_on_weights_of_float32(
    pictures: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses are float32's but for rounding, and no weight is trained or stored in less than float32."""
    dtypes, losses, forward = [], {}, StudentCore.forward

    def watched(stage: StudentCore, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        made = forward(stage, phase, batch, carry)
        features, _ = stage.student.encode(batch.lr)
        dtypes[-1].add(
            (features.dtype, made[0]["loss"].dtype, *{weight.dtype for weight in stage.parameters()})
        )
        return made

    monkeypatch.setattr(StudentCore, "forward", watched)
    for precision in ("no", "bf16"):
        dtypes.append(set())
        losses[precision] = []
        cli.run(
            "student-core",
            cli.with_settings(CORE.presets["tiny"], ["feature=0", f"precision={precision}"]),
            photos,
            tmp_path / precision,
            cli.Budget(steps=2),
            pictures=[pictures],
            workers=0,
            on_step=lambda step, of_step, to=losses[precision]: to.append(of_step["student/pixel"]),
        )
    assert dtypes == [
        {(computed, torch.float32, torch.float32)} for computed in (torch.float32, torch.bfloat16)
    ]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.02)
    assert losses["bf16"] != losses["no"]
    trained = load_file(tmp_path / "bf16" / "model" / "model.safetensors")
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert json.loads((tmp_path / "bf16" / "config.json").read_text())["settings"]["precision"] == "bf16"


def test_resumed_core_equals_one_that_was_not_stopped(pictures: Path, photos: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.main([*core_command(pictures, photos, whole), "--steps", "6"]) == 0

    def stop(step: int, losses: dict[str, float]) -> None:
        if step == 3:
            os.kill(os.getpid(), 2)

    settings = cli.with_settings(CORE.presets["tiny"], ["feature=0"])
    common = {"pictures": [pictures], "workers": 0}
    found = cli.run("student-core", settings, photos, parts, cli.Budget(steps=6), on_step=stop, **common)  # type: ignore[arg-type]
    assert found["finished"] is False
    assert cli.main([*core_command(pictures, photos, parts), "--steps", "6", "--resume"]) == 0
    first, second = (load_file(out / "model" / "model.safetensors") for out in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_core_learns_from_a_prior_during_the_run_and_resumes(
    ncnn_network: Path, photos: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ["student-core", "--preset", "tiny", "--data", str(photos), "--prior", str(ncnn_network)]
    common += ["--workers", "0", "--set", "feature=0", "--steps", "4"]
    assert cli.main([*common, "--out", str(whole)]) == 0

    def stop(step: int, losses: dict[str, float]) -> None:
        if step == 2:
            os.kill(os.getpid(), 2)

    settings = cli.with_settings(CORE.presets["tiny"], ["feature=0"])
    found = cli.run(
        "student-core",
        settings,
        photos,
        parts,
        cli.Budget(steps=4),
        prior=str(ncnn_network),
        workers=0,
        on_step=stop,
    )
    assert found["finished"] is False
    assert cli.main([*common, "--out", str(parts), "--resume"]) == 0
    first, second = (load_file(out / "model" / "model.safetensors") for out in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert load_student(whole / "model")[1]["prior"] == "small"


def test_core_then_noise_by_command_leave_students_with_their_history(
    pictures: Path, photos: Path, tmp_path: Path
) -> None:
    core_run, noise_run = tmp_path / "core", tmp_path / "noise"
    command = core_command(
        pictures, photos, core_run, "--steps", "2", "--set", "snapshots=true", "--set", "adversary_from=0"
    )
    assert gdposr(["train", *command]) == 0
    assert gdposr(["train", "student-noise", "--preset", "tiny", "--init", str(core_run / "model"), "--data", str(photos),
                   "--out", str(noise_run), "--workers", "0", "--steps", "2"]) == 0  # fmt: skip
    student, provenance = load_student(noise_run / "model")
    assert student.config == replace(SHAPE, noise_gate=True)
    assert provenance["stage"] == "student-noise"
    assert [part["stage"] for part in provenance["history"]] == ["student-core"]
    assert load_student(core_run / "snapshots" / "0000002")[1]["steps"] == 2
    assert list((core_run / "samples").glob("*.png"))
    assert list((core_run / "tensorboard").iterdir())
    rows = [json.loads(line) for line in (noise_run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2
    assert rows[-1]["samples_differ"] > 0


def test_commands_say_what_is_missing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--preset", "tiny", "--data", str(photos), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert cli.main(["student-core", *common]) == 2
    assert "give --pictures DIR" in capsys.readouterr().err
    assert cli.main(["student-noise", *common]) == 2
    assert "give --init CORE" in capsys.readouterr().err
    assert cli.main(["student-fog"]) == 2
    assert "expected one of student-core" in capsys.readouterr().err
    other = a_student()
    save_student(other, tmp_path / "other")
    assert cli.main(["student-core", *common, "--pictures", str(photos), "--init", str(tmp_path / "other"),
                     "--set", "student.width=4"]) == 2  # fmt: skip
    assert "set student.* to match" in capsys.readouterr().err
