"""The preset sd21 against what is published: every constant of the paper and of its public code, and what they do.

The public code is github.com/Joyies/GDPO at e93d643: the scripts under scripts/train, the defaults of its arguments, and
`LoraConfig(r=4, init_lora_weights="gaussian")`, which leaves peft's lora_alpha at 8."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from diffusers import UNet2DConditionModel  # noqa: E402  (after importorskip)
from peft import LoraConfig  # noqa: E402
from torch import nn  # noqa: E402

from training.metrics import attributes  # noqa: E402
from training.metrics.squeezenet import perceptual_loss  # noqa: E402
from training.model.adapters import LoraSpec, add_lora  # noqa: E402
from training.model.loading import load_model  # noqa: E402
from training.stages.gdpo import Gdpo, GdpoSettings  # noqa: E402
from training.stages.lora import LoraSettings  # noqa: E402
from training.stages.naosd import Naosd, NaosdSettings  # noqa: E402
from training.stages.presets import PRESETS  # noqa: E402

LORA = {"rank": 4, "lora_init": "gaussian", "lora_alpha": 8, "lora_time_emb": False}
# AdamW at a constant rate: diffusers' "constant" schedule has no warm-up, whatever lr_warmup_steps says.
ADAMW = {"lr": 5e-5, "final_lr": 5e-5, "warmup_steps": 1, "weight_decay": 1e-2, "beta2": 0.999, "clip": 1.0}
RUN = {"crop": 512, "precision": "fp16", "ema": 0.0, "mild_share": 0.0, "plain_share": 0.0}
PUBLISHED: dict[str, dict[str, Any]] = {
    "naosd": {
        **(LORA | ADAMW | RUN),
        **{"adapt": "lora", "noise_timestep": 250, "denoise_timestep": 100, "noise_channels": 0},
        **{"perceptual": 2.0, "vsd": 1.0, "vsd_low": 0.02, "vsd_high": 0.5, "cfg": 7.5},
        **{"score_lr": 5e-5, "score_conv_in": False},
        "negative_prompt": "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, 3D render, "
        "unreal engine, blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, jpeg artifacts,deformed, "
        "lowres, over-smooth",
        "batch": 4,  # with 4 processes the 16 of the paper; the script has 4 processes x 2 pairs x 2 accumulated
    },
    "gdpo": {
        **(LORA | ADAMW | RUN),
        **{"objective": "gdpo", "condition": "candidate", "sampler": "reference", "group": 6, "batch": 1},
        "weight": 2500.0,  # 5000 with the factor 1/2
        "metrics": ("psnr", "maniqa", "musiq"),
        "weighting": "published",
    },
}
# Where ours is different on purpose: (ours, published).
DIFFERENT: dict[str, dict[str, tuple[Any, Any]]] = {
    "naosd": {
        "l1": (1.0, "the paper has an L1, the public code a squared error of the same weight"),
        "zoom_min": (0.5, "crops of the photos at their own size"),
    },
    "gdpo": {
        "shared_noise": (True, "one noise for each candidate; Diffusion-DPO shares one in a group"),
        "zoom_min": (0.5, "crops of the photos at their own size"),
    },
}
# stable-diffusion-2-1-base's unet/config.json, as far as it is not diffusers' default.
SD21_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}


@pytest.mark.parametrize(("stage", "name"), [(s, n) for s, table in PUBLISHED.items() for n in table])
def test_sd21_has_the_published_value(stage: str, name: str) -> None:
    assert getattr(PRESETS[stage]["sd21"], name) == PUBLISHED[stage][name]


@pytest.mark.parametrize("stage", PUBLISHED)
def test_every_setting_of_a_published_stage_is_published_or_named_as_different(stage: str) -> None:
    preset = PRESETS[stage]["sd21"]
    for name, (ours, _) in DIFFERENT[stage].items():
        assert getattr(preset, name) == ours
    free = {  # nothing is published, or only one of the objectives that were not used needs it
        *(
            "accumulate",
            "held_out",
            "seed",
            "snapshots",
            "prompt",
            "gradient_checkpointing",
            "tf32",
            "degrade",
            "memory_format",
        ),
        *("validate_steps", "best", "patience", "min_spread", "anchor"),
        *("grpo_sigma", "grpo_clip", "grpo_kl"),
    }
    fields = set(type(preset).__dataclass_fields__)
    assert fields - free == set(PUBLISHED[stage]) | set(DIFFERENT[stage])


def test_attribute_weights_are_the_published_ones() -> None:
    """Patches of 10x10, enlarged to 64x64; 512 bins from -5.5 to 5.5; entropy x 100 against 50."""
    a = attributes
    assert (a.PATCH, a.PUBLISHED_SIDE) == (10, 64)
    assert a.PUBLISHED_TOP / a.PUBLISHED_BINS == 2 * 5.5 / 512
    assert a.PUBLISHED_THRESHOLD * a.PATCH**2 == 50


def test_default_strength_of_peft_is_the_published_one() -> None:
    assert LoraConfig(r=LORA["rank"]).lora_alpha == LORA["lora_alpha"]


@pytest.mark.parametrize("stage", ["naosd", "gdpo"])
def test_adapters_of_sd21_are_the_published_ones(stage: str, miniature: Path, weights: Path) -> None:
    """A has a deviation of 1 / 4, B is zero, the strength is 2, in UNet, VAE encoder and score network alike."""
    model, settings = load_model(miniature), PRESETS[stage]["sd21"]
    if isinstance(settings, NaosdSettings):
        made: Naosd | Gdpo = Naosd(model, settings, perceptual_loss(weights), "base")
        assert isinstance(made, Naosd)
        parts = [model.unet, model.vae, made.score]
    else:
        assert isinstance(settings, GdpoSettings)
        made, parts = Gdpo(model, settings, [], "base"), [model.unet]
    for part in parts:
        assert part.peft_config["default"].lora_alpha == 8
        assert part.peft_config["default"].init_lora_weights == "gaussian"
        scales = {m.scaling["default"] for m in part.modules() if hasattr(m, "lora_A")}
        assert scales == {2.0}
        named = dict(part.named_parameters())
        a = torch.cat([p.detach().flatten() for n, p in named.items() if "lora_A" in n])
        assert float(a.std()) == pytest.approx(0.25, rel=0.03)
        assert float(a.mean()) == pytest.approx(0.0, abs=0.01)
        assert not any(p.any() for n, p in named.items() if "lora_B" in n)
        assert not any("time_emb_proj.lora" in n for n in named)
        assert any("conv1.lora" in n for n in named)
    # conv_in: all of it in NAOSD's model, a low-rank change in the score network and in GDPO
    unets = [p for p in parts if p is not model.vae]
    low = [any("conv_in.lora_A" in n for n, _ in unet.named_parameters()) for unet in unets]
    assert low == ([False, True] if stage == "naosd" else [True])


def adapted_layers(unet: nn.Module, spec: LoraSpec) -> dict[str, nn.Module]:
    """The layers that get LoRA, by name."""
    layers = add_lora(unet, spec).base_model.model.named_modules()
    return {name: module.base_layer for name, module in layers if hasattr(module, "lora_A")}


def sd21_unet() -> UNet2DConditionModel:
    """Stable Diffusion 2.1-base's UNet without memory for its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(**SD21_UNET)


