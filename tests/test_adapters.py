"""Adapters of the one-step model: what LoRA touches and what it does not, off and on, merged, saved and loaded."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
for package in ("diffusers", "peft", "transformers"):
    pytest.importorskip(package, reason="needs the extra `train`")

import model_cases  # noqa: E402  (after importorskip)
from lora import unet_lora, vae_encoder_lora  # noqa: E402
from model_cases import distance, inputs, pocket, stir  # noqa: E402
from peft import PeftModel  # noqa: E402
from torch import nn  # noqa: E402

from training.model.adapters import (  # noqa: E402
    LoraSpec,
    disabled,
    load_adapter,
    merge,
    save_adapter,
)
from training.model.one_step import OneStepModel, base_config, base_module  # noqa: E402

miniature, sd21, model = model_cases.miniature, model_cases.sd21, model_cases.model  # fixtures


def trainable(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def test_fresh_adapters_change_nothing_and_are_reached(model: OneStepModel) -> None:
    lr, noise = inputs(model)
    before = model(lr, noise)
    model.unet, model.vae = unet_lora(model.unet, seed=3), vae_encoder_lora(model.vae, seed=3)
    assert base_config(model.unet) is base_module(model.unet).config
    assert model.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(before, model(lr, noise))
        stir(model.vae)
        encoded = model.encode(lr)
        with disabled(model.vae):
            assert distance(encoded, model.encode(lr)) > 1e-3
        stir(model.unet)
        assert distance(before, model(lr, noise)) > 1e-3
        with disabled(model.unet), disabled(model.vae):
            assert torch.equal(before, model(lr, noise))


def test_unet_adapter_covers_what_it_should(sd21: OneStepModel) -> None:
    for unet, attention in ((sd21.unet, True), (pocket().unet, False)):
        adapted = unet_lora(unet, rank=2)
        names = trainable(adapted)
        low_rank = {
            name.split(".lora_")[0].removeprefix("base_model.model.") for name in names if ".lora_" in name
        }
        assert {"conv_out", "mid_block.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv"} <= low_rank
        assert any(name.endswith("attn2.to_out.0") for name in low_rank) == attention
        assert not any(name.startswith(("time_embedding", "conv_in")) for name in low_rank)
        whole = [name for name in names if ".lora_" not in name]
        assert whole == [
            f"base_model.model.conv_in.modules_to_save.default.{kind}" for kind in ("weight", "bias")
        ]
        assert all(p.shape[0] == 2 for name, p in adapted.named_parameters() if "lora_A" in name)


@pytest.mark.parametrize("make", [pocket, None])
def test_vae_adapter_stays_out_of_the_decoder(
    sd21: OneStepModel, make: Callable[[], OneStepModel] | None
) -> None:
    vae = (make() if make else sd21).vae
    layers = [n for n, m in vae.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    wanted = {n for n in layers if not n.startswith(("decoder", "post_quant"))}
    decoder = {n: p.clone() for n, p in vae.decoder.named_parameters()}
    adapted = vae_encoder_lora(vae)
    assert {n.split(".lora_")[0].removeprefix("base_model.model.") for n in trainable(adapted)} == wanted
    stir(adapted)
    merged = merge(adapted)
    assert all(torch.equal(p, decoder[n]) for n, p in merged.decoder.named_parameters())


def test_conv_in_trains_and_falls_back(sd21: OneStepModel) -> None:
    _, noise = inputs(sd21)
    condition = sd21.condition(None, 2)
    before = sd21.predict(noise, condition)
    sd21.unet = unet_lora(sd21.unet)
    sd21.predict(noise, condition).square().mean().backward()
    copied = sd21.unet.base_model.model.conv_in.modules_to_save["default"]
    assert float(copied.weight.grad.abs().sum()) > 0
    with torch.no_grad():
        copied.weight.mul_(2)
        assert distance(before, sd21.predict(noise, condition)) > 1e-3
        with disabled(sd21.unet):
            assert torch.equal(before, sd21.predict(noise, condition))
    held = unet_lora(pocket().unet, train_conv_in=False)
    assert "base_model.model.conv_in.lora_A.default.weight" in trainable(held)


@pytest.mark.parametrize("frozen", [False, True])
def test_disabling_leaves_the_flags_as_they_were(frozen: bool) -> None:
    adapted = unet_lora(pocket().unet)
    if frozen:
        adapted.requires_grad_(False)
    else:
        next(p for n, p in adapted.named_parameters() if "lora_A" in n).requires_grad_(False)
    flags = [p.requires_grad for p in adapted.parameters()]
    with disabled(adapted):
        assert not any(p.requires_grad for n, p in adapted.named_parameters() if "lora_" in n)
        with disabled(adapted):
            pass
        x = torch.ones(1, 4, 8, 8)
        inside = adapted(x, 5, None).sample
    assert [p.requires_grad for p in adapted.parameters()] == flags
    with pytest.raises(RuntimeError, match="stop"), disabled(adapted):
        raise RuntimeError("stop")
    assert [p.requires_grad for p in adapted.parameters()] == flags
    stir(adapted.requires_grad_(True))
    assert distance(inside, adapted(x, 5, None).sample) > 1e-3


def test_merged_equals_unmerged(model: OneStepModel) -> None:
    lr, noise = inputs(model)
    model.unet, model.vae = unet_lora(model.unet, alpha=8), vae_encoder_lora(model.vae)
    stir(model.unet)
    stir(model.vae)
    with torch.no_grad():
        latent, condition = model.encode(lr), model.condition(None, 2)
        predicted = model.predict(noise, condition)
        unet, vae = merge(model.unet), merge(model.vae)
        model.unet, model.vae = unet, vae
        assert not isinstance(unet, PeftModel)
        assert not any("lora" in name for name, _ in unet.named_modules())
        assert distance(latent, model.encode(lr)) <= 1e-5 * max(1.0, float(latent.abs().max()))
        assert distance(predicted, model.predict(noise, condition)) <= 1e-5 * max(
            1.0, float(predicted.abs().max())
        )
    assert not trainable(model)


def test_start_of_the_adapter_is_a_function_of_the_seed() -> None:
    before = torch.get_rng_state()

    def start(seed: int) -> list["torch.Tensor"]:
        return [p for n, p in unet_lora(pocket().unet, seed=seed).named_parameters() if "lora_A" in n]

    first, again, other = start(1), start(1), start(2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("ours", [True, False])
def test_saved_adapter_comes_back_equal(tmp_path: Path, ours: bool) -> None:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    adapted = unet_lora(pocket().unet, rank=3)
    stir(adapted)
    save_adapter(adapted, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    before = torch.get_rng_state()
    again = (
        load_adapter(pocket().unet, tmp_path)
        if ours
        else PeftModel.from_pretrained(pocket().unet, str(tmp_path))
    )
    assert torch.equal(adapted(x, 100, None).sample, again(x, 100, None).sample)
    if ours:
        assert not trainable(again)
        assert torch.equal(before, torch.get_rng_state())
        assert trainable(load_adapter(pocket().unet, tmp_path, trainable=True)) == trainable(adapted)


def test_adapters_of_other_models_are_refused(tmp_path: Path, sd21: OneStepModel) -> None:
    save_adapter(unet_lora(pocket().unet, rank=3), tmp_path / "pocket")
    save_adapter(vae_encoder_lora(pocket().vae), tmp_path / "vae")
    for name in ("pocket", "vae"):
        with pytest.raises(ValueError, match=f"{name} does not fit this UNet2DConditionModel"):
            load_adapter(sd21.unet, tmp_path / name)
    assert not any("lora" in name for name, _ in sd21.unet.named_modules())
    with pytest.raises(ValueError, match="already has an adapter"):
        unet_lora(unet_lora(sd21.unet))
    config = tmp_path / "pocket" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 3', '"r": 5'))
    with pytest.raises(
        ValueError, match=r"is \(3, .* the base needs \(5, .* another base or with another rank"
    ):
        load_adapter(pocket().unet, tmp_path / "pocket")
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing"):
        load_adapter(pocket().unet, tmp_path / "pocket")


@pytest.mark.parametrize(
    "values", [{"rank": 0}, {"rank": 2.0}, {"alpha": 0}, {"part": "vae"}, {"init": "normal"}]
)
def test_wrong_adapter_settings_are_refused(values: dict) -> None:
    with pytest.raises(ValueError, match="LoRA"):
        LoraSpec(**values)


def test_freezing_and_types(sd21: OneStepModel) -> None:
    sd21.unet = unet_lora(sd21.unet)
    sd21.train()
    assert trainable(sd21)
    sd21.freeze()
    assert not trainable(sd21)
    assert not any(module.training for part in sd21.parts().values() for module in part.modules())
    lr, noise = inputs(sd21)
    half = sd21.to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.device == torch.device("cpu")
    with torch.no_grad():
        sr = half(lr, noise, ["a", "b"])
    assert sr.dtype == torch.bfloat16
    assert math.isfinite(float(sr.float().sum()))
