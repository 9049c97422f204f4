"""INT8 of one-step models: what stays in floating point by rule, weights of 8 bits everywhere, and a bundle from the command."""

import collections
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("nncf", reason="needs the extra `export`")
pytest.importorskip("diffusers", reason="needs the extra `train`")
pytest.importorskip(
    "skimage", reason="needs the extra `export`, whose scikit-image holds the calibration photos"
)

import onnxruntime as ort  # noqa: E402  (after importorskip)
from make_miniature_sd21 import make_miniature  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from calibration.samples import SampleSets, draw_sets, save_sets  # noqa: E402
from export import cli as command_line  # noqa: E402
from export.fold.one_step import one_step_source  # noqa: E402
from export.onnx.graph.convert import OnnxPair, export_fp32  # noqa: E402
from export.onnx.graph.weight_only import find_weights  # noqa: E402
from export.onnx.int8.layers import FIRST, LAST, PRODUCT, find_layers, kept_float  # noqa: E402
from export.onnx.int8.quantize import Int8Graphs, Int8Request, quantize_int8  # noqa: E402
from export.onnx.target import ONNX_FLOOR_DB, check_int8  # noqa: E402
from export.source import Source, psnr  # noqa: E402
from runtime.bundle.reader import Bundle  # noqa: E402
from runtime.errors import SettingError  # noqa: E402
from training.model.loading import load_model  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.model.pocket import UnetShape, VaeShape, build_unet, build_vae  # noqa: E402
from training.model.saving import save_merged  # noqa: E402
from training.model.schedule import NoiseSchedule  # noqa: E402

SIDE = 32
SEEDS = 4


@pytest.fixture(scope="module")
def model() -> OneStepModel:
    """A pocket model in few channels, random weights."""
    vae = build_vae(VaeShape(width=8, latent_channels=4, encoder_blocks=(1,) * 4, decoder_blocks=(1,) * 4), 0)
    unet = build_unet(UnetShape(widths=(16,), layers=1, norm_groups=8), 4, 0)
    return OneStepModel(vae, unet, None, NoiseSchedule.scaled_linear()).freeze()


@pytest.fixture(scope="module")
def source(model: OneStepModel) -> Source:
    return one_step_source(model, {}, "0" * 64)


@pytest.fixture(scope="module")
def sets(source: Source) -> SampleSets:
    noise = source.noise
    return draw_sets(
        None, crops=2, seeds=SEEDS, size=SIDE, channels=noise.channels, downscale=noise.downscale
    )


