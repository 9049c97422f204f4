"""Graphs of a folded one-step model: four dimensions at most, ONNX equal to torch, weights inside or beside, half precision."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
for package in ("diffusers", "peft", "transformers"):
    pytest.importorskip(package, reason="needs the extra `train`")

import merge_cases  # noqa: E402  (after importorskip)
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402
from torch import nn  # noqa: E402

from export import write_bundle as writer  # noqa: E402
from export.fold.one_step import KIND, one_step_source  # noqa: E402
from export.load import load_source  # noqa: E402
from export.onnx.graph.convert import OnnxPair, data_file, export_fp32  # noqa: E402
from export.onnx.graph.half import FLOOR_DB, convert_fp16, write_half  # noqa: E402
from export.onnx.graph.ranges import run  # noqa: E402
from export.parity import samples  # noqa: E402
from export.source import Source, psnr  # noqa: E402
from runtime.bundle.reader import Bundle  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402

checkpoint, sd21 = merge_cases.checkpoint, merge_cases.sd21  # fixtures

ONNX_FLOOR_DB = 100.0  # PSNR of the float32 graphs in ONNX Runtime against torch


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


@pytest.mark.slow
def test_graph_has_no_linear_layer_and_at_most_four_dimensions(small: Source) -> None:
    for role, module in small.modules.items():
        assert not [m for m in module.modules() if isinstance(m, nn.Linear | nn.LayerNorm | nn.GroupNorm)]
        program = torch.export.export(module, small.examples(role, 8, 8))
        values = [node.meta.get("val") for node in program.graph.nodes]
        ranks = [value.dim() for value in values if isinstance(value, torch.Tensor)]
        assert max(ranks) == 4, role


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
