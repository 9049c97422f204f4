"""Core ML packages: names, shapes and meaning of what goes in and out, what the Neural Engine asks for, equal bytes, clear errors."""

import dataclasses
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("coremltools", reason="needs the extra `coreml`")

from export.coreml.convert import ConversionError, convert  # noqa: E402  (after importorskip)
from export.coreml.description import AUTHOR  # noqa: E402
from export.coreml.package import operations, quiet, read_spec, weights_folder, write_package  # noqa: E402
from export.load import load_source, student_source  # noqa: E402
from export.mil.package.tensor import PackageError  # noqa: E402
from export.mil.pair import PackagePair  # noqa: E402
from export.source import Source, psnr  # noqa: E402
from export.student.model.network import Student, StudentConfig  # noqa: E402
from runtime.errors import SettingError  # noqa: E402

SMALL = StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8, noise_gate=True)
FLOAT16, FLOAT32 = 65552, 65568  # ArrayFeatureType's element types
SIZE = {"height": 16, "width": 24}
FILES = ["Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin", "Manifest.json"]


def small_source() -> Source:
    torch.manual_seed(0)
    return student_source(Student(SMALL), {"steps": 0}, "ab" * 32)


def op_counts(path: Path) -> dict[str, int]:
    """How often each type of operation occurs, constants left out, by name."""
    types = [operation.type for operation in operations(read_spec(path)) if operation.type != "const"]
    return {name: types.count(name) for name in sorted(set(types))}


def weight_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in weights_folder(path).iterdir())


def package_files(path: Path) -> list[str]:
    """Names of the package's files relative to it, sorted."""
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def features(side: object) -> dict[str, tuple[list[int], int]]:
    """Shape and element type of each array of a description, by name."""
    return {f.name: (list(f.type.multiArrayType.shape), f.type.multiArrayType.dataType) for f in side}


@pytest.fixture(scope="module")
def source() -> Source:
    return small_source()


@pytest.fixture(scope="module")
def packages(source: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    return {
        role: convert(source, role, folder, **SIZE, metadata={"model": "small"})
        for role in ("encoder", "generator")
    }


def test_inputs_and_outputs_have_the_names_and_shapes_of_the_source(packages: dict[str, Path]) -> None:
    encoder, generator = (read_spec(packages[role]).description for role in ("encoder", "generator"))
    assert packages["encoder"].name == "encoder.fp16.mlpackage"
    assert features(encoder.input) == {"image": ([1, 3, 16, 24], FLOAT16)}
    between = {"features": ([1, 8, 8, 12], FLOAT16), "base": ([1, 48, 16, 24], FLOAT16)}
    assert features(encoder.output) == between
    assert features(generator.input) == between | {"noise": ([1, 4, 8, 12], FLOAT16)}
    assert features(generator.output) == {"sr": ([1, 3, 64, 96], FLOAT16)}


def test_package_says_what_it_is_and_what_its_tensors_mean(packages: dict[str, Path]) -> None:
    description = read_spec(packages["generator"]).description
    about, meaning = description.metadata, {f.name: f.shortDescription for f in description.input}
    assert about.author
    assert about.versionString
    assert about.license == "Apache-2.0"
    assert "16x24" in about.shortDescription
    assert "Philox4x32-10" in meaning["noise"]
    assert "(1, 4, 8, 12)" in meaning["noise"]
    assert "Bicubic" in meaning["base"]
    assert "in [0, 1]" in description.output[0].shortDescription
    expected = {
        "kind": "gdposr student", "role": "generator", "scale": "4", "tile": "16x24", "target": "iOS17", "variant": "fp16",
        "floor_db": "70", "t_n": "none", "t_d": "none", "checkpoint_sha256": "ab" * 32, "noise_version": "1",
        "noise_channels": "4", "noise_downscale": "2", "model": "small",
    }  # fmt: skip
    told = {k.removeprefix("gdposr."): v for k, v in about.userDefined.items() if k.startswith("gdposr.")}
    assert told == expected


def test_nothing_of_the_machine_or_the_day_is_kept(packages: dict[str, Path], root: Path) -> None:
    for path in packages.values():
        about = read_spec(path).description.metadata.userDefined
        assert not [key for key in about if "date" in key]
        model = (path / FILES[0]).read_bytes()
        for trace in (str(root), str(Path.home()), os.uname().nodename, "site-packages"):
            assert trace.encode() not in model


def test_program_is_half_precision_and_has_at_most_four_axes(packages: dict[str, Path]) -> None:
    from coremltools.proto import MIL_pb2

    for path in packages.values():
        for operation in operations(read_spec(path)):
            for output in operation.outputs:
                assert output.type.tensorType.rank <= 4, operation
                if operation.type != "const":
                    assert output.type.tensorType.dataType == MIL_pb2.FLOAT16, operation


@pytest.mark.parametrize(("target", "version"), [("iOS17", 8), ("iOS18", 9)])
def test_target_sets_the_version_of_the_model_format(
    source: Source, tmp_path: Path, target: str, version: int
) -> None:
    path = convert(source, "encoder", tmp_path, **SIZE, target=target)
    assert read_spec(path).specificationVersion == version


def test_shipped_student_consists_of_operations_that_phones_accelerate(root: Path, tmp_path: Path) -> None:
    shipped = load_source(root / "export" / "weights" / "pocket")
    counts = {
        role: op_counts(convert(shipped, role, tmp_path, height=16, width=16)) for role in shipped.modules
    }
    assert counts["encoder"] == {"add": 6, "concat": 1, "conv": 14, "pad": 1, "relu": 6, "sub": 1}
    assert counts["generator"] == {
        "add": 5,
        "avg_pool": 1,  # of the trust, with the sigmoid
        "clip": 1,
        "conv": 10,
        "leaky_relu": 1,
        "mul": 2,  # the gate of the noise, and the trust
        "pad": 1,
        "pixel_shuffle": 1,
        "reduce_mean": 1,  # what the picture lacks of the image, with the reshapes, slices and the difference
        "relu": 3,
        "reshape": 2,
        "sigmoid": 1,
        "slice_by_index": 2,
        "sub": 1,
    }


def test_a_consistent_student_keeps_its_picture_and_the_limits_of_phones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = Student(
        StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8, fold=1, consistent=True)
    )
    with torch.no_grad():
        student.generator.last.weight.mul_(10)
        student.generator.trust.bias.fill_(0.1)
    source = student_source(student, {"steps": 0}, "ab" * 32)
    packages = {role: convert(source, role, tmp_path, **SIZE) for role in source.modules}
    for path in packages.values():
        assert (
            max(output.type.tensorType.rank for op in operations(read_spec(path)) for output in op.outputs)
            <= 4
        )
    assert (
        "then the LR image"
        in {f.name: f.shortDescription for f in read_spec(packages["encoder"]).description.output}["base"]
    )
    draw = torch.Generator().manual_seed(1)
    image, noise = (torch.rand(1, channels, *SIZE.values(), generator=draw) for channels in (3, 4))
    with torch.no_grad():
        expected = student(image, noise).numpy()
    assert psnr(PackagePair(packages, source.specs)(image.numpy(), noise.numpy()), expected) >= 60


