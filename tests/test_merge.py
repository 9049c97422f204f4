"""Folding a one-step model: equal to the model it comes from, free of text, time and prompt."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
for package in ("diffusers", "peft", "transformers"):
    pytest.importorskip(package, reason="needs the extra `train`")

import merge_cases  # noqa: E402  (after importorskip)
from lora import unet_lora, vae_encoder_lora  # noqa: E402
from make_miniature_sd21 import make_public_layout  # noqa: E402
from torch import nn  # noqa: E402

from export.fold.layers import FoldError  # noqa: E402
from export.fold.one_step import FOLD_FLOOR_DB, KIND, Enlarge, fold, one_step_source  # noqa: E402
from export.load import load_source  # noqa: E402
from export.source import Source, psnr  # noqa: E402
from training.model.loading import load_model  # noqa: E402
from training.model.merging import merge_run  # noqa: E402
from training.model.one_step import OneStepModel, enlarge  # noqa: E402
from training.model.pocket import build_unet, build_vae  # noqa: E402
from training.model.saving import save_merged, save_run_model  # noqa: E402
from training.model.schedule import NoiseSchedule  # noqa: E402
from training.model.text import DEFAULT_PROMPT  # noqa: E402
from training.stages.presets import PRETRAIN  # noqa: E402

checkpoint, sd21 = merge_cases.checkpoint, merge_cases.sd21  # fixtures

SIZES = ((8, 16), (4, 4), (20, 12))  # LR pixels


def pocket(prediction: str = "epsilon") -> OneStepModel:
    shape = PRETRAIN["tiny"].shape
    vae, unet = build_vae(shape.vae, 0), build_unet(shape.unet, 4, 1)
    vae.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    return OneStepModel(vae, unet, None, NoiseSchedule(prediction=prediction)).freeze()


@pytest.fixture(scope="module")
def source(sd21: OneStepModel) -> Source:
    return one_step_source(sd21, {"steps": 3}, "0" * 64)


def agreement(model: OneStepModel, source: Source, prompt: str | None = None) -> float:
    """Worst PSNR of a source against its model over sizes and seeds, two images at once."""
    worst = np.inf
    for height, width in SIZES:
        for seed in range(2):
            draw = torch.Generator().manual_seed(seed)
            lr = torch.rand(2, 3, height, width, generator=draw)
            noise = torch.randn(2, *model.noise_shape(height, width), generator=draw)
            with torch.no_grad():
                expected = model(lr, noise, [DEFAULT_PROMPT if prompt is None else prompt] * 2).clamp(0, 1)
            assert expected.std() > 0.01  # a picture, not all black or white
            worst = min(worst, psnr(source(lr, noise).numpy(), expected.numpy()))
    return worst


def stir(module: nn.Module) -> None:
    """Give an adapter's second factor, which starts at zero, some values."""
    draw = torch.Generator().manual_seed(7)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.05


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (9, 16)])
def test_enlarging_by_convolution_is_exact_up_to_the_border(scale: int, size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(scale))
    torch.testing.assert_close(Enlarge(scale)(image), enlarge(image, scale), atol=2e-6, rtol=0)


@pytest.mark.parametrize("prompt", [None, "the photo"])
def test_folded_sd21_equals_the_model(sd21: OneStepModel, prompt: str | None) -> None:
    assert agreement(sd21, one_step_source(sd21, {}, "0" * 64, prompt), prompt) >= FOLD_FLOOR_DB


def test_noise_of_fewer_channels_is_spread_in_the_graph() -> None:
    model = pocket()
    model.set_noise_channels(2)
    folded = one_step_source(model, {}, "0" * 64)
    assert agreement(model, folded) >= FOLD_FLOOR_DB
    assert folded.noise.channels == folded.specs["generator"].inputs[-1].channels == 2


def test_prompt_is_folded_in(sd21: OneStepModel, source: Source) -> None:
    image, noise = torch.rand(1, 3, 8, 8), torch.zeros(1, 4, 4, 4)
    other = one_step_source(sd21, {}, "0" * 64, "the photo")
    assert float((source(image, noise) - other(image, noise)).abs().max()) > 1e-4


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_folded_pocket_equals_the_model(prediction: str) -> None:
    model = pocket(prediction)
    model.set_timesteps(300, 120)
    folded = one_step_source(model, {}, "0" * 64)
    assert agreement(model, folded) >= FOLD_FLOOR_DB
    assert (folded.t_n, folded.t_d) == (300, 120)


def test_convolutional_projections_and_shifted_latents_fold_too(sd21: OneStepModel, checkpoint: Path) -> None:
    model = load_model(checkpoint)
    transformer = model.unet.down_blocks[0].attentions[0]
    for name in ("proj_in", "proj_out"):
        linear = getattr(transformer, name)
        conv = nn.Conv2d(linear.in_features, linear.out_features, 1)
        conv.weight, conv.bias = nn.Parameter(linear.weight[:, :, None, None]), linear.bias
        setattr(transformer, name, conv)
    transformer.use_linear_projection = False
    model.vae.register_to_config(shift_factor=0.2)
    assert agreement(model, one_step_source(model, {}, "0" * 64)) >= FOLD_FLOOR_DB


def test_half_precision_weights_are_folded_in_float32(checkpoint: Path) -> None:
    model = load_model(checkpoint, dtype=torch.bfloat16)
    encoder, generator = fold(model)
    assert {p.dtype for part in (encoder, generator) for p in part.state_dict().values()} == {torch.float32}