@pytest.fixture(scope="module")
def graphs(source: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return export_fp32(source, tmp_path_factory.mktemp("fp32"), {})


@pytest.fixture(scope="module")
def made(
    graphs: dict[str, Path], source: Source, sets: SampleSets, tmp_path_factory: pytest.TempPathFactory
) -> Int8Graphs:
    return quantize_int8(
        graphs, tmp_path_factory.mktemp("int8"), source.specs, Int8Request(sets, hybrid=True)
    )


def kinds(path: Path) -> dict[str, int]:
    """The operation counts of the graph as ONNX Runtime runs it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(path.with_suffix(".optimized"), load_external_data=False).graph.node
    return collections.Counter(node.op_type for node in nodes)


@pytest.mark.slow
def test_first_convolutions_and_last_ones_stay_float_and_most_of_the_work_is_in_integers(
    made: Int8Graphs, graphs: dict[str, Path]
) -> None:
    rules = {name: why for path in graphs.values() for name, why in kept_float(onnx.load(path)).items()}
    assert rules == dict.fromkeys(
        (
            "encoder/enlarge/Conv",  # the bicubic enlargement, and what it divides by
            "encoder/enlarge/Conv_2",
            "encoder/vae/layers/0/Conv",
            "generator/unet/conv_in/Conv",
            "generator/decoder/layers/0/Conv",
        ),
        FIRST,
    ) | {"generator/unet/out/2/Conv": LAST}
    floats = set(made.to_dict()["float_layers"])
    assert floats >= {*rules, "encoder/vae/layers/8/Conv", "generator/decoder/layers/12/Conv"}
    assert {row.layer for row in made.rows} == made.bits.keys() - rules.keys()
    assert not any("norm" in name.lower() for name in made.bits)
    assert made.share > 0.5
    for role, path in made.paths.items():
        names = [name for name, bits in made.bits.items() if bits == 8 and name.endswith("Conv")]
        assert kinds(path)["QLinearConv"] == len([name for name in names if name.startswith(role)])


@pytest.mark.slow
def test_weights_of_float_layers_have_8_bits_too(made: Int8Graphs, graphs: dict[str, Path]) -> None:
    for role, path in made.paths.items():
        stored = onnx.load(path)
        assert find_weights(stored) == {}
        large = [t.name for t in stored.graph.initializer if np.prod(t.dims) >= 1024 and len(t.dims) == 4]
        floats = [
            t.name for t in stored.graph.initializer if t.data_type == TensorProto.FLOAT and t.name in large
        ]
        # the enlargement and the convolution of the picture
        assert all("enlarge" in name for name in floats), floats
        assert path.stat().st_size < graphs[role].stat().st_size


@pytest.mark.slow
def test_the_pair_keeps_its_floor_and_its_seeds_apart(
    made: Int8Graphs, graphs: dict[str, Path], source: Source, sets: SampleSets
) -> None:
    exact, quantized = OnnxPair(source.specs, graphs), OnnxPair(source.specs, made.paths)
    pairs = [
        (quantized(s.lr[None], s.noise[None]), exact(s.lr[None], s.noise[None])) for s in sets.validation
    ]
    assert min(psnr(came, expected) for came, expected in pairs) >= ONNX_FLOOR_DB["int8"]
    assert len({sample.lr.tobytes() for sample in sets.calibration}) == len(sets.calibration) // SEEDS
    assert made.losses["min_diversity_ratio"] >= 0.95


@pytest.mark.slow  # the exporter takes two minutes for Stable Diffusion's many nodes
def test_products_of_attention_are_never_quantized(tmp_path: Path) -> None:
    source = one_step_source(load_model(make_miniature(tmp_path / "sd21")).freeze(), {}, "0" * 64)
    graph = onnx.load(export_fp32(source, tmp_path, {})["generator"])
    rules = kept_float(graph)
    products = {node.name for node in graph.graph.node if node.op_type == "MatMul"}
    assert {name for name, why in rules.items() if why == PRODUCT} == products
    assert len(products) == 2 * (2 * 4 + 1)  # two products; self and prompt in four blocks, and the VAE's one
    feed = dict(
        zip(("features", "noise"), (x.numpy() for x in source.examples("generator", 16, 16)), strict=True)
    )
    norms = [layer.name for layer in find_layers(graph, feed, 256) if "norm" in layer.name.lower()]
    assert norms == []


def test_an_enlargement_leads_on_to_the_first_convolution() -> None:
    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return helper.make_tensor(name, TensorProto.FLOAT, shape, np.zeros(shape, np.float32).ravel())

    node = helper.make_node
    nodes = [
        node("Conv", ["image", "up"], ["a"], "enlarge", pads=[1] * 4),
        node("DepthToSpace", ["a"], ["b"], "shuffle", blocksize=2),
        node("Conv", ["b", "first"], ["c"], "first", pads=[1] * 4),
        node("Relu", ["c"], ["d"], "relu"),
        node("Conv", ["d", "second"], ["e"], "second", pads=[1] * 4),
    ]
    shapes = {"up": (12, 3, 3, 3), "first": (8, 3, 3, 3), "second": (8, 8, 3, 3)}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("image", "e")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight(n, *s) for n, s in shapes.items()])
    assert kept_float(helper.make_model(graph)) == {"enlarge": FIRST, "first": FIRST}


def test_a_model_too_large_for_nncf_is_refused_before_any_work(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_int8(source)
    monkeypatch.setattr("export.onnx.target.INSIDE_BYTES", 100_000)
    with pytest.raises(
        SettingError, match=r"expected at most 0\.0001 GB of weights in a graph.* in the generator; use w8"
    ):
        check_int8(source)


@pytest.mark.slow
def test_int8_of_a_one_step_model_from_the_command(
    model: OneStepModel, sets: SampleSets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_merged(model, tmp_path / "run" / "model", {"steps": 0})
    (tmp_path / "run" / "config.json").write_text("{}")
    save_sets(sets, tmp_path / "sets.safetensors")
    out = tmp_path / "o.gdposr"
    command = ["--checkpoint", str(tmp_path / "run"), "--out", str(out), "--precision", "fp32", "int8"]
    assert command_line.main([*command, "--calibration", str(tmp_path / "sets.safetensors")]) == 0
    assert "in floating point by rule: 5 x first convolution" in capsys.readouterr().err
    manifest = Bundle.open(out).manifest
    proof = manifest.accuracy["int8"]
    assert proof["hybrid"] is True
    assert 0.5 < proof["int8_share"] < 1
    assert manifest.accuracy["parity_db"]["int8"] >= ONNX_FLOOR_DB["int8"]
    assert manifest.default_precision["cpu"] == "int8"
