"""The one-step model and its adapters: formula, sizes, no hidden randomness, what LoRA touches and what it does not."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra `train`")
for package in ("diffusers", "peft", "transformers"):
    pytest.importorskip(package, reason="needs the extra `train`")

from diffusers import AutoencoderTiny, UNet2DConditionModel  # noqa: E402  (after importorskip)
from lora import unet_lora, vae_encoder_lora  # noqa: E402
from make_miniature_sd21 import make_miniature  # noqa: E402
from peft import PeftModel  # noqa: E402
from torch import nn  # noqa: E402

from training.model.adapters import (  # noqa: E402
    LoraSpec,
    disabled,
    load_adapter,
    merge,
    save_adapter,
)
from training.model.loading import load_model  # noqa: E402
from training.model.one_step import OneStepModel, base_config, base_module, enlarge  # noqa: E402
from training.model.schedule import NoiseSchedule  # noqa: E402
from training.model.text import DEFAULT_PROMPT  # noqa: E402


def pocket(seed: int = 0) -> OneStepModel:
    """Factor 4, a UNet of two levels without attention, no text."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 2,
            mid_block_type="UNetMidBlock2D",
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
        )
    return OneStepModel(vae, unet, None, NoiseSchedule()).freeze()


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> OneStepModel:
    return load_model(make_miniature(tmp_path_factory.mktemp("sd21")))


@pytest.fixture
def sd21(miniature: OneStepModel) -> OneStepModel:
    """A model of the test's own."""
    return copy.deepcopy(miniature)


@pytest.fixture(params=["sd21", "pocket"])
def model(request: pytest.FixtureRequest) -> OneStepModel:
    return pocket() if request.param == "pocket" else request.getfixturevalue("sd21")


def inputs(
    model: OneStepModel, batch: int = 2, height: int = 8, width: int = 16
) -> tuple["torch.Tensor", "torch.Tensor"]:
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(batch, *model.latent_shape(height, width), generator=draw)
    return torch.rand(batch, 3, height, width, generator=draw), noise


