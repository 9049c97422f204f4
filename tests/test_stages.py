"""The stages on a miniature Stable Diffusion 2.1 and on the pocket base's tiny shape: recorded losses, rules, commands."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from make_miniature_sd21 import make_miniature  # noqa: E402  (after importorskip)
from safetensors.torch import load_file  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from training.data.batches import Batch, batches  # noqa: E402
from training.data.device.degradation import degrade_batch  # noqa: E402
from training.data.device.parameters import Mixture  # noqa: E402
from training.data.photos import CropParams, PairDataset, PhotoSet, find_images  # noqa: E402
from training.loop import precision  # noqa: E402
from training.loop.budget import Budget  # noqa: E402
from training.loop.stage import RunSettings  # noqa: E402
from training.loop.validation import Validation  # noqa: E402
from training.main import build_stage, main, run  # noqa: E402
from training.metrics.squeezenet import perceptual_loss  # noqa: E402
from training.model.loading import load_model  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.model.pocket import build_unet, build_vae  # noqa: E402
from training.model.text import DEFAULT_PROMPT, NEGATIVE_PROMPT, PromptSource  # noqa: E402
from training.randomness import integers, normal  # noqa: E402
from training.settings import from_dict, to_dict  # noqa: E402
from training.stages.gdpo import Gdpo, GdpoSettings  # noqa: E402
from training.stages.naosd import Naosd, NaosdSettings  # noqa: E402
from training.stages.presets import GDPO, NAOSD, PRESETS, PRETRAIN  # noqa: E402
from training.stages.pretrain import Pretrain, deviation  # noqa: E402

SD_NAOSD = replace(NAOSD["tiny"], cfg=7.5)  # the miniature has text
SD_GDPO = GDPO["tiny"]

# What the first steps give, from the very runs below: {what: [step 1, step 2]}. A group's first loss is log 2 by definition.
RECORDED: dict[str, dict[str, list[float]]] = {
    "naosd": {"generator/loss": [1.21592, 1.15096], "score/loss": [1.07776, 0.99331]},
    "naosd equal timesteps": {"generator/loss": [1.08987, 1.06356]},
    "gdpo": {"policy/loss": [0.693147, 0.679296], "policy/grad": [428.97, 386.70]},
    "gdpo on lr": {"policy/loss": [0.693147, 0.650077], "policy/grad": [138.60, 131.56]},
    "dpo": {"policy/loss": [0.693147, 0.703181], "policy/grad": [350.20, 301.25]},
    "grpo": {"policy/loss": [0.0, 0.0], "policy/grad": [0.202675, 0.213347]},
}
PRETRAINED = [0.713360, 0.715109, 1.097843, 0.961776]


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_miniature(tmp_path_factory.mktemp("sd21") / "miniature")


@pytest.fixture(scope="session")
def pocket(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pocket base of the tiny shape, pretrained for four steps."""
    out = tmp_path_factory.mktemp("pocket") / "pretrain"
    two_steps("pretrain", PRETRAIN["tiny"], photos, out, steps=4, perceptual_weights=weights)
    return out


