"""Reading Core ML packages: values in place and in weight files, features, and what is said of damaged packages."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
ct = pytest.importorskip("coremltools", reason="needs the extra `coreml`")

from coremltools.converters.mil import Builder as mb  # noqa: E402  (after importorskip)
from coremltools.libmilstoragepython import _BlobStorageWriter  # noqa: E402
from test_mil_evaluate import P, X, save  # noqa: E402

from export.mil.evaluate import Evaluator  # noqa: E402
from export.mil.package.blob import WeightFile  # noqa: E402
from export.mil.package.program import MANIFEST, find_packages, read_package  # noqa: E402
from export.mil.package.proto import messages  # noqa: E402
from export.mil.package.tensor import (  # noqa: E402
    DTYPES,
    EvaluationError,
    PackageError,
    TensorType,
    packed_bytes,
    unpack,
)

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
BIG = np.random.default_rng(3).normal(size=(16, 4, 3, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """relu(conv(a)) with weights in the weight file."""
    path = tmp_path_factory.mktemp("package") / "conv.mlpackage"
    return save(lambda a: mb.relu(x=mb.conv(x=a, weight=BIG, pad_type="valid"), name="r"), path, inputs=1)


@pytest.fixture
def damaged(package: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(package, tmp_path / "damaged.mlpackage"))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change the protobuf of a package."""
    model = messages()[0].Model()
    model.ParseFromString((path / MODEL).read_bytes())
    change(model)
    (path / MODEL).write_bytes(model.SerializeToString())


def block(model: Any) -> Any:
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def test_program_is_plain_data(package: Path) -> None:
    program = read_package(package)
    assert [str(feature.type) for feature in program.inputs] == ["fp32[1, 4, 6, 8]"]
    assert [(feature.name, str(feature.type)) for feature in program.outputs] == [("r", "fp32[1, 16, 4, 6]")]
    assert [op.type for op in program.operations if op.type != "const"] == ["conv", "relu"]
    (weight,) = [op.value for op in program.constants.values() if op.value.weights is not None]
    assert np.array_equal(weight.read(), BIG)
    assert weight.stored_bytes == BIG.nbytes
    assert program.specification == 8
    assert "com.github.apple.coremltools.version" in program.metadata


@pytest.mark.parametrize("name", [name for name, dtype in DTYPES.items() if dtype.blob_code is not None])
def test_weight_file_agrees_with_apples_writer(tmp_path: Path, name: str) -> None:
    dtype = DTYPES[name]
    rng = np.random.default_rng(0)
    if dtype.is_float:
        values = rng.normal(size=15).astype(dtype.array)
    else:
        values = rng.integers(*dtype.limits, size=15, endpoint=True).astype(dtype.array)
    values[:2] = [-1 if dtype.limits[0] else 1, dtype.limits[1] if not dtype.is_float else 2]
    suffix = {"fp32": "float"}.get(name, name)
    writer = _BlobStorageWriter(str(tmp_path / "weight.bin"), True)
    offset = getattr(writer, f"write_{suffix}_data")(values.view(np.uint16) if name == "fp16" else values)
    del writer  # flushes
    weights, declared = WeightFile(tmp_path / "weight.bin"), TensorType(name, (3, 5))
    assert np.array_equal(weights.read(offset, declared), values.reshape(3, 5))
    assert weights.check(offset, declared) == packed_bytes(dtype, 15)


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("uint4", [0xF1, 0x05], [1, 15, 5]),
    ("int4", [0xF8, 0x07], [-8, -1, 7]),
    ("uint1", [0b101], [1, 0, 1]),
    ("uint2", [0b010011], [3, 0, 1]),
    ("uint3", [0x4F, 0x05], [7, 1, 5, 2]),
    ("uint6", [0x7F, 0x50, 0x00], [63, 1, 5]),
])  # fmt: skip
def test_narrow_elements_begin_at_the_lowest_bit(name: str, content: list[int], expected: list[int]) -> None:
    assert unpack(np.array(content, np.uint8), DTYPES[name], len(expected)).tolist() == expected


def test_values_in_place_keep_their_type(tmp_path: Path) -> None:
    constants = {
        "half": np.array([1.5, -2], np.float16),
        "single": np.array([[0.1]], np.float32),
        "byte": np.array([-3, 4], np.int8),
        "word": np.array([7, 65535], np.uint16),
        "whole": np.array(-5, np.int32),
        "truth": np.array([True, False]),
    }

    def build(a: Any) -> Any:
        for name, value in constants.items():
            mb.const(val=value, name=name)
        return mb.relu(x=a)

    program = read_package(save(build, tmp_path / "values.mlpackage", inputs=1))
    for name, value in constants.items():
        read = program.constants[name].value.read()
        assert isinstance(read, np.ndarray)
        assert (read.dtype, read.tolist()) == (value.dtype, value.tolist()), name