def stir(adapted: PeftModel, seed: int = 5) -> None:
    """Give every trainable weight a visible value, as training would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))


def distance(a: "torch.Tensor", b: "torch.Tensor") -> float:
    return float((a - b).detach().abs().max())


def test_shapes_and_range(model: OneStepModel) -> None:
    lr, noise = inputs(model)
    with torch.no_grad():
        sr = model(lr, noise, ["a cat", "a dog"])
    assert sr.shape == (2, 3, 32, 64)
    assert model.encode(lr).shape == noise.shape == (2, *model.latent_shape(8, 16))
    assert torch.equal(model.encode(lr), model.encode_image(enlarge(lr, 4)))
    assert sorted(model.parts()) == sorted(["vae", "unet"] + ["text"] * (model.text is not None))


def test_restores_by_the_papers_formula(sd21: OneStepModel) -> None:
    lr, noise = inputs(sd21)
    with torch.no_grad():
        moments = sd21.vae.encode(2 * enlarge(lr, 4) - 1).latent_dist.mean * 0.18215
        latent = sd21.encode(lr)
        condition = sd21.condition(["a cat", "a dog"], 2)
        noisy = 0.820849 * latent + 0.571146 * noise
        output = sd21.unet(noisy, torch.tensor([100, 100]), condition).sample
        expected = 1.057492 * noisy - 0.343931 * output
        restored = sd21.restore(latent, noise, condition)
        image = sd21.vae.decode(expected / 0.18215).sample / 2 + 0.5
        sr = sd21(lr, noise, ["a cat", "a dog"])
    assert torch.equal(latent, moments)
    torch.testing.assert_close(restored, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sr, image, atol=1e-4, rtol=1e-4)


def test_fewer_channels_of_noise_are_repeated_over_the_latent(model: OneStepModel) -> None:
    lr, noise = inputs(model)
    model.set_noise_channels(2)
    assert model.noise_shape(8, 16) == (2, *model.latent_shape(8, 16)[1:])
    with torch.no_grad():
        few = model(lr, noise[:, :2])
        spread = model.spread(noise[:, :2])
        model.set_noise_channels(4)
        assert torch.equal(spread, noise[:, [0, 1, 0, 1]])
        assert torch.equal(few, model(lr, spread))
        with pytest.raises(ValueError, match=r"noise must have the shape \(2, 4, "):
            model(lr, noise[:, :2])
    for channels in (3, 0, 8):
        with pytest.raises(ValueError, match=f"must divide the 4 channels of the latent, got {channels}"):
            model.set_noise_channels(channels)


def test_told_timestep_reaches_the_unet(model: OneStepModel) -> None:
    _, noise = inputs(model)
    condition = model.condition(None, 2)
    with torch.no_grad():
        at_100 = model.predict(noise, condition)
        assert torch.equal(at_100, model.predict(noise, condition, torch.tensor([100, 100])))
        assert distance(at_100, model.predict(noise, condition, 250)) > 1e-3


def test_same_noise_same_picture_and_no_hidden_randomness(model: OneStepModel) -> None:
    lr, noise = inputs(model)
    model.train()
    before = torch.get_rng_state()
    with torch.no_grad():
        first, again = model(lr, noise), model(lr, noise)
        other = model(lr, noise.flip(0))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())
    assert distance(first, other) > 1e-3


def test_prompts_go_with_their_images(sd21: OneStepModel) -> None:
    lr, noise = inputs(sd21, batch=3)
    prompts = ["the photo", "sharp", "the photo"]
    with torch.no_grad():
        together = sd21(lr, noise, prompts)
        for index in range(3):
            one = slice(index, index + 1)
            torch.testing.assert_close(
                together[one], sd21(lr[one], noise[one], prompts[one]), atol=1e-4, rtol=1e-4
            )
        assert distance(together, sd21(lr, noise, ["sharp"] * 3)) > 1e-4
        assert torch.equal(sd21(lr, noise), sd21(lr, noise, [DEFAULT_PROMPT] * 3))
        ready = sd21.condition(prompts, 3)
        assert torch.equal(sd21(lr, noise, ready), together)


def test_wrong_prompts_are_refused(sd21: OneStepModel) -> None:
    with pytest.raises(ValueError, match="expected 2 prompts, one for each image, got 1"):
        sd21.condition(["a cat"], 2)
    with pytest.raises(ValueError, match="a list with one prompt for each image"):
        sd21.condition("a cat", 5)
    sd21.text = None
    with pytest.raises(ValueError, match="no text encoder"):
        sd21.condition(None, 1)


def test_a_unet_without_attention_takes_prompts_and_ignores_them() -> None:
    model = pocket()
    assert not model.has_cross_attention
    lr, noise = inputs(model)
    with torch.no_grad():
        assert torch.equal(model(lr, noise, ["a", "b"]), model(lr, noise))
    assert model.condition(["a", "b"], 2) is None


def test_sizes_that_do_not_fit_are_refused(model: OneStepModel) -> None:
    multiple = 4 if model.text is not None else 2
    assert model.size_multiple == multiple
    assert model.latent_shape(128, 4 * multiple) == (
        4,
        512 // model.vae_factor,
        16 * multiple // model.vae_factor,
    )
    with pytest.raises(ValueError, match=f"multiples of {multiple}, got 8x9: pad or crop"):
        model.encode(torch.rand(1, 3, 8, 9))
    lr, noise = inputs(model)
    with pytest.raises(ValueError, match="noise must have the shape"):
        model(lr, noise[..., :-1])


def test_size_rule_of_stable_diffusion() -> None:
    with torch.device("meta"):  # the real UNet's shape, without its weights
        unet = UNet2DConditionModel(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20))
    model = pocket()
    model.vae.register_to_config(encoder_block_out_channels=(8,) * 4)
    model.unet = unet
    assert model.size_multiple == 16
    assert model.latent_shape(128, 128) == (4, 64, 64)


def test_enlarging_is_pillows_bicubic() -> None:
    image = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(2))
    for plane, ours in zip(image[0].numpy(), enlarge(image, 4)[0].numpy(), strict=True):
        theirs = np.asarray(Image.fromarray(plane).resize((28, 36), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(ours, theirs.clip(0, 1), atol=1e-5)


def test_parts_of_different_models_are_refused(sd21: OneStepModel) -> None:
    small = pocket()
    sd21.unet.register_to_config(cross_attention_dim=64)
    with pytest.raises(ValueError, match="gives 32 channels, the UNet's cross-attention takes 64"):
        OneStepModel(sd21.vae, sd21.unet, sd21.text, sd21.schedule)
    small.vae.register_to_config(latent_channels=16)
    with pytest.raises(ValueError, match="latent has 16 channels, but the UNet takes 4"):
        OneStepModel(small.vae, small.unet, None, small.schedule)
    with pytest.raises(ValueError, match=r"timestep must lie in 0 \.\. 999, got 1000"):
        OneStepModel(sd21.vae, sd21.unet, None, sd21.schedule, noise_timestep=1000)


@pytest.mark.parametrize("trained", ["unet", "vae"])
def test_gradient_checkpointing_changes_nothing(model: OneStepModel, trained: str) -> None:
    lr, noise = inputs(model)
    part = unet_lora(model.unet) if trained == "unet" else vae_encoder_lora(model.vae)
    setattr(model, trained, part)
    stir(part)

    def step() -> list["torch.Tensor"]:
        model.zero_grad()
        sr = model(lr, noise)
        sr.square().mean().backward()
        return [sr.detach()] + [p.grad.clone() for p in part.parameters() if p.requires_grad]

    plain = step()
    model.enable_gradient_checkpointing()
    torch.testing.assert_close(step(), plain, atol=1e-5, rtol=1e-4)


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