def test_nothing_of_text_time_and_prompt_is_left(sd21: OneStepModel, source: Source) -> None:
    names = [name for module in source.modules.values() for name, _ in module.named_parameters()]
    assert not [name for name in names if "time" in name or "text" in name]
    assert not [name for name in names if "attn2.to_k" in name or "attn2.to_v" in name]
    whole = dict(sd21.unet.named_parameters()) | {f"vae.{n}": p for n, p in sd21.vae.named_parameters()}
    gone = sum(p.numel() for n, p in whole.items() if "time_" in n or "attn2.to_k" in n or "attn2.to_v" in n)
    channels = 4
    last = sd21.vae.encoder.conv_out
    merged = sum(p.numel() for p in sd21.vae.quant_conv.parameters())  # into the convolution before it,
    merged += channels * (last.weight[0].numel() + 1)  # which then gives the mean without the variance
    assert source.parameters == sum(p.numel() for p in whole.values()) - gone - merged


def test_source_tells_sizes_and_noise(source: Source) -> None:
    assert source.kind == KIND
    assert (source.size.multiple_of, source.size.tile, source.size.overlap) == (4, 128, 16)
    assert (source.noise.channels, source.noise.downscale) == (4, 2)
    assert (source.t_n, source.t_d, source.training) == (250, 100, {"steps": 3})
    assert [tensor.name for tensor in source.specs["generator"].inputs] == ["features", "noise"]
    features = source.encode(torch.rand(1, 3, 8, 12))
    spec = source.specs["encoder"].outputs[0]
    assert [tuple(value.shape) for value in features] == [source.shape(spec, 8, 12)]


def test_runs_are_merged_and_folded(sd21: OneStepModel, checkpoint: Path, tmp_path: Path) -> None:
    trained = load_model(checkpoint)
    trained.unet, trained.vae = unet_lora(trained.unet), vae_encoder_lora(trained.vae)
    stir(trained.unet)
    stir(trained.vae)
    with pytest.raises(FoldError, match="the vae still carries an adapter: merge it first"):
        fold(trained)
    save_run_model(
        tmp_path / "run" / "model",
        base=checkpoint,
        noise_timestep=200,
        denoise_timestep=90,
        unet_adapter=trained.unet,
        vae_adapter=trained.vae,
        provenance={"stage": "gdpo"},
    )
    loaded = load_source(tmp_path / "run")
    trained.set_timesteps(200, 90)
    assert (loaded.kind, loaded.training, loaded.t_n, loaded.t_d) == (KIND, {"stage": "gdpo"}, 200, 90)
    assert agreement(trained, loaded) >= FOLD_FLOOR_DB  # against the adapters as they were, unmerged
    assert agreement(sd21, loaded) < 60
    assert loaded.checkpoint_sha256 != load_source(checkpoint).checkpoint_sha256
    save_merged(trained, tmp_path / "merged")
    assert agreement(trained, load_source(tmp_path / "merged")) >= FOLD_FLOOR_DB


def test_a_run_s_own_prompt_is_its_default_and_that_of_what_stands_on_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    adapter = unet_lora(load_model(checkpoint).unet)
    for name, base, prompt in (("first", checkpoint, "the photo"), ("second", tmp_path / "first", "")):
        save_run_model(
            tmp_path / name / "model",
            base=base,
            noise_timestep=250,
            denoise_timestep=100,
            unet_adapter=adapter,
            vae_adapter=None,
            provenance={"settings": {"prompt": prompt}},
        )
    for folder in (tmp_path / "second", merge_run(tmp_path / "second", tmp_path / "merged")):
        model = load_model(folder)
        assert model.prompt == "the photo"
        given, expected = model.condition(None, 2), model.condition(["the photo"] * 2, 2)
        assert given is not None
        assert expected is not None
        assert torch.equal(given, expected)
    assert load_source(tmp_path / "merged").prompt == "the photo"
    assert load_source(tmp_path / "merged", prompt="another").prompt == "another"
    assert load_source(checkpoint).prompt == DEFAULT_PROMPT


def test_public_layout_is_loaded_with_a_base(checkpoint: Path, tmp_path: Path) -> None:
    public = make_public_layout(tmp_path / "public", seed=1)
    loaded = load_source(public, base=checkpoint, prompt="the photo")
    assert agreement(load_model(public, base=checkpoint), loaded, "the photo") >= FOLD_FLOOR_DB
    again = load_source(public, base=checkpoint)
    assert loaded.checkpoint_sha256 == again.checkpoint_sha256  # weights, not the prompt
    with pytest.raises(ValueError, match="with base="):
        load_source(public)
    with pytest.raises(FileNotFoundError, match=r"not a student checkpoint.*and not a one-step model"):
        load_source(tmp_path)


def test_unknown_parts_are_named(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    model.unet.mid_block.resnets[1].time_embedding_norm = "scale_shift"
    with pytest.raises(
        FoldError, match=r"unet\.mid_block\.resnets\.1: expected .*default.*, got scale_shift"
    ):
        fold(model)
    model = load_model(checkpoint)
    model.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.norm_q = nn.LayerNorm(8)
    with pytest.raises(FoldError, match=r"transformer_blocks\.0\.attn1\.norm_q: expected nothing"):
        fold(model)
    model = load_model(checkpoint)
    model.unet.register_to_config(class_embed_type="timestep")
    with pytest.raises(FoldError, match="setting class_embed_type: expected nothing, got timestep"):
        fold(model)