def test_full_precision_keeps_arrays_and_arithmetic_in_float32(source: Source, tmp_path: Path) -> None:
    path = convert(source, "generator", tmp_path, **SIZE, precision="fp32")
    spec = read_spec(path)
    assert path.name == "generator.fp32.mlpackage"
    assert {kind for _, kind in features((*spec.description.input, *spec.description.output)).values()} == {
        FLOAT32
    }
    assert "cast" not in op_counts(path)


def test_pixel_buffers_for_photo_and_result(source: Source, tmp_path: Path) -> None:
    encoder, generator = (
        read_spec(convert(source, role, tmp_path, **SIZE, images=True)) for role in ("encoder", "generator")
    )
    photo, result = encoder.description.input[0], generator.description.output[0]
    for feature, size in ((photo, (16, 24)), (result, (64, 96))):
        image = feature.type.imageType
        assert feature.type.WhichOneof("Type") == "imageType"
        assert (image.height, image.width) == size
        assert image.colorSpace == image.RGB
        assert "Pixel buffer" in feature.shortDescription
    assert (photo.name, result.name) == ("image", "sr")
    assert "features" in features(generator.description.input)
    assert encoder.description.metadata.userDefined["gdposr.floor_db"] == "50"  # 8 bits keep no more
    scales = [o.type for spec in (encoder, generator) for o in operations(spec) if o.type == "mul"]
    assert len(scales) == 3  # by 1/255, by 255 and by the gate