def test_22_time_layers_of_sd21_are_left_out() -> None:
    settings = PRESETS["gdpo"]["sd21"]
    assert isinstance(settings, LoraSettings)
    ours = adapted_layers(sd21_unet(), LoraSpec(train_conv_in=False))
    published = adapted_layers(sd21_unet(), settings.lora("unet"))
    assert len(ours) == 280
    assert len(published) == 258
    assert {name.rsplit(".", 1)[-1] for name in ours.keys() - published.keys()} == {"time_emb_proj"}
    # a step is 28 times ours at 1,024 inputs, and so it is about that in the middle of the UNet's layers
    inputs = torch.tensor([float(layer.weight[0].numel()) for layer in published.values()])
    assert float((0.5 * (3 * inputs).sqrt()).median()) == pytest.approx(28, abs=3)


class OneLayer(nn.Module):
    """A UNet of one layer with 1,024 inputs."""

    def __init__(self, convolution: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        if convolution:
            self.block = nn.ModuleDict({"conv1": nn.Conv2d(256, 64, 2)})
        else:
            self.block = nn.ModuleDict({"to_q": nn.Linear(1024, 64)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (layer,) = self.block.values()
        return layer(x)


@pytest.mark.parametrize("convolution", [False, True])
def test_first_step_moves_a_weight_by_the_learning_rate_28_times_as_far_as_ours(convolution: bool) -> None:
    """What one step of AdamW does to W + (alpha / rank) B A, in units of the learning rate."""

    def moved(spec: LoraSpec) -> float:
        model = add_lora(OneLayer(convolution), spec)
        x = torch.randn(8, 256, 2, 2) if convolution else torch.randn(8, 1024)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=1e-2)
        model(x).square().mean().backward()
        optimizer.step()
        (layer,) = (m for m in model.modules() if hasattr(m, "get_delta_weight"))
        return float(layer.get_delta_weight("default").detach().square().mean().sqrt()) / 5e-5

    settings = PRESETS["naosd"]["sd21"]
    assert isinstance(settings, LoraSettings)
    published, ours = moved(settings.lora("unet")), moved(LoraSpec(train_conv_in=False))
    assert published == pytest.approx(1.0, rel=0.05)
    assert published / ours == pytest.approx(28, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_init": "normal"}, "lora_init must be one of kaiming, gaussian, got 'normal'"),
        ({"lora_alpha": -1}, "lora_alpha must be above 0, or 0 for the value of rank, got -1"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
    ],
)
def test_wrong_settings_of_the_adapter_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GdpoSettings(**change)
