"""A one-step model on a phone: the generator in chunks, attention by head, norms that stay within half precision, several sizes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("coremltools", reason="needs the extra `coreml`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from export import cli as command_line  # noqa: E402  (after importorskip)
from export.coreml.convert import convert  # noqa: E402
from export.coreml.target import CHUNK_FLOOR_DB, PACKED_CHUNK_FLOOR_DB  # noqa: E402
from export.fold.chunks import Chunk, cut, generator_steps, pack  # noqa: E402
from export.fold.layers import SQUARED_MAX, ChannelNorm, FoldError, GroupNorm, conv_from  # noqa: E402
from export.fold.neural_engine import for_engine, shared_copy  # noqa: E402
from export.fold.one_step import one_step_source  # noqa: E402
from export.load import load_source  # noqa: E402
from export.mil.cli import main as coreml  # noqa: E402
from export.mil.device import Runner, open_runner  # noqa: E402
from export.mil.evaluate import NonFiniteError  # noqa: E402
from export.mil.lint import lint  # noqa: E402
from export.mil.package.program import read_package  # noqa: E402
from export.onnx.graph.convert import export_fp32  # noqa: E402
from export.onnx.graph.ranges import run  # noqa: E402
from export.parity import samples  # noqa: E402
from export.source import Source, feature_psnr  # noqa: E402
from runtime.bundle.manifest import NEWEST_VERSION, Manifest  # noqa: E402
from runtime.bundle.reader import Bundle  # noqa: E402
from runtime.errors import BundleError  # noqa: E402
from tools.sd21_size import int8  # noqa: E402
from training.model.loading import load_model  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.model.pocket import UnetShape, VaeShape, build_unet, build_vae  # noqa: E402
from training.model.saving import save_merged  # noqa: E402
from training.model.schedule import NoiseSchedule  # noqa: E402

TILE = 16
CHUNKS = 3


@pytest.fixture(scope="module")
def source(miniature: Path) -> Source:
    return one_step_source(load_model(miniature).freeze(), {}, "0" * 64)


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pocket model in few channels, without attention, as a training run leaves it."""
    vae = build_vae(VaeShape(width=8, latent_channels=4, encoder_blocks=(1,) * 4, decoder_blocks=(1,) * 4), 0)
    unet = build_unet(UnetShape(widths=(16,), layers=1, norm_groups=8), 4, 0)
    run = tmp_path_factory.mktemp("run")
    save_merged(OneStepModel(vae, unet, None, NoiseSchedule.scaled_linear()), run / "model", {"steps": 0})
    (run / "config.json").write_text("{}")
    return run


def limit_of(source: Source) -> int:
    """Bytes of a chunk that make CHUNKS of a generator."""
    sizes = [step.bytes for step in generator_steps(source)]
    return next(most for most in range(max(sizes), sum(sizes), 1000) if len(pack(sizes, most)) == CHUNKS)


def export(checkpoint: Path, out: Path, limit: int, *options: object) -> Path:
    command = ["--checkpoint", str(checkpoint), "--out", str(out), "--chunk-mb", str(limit / 1e6)]
    assert command_line.main([*command, "--tile", str(TILE), *map(str, options)]) == 0
    return out


