"""The one-step model: formula, sizes, prompts, no hidden randomness, checkpointing, and parts that do not fit."""

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra `train`")
for package in ("diffusers", "peft", "transformers"):
    pytest.importorskip(package, reason="needs the extra `train`")

import model_cases  # noqa: E402  (after importorskip)
from diffusers import UNet2DConditionModel  # noqa: E402
from lora import unet_lora, vae_encoder_lora  # noqa: E402
from model_cases import distance, inputs, pocket, stir  # noqa: E402

from training.model.one_step import OneStepModel, enlarge  # noqa: E402
from training.model.text import DEFAULT_PROMPT  # noqa: E402

miniature, sd21, model = model_cases.miniature, model_cases.sd21, model_cases.model  # fixtures


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