def test_one_package_can_list_sizes_from_ios18_on(source: Source, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"one tile size for iOS17, got 2; .* iOS18"):
        convert(source, "encoder", tmp_path, **SIZE, sizes=[(16, 16)])
    path = convert(source, "encoder", tmp_path, **SIZE, sizes=[(16, 16)], target="iOS18")
    description = read_spec(path).description
    shapes = description.input[0].type.multiArrayType.enumeratedShapes.shapes
    assert [list(shape.shape) for shape in shapes] == [[1, 3, 16, 24], [1, 3, 16, 16]]
    assert description.metadata.userDefined["gdposr.tile"] == "16x24,16x16"
    assert [feature.name for feature in description.output] == ["features", "base"]


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes_in_another_process(
    packages: dict[str, Path], tmp_path: Path, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    program = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path\n"
        "from test_coreml import SIZE, convert, small_source\n"
        f"convert(small_source(), 'generator', Path({str(tmp_path)!r}), **SIZE, metadata={{'model': 'small'}})\n"
    )
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    first, second = packages["generator"], tmp_path / "generator.fp16.mlpackage"
    assert package_files(first) == package_files(second) == FILES
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_conversion_is_silent_and_leaves_no_setting_behind(
    source: Source, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("coremltools")
    level = log.level
    log.setLevel(logging.INFO)
    try:
        convert(source, "encoder", tmp_path, **SIZE)
        assert log.level == logging.INFO
    finally:
        log.setLevel(level)
    out, err = capfd.readouterr()
    assert out + err == ""
    with pytest.raises(RuntimeError), quiet():
        raise RuntimeError
    assert log.level == level


def test_author_and_license_are_those_of_the_weights(source: Source, tmp_path: Path) -> None:
    def about(source: Source, **metadata: str) -> tuple[str, str, dict[str, str]]:
        path = convert(source, "encoder", tmp_path, **SIZE, metadata=metadata)
        found = read_spec(path).description.metadata
        return found.author, found.license, dict(found.userDefined)

    other = dataclasses.replace(source, kind="one-step model")
    assert about(source)[:2] == (AUTHOR, "Apache-2.0")
    assert about(other)[:2] == ("see the checkpoint", "that of the checkpoint's weights")
    author, license, entries = about(other, author="Somebody", license="OpenRAIL++-M", model="x")
    assert (author, license, entries["gdposr.model"]) == ("Somebody", "OpenRAIL++-M", "x")
    assert not {"gdposr.author", "gdposr.license"} & set(entries)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError("no memory")])
def test_a_full_machine_is_not_blamed_on_the_model(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*arguments: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr("coremltools.convert", full)
    with pytest.raises(type(error), match=r"No space left|no memory"):
        convert(source, "encoder", tmp_path, **SIZE)


class Odd(torch.nn.Module):
    """An encoder of one operation."""

    def __init__(self, operation: Callable) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.operation(image), image * 2


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (torch.lgamma, r"encoder: expected operations that Core ML has.* got lgamma, which it lacks; express"),
        (lambda x: x.reshape(1, 3, 8, 2, 24).sum(3), r"encoder: expected tensors of at most 4 axes, got 5 in reshape"),
        (lambda x: x.reshape(1, 3, 8, 2, 12, 2).sum((3, 5)), r"refuses: .* rank 6"),
    ],
)  # fmt: skip
def test_an_operation_that_does_not_fit_is_named(
    source: Source, tmp_path: Path, operation: Callable, message: str
) -> None:
    odd = dataclasses.replace(source, modules={**source.modules, "encoder": Odd(operation)})
    with pytest.raises(ConversionError, match=message):
        convert(odd, "encoder", tmp_path, **SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "decoder"}, "role: expected one of encoder, generator, got 'decoder'"),
        ({"target": "iOS12"}, "target: expected one of iOS17, iOS18, got 'iOS12'"),
        ({"precision": "int3"}, "precision: expected one of fp16, fp32, got 'int3'"),
        ({"height": 17}, "multiples of 2, got 17x24"),
        ({"width": 8}, "at least 16 LR pixels each way .*got 16x8"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(
    source: Source, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    settings: dict = {"role": "encoder", **SIZE, **change}
    with pytest.raises(SettingError, match=message):
        convert(source, settings.pop("role"), tmp_path, **settings)


def test_a_full_disk_leaves_what_stood_there_and_nothing_half_written(
    packages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = packages["encoder"], tmp_path / "p.mlpackage"
    spec, weights = read_spec(source), source / "Data" / "com.apple.CoreML" / "weights"

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space left"):
            write_package(spec, weights, path)
    assert list(tmp_path.iterdir()) == []
    write_package(spec, weights, path)
    before = {name: (path / name).read_bytes() for name in package_files(path)}
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space left"):
            write_package(spec, weights, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.mlpackage"]
    assert {name: (path / name).read_bytes() for name in package_files(path)} == before


def test_what_is_no_package_is_refused(packages: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"not a Core ML package: expected Manifest\.json"):
        read_spec(tmp_path)
    with pytest.raises(PackageError, match=r"ends in \.mlpackage, got p\.zip"):
        write_package(read_spec(packages["encoder"]), None, tmp_path / "p.zip")