@pytest.fixture(scope="module")
def bundle(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, limit = tmp_path_factory.mktemp("bundles") / "pocket.gdposr", limit_of(load_source(pocket))
    return export(pocket, out, limit, "--targets", "coreml", "--variant", "fp16", "palette6")


@pytest.mark.parametrize(
    ("sizes", "limit", "ends"),
    [
        ([3, 1, 1, 1, 3], 9, [5]),
        ([3, 1, 1, 1, 3], 8, [3, 5]),
        ([3, 1, 1, 1, 3], 6, [3, 5]),  # 5 and 4, not 6 and 3
        ([3, 1, 1, 1, 3], 3, [1, 4, 5]),
        ([5], 5, [1]),
    ],
)
def test_chunks_are_few_and_of_like_size(sizes: list[int], limit: int, ends: list[int]) -> None:
    groups = pack(sizes, limit)
    assert [group.stop for group in groups] == ends
    assert [size for group in groups for size in sizes[group]] == sizes


def test_a_part_that_cannot_be_cut_is_an_error(source: Source) -> None:
    with pytest.raises(
        FoldError, match=r"expected parts of at most 0\.001 MB, got one of 0\.\d+ MB that cannot be cut"
    ):
        cut(source, 1000)


def test_chunks_compute_what_the_generator_computes(source: Source) -> None:
    limit = limit_of(source)
    made, names = cut(source, limit)
    assert names == tuple(f"generator-{k}" for k in range(1, CHUNKS + 1))
    features, noise = source.examples("generator", TILE, 2 * TILE)
    values = {"features": features, "noise": noise}
    with torch.no_grad():
        for name in names:
            chunk, spec = made.modules[name], made.specs[name]
            assert isinstance(chunk, Chunk)
            assert 2 * sum(p.numel() for p in (*chunk.parameters(), *chunk.buffers())) <= limit
            given = [values[tensor.name] for tensor in spec.inputs]
            for tensor, value in zip(spec.inputs, given, strict=True):
                assert tuple(value.shape) == source.shape(tensor, TILE, 2 * TILE)
            results = chunk(*given)
            results = (results,) if isinstance(results, torch.Tensor) else results
            values |= {tensor.name: value for tensor, value in zip(spec.outputs, results, strict=True)}
    torch.testing.assert_close(values["sr"], source.generate((features,), noise))
    weights = sum(p.numel() for name in names for p in made.modules[name].parameters())
    assert weights == sum(p.numel() for p in source.modules["generator"].parameters())
    assert cut(source, 10**9) == (source, ("generator",))


def test_a_chunk_of_two_inputs_becomes_a_graph_of_any_size(pocket: Path, tmp_path: Path) -> None:
    source = load_source(pocket)
    cut_source, names = cut(source, max(step.bytes for step in generator_steps(source)))
    several = [name for name in names if len(cut_source.specs[name].inputs) > 1]
    name = min(several, key=lambda name: len(cut_source.modules[name].steps))
    chunk, spec = cut_source.modules[name], cut_source.specs[name]
    export_fp32(replace(cut_source, modules={name: chunk}), tmp_path, {})
    rng = np.random.default_rng(0)
    for cells in (1, 3):
        sides = [round(cells * source.size.multiple_of * tensor.scale) for tensor in spec.inputs]
        given = {
            tensor.name: rng.normal(size=(1, tensor.channels, side, 2 * side)).astype(np.float32)
            for tensor, side in zip(spec.inputs, sides, strict=True)
        }
        with torch.no_grad():
            expected = chunk(*map(torch.from_numpy, given.values()))
        expected = (expected,) if isinstance(expected, torch.Tensor) else expected
        found = run(tmp_path / f"{name}.fp32.onnx", given)
        for tensor, value in zip(spec.outputs, expected, strict=True):
            assert feature_psnr(found[tensor.name], value.numpy()) > 90


@pytest.mark.slow
def test_int8_part_by_part_keeps_the_picture(source: Source, tmp_path: Path) -> None:
    lines: list[str] = []
    assert int8(source, tmp_path, limit_of(source), lines.append) > 30
    assert len(lines) == CHUNKS + 3
    assert all((tmp_path / f"generator-{number}.int8.onnx").exists() for number in range(1, CHUNKS + 1))


def test_attention_by_head_is_the_same_attention(source: Source) -> None:
    made, factors = for_engine(source, samples(source, 1, seed=0, size=TILE))
    assert factors == {}  # nothing in the miniature is large
    (image,), (_, noise) = (source.examples(role, TILE, TILE) for role in ("encoder", "generator"))
    torch.testing.assert_close(made(image, noise), source(image, noise), rtol=1e-4, atol=1e-5)
    ours = {id(p) for module in made.modules.values() for p in module.parameters()}
    assert ours == {id(p) for module in source.modules.values() for p in module.parameters()}
    assert not any(getattr(part, "by_head", False) for part in source.modules["generator"].modules())


@pytest.mark.parametrize("kind", [GroupNorm, ChannelNorm])
def test_a_rescaled_norm_computes_the_same_and_stays_within_half_precision(kind: type) -> None:
    torch.manual_seed(0)
    plain = torch.nn.GroupNorm(4, 16) if kind is GroupNorm else torch.nn.LayerNorm(16)
    x = 900 * torch.randn(1, 16, 8, 8)
    norm = kind(plain, "norm")
    expected = norm(x)
    largest = float(norm.centred(x).abs().max())
    norm.rescale(largest)
    assert norm.shrink <= SQUARED_MAX / largest
    assert float(norm.scaled(x).abs().max()) ** 2 * 16 < 65504
    torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-5)
    norm.rescale(1.0)
    assert torch.isfinite(norm(torch.zeros(1, 16, 8, 8))).all()