@pytest.fixture(scope="session")
def naosd(pocket: Path, photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("naosd") / "naosd"
    settings = replace(NAOSD["tiny"], adapt="full")
    two_steps("naosd", settings, photos, out, base=str(pocket), perceptual_weights=weights)
    return out


def two_steps(
    stage: str, settings: RunSettings, photos: Path, out: Path, *, steps: int = 2, **more: Any
) -> list[dict[str, float]]:
    seen: list[dict[str, float]] = []
    run(
        stage,
        settings,
        photos,
        out,
        Budget(steps=steps),
        workers=0,
        on_step=lambda step, losses: seen.append(losses),
        **more,
    )
    return seen


def a_batch(photos: Path, size: int = 2) -> Batch:
    pairs = PairDataset(PhotoSet(find_images(photos)), CropParams(64), seed=3)
    return next(batches(pairs, None, size, workers=0))


def policy(miniature: Path, **changes: Any) -> Gdpo:
    stage = build_stage(replace(SD_GDPO, **changes), base=str(miniature))
    assert isinstance(stage, Gdpo)
    return stage


# ----------------------------------------------------------------------------------------------- recorded losses


@pytest.mark.parametrize(
    ("name", "stage", "settings"),
    [
        ("naosd", "naosd", SD_NAOSD),
        ("naosd equal timesteps", "naosd", replace(SD_NAOSD, denoise_timestep=250, vsd=0.0)),
        ("gdpo", "gdpo", SD_GDPO),
        ("gdpo on lr", "gdpo", replace(SD_GDPO, condition="lr", sampler="policy", shared_noise=False)),
        pytest.param(
            "dpo", "gdpo", replace(SD_GDPO, objective="dpo", weighting="fixed"), marks=pytest.mark.slow
        ),
        ("grpo", "gdpo", replace(SD_GDPO, objective="grpo", sampler="policy", grpo_kl=0.1)),
    ],
)
def test_two_steps_give_the_recorded_losses(
    name: str, stage: str, settings: RunSettings, miniature: Path, photos: Path, weights: Path, tmp_path: Path
) -> None:
    seen = two_steps(stage, settings, photos, tmp_path, base=str(miniature), perceptual_weights=weights)
    for key, (first, second) in RECORDED[name].items():
        assert seen[0][key] == pytest.approx(first, rel=5e-3, abs=1e-5), key
        # Adam's first step is the sign of the gradient, so what is rounding there is 5 % here.
        assert seen[1][key] == pytest.approx(second, rel=5e-2, abs=1e-5), key
    document = json.loads((tmp_path / "model" / "model.json").read_text())
    assert document["noise_timestep"] == 250
    assert document["provenance"]["steps"] == 2


def test_pretraining_records_its_losses(photos: Path, weights: Path, tmp_path: Path) -> None:
    seen = two_steps("pretrain", PRETRAIN["tiny"], photos, tmp_path, steps=4, perceptual_weights=weights)
    assert [sorted(k for k in losses if k.endswith("/loss")) for losses in seen] == [
        ["vae/loss"],
        ["vae/loss"],
        ["unet/loss"],
        ["unet/loss"],
    ]
    values = [next(v for k, v in losses.items() if k.endswith("/loss")) for losses in seen]
    assert values == pytest.approx(PRETRAINED, rel=2e-3)


# ------------------------------------------------------------------------------------------------------ the chain


def test_pocket_chain_runs_from_photos_to_a_tuned_model(
    pocket: Path, naosd: Path, photos: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gdpo"
    two_steps("gdpo", GDPO["tiny"], photos, out, base=str(naosd), perceptual_weights=weights)
    base, before, after = (load_model(folder) for folder in (pocket, naosd, out))
    lr = a_batch(photos).lr
    noise = normal(0, range(2), before.latent_shape(*lr.shape[-2:]), "test")
    pictures = [model(lr, noise, None) for model in (base, before, after)]
    assert pictures[0].shape == (2, 3, 64, 64)
    assert not torch.allclose(pictures[0], pictures[1])
    assert not torch.allclose(pictures[1], pictures[2])
    vae = [model.vae.state_dict() for model in (before, after)]
    assert all(torch.equal(vae[0][key], vae[1][key]) for key in vae[0])  # GDPO trains the UNet's LoRA only
    decoders = [
        {k: v for k, v in m.vae.state_dict().items() if k.startswith("decoder")} for m in (base, before)
    ]
    assert all(torch.equal(decoders[0][key], decoders[1][key]) for key in decoders[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"condition": "lr"},
        pytest.param({"condition": "lr", "shared_noise": False}, marks=pytest.mark.slow),
        pytest.param({"condition": "candidate"}, marks=pytest.mark.slow),
        pytest.param({"condition": "candidate", "shared_noise": False}, marks=pytest.mark.slow),
        pytest.param({"objective": "grpo", "grpo_kl": 0.1}, marks=pytest.mark.slow),
    ],
)
def test_chain_with_fewer_noise_channels_than_the_latent_has(
    changes: dict[str, Any], pocket: Path, photos: Path, weights: Path, tmp_path: Path
) -> None:
    settings = replace(NAOSD["tiny"], noise_channels=2)
    two_steps("naosd", settings, photos, tmp_path / "naosd", base=str(pocket), perceptual_weights=weights)
    base = str(tmp_path / "naosd")
    assert load_model(base).noise_channels == 2
    losses = two_steps("gdpo", replace(GDPO["tiny"], **changes), photos, tmp_path / "gdpo", base=base)
    assert all(np.isfinite(list(step.values())).all() for step in losses)
    assert load_model(tmp_path / "gdpo").noise_channels == 2


@pytest.mark.parametrize("stage", ["pretrain", pytest.param("naosd", marks=pytest.mark.slow), "gdpo"])
def test_resumed_stage_equals_an_uninterrupted_one(
    stage: str, miniature: Path, photos: Path, weights: Path, tmp_path: Path
) -> None:
    """With several phases, LoRA, trained conv_in, text and averages; pretrain is stopped in its first phase."""
    settings = {"pretrain": PRETRAIN["tiny"], "naosd": SD_NAOSD, "gdpo": SD_GDPO}[stage]

    def go(out: Path, budget: Budget, resume: bool = False) -> None:
        run(
            stage,
            replace(settings, ema=0.5),
            photos,
            out,
            budget,
            base=None if stage == "pretrain" else str(miniature),
            perceptual_weights=weights,
            workers=0,
            resume=resume,
            validate=False,
        )

    go(tmp_path / "whole", Budget(steps=3))
    stopped = Budget(steps=3)
    stopped.progress = lambda step: 1.0 if step == 1 else step / 3  # type: ignore[method-assign]
    go(tmp_path / "parts", stopped)
    go(tmp_path / "parts", Budget(steps=3), resume=True)
    a, b = (load_file(tmp_path / name / "state" / "state.safetensors") for name in ("whole", "parts"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_stages_run_in_bf16(
    miniature: Path, photos: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Frozen weights in bf16, trained ones in float32. It also changes the precision within one process."""
    naosd = replace(SD_NAOSD, precision="bf16", gradient_checkpointing=True)
    seen = two_steps("naosd", naosd, photos, tmp_path / "a", base=str(miniature), perceptual_weights=weights)
    assert seen[0]["generator/loss"] == pytest.approx(RECORDED["naosd"]["generator/loss"][0], rel=0.03)
    gdpo = replace(SD_GDPO, precision="bf16")
    with caplog.at_level("WARNING", logger="train"):
        seen = two_steps("gdpo", gdpo, photos, tmp_path / "b", base=str(miniature))
    assert seen[0]["policy/loss"] == pytest.approx(0.693, abs=0.02)
    assert "bf16 is too coarse for the preference term" in caplog.text
    states = [load_file(tmp_path / name / "state" / "state.safetensors") for name in "ab"]
    kinds = {
        v.dtype
        for state in states
        for k, v in state.items()
        if k.startswith("module/trained") and "lora" in k
    }
    assert kinds == {torch.float32}


def test_auto_precision_is_resolved_and_kept(
    miniature: Path, photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    auto = replace(SD_NAOSD, precision="auto")
    two_steps("naosd", auto, photos, tmp_path / "a", base=str(miniature), perceptual_weights=weights)
    assert json.loads((tmp_path / "a/config.json").read_text())["settings"]["precision"] == "no"


@pytest.mark.gpu
def test_stages_run_in_fp16_on_a_gpu(miniature: Path, photos: Path, weights: Path, tmp_path: Path) -> None:
    for stage, settings in (("naosd", SD_NAOSD), ("gdpo", SD_GDPO)):
        half = replace(settings, precision="fp16")
        seen = two_steps(
            stage, half, photos, tmp_path / stage, base=str(miniature), perceptual_weights=weights
        )
        assert len(seen) == 2
        assert json.loads((tmp_path / stage / "state" / "state.json").read_text())["scaler"]["scale"] > 1


# ------------------------------------------------------------------------------------------------- rules of NAOSD


def test_naosd_trains_lora_and_conv_in_and_never_the_decoder(miniature: Path, weights: Path) -> None:
    stage = Naosd(load_model(miniature), SD_NAOSD, perceptual_loss(weights), str(miniature))
    names = [name for name, p in stage.model.named_parameters() if p.requires_grad]
    assert all("lora_" in name or "conv_in" in name for name in names)
    assert any("conv_in" in name for name in names)
    assert any(name.startswith("vae.") for name in names)
    assert not any("decoder" in name for name in names)
    groups = stage.groups()
    generator, score = ({id(p) for p in groups[phase][0]} for phase in ("generator", "score"))
    assert generator
    assert score
    assert not generator & score


def test_vsd_is_zero_where_the_score_network_is_the_base(
    miniature: Path, photos: Path, weights: Path
) -> None:
    """The LoRA of the score network begins without effect, so without guidance both scores are the same."""
    stage = Naosd(load_model(miniature), replace(SD_NAOSD, cfg=1.0), perceptual_loss(weights), "base")
    batch = replace(a_batch(photos), prompts=("a photo", "a photo"))
    losses, carry = stage("generator", batch, {})
    assert float(losses["vsd"]) == pytest.approx(0.0, abs=1e-8)
    guided = Naosd(load_model(miniature), SD_NAOSD, perceptual_loss(weights), "base")
    assert float(guided("generator", batch, {})[0]["vsd"]) > 1e-6
    assert not carry["clean"].requires_grad


@pytest.mark.parametrize("negative", [NEGATIVE_PROMPT, "the photo"])
def test_vsd_pulls_towards_the_base_and_away_from_the_score_network(
    miniature: Path, weights: Path, negative: str
) -> None:
    """Gradient 2 (z_fake - z_real) / mean |z - z_real| / numel, from an independent calculation with the same noise."""
    settings = replace(SD_NAOSD, negative_prompt=negative)
    stage = Naosd(load_model(miniature), settings, perceptual_loss(weights), "base")
    score: Any = stage.score
    for name, parameter in score.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.02)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    batch = Batch((4, 9), torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 64, 64), ("a", "b"), ("", ""))
    condition = stage.model.condition(batch.prompts, 2)
    (gradient,) = torch.autograd.grad(stage._vsd(z, condition, batch), z)

    schedule = stage.model.schedule
    t = integers(0, batch.items, 20, 500, "vsd timestep")
    alpha = schedule.alpha_bar[t].float().reshape(2, 1, 1, 1)
    noisy = alpha.sqrt() * z.detach() + (1 - alpha).sqrt() * normal(0, batch.items, (4, 8, 8), "vsd noise")

    def clean(output: torch.Tensor) -> torch.Tensor:
        return (noisy - (1 - alpha).sqrt() * output) / alpha.sqrt()

    with torch.no_grad():
        fake = clean(score(noisy, t, encoder_hidden_states=condition).sample)
        with score.disable_adapter():
            unwanted = stage.model.condition((negative,) * 2, 2)
            low, high = (score(noisy, t, encoder_hidden_states=c).sample for c in (unwanted, condition))
            real = clean(low + 7.5 * (high - low))
        scale = (z - real).abs().mean((1, 2, 3), keepdim=True)
    expected = 2 * (fake - real) / scale / z.numel()
    assert float((gradient - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("stage", ["naosd", "gdpo"])
def test_validation_gives_each_photo_its_caption(
    stage: str, miniature: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side-cars first, then the function, then the default, in the samples, the comparison and the pictures alike."""
    paths = find_images(photos)[:3]
    images = [Path(shutil.copy(path, tmp_path)) for path in paths]
    images[0].with_suffix(".txt").write_text("a cat")
    source = PromptSource(tmp_path, caption=lambda path: "the photo" if path == images[1] else "")
    validation = Validation(PhotoSet(images), tmp_path / "samples", size=64, batch=2, prompts=source)
    wanted = ("a cat", "the photo", DEFAULT_PROMPT)
    assert validation.prompts == wanted
    settings = replace(SD_NAOSD, vsd=0.0, perceptual=0.0) if stage == "naosd" else SD_GDPO
    built, seen = build_stage(settings, base=str(miniature)), []
    condition: Callable[..., Any] = OneStepModel.condition

    def noted(self: OneStepModel, prompts: Any, batch: int) -> Any:
        seen.append(tuple(prompts))
        return condition(self, prompts, batch)

    monkeypatch.setattr(OneStepModel, "condition", noted)
    validation(built.sample, 0)
    assert seen == [wanted[:2], wanted[2:]] * 2
    seen.clear()
    built.measure(validation)
    built.pictures(validation)
    assert seen == ([] if stage == "naosd" else [wanted[:2], wanted[2:], wanted[:2]])


def test_captions_of_a_run_reach_its_batches_and_its_validation(
    miniature: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = set()

    def caption(path: Path) -> str:
        asked.add(path.name)
        return f"the photo {path.stem}"

    caplog.set_level("INFO", logger="train")
    settings = replace(SD_NAOSD, vsd=0.0, perceptual=0.0)
    two_steps("naosd", settings, photos, tmp_path, steps=1, base=str(miniature), caption=caption)
    count = len(find_images(photos))
    assert f"captions: {count} of {count} images have one ({count} from a function)" in caplog.text
    assert asked == {path.name for path in find_images(photos)}


@pytest.mark.parametrize(
    ("stage", "where"), [("naosd", "loader"), ("naosd", "device"), ("gdpo", "device"), ("pretrain", "loader")]
)
def test_lr_pictures_are_made_where_the_setting_says(
    stage: str, where: str, miniature: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the mixture of the settings; pretraining looks at none, so none are made."""
    mixture = {"mild_share": 0.4, "plain_share": 0.3, "degrade": where}
    settings: RunSettings = {
        "naosd": replace(SD_NAOSD, vsd=0.0, perceptual=0.0, **mixture),
        "gdpo": replace(SD_GDPO, metrics=("psnr", "ssim"), **mixture),
        "pretrain": replace(PRETRAIN["tiny"], perceptual=0.0, **mixture),
    }[stage]  # type: ignore[arg-type]
    seen: list[Batch] = []
    kind = {"naosd": Naosd, "gdpo": Gdpo, "pretrain": Pretrain}[stage]
    forward: Callable[..., Any] = kind.forward

    def noted(self: Any, phase: str, batch: Batch, carry: Any) -> Any:
        seen.append(batch)
        return forward(self, phase, batch, carry)

    monkeypatch.setattr(kind, "forward", noted)
    two_steps(
        stage,
        settings,
        photos,
        tmp_path,
        base=None if stage == "pretrain" else str(miniature),
        validate=False,
    )
    for batch in (seen[0], seen[-1]):
        if stage == "pretrain":
            assert not batch.lr.any()
            continue
        in_batches = degrade_batch(batch.hr, settings.seed, batch.items, Mixture(0.4, 0.3))
        assert torch.equal(batch.lr, in_batches) == (where == "device")
        assert float((batch.lr - torch.nn.functional.avg_pool2d(batch.hr, 4)).abs().mean()) < 0.2
    assert [batch.items for batch in seen][:: len(seen) - 1] == [(0, 1), (2, 3)]


@pytest.mark.parametrize(("crop", "far"), [(32, True), (64, False), (96, False), (128, True)])
def test_a_crop_far_from_the_bases_is_said(
    crop: int, far: bool, miniature: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The miniature's UNet says sample_size 8, as Stable Diffusion 2.1's says 64."""
    caplog.set_level("WARNING", logger="train")
    build_stage(replace(SD_NAOSD, crop=crop, vsd=0.0, perceptual=0.0), base=str(miniature))
    assert (f"crop={crop} gives latents of {crop // 8}x{crop // 8}" in caplog.text) == far
    assert ("trained on 8x8, where it is best: --set crop=64" in caplog.text) == far


def test_gradient_checkpointing_reaches_every_unet(miniature: Path, weights: Path) -> None:
    settings = replace(SD_NAOSD, gradient_checkpointing=True)
    stage = Naosd(load_model(miniature), settings, perceptual_loss(weights), "base")
    for unet in (stage.model.unet, stage.score):
        assert any(getattr(module, "gradient_checkpointing", False) for module in unet.modules())


def test_switched_off_losses_are_absent(miniature: Path, photos: Path) -> None:
    settings = replace(SD_NAOSD, perceptual=0.0, vsd=0.0)
    stage = Naosd(load_model(miniature), settings, None, "base")
    assert stage.phases(0.0) == ("generator",)
    losses, _ = stage("generator", replace(a_batch(photos), prompts=("", "")), {})
    assert set(losses) == {"l1", "loss"}
    assert float(losses["loss"]) == pytest.approx(float(losses["l1"]))


def test_guidance_without_text_is_refused(pocket: Path, weights: Path) -> None:
    with pytest.raises(ValueError, match="set cfg=1"):
        Naosd(load_model(pocket), SD_NAOSD, perceptual_loss(weights), "base")


# -------------------------------------------------------------------------------------------------- rules of GDPO


def test_encoder_runs_once_for_a_picture(
    miniature: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, calls = policy(miniature, group=4), []
    encode: Callable[..., Any] = OneStepModel.encode

    def counted(self: OneStepModel, lr: torch.Tensor) -> torch.Tensor:
        calls.append(len(lr))
        return encode(self, lr)

    monkeypatch.setattr(OneStepModel, "encode", counted)
    stage("policy", replace(a_batch(photos), prompts=("a", "b")), {})
    assert calls == [2]


def test_group_differs_by_its_noise_and_is_the_same_again(miniature: Path, photos: Path) -> None:
    stage = policy(miniature)
    batch = replace(a_batch(photos), prompts=("a", "b"))
    first, again = stage.draw(batch), stage.draw(batch)
    assert first.candidates.shape[:2] == (2, 3)
    assert torch.equal(first.candidates, again.candidates)
    assert not torch.equal(first.candidates[:, 0], first.candidates[:, 1])
    assert torch.allclose(first.advantage.mean(1), torch.zeros(2), atol=1e-5)


def test_policy_begins_at_the_reference_and_only_its_lora_moves(miniature: Path, photos: Path) -> None:
    for condition in ("candidate", "lr"):
        stage = policy(miniature, condition=condition)
        assert all("lora_" in n for n, p in stage.named_parameters() if p.requires_grad)
        losses, _ = stage("policy", replace(a_batch(photos), prompts=("a", "b")), {})
        assert float(losses["loss"]) == pytest.approx(0.693147, abs=1e-4)
        losses["loss"].backward()
        moved = [
            n for n, p in stage.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0
        ]
        assert moved
        assert all("lora_B" in name for name in moved)  # the gradient of A is zero while B is


@pytest.mark.parametrize("condition", ["candidate", "lr"])
def test_steps_lower_the_loss_on_their_batch(condition: str, miniature: Path, photos: Path) -> None:
    stage = policy(miniature, condition=condition, weight=200.0)
    batch = replace(a_batch(photos), prompts=("a", "b"))
    optimizer = torch.optim.AdamW(stage.groups()["policy"][0], lr=2e-3)
    losses = []
    for _ in range(4):
        values, _ = stage("policy", batch, {})
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        losses.append(float(values["loss"].detach()))
    assert losses[-1] < losses[0]


def test_reference_and_policy_sampler_part_once_the_policy_moves(miniature: Path, photos: Path) -> None:
    batch = replace(a_batch(photos), prompts=("a", "b"))
    by_reference, by_policy = policy(miniature), policy(miniature, sampler="policy")
    before = [stage.draw(batch).candidates for stage in (by_reference, by_policy)]
    torch.testing.assert_close(*before, atol=1e-5, rtol=1e-4)
    for stage in (by_reference, by_policy):
        for parameter in stage.groups()["policy"][0]:
            torch.nn.init.constant_(parameter, 0.02)
    after = [stage.draw(batch).candidates for stage in (by_reference, by_policy)]
    torch.testing.assert_close(after[0], before[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(after[1], before[1], atol=1e-3)


def test_noise_of_the_loss_is_shared_unless_asked_otherwise(
    miniature: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, seen = replace(a_batch(photos), prompts=("a", "b")), []
    start = OneStepModel.start

    def watch(self: OneStepModel, latent: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        seen.append(noise)
        return start(self, latent, noise)

    for shared in (True, False):
        stage = policy(miniature, shared_noise=shared)
        group = stage.draw(batch)
        with monkeypatch.context() as patch:
            patch.setattr(OneStepModel, "start", watch)
            seen.clear()
            stage._outputs(group, batch)
        noise = seen[0].unflatten(0, (2, 3))
        assert torch.equal(noise[:, 0], noise[:, 1]) is shared
        assert not torch.equal(noise[0], noise[1])


def test_validation_compares_the_policy_with_its_reference(
    miniature: Path, photos: Path, tmp_path: Path
) -> None:
    """log.jsonl has each metric of both; the curves name the model that drew the groups."""
    settings = replace(SD_GDPO, metrics=("psnr", "niqe"), lr=1e-2)
    seen = two_steps("gdpo", settings, photos, tmp_path, base=str(miniature))
    assert {"policy/reference/psnr", "policy/reference/psnr_spread", "policy/win_rate"} <= seen[0].keys()
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert row["policy/psnr"] != row["reference/psnr"]
    assert row["policy/niqe"] != row["reference/niqe"]
    assert 0 <= row["win_rate"] <= 1
    assert -1 <= row["margin"] <= 1
    assert row["drift"] > 0.1
    assert row["latent_drift"] > 0.001
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"samples", "groups"} <= set(curves.Tags()["images"])
    sheet = curves.Images("groups")[-1]
    size = 2 + 12 * 3  # reward, psnr and niqe below each picture
    assert (sheet.width, sheet.height) == (256 * (1 + settings.group), 256 + size)


def test_an_untrained_policy_ties_with_its_reference(miniature: Path, photos: Path, tmp_path: Path) -> None:
    found = policy(miniature).measure(Validation(PhotoSet(find_images(photos)), tmp_path, size=64, batch=3))
    assert found["policy/ssim"] == pytest.approx(found["reference/ssim"], rel=1e-6)
    assert (found["win_rate"], found["margin"]) == (0.5, 0.0)
    assert max(found["drift"], found["latent_drift"]) < 1e-4


def test_groups_that_hardly_differ_count_less_with_min_spread(miniature: Path, photos: Path) -> None:
    batch = replace(a_batch(photos), prompts=("a", "b"))
    plain = policy(miniature, metrics=("psnr",)).draw(batch)
    demanding = policy(miniature, metrics=("psnr",), min_spread=("psnr:1000",)).draw(batch)
    strength = demanding.report.strength.mean()
    assert 0 < float(strength) < 0.1
    assert float(plain.report.strength.mean()) == 1.0
    share = demanding.advantage.abs().sum(1) / plain.advantage.abs().sum(1)
    assert float(share.mean()) == pytest.approx(float(strength), rel=0.05)


def test_an_anchor_holds_the_lr_conditioned_policy(miniature: Path, photos: Path) -> None:
    batch = replace(a_batch(photos), prompts=("a", "b"))

    def distance(anchor: float) -> float:
        stage = policy(miniature, condition="lr", anchor=anchor, weight=1.0)
        optimizer = torch.optim.AdamW(stage.groups()["policy"][0], lr=1e-2)
        for _ in range(3):
            losses, _ = stage("policy", batch, {})
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
        return float(stage("policy", batch, {})[0]["anchor"])

    free, held = distance(0.0), distance(10.0)
    assert 0 < held < 0.5 * free


# ----------------------------------------------------------------------------------------------- presets, command


@pytest.mark.parametrize(("stage", "name"), [(s, n) for s, table in PRESETS.items() for n in table])
def test_presets_survive_json_and_name_known_choices(stage: str, name: str) -> None:
    preset = PRESETS[stage][name]
    assert from_dict(type(preset), json.loads(json.dumps(to_dict(preset)))) == preset
    assert preset.crop % 32 == 0


def test_deviation_is_torch_s() -> None:
    x = 0.3 + 2 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(deviation(x), x.std(correction=0))


def test_pocket_base_can_be_built_and_is_small() -> None:
    shape = PRETRAIN["pocket"].shape
    vae, unet = build_vae(shape.vae, 0), build_unet(shape.unet, shape.vae.latent_channels, 0)
    assert sum(p.numel() for p in vae.parameters()) < 2_000_000
    assert sum(p.numel() for p in unet.parameters()) < 15_000_000
    assert torch.equal(next(build_vae(shape.vae, 0).parameters()), next(vae.parameters()))
    assert not torch.equal(next(build_vae(shape.vae, 1).parameters()), next(vae.parameters()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "ppo"}, "objective must be one of gdpo, dpo, grpo"),
        ({"condition": "hr"}, "condition must be one of"),
        ({"group": 1}, "at least 2"),
        ({"metrics": ()}, "at least one metric"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"mild_share": 7.0}, "mild_share must be from 0 to 1"),
        ({"plain_share": -0.1}, "plain_share must be from 0 to 1"),
        ({"mild_share": 0.7, "plain_share": 0.4}, "at most 1 together, got 0.7 and 0.4"),
        ({"weight": -1.0}, "weight must be above 0"),
        ({"weighting": "half"}, "weighting must be one of attribute, published, fixed, got 'half'"),
        ({"metrics": ("psnr",), "min_spread": ("niqe:1",)}, "min_spread names niqe, expected some of psnr"),
        ({"metrics": ("psnr",), "min_spread": ("psnr",)}, "min_spread is NAME:VALUE"),
        ({"condition": "lr", "anchor": -1.0}, "anchor must be at least 0, got -1"),
        ({"anchor": 1.0}, "set condition=lr"),
        ({"anchor": 1.0, "condition": "lr", "objective": "grpo"}, "for grpo use grpo_kl"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GdpoSettings(**settings)
    with pytest.raises(ValueError, match="vsd_low"):
        NaosdSettings(vsd_low=0.6)
    with pytest.raises(ValueError, match="vsd must be at least 0"):
        NaosdSettings(vsd=-1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["naosd", "--set", "lrr=1"], "unknown setting lrr"),
        (["naosd"], "needs --base"),
        (["naosd", "--base", "nowhere"], "no model at nowhere"),
        (["gdpo", "--base", "MINI", "--set", "metrics=psnr,maniqa"], "pip install pyiqa"),
        (["naosd", "--base", "MINI", "--set", "vsd=0"], "--perceptual-weights"),
        (
            ["naosd", "--base", "MINI", "--set", "vsd=0", "--set", "perceptual=0", "--set", "crop=72"],
            "multiple",
        ),
        (["pretrain", "--data", "EMPTY"], "no image below"),
    ],
)
def test_command_names_what_is_wrong(
    arguments: list[str],
    message: str,
    miniature: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    words = {"MINI": str(miniature), "EMPTY": str(tmp_path / "empty")}
    arguments = [words.get(word, word) for word in arguments]
    data = [] if "--data" in arguments else ["--data", str(photos)]
    out = ["--out", str(tmp_path / "run"), "--steps", "1", "--preset", "tiny", "--workers", "0"]
    assert main([*arguments, *data, *out]) == 2
    error = capsys.readouterr().err
    assert "error: " in error
    assert message in error
    assert not (tmp_path / "run" / "model").exists()


def test_photos_smaller_than_the_crop_are_mirrored(miniature: Path, photos: Path, tmp_path: Path) -> None:
    settings = replace(SD_NAOSD, crop=192, vsd=0.0, perceptual=0.0, batch=1)
    seen = two_steps("naosd", settings, photos, tmp_path / "run", steps=1, base=str(miniature))
    assert seen[0]["generator/loss"] > 0
