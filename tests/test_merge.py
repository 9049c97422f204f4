"""Folding a one-step model: equal to the model it comes from, free of text, time and prompt; its ONNX graphs equal torch."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
for package in ("diffusers", "peft", "transformers"):
    pytest.importorskip(package, reason="needs the extra `train`")

from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402  (after importorskip)
from lora import unet_lora, vae_encoder_lora  # noqa: E402
from make_miniature_sd21 import make_miniature, make_public_layout  # noqa: E402
from torch import nn  # noqa: E402

from export import write_bundle as writer  # noqa: E402
from export.fold.layers import FoldError  # noqa: E402
from export.fold.one_step import FOLD_FLOOR_DB, KIND, Enlarge, fold, one_step_source  # noqa: E402
from export.load import load_source  # noqa: E402
from export.onnx.graph.convert import OnnxPair, data_file, export_fp32  # noqa: E402
from export.onnx.graph.half import FLOOR_DB, convert_fp16, write_half  # noqa: E402
from export.onnx.graph.ranges import run  # noqa: E402
from export.parity import samples  # noqa: E402
from export.source import Source, psnr  # noqa: E402
from runtime.bundle.reader import Bundle  # noqa: E402
from training.model.loading import load_model  # noqa: E402
from training.model.merging import merge_run  # noqa: E402
from training.model.one_step import OneStepModel, enlarge  # noqa: E402
from training.model.pocket import build_unet, build_vae  # noqa: E402
from training.model.saving import save_merged, save_run_model  # noqa: E402
from training.model.schedule import NoiseSchedule  # noqa: E402
from training.model.text import DEFAULT_PROMPT  # noqa: E402
from training.stages.presets import PRETRAIN  # noqa: E402

ONNX_FLOOR_DB = 100.0  # PSNR of the float32 graphs in ONNX Runtime against torch
SIZES = ((8, 16), (4, 4), (20, 12))  # LR pixels


def pocket(prediction: str = "epsilon") -> OneStepModel:
    shape = PRETRAIN["tiny"].shape
    vae, unet = build_vae(shape.vae, 0), build_unet(shape.unet, 4, 1)
    vae.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    return OneStepModel(vae, unet, None, NoiseSchedule(prediction=prediction)).freeze()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_miniature(tmp_path_factory.mktemp("sd21"))


@pytest.fixture(scope="module")
def sd21(checkpoint: Path) -> OneStepModel:
    return load_model(checkpoint)


@pytest.fixture(scope="module")
def source(sd21: OneStepModel) -> Source:
    return one_step_source(sd21, {"steps": 3}, "0" * 64)


@pytest.fixture(scope="module")
def small(sd21: OneStepModel) -> Source:
    """SD2.1's parts, one of a kind, to be exported quickly: factor 4, one level with attention and one in the middle; noise of
    two channels, which the graph spreads to the four of the latent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            block_out_channels=(16,),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            attention_head_dim=(2,),
            cross_attention_dim=32,
            use_linear_projection=True,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            norm_num_groups=8,
        )
    model = OneStepModel(vae, unet, sd21.text, sd21.schedule).freeze()
    model.set_noise_channels(2)
    return one_step_source(model, {}, "0" * 64)