@pytest.mark.slow
def test_norms_are_rescaled_where_a_square_would_overflow(source: Source, tmp_path: Path) -> None:
    generator = shared_copy(source.modules["generator"])
    first = generator.unet.conv_in
    generator.unet.conv_in = conv_from(
        3000 * first.weight, 3000 * first.bias, padding=1
    )  # maps of a few thousand
    large = replace(source, modules={**source.modules, "generator": generator})
    made, factors = for_engine(large, samples(source, 1, seed=0, size=TILE))
    assert "generator/unet.down.0.resnets.0.norm1" in factors
    assert all(name.startswith("generator/unet.") for name in factors)
    expected, plain, given = first_chunk(large, tmp_path, "plain")
    with pytest.raises(NonFiniteError, match="got infinity or NaN first from"):
        plain(given)
    _, rescaled, _ = first_chunk(made, tmp_path, "rescaled")
    found = rescaled(given)
    assert min(feature_psnr(found[name], value) for name, value in expected.items()) > 40


def first_chunk(
    source: Source, folder: Path, variant: str
) -> tuple[dict[str, np.ndarray], Runner, dict[str, np.ndarray]]:
    """What the first chunk computes in torch, its package as a runner, and inputs for both."""
    made, names = cut(source, limit_of(source))
    features, noise = source.examples("generator", TILE, TILE)
    with torch.no_grad():
        results = made.modules[names[0]](features, noise)
    outputs = [tensor.name for tensor in made.specs[names[0]].outputs]
    expected = {name: value.numpy() for name, value in zip(outputs, results, strict=True)}
    package = convert(made, names[0], folder, height=TILE, width=TILE, variant=variant)
    given = {"features": features.numpy(), "noise": noise.numpy()}
    return expected, open_runner(read_package(package)), given


@pytest.mark.slow
def test_attention_in_a_package_has_the_form_for_the_neural_engine(source: Source, tmp_path: Path) -> None:
    made, _ = for_engine(source, samples(source, 1, seed=0, size=TILE))
    expected, run, given = first_chunk(made, tmp_path, "fp16")
    found = run(given)
    assert min(feature_psnr(found[name], value) for name, value in expected.items()) > 60
    report = lint(read_package(tmp_path / "generator-1.fp16.mlpackage"))
    assert report.flags == ()
    assert (
        report.operations["einsum"] % 4 == 0
    )  # two products, of self-attention and of attention to the prompt
    assert not {"matmul", "linear"} & report.operations.keys()


