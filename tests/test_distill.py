"""Training the student: losses, the two-step run, budgets, resume, failures."""

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from safetensors.torch import load_file, save_file  # noqa: E402  (after importorskip)
from torch import Tensor  # noqa: E402

from export.distill import cli as distill  # noqa: E402
from export.distill import stage as stages  # noqa: E402
from export.distill.losses import (  # noqa: E402
    colour_loss,
    diversity_loss,
    samples_chroma_loss,
    samples_grid_loss,
    structure_loss,
)
from export.distill.recipe import PRESETS, DistillConfig  # noqa: E402
from export.distill.stage import StudentDistill  # noqa: E402
from export.student.adversary import PatchDiscriminator  # noqa: E402
from export.student.losses import chroma  # noqa: E402
from export.student.network import load_student  # noqa: E402
from training import settings  # noqa: E402
from training.data.batches import Batch  # noqa: E402
from training.data.device.degradation import degrade_batch  # noqa: E402
from training.data.device.parameters import Mixture  # noqa: E402
from training.loop import precision  # noqa: E402
from training.loop.accelerator import make_accelerator  # noqa: E402
from training.loop.budget import Budget  # noqa: E402
from training.loop.stage import Carry, Losses  # noqa: E402
from training.metrics import squeezenet as perceptual  # noqa: E402
from training.metrics.squeezenet import LAYERS, SqueezeFeatures  # noqa: E402

TINY = PRESETS["tiny"]


def run(
    out: Path,
    photos: Path,
    weights: Path,
    *,
    steps: int,
    resume: bool = False,
    config: DistillConfig = TINY,
) -> dict:
    budget = Budget(steps=steps)
    return distill.run(config, photos, weights, out, budget, resume=resume, workers=0)


def test_features_have_unit_length_and_the_named_layers(weights: Path) -> None:
    maps = SqueezeFeatures(weights)(torch.rand(2, 3, 64, 96))
    assert len(maps) == len(LAYERS)
    assert [m.shape[1] for m in maps] == [64, 128, 256, 384, 512]
    for m in maps:
        torch.testing.assert_close(m.square().sum(1), torch.ones_like(m[:, 0]), atol=1e-4, rtol=0)


def test_wrong_weight_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--perceptual-weights"):
        SqueezeFeatures(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"not a SqueezeNet 1\.1"):
        SqueezeFeatures(tmp_path / "other.safetensors")


def test_squared_distance_by_inner_products_equals_the_definition() -> None:
    a, b = torch.rand(2, 7, 5, 5), torch.rand(2, 7, 5, 5)
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (a, b)]
    torch.testing.assert_close(
        perceptual.squared_distances(a, b), (unit[0] - unit[1]).square().sum(1), atol=1e-5, rtol=1e-4
    )
    assert float(perceptual.squared_distances(a, a).max()) < 1e-5
    assert torch.isfinite(
        perceptual.squared_distances(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))
    ).all()


def test_diversity_asks_for_texture_only_where_the_photo_has_it() -> None:
    draw = torch.Generator().manual_seed(0)
    photo = torch.full((1, 3, 64, 64), 0.5)
    photo[..., 32:] += 0.2 * torch.randn(1, 3, 64, 32, generator=draw)
    samples = torch.full((2, 3, 64, 64), 0.5, requires_grad=True)
    loss = diversity_loss(samples + torch.tensor([1e-3, -1e-3])[:, None, None, None] * photo, photo, 0.7)
    (gradient,) = torch.autograd.grad(loss, samples)
    assert float(loss) > 0.01
    assert float(gradient[..., 44:].abs().mean()) > 0
    assert float(gradient[..., :10].abs().max()) == 0
    apart = torch.stack([photo[0], photo[0].flip(1)])  # textures that differ fully
    assert float(diversity_loss(apart, photo, 0.7)) == pytest.approx(0.0, abs=1e-3)


def test_structure_loss_sees_low_frequencies_only() -> None:
    photo = torch.rand(2, 3, 32, 32)
    pattern = 0.1 * torch.tensor([1.0, -1.0]).repeat(16)  # period 2
    samples = torch.cat([photo + pattern, photo - pattern])
    assert float(structure_loss(samples, photo)) < 1e-6
    assert float(structure_loss(torch.cat([photo, photo + 0.1]), photo)) == pytest.approx(0.15, rel=1e-3)


def test_chroma_loss_sees_fringes_of_colour_and_no_brightness() -> None:
    photo = torch.rand(2, 3, 32, 32)
    brighter = photo + 0.1 * torch.tensor([1.0, -1.0]).repeat(16)
    fringe = (
        photo + 0.1 * torch.tensor([1.0, -1.0]).repeat(16) * torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    )
    assert float(chroma(photo.mean(1, keepdim=True).repeat(1, 3, 1, 1)).abs().max()) < 1e-6
    assert float(samples_chroma_loss(torch.cat([brighter, photo]), photo)) < 1e-6
    assert float(samples_chroma_loss(torch.cat([fringe, photo]), photo)) == pytest.approx(0.1 / 3, rel=1e-3)


def test_colour_loss_sees_a_tint_and_no_texture() -> None:
    photo = torch.rand(2, 3, 32, 32)
    texture = 0.1 * torch.tensor([1.0, -1.0]).repeat(16)
    tint = torch.tensor([0.02, 0.0, -0.04])[:, None, None]
    assert float(colour_loss(torch.cat([photo + texture, photo]), photo)) < 1e-6
    assert float(colour_loss(torch.cat([photo + tint, photo]), photo)) == pytest.approx(0.01, rel=1e-3)


