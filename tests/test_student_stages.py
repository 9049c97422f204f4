"""The student's stages on the common trainer: a prior's pictures, the core, the noise; resumed, in two processes, by command."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from safetensors.torch import load_file  # noqa: E402  (after importorskip)

from export.prior.network import Prior  # noqa: E402
from export.prior.pictures import CachedPairs, PictureCache  # noqa: E402
from export.student import cli  # noqa: E402
from export.student.adversary import Adversary  # noqa: E402
from export.student.core import (  # noqa: E402
    CoreSettings,
    StudentCore,
    deepened,
    silence,
    stages_before,
    started,
    with_noise,
)
from export.student.kinds import CORE, KINDS, Sources, preparation  # noqa: E402
from export.student.losses import fine_part, gradient_loss, low_pass_loss, told_by, with_colours_of  # noqa: E402
from export.student.network import NOISE_PATH, Student, StudentConfig, load_student, save_student  # noqa: E402
from export.student.noise import NoiseSettings, StudentNoise  # noqa: E402
from gdposr.cli import main as gdposr  # noqa: E402
from training.data.batches import Batch, batches  # noqa: E402
from training.data.device.degradation import degrade_batch  # noqa: E402
from training.data.photos import PhotoSet, find_images  # noqa: E402
from training.loop.stage import Carry, Losses  # noqa: E402
from training.metrics.squeezenet import SqueezeFeatures  # noqa: E402

SHAPE = StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8)


def a_batch(pictures: Path, count: int = 2) -> Batch:
    pairs = CachedPairs([PictureCache(pictures)], crop=64, seed=3)
    return next(batches(pairs, None, count, workers=0))


def a_student(seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return Student(SHAPE)


# ------------------------------------------------------------------------------------------------ shape


@pytest.mark.parametrize(
    "shape",
    [
        StudentConfig(width=12, encoder_blocks=3, generator_blocks=2, detail=8),
        StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8, far_blocks=2),
    ],
    ids=["deeper and wider", "far blocks"],
)
def test_deepened_student_gives_the_same_pictures(shape: StudentConfig) -> None:
    student = a_student()
    deeper = deepened(student, shape)
    image, noise = torch.rand(1, 3, 16, 16), torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(deeper(image, noise), student(image, noise), atol=1e-5, rtol=1e-4)
    assert deeper.parameters_total > student.parameters_total
    with pytest.raises(ValueError, match="it has more blocks"):
        deepened(deeper, SHAPE)


def test_blocks_do_not_move_the_far_blocks_behind_them() -> None:
    far = deepened(a_student(), replace(SHAPE, far_blocks=1))
    with pytest.raises(ValueError, match="leave encoder_blocks at 1"):
        deepened(far, replace(far.config, encoder_blocks=2))


def test_bfloat16_does_not_round_the_picture_to_levels() -> None:
    """Only what is added to the bicubic base is computed in bfloat16."""
    stage, lr = noise_stage(), torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = stage.sample(lr, lr, 0)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = stage.sample(lr, lr, 0)
    assert rounded.dtype == torch.float32
    assert 0 < 255 * (full - rounded).abs().max() < 0.25


def test_what_is_new_in_a_student_is_a_function_of_the_seed(tmp_path: Path) -> None:
    save_student(
        a_student(), tmp_path / "student", {"stage": "student-core", "history": [{"stage": "first"}]}
    )
    wider = replace(SHAPE, width=12)
    found = []
    for earlier in (1, 2):  # what was drawn before in this process
        torch.manual_seed(earlier)
        student, origin = started(wider, tmp_path / "student", seed=5)
        found.append(student.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert stages_before(origin) == [{"stage": "first"}, {"stage": "student-core"}]
    assert stages_before({}) == []


# ------------------------------------------------------------------------------------------------ the core


def core(**settings: object) -> StudentCore:
    return StudentCore(
        a_student(), CoreSettings(student=SHAPE, batch=2, crop=64, discriminator_width=8, **settings)
    )  # type: ignore[arg-type]


def test_core_learns_the_prior_and_no_noise(pictures: Path) -> None:
    stage = core(feature=0.0, adversary=0.0, lr=2e-3)
    batch = a_batch(pictures, 4)
    assert stage.phases(0.5) == ("student",)
    optimizer = torch.optim.Adam(stage.groups()["student"][0], 2e-3)
    seen = []
    for _ in range(60):
        losses, _ = stage("student", batch, {})
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        seen.append(float(losses["pixel"]))
    assert seen[-1] < 0.7 * seen[0]
    assert not stage.student.generator.noise.weight.any()
    first, second = (stage.sample(batch.lr, batch.hr, k) for k in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(
        stage.student(batch.lr, torch.randn(4, 4, 8, 8)).clamp(0, 1), first.clamp(0, 1)
    )


def test_crispness_moves_the_target_away_from_the_enlargement(pictures: Path) -> None:
    batch = a_batch(pictures, 2)
    enlarged = torch.full_like(batch.hr, 0.5)
    own, crisp, soft = (
        core(adversary=0.0, crispness=c, truth=0.0)._target(batch, enlarged) for c in (1.0, 1.5, 0.5)
    )
    prior = with_colours_of(batch.target, batch.lr)
    torch.testing.assert_close(own, with_colours_of(prior, batch.lr))
    torch.testing.assert_close(fine_part(soft), fine_part(prior) / 2, atol=2e-3, rtol=0)
    wanted = with_colours_of((enlarged + 1.5 * (prior - enlarged)).clamp(0, 1), batch.lr)
    torch.testing.assert_close(crisp, wanted)


def test_what_is_coarse_in_the_target_is_the_photos(pictures: Path) -> None:
    batch = a_batch(pictures, 2)
    enlarged = torch.full_like(batch.hr, 0.5)
    dark = replace(batch, target=batch.target * 0.5)
    without, target = (
        core(adversary=0.0, truth=t, truth_error=1e4)._target(dark, enlarged) for t in (0.0, 1.0)
    )
    assert low_pass_loss(target, batch.hr, 4) < 0.3 * low_pass_loss(without, batch.hr, 4)
    assert gradient_loss(fine_part(target), fine_part(without)) < 0.5 * gradient_loss(batch.hr, without)


def test_an_input_that_tells_less_of_the_photo_leaves_more_to_the_prior(pictures: Path) -> None:
    batch = a_batch(pictures, 2)
    clean = torch.nn.functional.avg_pool2d(batch.hr, 4)
    level = torch.full((2, 1, 1, 1), 5 / 255)
    told = [told_by(clean + k * level, batch.hr, 5 / 255).flatten().tolist() for k in (0, 1, 3)]
    assert told == [pytest.approx([share] * 2, abs=1e-4) for share in (1.0, 0.5, 0.1)]
    enlarged = torch.full_like(batch.hr, 0.5)
    dark = replace(batch, target=batch.target * 0.5)
    known, vague = (
        core(adversary=0.0)._target(replace(dark, lr=clean + shift), enlarged) for shift in (0.0, 0.1)
    )
    assert low_pass_loss(known, batch.hr, 4) < 0.5 * low_pass_loss(vague, batch.hr, 4)


def test_a_drawn_card_is_its_own_target(pictures: Path) -> None:
    batch = replace(a_batch(pictures, 2), drawn=torch.tensor([True, False]))
    target = core(adversary=0.0)._target(batch, torch.full_like(batch.hr, 0.5))
    assert torch.equal(target[0], batch.hr[0])
    assert not torch.equal(target[1], batch.hr[1])


def test_adversary_joins_late_pulls_by_its_share_and_learns_to_tell(pictures: Path, weights: Path) -> None:
    stage = StudentCore(
        a_student(),
        CoreSettings(
            student=SHAPE, batch=2, crop=64, discriminator_width=8, adversary=0.5, adversary_from=0.3
        ),
        SqueezeFeatures(weights),
    ).eval()
    batch = a_batch(pictures, 4)
    assert stage.phases(0.29) == ("student",)
    losses, carry = stage("student", batch, {})
    assert "push" not in losses
    assert stage.phases(0.3) == ("student", "adversary")
    losses, carry = stage("student", batch, {})
    losses["loss"].backward()
    assert all(p.grad is None for p in stage.adversary.parameters())  # a phase moves its own alone
    assert any(p.grad is not None and p.grad.any() for p in stage.student.parameters())
    optimizer = torch.optim.Adam(stage.groups()["adversary"][0], 1e-2)
    told = []
    for _ in range(40):
        judged, _ = stage("adversary", batch, carry)
        optimizer.zero_grad()
        judged["loss"].backward()
        optimizer.step()
        told.append(float(judged["loss"].detach()))
    assert told[-1] < 0.8 * told[0]


# ------------------------------------------------------------------------------------------------ the noise


def noise_stage(**settings: object) -> StudentNoise:
    student = a_student()
    with torch.no_grad():
        student.generator.noise.weight.zero_()
    return StudentNoise(student, NoiseSettings(batch=2, crop=64, **settings))  # type: ignore[arg-type]


def test_noise_trains_the_generator_alone_and_spreads_samples(pictures: Path) -> None:
    stage = noise_stage(noise_only=False)
    batch = a_batch(pictures, 4)
    encoder = [p.clone() for p in stage.student.encoder.parameters()]
    optimizer = torch.optim.Adam(stage.groups()["noise"][0], 3e-3)
    seen = []
    for step in range(80):
        batch = Batch(tuple(range(4 * step, 4 * step + 4)), batch.lr, batch.hr, batch.prompts, batch.names)
        losses, _ = stage("noise", batch, {})
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        seen.append({name: float(value.detach()) for name, value in losses.items()})
    assert all(torch.equal(a, b) for a, b in zip(encoder, stage.student.encoder.parameters(), strict=True))
    early, late = ({k: sum(s[k] for s in part) / 10 for k in seen[0]} for part in (seen[:10], seen[-10:]))
    assert late["score"] < early["score"]
    assert late["structure"] < 0.02
    first, second = (stage.sample(batch.lr, batch.hr, k) for k in range(2))
    assert not torch.equal(first, second)


def test_the_picture_without_noise_stays_if_only_the_noise_learns(pictures: Path) -> None:
    stage = noise_stage()
    batch = a_batch(pictures, 2)

    def silent() -> torch.Tensor:
        with torch.no_grad():
            features, base = stage.student.encode(batch.lr)
            return stage.student.generator(features, base, silence(stage.student, features))

    before, sample = silent(), stage.sample(batch.lr, batch.hr, 0)
    parameters = stage.groups()["noise"][0]
    assert len(parameters) == len(NOISE_PATH)
    optimizer = torch.optim.Adam(parameters, 3e-3)
    for _ in range(3):
        losses, _ = stage("noise", batch, {})
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert torch.equal(silent(), before)
    assert not torch.equal(stage.sample(batch.lr, batch.hr, 0), sample)


def test_the_gate_stays_where_it_would_scale_a_bias() -> None:
    student = noise_stage().student  # a gated one
    with torch.no_grad():
        student.generator.noise.bias.fill_(0.1)
    tuned = StudentNoise(student, noise_stage().settings)
    assert [id(p) for p in tuned.learning()] == [id(student.generator.noise.weight)]


def test_an_adversary_joins_the_noise_late_and_pushes_the_generator_alone(pictures: Path) -> None:
    stage = noise_stage(adversary=0.5, adversary_from=0.3, discriminator_width=8)
    batch = a_batch(pictures, 2)
    assert stage.phases(0.2) == ("noise",)
    without, _ = stage("noise", batch, {})
    assert stage.phases(0.3) == ("noise", "adversary")
    losses, carry = stage("noise", batch, {})
    assert "push" not in without
    assert float(losses["loss"].detach()) != float(without["loss"].detach())
    losses["loss"].backward()
    assert all(p.grad is None for p in stage.adversary.parameters())
    assert any(p.grad is not None and p.grad.any() for p in stage.student.generator.parameters())
    told, _ = stage("adversary", batch, carry)
    told["loss"].backward()
    assert all(p.grad is not None for p in stage.adversary.parameters())
    assert stage.averaged() == ("noise",)


def test_samples_of_a_card_are_bound_to_the_card(pictures: Path) -> None:
    """And the adversary, which makes letters crisp before they are right, judges photos alone."""
    stage = noise_stage(adversary=0.5, adversary_from=0.0, discriminator_width=8)
    stage.phases(1.0)
    batch = replace(a_batch(pictures, 2), drawn=torch.tensor([True, False]))
    losses, shown = stage("noise", batch, {})
    assert "push" in losses
    for name in ("core", "truth"):
        torch.testing.assert_close(shown[name][0], batch.hr[0])
        assert float((shown[name][1] - batch.hr[1]).abs().max()) > 0.01
    losses, _ = stage("noise", replace(batch, drawn=torch.tensor([True, True])), {})
    assert "push" not in losses


def test_noise_of_other_channels_begins_anew_and_the_core_stays() -> None:
    student = a_student()
    with torch.no_grad():
        student.generator.noise.weight.zero_()
    stage = StudentNoise(student, NoiseSettings(noise_channels=6))
    assert stage.student.config.noise_channels == 6
    image = torch.rand(1, 3, 16, 16)
    silent = stage.student(image, torch.zeros(1, 6, 8, 8))
    torch.testing.assert_close(silent, student(image, torch.zeros(1, 4, 8, 8)))
    assert stage.student.generator.noise.weight.any()


def test_the_gate_begins_open_at_some_places() -> None:
    """At which ones differs from channel to channel; features of a core are about as small as these."""
    first, again = (with_noise(Student(SHAPE), 4, seed=3).generator.gate for _ in range(2))
    assert first is not None
    assert again is not None
    assert torch.equal(first.weight, again.weight)
    features = 0.1 * torch.randn(1, SHAPE.width, 24, 24, generator=torch.Generator().manual_seed(0))
    opened = (first(features) > 0).float().mean((2, 3))
    assert float(opened.min()) > 0.3
    assert float(opened.max()) < 0.98


def test_a_dirty_input_asks_for_less_texture(pictures: Path) -> None:
    batch = a_batch(pictures, 2)
    clean = torch.nn.functional.avg_pool2d(batch.hr, 4)
    core = torch.full_like(batch.hr, 0.5)
    near, far = (
        float((noise_stage()._truth(replace(batch, lr=lr), core) - core).abs().mean())
        for lr in (clean, clean + 24 / 255)
    )
    assert far == pytest.approx(near / 10, rel=0.01)


def test_a_closed_gate_silences_the_noise() -> None:
    generator = noise_stage().student.generator
    torch.manual_seed(0)
    features, base = torch.randn(1, SHAPE.width, 8, 8), torch.rand(1, 48, 16, 16)
    one, two = (torch.randn(1, 4, 8, 8) for _ in range(2))
    assert not torch.equal(generator(features, base, one), generator(features, base, two))
    with torch.no_grad():
        generator.gate.weight.zero_()
        generator.gate.bias.fill_(-1.0)
    torch.testing.assert_close(generator(features, base, one), generator(features, base, two))


def test_noise_on_flat_parts_costs_its_mean_square(pictures: Path) -> None:
    batch = a_batch(pictures, 2)
    flat = Batch(batch.items, batch.lr, torch.full_like(batch.hr, 0.5), batch.prompts, batch.names)
    stage = noise_stage()
    losses, _ = stage("noise", flat, {})
    assert losses["flat"] > 0
    rough = torch.rand(batch.hr.shape, generator=torch.Generator().manual_seed(0))
    busy = Batch(batch.items, batch.lr, rough, batch.prompts, batch.names)
    assert stage("noise", busy, {})[0]["flat"] == 0
    paper = replace(flat, drawn=torch.tensor([True, True]))
    assert stage("noise", paper, {})[0]["flat"] == 0


def test_a_card_does_not_make_the_adversary_stronger() -> None:
    """The push matches the other loss at the judged photo, whatever that loss is elsewhere."""
    adversary = Adversary(8)
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    condition = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def push(weight_of_the_card: float) -> torch.Tensor:
        other = weight_of_the_card * pictures[0].square().sum() + pictures[1].square().sum()
        _, push = adversary.push(pictures, condition, other, [1])
        return torch.autograd.grad(push, pictures)[0]

    small, large = push(0.0), push(100.0)
    torch.testing.assert_close(small, large)
    torch.testing.assert_close(small.norm(), 2 * pictures[1].detach().norm(), atol=1e-4, rtol=1e-4)


def test_noise_begins_with_samples_that_differ_a_little() -> None:
    stage = noise_stage()
    lr = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        core, apart = (stage.sample(lr, lr, k) for k in range(2))
        assert 0 < (core - apart).square().mean().sqrt() * 255 < 8


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