@pytest.mark.slow
def test_the_manifest_lists_the_chunks_in_their_order(bundle: Path, pocket: Path) -> None:
    limit = limit_of(load_source(pocket))
    document = json.loads((bundle / "manifest.json").read_text())
    assert document["format_version"] == NEWEST_VERSION
    manifest = Bundle.open(bundle).manifest
    assert manifest.to_dict() == document
    for variant in ("fp16", "palette6"):
        assert isinstance(document["coreml"][variant]["encoder"], dict)
        chunks = document["coreml"][variant]["generator"]
        names = [chunk["files"][0]["file"].partition("/")[0] for chunk in chunks]
        assert names == [f"generator-{k}.{variant}.mlpackage" for k in range(1, CHUNKS + 1)]
        assert chunks[0]["inputs"] == ["features", "noise"]
        assert chunks[-1]["outputs"] == ["sr"]
        for package in manifest.coreml[variant]["generator"].packages:
            weights = next(file.bytes for file in package.files if file.file.endswith("weight.bin"))
            assert weights <= 1.1 * limit  # file headers
    measured = manifest.accuracy["coreml_chunks_db"]
    assert measured["fp16"].keys() == {f"generator-{k}" for k in range(1, CHUNKS + 1)}
    assert min(measured["fp16"].values()) >= CHUNK_FLOOR_DB
    assert min(measured["fp16"].values()) > min(measured["palette6"].values()) >= PACKED_CHUNK_FLOOR_DB


@pytest.mark.slow
def test_every_package_is_free_of_known_obstacles(bundle: Path) -> None:
    assert coreml(["lint", str(bundle), "--strict"]) == 0


@pytest.mark.slow
def test_chunks_that_do_not_fit_together_are_refused(bundle: Path, tmp_path: Path) -> None:
    document = json.loads((bundle / "manifest.json").read_text())

    def refused(edit: Callable[[list[dict]], object], message: str) -> None:
        changed = json.loads(json.dumps(document))
        edit(changed["coreml"]["fp16"]["generator"])
        with pytest.raises(BundleError, match=message):
            Manifest.from_dict(changed)

    refused(
        lambda chunks: chunks.reverse(), r"generator-3.*: inputs: expected some of \['features', 'noise'\]"
    )
    refused(lambda chunks: chunks.pop(), r"generator-2.*: outputs: expected also \['sr'\]")
    refused(
        lambda chunks: chunks.__delitem__(slice(1, None)), "inputs and outputs in chunks, and in nothing else"
    )
    refused(lambda chunks: chunks[0].pop("inputs"), "inputs and outputs in chunks, and in nothing else")
    refused(lambda chunks: chunks[1].update(width=32), "the same sizes, system and kind in every chunk")
    refused(lambda chunks: chunks.append(chunks[0]), "expected different packages")
    with pytest.raises(BundleError, match="expected one package of one size in format 1"):
        Manifest.from_dict(document | {"format_version": 1})


@pytest.mark.slow
def test_chunks_are_verified_by_the_command(
    miniature: Path, source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--targets", "onnx,coreml", "--precision", "fp32", "--variant", "fp16", "palette8")
    out = export(miniature, tmp_path / "both.gdposr", limit_of(source), *options)
    capsys.readouterr()
    assert coreml(["verify", str(out), "--samples", "1"]) == 0
    rows = capsys.readouterr().out
    chunks = " + ".join(f"generator-{k}.fp16.mlpackage" for k in range(1, CHUNKS + 1))
    assert f"encoder.fp16.mlpackage + {chunks}" in rows
    assert rows.count("chain") == 2
    alone = [str(out / f"generator-{k}.fp16.mlpackage") for k in (1, 3)]
    assert coreml(["verify", *alone, "--against", str(out)]) == 2
    assert "expected a chunk before it that gives" in capsys.readouterr().err


@pytest.mark.slow
def test_packages_of_several_sizes_from_the_command(pocket: Path, tmp_path: Path) -> None:
    options = ("--targets", "onnx,coreml", "--precision", "fp32", "--variant", "fp16", "--system", "iOS18")
    limit = limit_of(load_source(pocket))
    out = export(pocket, tmp_path / "sizes.gdposr", limit, *options, "--sizes", "16x32")
    packages = Bundle.open(out).manifest.coreml["fp16"]
    assert {pair.every_size for pair in packages.values()} == {((16, 16), (16, 32))}
    assert coreml(["verify", str(out), "--samples", "1"]) == 0