def test_images_come_and_go_in_their_own_range(tmp_path: Path) -> None:
    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3, 4, 6))], opset_version=ct.target.iOS17)
    def negative(photo: Any) -> Any:
        return mb.sub(x=1.0, y=photo, name="picture")

    def give_image(spec: Any) -> None:
        spec.description.output[0].type.imageType.colorSpace = 20  # RGB

    model = ct.convert(
        negative,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        inputs=[
            ct.ImageType(name="photo", shape=(1, 3, 4, 6), scale=1 / 255, color_layout=ct.colorlayout.BGR)
        ],
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    model.save(str(tmp_path / "image.mlpackage"))
    edit(tmp_path / "image.mlpackage", give_image)  # the builder's programs give arrays
    program = read_package(tmp_path / "image.mlpackage")
    assert (program.inputs[0].image, program.outputs[0].image) == ("BGR", "RGB")
    pixels = np.arange(72, dtype=np.float32).reshape(1, 3, 4, 6)
    came = Evaluator(program)({"photo": pixels})["picture"]
    np.testing.assert_allclose(came, 1 - pixels / 255, atol=1e-6)
    with pytest.raises(EvaluationError, match=r"expected an image in \[0, 255\], got \[0, 710\]"):
        Evaluator(program)({"photo": 10 * pixels})


def test_enumerated_and_free_sizes_are_kept(tmp_path: Path) -> None:
    class Twice(torch.nn.Module):
        def forward(self, a: Any) -> Any:
            return torch.nn.functional.pixel_shuffle(torch.relu(a), 2)

    traced = torch.export.export(
        Twice(), (torch.zeros(1, 4, 8, 8),), dynamic_shapes=({2: torch.export.Dim("h", min=4, max=16)},)
    ).run_decompositions({})
    shapes = {
        "enumerated": ct.EnumeratedShapes([(1, 4, 8, 8), (1, 4, 12, 8)]),
        "range": ct.Shape((1, 4, ct.RangeDim(4, 16, default=8), 8)),
    }
    for kind, shape in shapes.items():
        model = ct.convert(
            traced,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            inputs=[ct.TensorType(name="a", shape=shape)],
            skip_model_load=True,
        )
        model.save(str(tmp_path / f"{kind}.mlpackage"))
        program = read_package(tmp_path / f"{kind}.mlpackage")
        assert program.inputs[0].flexible == kind
        (came,) = Evaluator(program)({"a": np.ones((1, 4, 12, 8), np.float32)}).values()
        assert came.shape == (1, 1, 24, 16)
        with pytest.raises(EvaluationError, match=r"got (shape )?\[1, 4, 20, 8\]"):
            Evaluator(program)({"a": np.ones((1, 4, 20, 8), np.float32)})


def test_unknown_operation_is_named_before_anything_runs(damaged: Path) -> None:
    def change(model: Any) -> None:
        block(model).operations[-1].type = "relu_of_tomorrow"

    edit(damaged, change)
    with pytest.raises(
        EvaluationError, match=r"operation relu_of_tomorrow 'r': expected one of the \d+ that are known"
    ):
        Evaluator(read_package(damaged))


def test_wrong_declaration_is_noticed(damaged: Path) -> None:
    def change(model: Any) -> None:
        conv = next(op for op in block(model).operations if op.type == "conv")
        conv.outputs[0].type.tensorType.dimensions[2].constant.size = 5

    edit(damaged, change)
    with pytest.raises(
        EvaluationError, match=r"conv .*declares fp32\[1, 16, 5, 6\], got shape \[1, 16, 4, 6\]"
    ):
        Evaluator(read_package(damaged))({"a": X})


def test_damaged_packages_are_explained(damaged: Path, tmp_path: Path) -> None:
    whole = {path: (damaged / path).read_bytes() for path in (Path(MANIFEST), MODEL, WEIGHTS)}

    def expect(match: str) -> None:
        with pytest.raises(PackageError, match=match):
            read_package(damaged)
        for path, content in whole.items():
            (damaged / path).parent.mkdir(parents=True, exist_ok=True)
            (damaged / path).write_bytes(content)

    with pytest.raises(PackageError, match=r"expected an \.mlpackage folder"):
        read_package(tmp_path / "nothing.mlpackage")
    with pytest.raises(PackageError, match="got none; check the path"):
        find_packages(tmp_path / "nothing.gdposr")
    (damaged / MANIFEST).write_text("{}")
    expect("expected the package's items")
    manifest = json.loads(whole[Path(MANIFEST)])
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../elsewhere"
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    expect("expected a file inside the package")
    (damaged / MODEL).unlink()
    expect("expected the model's program, got nothing")
    (damaged / MODEL).write_bytes(b"\xff" * 40)
    expect("expected a Core ML model, got other bytes")
    (damaged / MODEL).write_bytes(messages()[0].Model(neuralNetwork={}).SerializeToString())
    expect("expected an ML program, got a model of type neuralNetwork")
    (damaged / WEIGHTS).unlink()
    expect("expected the weights of the program, got nothing")
    (damaged / WEIGHTS).write_bytes(whole[WEIGHTS][:-200])
    expect("the file is damaged or belongs to another package")
    (damaged / WEIGHTS).write_bytes(whole[WEIGHTS][:64] + bytes(64) + whole[WEIGHTS][128:])
    expect("expected the mark 0xdeadbeef, got 0x0")
    half = struct.pack("<II", 0xDEADBEEF, 1)
    (damaged / WEIGHTS).write_bytes(whole[WEIGHTS][:64] + half + whole[WEIGHTS][72:])
    expect(r"expected element type 2 \(fp32\), got 1")
    with pytest.raises(PackageError, match=r"expected a function 'other', got \['main'\]"):
        read_package(damaged, "other")


def test_weights_are_read_only_when_needed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    whole = WeightFile.read

    def counted(self: WeightFile, offset: int, type: TensorType) -> np.ndarray:
        reads.append(offset)
        return whole(self, offset, type)

    monkeypatch.setattr(WeightFile, "read", counted)
    evaluator = Evaluator(read_package(package))
    assert reads == []
    evaluator({"a": P})
    assert len(reads) == 1
