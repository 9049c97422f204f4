"""Where and in which numbers a student is distilled: devices, number formats, a compiler, LR pictures made on the device."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from distill_cases import RECORDED, TINY, run  # noqa: E402  (after importorskip)
from safetensors.torch import load_file  # noqa: E402

from export.distill import cli as distill  # noqa: E402
from export.distill.stage import StudentDistill  # noqa: E402
from export.student.model.checkpoint import load_student  # noqa: E402
from training.data.batches import Batch  # noqa: E402
from training.data.device.degradation import degrade_batch  # noqa: E402
from training.data.device.parameters import Mixture  # noqa: E402
from training.loop import precision  # noqa: E402
from training.loop.accelerator import make_accelerator  # noqa: E402
from training.loop.budget import Budget  # noqa: E402
from training.loop.stage import Carry, Losses  # noqa: E402
from training.metrics.squeezenet import SqueezeFeatures  # noqa: E402


def test_device_is_a_gpu_where_there_is_one(
    photos: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    used = []
    accelerator = make_accelerator("no")  # before a GPU is feigned: its state is the process's
    monkeypatch.setattr(distill, "make_accelerator", lambda *args, device: used.append(device) or accelerator)
    monkeypatch.setattr(distill, "run", lambda *args, **more: {"finished": True})
    common = ["--data", str(photos), "--perceptual-weights", str(weights), "--out", str(tmp_path / "run")]
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert distill.main([*common, "--steps", "1"]) == 0
    assert used == ["cuda", "cpu"]
    capsys.readouterr()
    assert distill.main([*common, "--steps", "1", "--device", "cuda"]) == 2
    assert "use --device cpu" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_student_learns_on_a_gpu_what_it_learns_on_a_cpu(photos: Path, weights: Path, tmp_path: Path) -> None:
    config = replace(TINY, adversary_from=0.0)
    found = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        make_accelerator("no", device=device)
        distill.run(config, photos, weights, out, Budget(steps=3), workers=0)
        found.append(load_student(out / "student")[0].state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-3, rtol=1e-2)


def test_lr_pictures_come_from_the_device_if_the_setting_says_so(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the recipe's mixture. A cache has its own, so both together are refused."""
    seen: list[Batch] = []
    forward = StudentDistill.forward

    def noted(self: StudentDistill, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        seen.append(batch)
        return forward(self, phase, batch, carry)

    monkeypatch.setattr(StudentDistill, "forward", noted)
    config = replace(TINY, degrade="device", mild_share=0.4, plain_share=0.3)
    run(tmp_path / "run", photos, weights, steps=1, config=config)
    expected = degrade_batch(seen[0].hr, config.seed, seen[0].items, Mixture(0.4, 0.3))
    assert torch.equal(seen[0].lr, expected)
    with pytest.raises(ValueError, match="got degrade=device"):
        distill.run(
            config, photos, weights, tmp_path / "no", Budget(steps=1), teacher=object(), cache=(tmp_path, 4)
        )  # type: ignore[arg-type]


def test_auto_precision_is_resolved_and_kept(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is not gone on with in another number format because the machine is another."""
    out, config = tmp_path / "run", replace(TINY, precision="auto")
    for there, name in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(precision, "has_bf16", lambda device, there=there: there)
        accelerator = make_accelerator("auto")
        assert accelerator.mixed_precision == name
        with accelerator.autocast():
            assert torch.is_autocast_enabled("cpu") == there
    run(out, photos, weights, steps=1, config=config)
    assert json.loads((out / "config.json").read_text())["settings"]["precision"] == "no"
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    with pytest.raises(ValueError, match="precision: no -> bf16"):
        run(out, photos, weights, steps=2, resume=True, config=config)
    named = replace(TINY, precision="fp32")
    assert run(out, photos, weights, steps=2, resume=True, config=named)["step"] == 2


def test_distillation_in_bfloat16_keeps_weights_in_float32(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses are the recorded ones but for rounding. Samples and losses are float32, what the network computes is not."""
    dtypes, losses, forward = set(), [], StudentDistill.forward

    def watched(stage: StudentDistill, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        made = forward(stage, phase, batch, carry)
        features, _ = stage.student.encode(batch.lr)
        dtypes.add((features.dtype, made[0]["loss"].dtype, *{weight.dtype for weight in stage.parameters()}))
        return made

    monkeypatch.setattr(StudentDistill, "forward", watched)
    distill.run(
        replace(TINY, precision="bf16", adversary_from=0.4),
        photos,
        weights,
        tmp_path / "run",
        Budget(steps=2),
        workers=0,
        on_step=lambda step, of_step: losses.append(of_step),
    )
    assert dtypes == {(torch.bfloat16, torch.float32, torch.float32)}
    for of_step, recorded in zip(losses, RECORDED, strict=True):
        assert of_step["student/pixel"] == pytest.approx(recorded["pixel"], rel=0.02)
    assert math.isfinite(losses[-1]["student/loss"])
    trained = load_file(tmp_path / "run" / "student" / "model.safetensors")
    assert {value.dtype for value in trained.values()} == {torch.float32}


def test_a_missing_compiler_is_named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"C\+\+ compiler .*--set compile=false"):
        StudentDistill(replace(TINY, compile=True), SqueezeFeatures(weights))


def test_no_device_is_named(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", str(photos), "--perceptual-weights", str(weights), "--out", str(tmp_path / "run")]
    assert distill.main([*common, "--steps", "1", "--device", "gpu"]) == 2
    assert "--device gpu: no such device" in capsys.readouterr().err