def test_grid_loss_sees_a_pattern_of_the_pixel_shuffle_and_not_texture() -> None:
    draw = torch.Generator().manual_seed(0)
    photo = torch.rand(2, 3, 96, 96, generator=draw)
    texture = 0.05 * torch.randn(4, 3, 96, 96, generator=draw)
    mesh = 0.05 * torch.randn(8, 8, generator=draw).repeat(12, 12)
    both = photo.repeat(2, 1, 1, 1)
    assert float(samples_grid_loss(both, photo)) == 0.0
    seen, passed = (float(samples_grid_loss(both + x, photo)) for x in (mesh, texture))
    assert seen > 4 * passed


def test_discriminator_has_one_logit_per_eight_pixels() -> None:
    assert PatchDiscriminator(8)(torch.rand(2, 3, 64, 48)).shape == (2, 1, 8, 6)


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


RECORDED: list[dict[str, float]] = [
    {
        "pixel": 0.083711,
        "structure": 0.046242,
        "colour": 0.003268,
        "feature": 0.130737,
        "diversity": 6.1e-05,
        "grid": 0.006056,
    },
    {
        "pixel": 0.039885,
        "structure": 0.018031,
        "colour": 0.003217,
        "feature": 0.039347,
        "diversity": 3e-05,
        "grid": 0.006822,
        "adversary": -0.009592,
    },
]


def test_adversary_pulls_with_its_share_of_the_pixel_gradient(weights: Path) -> None:
    config = replace(
        TINY, adversary=0.5, adversary_from=0.0, feature=0.0, diversity=0.0, grid=0.0, chroma=0.0
    )
    draw = torch.Generator().manual_seed(0)
    samples, hr = (torch.rand(n, 3, 64, 64, generator=draw) for n in (4, 2))
    photos = torch.tensor([True, True])
    stage = joined(config, weights)
    _, pull, _, _ = stage._pull(samples.requires_grad_(True), hr, photos, UNSHIFTED)
    stage.adversary_on = False
    _, anchor, _, _ = stage._pull(samples, hr, photos, UNSHIFTED)
    assert float((pull - anchor).norm() / anchor.norm()) == pytest.approx(0.5, rel=1e-3)


def test_a_drawn_picture_is_asked_for_its_truth_alone(weights: Path) -> None:
    """Terms that invent have no pull at it, features a share of theirs, and the discriminator does not see it."""
    draw = torch.Generator().manual_seed(0)
    samples, hr = (torch.rand(n, 3, 64, 64, generator=draw) for n in (4, 2))
    samples.requires_grad_(True)

    def pulls(drawn: bool, **terms: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of both pictures' first samples, and what the discriminator gets; drawn: the second picture."""
        alone = dict.fromkeys(
            ("pixel", "structure", "colour", "chroma", "grid", "feature", "diversity", "adversary"), 0.0
        )
        config = replace(
            TINY,
            adversary_from=0.0,
            drawn_feature=0.25,
            texture_share=3.0,
            **(alone | terms),
        )
        photos = torch.tensor([True, not drawn])
        _, pull, real, _ = joined(config, weights)._pull(samples, hr, photos, UNSHIFTED)
        return pull[0], pull[1], real

    for terms, share in (
        ({"pixel": 1.0}, 1.0),
        ({"chroma": 1.0}, 1.0),
        ({"diversity": 1.0}, 0.0),
        ({"feature": 1.0}, 0.25),
    ):
        photo, second, real = pulls(False, **terms)
        beside, card, seen = pulls(True, **terms)
        assert torch.equal(photo, beside), terms
        assert second.abs().max() > 0, terms
        assert torch.allclose(card, share * second), terms
        assert (len(real), len(seen)) == (2, 1)
    photo, card, _ = pulls(True, pixel=1.0)
    pushed, alike, _ = pulls(True, pixel=1.0, adversary=0.5)
    assert not torch.equal(photo, pushed)
    assert torch.equal(card, alike)


def test_a_batch_of_drawn_pictures_alone_leaves_the_discriminator(weights: Path) -> None:
    stage = joined(replace(TINY, adversary_from=0.0), weights)
    before = {name: value.clone() for name, value in stage.discriminator.state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    lr, hr = (torch.rand(2, 3, side, side, generator=draw) for side in (16, 64))
    batch = Batch((0, 1), lr, hr, ("", ""), ("", ""), torch.tensor([True, True]))
    losses, carry = stage("student", batch, {})
    assert float(losses["adversary"]) == 0
    found, _ = stage("discriminator", batch, carry)
    assert float(found["loss"]) == 0
    found["loss"].backward()
    assert all(not p.grad.any() for p in stage.discriminator.parameters())
    after = stage.discriminator.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


UNSHIFTED = [(0, 0), (0, 0)]


def joined(config: DistillConfig, weights: Path) -> StudentDistill:
    """The stage in the middle of its run."""
    stage = StudentDistill(config, SqueezeFeatures(weights))
    stage.phases(0.5)
    return stage


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


def test_device_is_a_gpu_where_there_is_one(
    photos: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    used = []
    monkeypatch.setattr(
        distill, "make_accelerator", lambda *args, device: used.append(device) or make_accelerator("no")
    )
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
