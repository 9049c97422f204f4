"""The stages on a miniature Stable Diffusion 2.1 and on the pocket base's tiny shape: recorded losses, the chain, commands."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from safetensors.torch import load_file  # noqa: E402  (after importorskip)
from stage_runs import SD_GDPO, SD_NAOSD, a_batch, two_steps  # noqa: E402

from training.loop import precision  # noqa: E402
from training.loop.budget import Budget  # noqa: E402
from training.loop.stage import RunSettings  # noqa: E402
from training.main import main, run  # noqa: E402
from training.metrics.squeezenet import perceptual_loss  # noqa: E402
from training.model.loading import load_model  # noqa: E402
from training.model.pocket import build_unet, build_vae  # noqa: E402
from training.randomness import normal  # noqa: E402
from training.settings import from_dict, to_dict  # noqa: E402
from training.stages.gdpo import GdpoSettings  # noqa: E402
from training.stages.naosd import Naosd, NaosdSettings  # noqa: E402
from training.stages.presets import GDPO, NAOSD, PRESETS, PRETRAIN  # noqa: E402
from training.stages.pretrain import deviation  # noqa: E402

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


# ------------------------------------------------------------------------------------------------- recorded losses


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


# ------------------------------------------------------------------------------------------------------- the chain


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


def test_guidance_without_text_is_refused(pocket: Path, weights: Path) -> None:
    with pytest.raises(ValueError, match="set cfg=1"):
        Naosd(load_model(pocket), SD_NAOSD, perceptual_loss(weights), "base")


# ------------------------------------------------------------------------------------------------ presets, command


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