@pytest.fixture(scope="module")
def graphs(small: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return export_fp32(small, tmp_path_factory.mktemp("onnx"), {"model": KIND})


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


@pytest.mark.slow
def test_graph_has_no_linear_layer_and_at_most_four_dimensions(small: Source) -> None:
    for role, module in small.modules.items():
        assert not [m for m in module.modules() if isinstance(m, nn.Linear | nn.LayerNorm | nn.GroupNorm)]
        program = torch.export.export(module, small.examples(role, 8, 8))
        values = [node.meta.get("val") for node in program.graph.nodes]
        ranks = [value.dim() for value in values if isinstance(value, torch.Tensor)]
        assert max(ranks) == 4, role


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


@pytest.mark.slow
def test_an_export_says_and_keeps_the_prompt(
    small: Source, graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(_: Source, folder: Path, *__: object) -> dict[str, Path]:
        return {role: Path(shutil.copy(path, folder)) for role, path in graphs.items()}

    monkeypatch.setattr(writer, "load_source", lambda *_, **__: replace(small, prompt="the photo"))
    monkeypatch.setattr("export.onnx.target.export_fp32", copied)
    lines: list[str] = []
    manifest = writer.write_bundle(
        tmp_path, tmp_path / "b.gdposr", writer.Wanted(precisions=("fp32",)), say=lines.append
    )
    assert "folded for one prompt, the same for every photo: 'the photo'" in lines
    assert (
        manifest.provenance["prompt"]
        == Bundle.open(tmp_path / "b.gdposr").manifest.provenance["prompt"]
        == "the photo"
    )


@pytest.mark.slow
def test_onnx_equals_torch_at_several_sizes(small: Source, graphs: dict[str, Path]) -> None:
    pair = OnnxPair(small.specs, graphs)
    for seed, (height, width) in enumerate(((16, 16), (4, 24), (28, 8))):
        for batch in (1, 3):
            draw = torch.Generator().manual_seed(seed)
            image = torch.rand(batch, 3, height, width, generator=draw)
            noise = torch.randn(batch, 2, height, width, generator=draw)
            came = pair(image.numpy(), noise.numpy())
            assert psnr(came, small(image, noise).numpy()) >= ONNX_FLOOR_DB, (batch, height, width)


@pytest.mark.slow
def test_onnx_graphs_are_readable_and_free_of_the_exporting_machine(graphs: dict[str, Path]) -> None:
    for role, names in {"encoder": ["image"], "generator": ["features", "noise"]}.items():
        model = onnx.load(graphs[role])
        assert [value.name for value in model.graph.input] == names
        assert {entry.key: entry.value for entry in model.metadata_props} == {"model": KIND}
        text = model.SerializeToString()
        assert b"site-packages" not in text
        assert b".py" not in text
        assert all(node.name.startswith(f"{role}/") for node in model.graph.node)
        assert len({node.name for node in model.graph.node}) == len(model.graph.node)
        taken = {name for node in model.graph.node for name in node.input}
        taken |= {value.name for value in model.graph.output}
        assert all(taken & set(node.output) for node in model.graph.node)  # no dead nodes
        inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
        assert max(len(value.type.tensor_type.shape.dim) for value in inferred) <= 4
    names = [node.name for node in onnx.load(graphs["generator"]).graph.node]
    assert "generator/unet/down/0/attentions/0/blocks/0/attn2/to_q/Conv" in names
    assert "generator/decoder/middle/layers/1/attention/to_out/Conv" in names


@pytest.mark.slow
def test_large_weights_stand_in_one_file_beside_the_graph(root: Path, tmp_path: Path) -> None:
    source = load_source(root / "export" / "weights" / "pocket")
    source = replace(source, modules={"encoder": source.modules["encoder"]})
    (tmp_path / "whole").mkdir()
    (tmp_path / "split").mkdir()
    whole = export_fp32(source, tmp_path / "whole", {"model": KIND})["encoder"]
    split = export_fp32(source, tmp_path / "split", {"model": KIND}, inside_bytes=1000)["encoder"]
    assert not data_file(whole).exists()
    assert {path.name for path in split.parent.iterdir()} == {"encoder.fp32.onnx", "encoder.fp32.onnx.data"}
    tensors = onnx.load(split, load_external_data=False).graph.initializer
    places = {entry.value for t in tensors for entry in t.external_data if entry.key == "location"}
    assert places == {"encoder.fp32.onnx.data"}  # relative: the folder can move
    assert split.stat().st_size + data_file(split).stat().st_size == pytest.approx(
        whole.stat().st_size, rel=0.2
    )
    assert {entry.key: entry.value for entry in onnx.load(split).metadata_props} == {"model": KIND}
    feed = {"image": np.random.default_rng(0).random((2, 3, 8, 12), dtype=np.float32)}
    np.testing.assert_array_equal(run(whole, feed)["features"], run(split, feed)["features"])


@pytest.mark.slow
def test_half_precision_of_all_parts_keeps_its_floor(small: Source, graphs: dict[str, Path]) -> None:
    pair = OnnxPair(small.specs, graphs)
    photos = samples(small, 2, seed=3, size=16)
    feeds = {
        "encoder": [{"image": photo.lr[None]} for photo in photos],
        "generator": [pair.encode(photo.lr[None]) | {"noise": photo.noise[None]} for photo in photos],
    }
    halves = {
        role: convert_fp16(path, path.with_name(f"{role}.fp16.onnx"), feeds[role])
        for role, path in graphs.items()
    }
    for half in halves.values():
        assert half.psnr >= FLOOR_DB
        assert half.islands == ()  # random weights: nothing overflows
    image, noise = photos[0].lr[None], photos[0].noise[None]
    came = OnnxPair(small.specs, {role: half.path for role, half in halves.items()})(image, noise)
    assert psnr(came, small(torch.from_numpy(image), torch.from_numpy(noise)).numpy()) >= FLOOR_DB


@pytest.mark.slow
def test_a_students_graphs_keep_the_bytes_that_are_shipped(root: Path, tmp_path: Path) -> None:
    bundle = root / "runtime" / "bundles" / "pocket.gdposr"
    student = load_source(root / "export" / "weights" / "pocket")
    metadata = {entry.key: entry.value for entry in onnx.load(bundle / "encoder.fp32.onnx").metadata_props}
    for role, path in export_fp32(student, tmp_path, metadata).items():
        assert path.read_bytes() == (bundle / path.name).read_bytes(), role
        write_half(path, tmp_path / f"{role}.fp16.onnx", ())
        assert (tmp_path / f"{role}.fp16.onnx").read_bytes() == (bundle / f"{role}.fp16.onnx").read_bytes()
