"""Packages of a student from end to end: verify against a bundle, lint, devices, and the command."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("skimage", reason="needs the extra `export`, whose scikit-image holds the photos")
ct = pytest.importorskip("coremltools", reason="needs the extra `coreml`")

from coremltools.converters.mil import Builder as mb  # noqa: E402  (after importorskip)
from test_mil_evaluate import save  # noqa: E402

from export import cli as command_line  # noqa: E402
from export.load import load_source  # noqa: E402
from export.mil import device  # noqa: E402
from export.mil.cli import main  # noqa: E402
from export.mil.device import CoreMLRunner, open_runner, unit_range  # noqa: E402
from export.mil.evaluate import Evaluator  # noqa: E402
from export.mil.lint import RULES, lint  # noqa: E402
from export.mil.package.feature import Feature  # noqa: E402
from export.mil.package.program import Operation, Program, read_package  # noqa: E402
from export.mil.package.tensor import PackageError, TensorType  # noqa: E402
from export.mil.pair import PackagePair  # noqa: E402
from export.mil.verify import CHAIN, FLOOR_KEY, VerifyError, default_floor, verify  # noqa: E402
from export.source import psnr  # noqa: E402
from export.student.model.checkpoint import load_student, save_student  # noqa: E402
from export.student.model.network import Student, StudentConfig  # noqa: E402
from runtime.bundle.reader import Bundle  # noqa: E402
from runtime.errors import DeviceError  # noqa: E402

SMALL = StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8)
HEIGHT, WIDTH = 32, 24


def convert(module: Any, inputs: tuple[Any, ...], names: list[str], outputs: list[str], path: Path) -> Any:
    """A float16 package of a torch module."""
    exported = torch.export.export(module.eval(), inputs).run_decompositions({})
    model = ct.convert(
        exported,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT16,
        inputs=[ct.TensorType(name=n, shape=i.shape) for n, i in zip(names, inputs, strict=True)],
        outputs=[ct.TensorType(name=n) for n in outputs],
        skip_model_load=True,
    )
    model.save(str(path))
    return model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student's bundle with fp32 graphs, and beside them its two packages."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("student")
    student = Student(SMALL)
    with torch.no_grad():
        student.generator.last.weight.mul_(5)  # a residual that can be seen
    save_student(student, folder / "checkpoint", {"steps": 0})
    out = folder / "small.gdposr"
    assert (
        command_line.main(
            ["--checkpoint", str(folder / "checkpoint"), "--out", str(out), "--precision", "fp32"]
        )
        == 0
    )
    image = torch.zeros(1, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        features, base = student.encoder(image)
    noise = torch.zeros(1, SMALL.noise_channels, HEIGHT // 2, WIDTH // 2)
    convert(student.encoder, (image,), ["image"], ["features", "base"], out / "encoder.fp16.mlpackage")
    convert(
        student.generator,
        (features, base, noise),
        ["features", "base", "noise"],
        ["sr"],
        out / "generator.fp16.mlpackage",
    )
    return out


@pytest.fixture(scope="module")
def packages(bundle: Path) -> dict[str, Path]:
    return {role: bundle / f"{role}.fp16.mlpackage" for role in ("encoder", "generator")}


def test_student_in_half_precision_keeps_40_db_against_torch(bundle: Path, packages: dict[str, Path]) -> None:
    student, _ = load_student(bundle.parent / "checkpoint")
    source = load_source(bundle.parent / "checkpoint")
    pair = PackagePair(packages, source.specs)
    draw = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, HEIGHT, WIDTH, generator=draw)
    noise = torch.randn(1, SMALL.noise_channels, HEIGHT // 2, WIDTH // 2, generator=draw)
    with torch.no_grad():
        expected = student(image, noise).numpy()
    came = pair(image.numpy(), noise.numpy())
    assert psnr(came, expected) >= 40
    assert psnr(came, expected) < 150  # half precision leaves its mark


def test_verify_gives_every_output_and_the_chain(bundle: Path, packages: dict[str, Path]) -> None:
    said: list[str] = []
    results = verify(list(packages.values()), Bundle.open(bundle), samples=2, say=said.append)
    assert [result.role for result in results] == ["encoder", "generator", CHAIN]
    assert [set(result.outputs) for result in results] == [{"features", "base"}, {"sr"}, {"sr"}]
    assert all(result.ok and result.floor_db == 40 and result.size == (HEIGHT, WIDTH) for result in results)
    assert len(said) == 3
    strict = verify([packages["generator"]], Bundle.open(bundle), samples=1, floor=190)
    assert [result.ok for result in strict] == [False]


def test_verify_finds_wrong_weights(bundle: Path, packages: dict[str, Path], tmp_path: Path) -> None:
    wrong = Path(shutil.copytree(packages["generator"], tmp_path / "generator.fp16.mlpackage"))
    weights = wrong / "Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(weights.read_bytes())
    size, start = (int.from_bytes(content[64 + a : 72 + a], "little") for a in (8, 16))
    content[start : start + size // 2] = bytes(size // 2)  # half of the first weights become zero
    weights.write_bytes(content)
    (result,) = verify([wrong], Bundle.open(bundle), samples=1)
    assert not result.ok
    assert result.error is None


def test_overflow_fails_with_its_operation(bundle: Path, packages: dict[str, Path]) -> None:
    def broken(program: Program, where: str) -> Any:
        run = open_runner(program, where)
        return lambda inputs: run({name: 1e30 * array for name, array in inputs.items()})

    (result,) = verify([packages["encoder"]], Bundle.open(bundle), samples=1, open=broken)
    assert not result.ok
    assert result.error is not None
    assert "got infinity or NaN first from" in result.error


@pytest.mark.parametrize(
    ("where", "floors"), [("reference", [40.0, 70.0, 70.0]), ("ane", [40.0, 40.0, 40.0])]
)
def test_floor_depends_on_the_device(
    bundle: Path, packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch, where: str, floors: list[float]
) -> None:
    monkeypatch.setattr(
        "export.mil.verify.read_package", lambda path: replace(read_package(path), metadata={FLOOR_KEY: "70"})
    )
    results = verify(
        list(packages.values()),
        Bundle.open(bundle),
        samples=1,
        device=where,
        open=lambda program, where: open_runner(program),
    )
    assert [result.floor_db for result in results] == floors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda op: replace(op, type="levitate") if op.type == "conv" else op, "levitate"),
        (
            lambda op: (
                replace(op, outputs=(replace(op.outputs[0], type=TensorType("fp16", (1, 2, 3, 4))),))
                if op.type == "conv"
                else op
            ),
            "the program declares",
        ),
    ],
)
def test_a_broken_package_does_not_stop_the_others(
    bundle: Path, packages: dict[str, Path], change: Callable[[Operation], Operation], message: str
) -> None:
    def broken(program: Program, where: str) -> Any:
        if program.path == packages["encoder"]:
            program = replace(program, operations=tuple(map(change, program.operations)))
        return open_runner(program, where)

    encoder, generator, chain = verify(
        list(packages.values()), Bundle.open(bundle), samples=1, floor=40, open=broken
    )
    assert [result.ok for result in (encoder, generator, chain)] == [False, True, False]
    assert message in str(encoder.error)
    assert message in str(chain.error)


def test_errors_of_core_ml_are_told_in_one_line(
    packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = read_package(packages["encoder"])

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("Error compiling model\nwith a long trace")

    monkeypatch.setattr(device.sys, "platform", "darwin")
    monkeypatch.setattr(device, "load_model", fail)
    with pytest.raises(DeviceError, match=r"loads for 'cpu', got RuntimeError: Error compiling model; try"):
        open_runner(program, "cpu")
    image = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
    with pytest.raises(
        DeviceError, match="a prediction by Core ML, got RuntimeError: Error compiling model; try"
    ):
        CoreMLRunner(program, SimpleNamespace(predict=fail))({"image": image})


def test_packages_of_another_model_are_refused(bundle: Path, tmp_path: Path) -> None:
    other = save(lambda a: mb.relu(x=a), tmp_path / "other.mlpackage", inputs=1)
    with pytest.raises(VerifyError, match=r"expected the inputs of an encoder \['image'\] or of a generator"):
        verify([other], Bundle.open(bundle))


def test_floor_is_what_the_package_promises(packages: dict[str, Path]) -> None:
    program = read_package(packages["encoder"])
    unpacks = Operation("constexpr_lut_to_dense", "weight", {}, ())
    packed = replace(program, operations=(unpacks,), metadata={})
    assert default_floor(program) == 40
    promising = replace(program, metadata={FLOOR_KEY: "70"})
    assert default_floor(promising) == 70
    assert [default_floor(promising, name) for name in device.COMPUTE_UNITS] == [40, 40, 40]
    assert default_floor(replace(packed, metadata={FLOOR_KEY: "31.5"}), "ane") == 31.5
    assert default_floor(packed) == 25
    assert default_floor(replace(packed, metadata={FLOOR_KEY: "31.5"})) == 31.5
    with pytest.raises(PackageError, match="expected a number of dB, got 'much'; give --floor"):
        default_floor(replace(packed, metadata={FLOOR_KEY: "much"}))


def test_devices_other_than_the_reference_need_a_mac(
    packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = read_package(packages["encoder"])
    monkeypatch.setattr(device.sys, "platform", "linux")
    with pytest.raises(DeviceError, match="expected macOS for the device 'ane', got linux"):
        open_runner(program, "ane")
    with pytest.raises(DeviceError, match="expected a device among reference, cpu, gpu, ane"):
        open_runner(program, "tpu")
    asked: list[tuple[Path, str]] = []

    class Model:
        """Answers like a loaded model, by the reference evaluator."""

        def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return Evaluator(program)(inputs)

    def load(path: Path, units: str) -> Model:
        asked.append((path, units))
        (path / "Manifest.json").write_text("{}")  # as coremltools writes it anew
        return Model()

    def content() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in program.path.rglob("*") if file.is_file()}

    before = content()

    monkeypatch.setattr(device.sys, "platform", "darwin")
    monkeypatch.setattr(device, "load_model", load)
    image = np.full((1, 3, HEIGHT, WIDTH), 0.5, np.float32)
    for name, units in device.COMPUTE_UNITS.items():
        run = open_runner(program, name)
        copy = asked[-1][0]
        assert asked[-1] == (copy, units)
        assert copy.name == program.path.name
        assert (copy / "Data").is_dir()
        found = run({"image": image})
        del run
        assert not copy.parent.exists()
        assert content() == before
        assert all(np.array_equal(found[n], a) for n, a in Evaluator(program)({"image": image}).items())


def test_pictures_cross_the_border_in_8_bits() -> None:
    type = TensorType("fp32", (1, 3, 2, 4))
    program: Any = SimpleNamespace(
        path=Path("p"), inputs=(Feature("photo", type, "RGB"),), outputs=(Feature("sr", type, "RGB"),)
    )

    class Negative:
        def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
            from PIL import Image

            assert inputs["photo"].size == (4, 2)
            return {"sr": Image.fromarray(255 - np.asarray(inputs["photo"]))}

    image = np.linspace(0, 1, 24, dtype=np.float32).reshape(1, 3, 2, 4)
    found = unit_range(program, CoreMLRunner(program, Negative()))({"photo": image})["sr"]
    assert found.shape == image.shape
    assert np.abs(found - (1 - image)).max() <= 0.5 / 255 + 1e-6
    program.outputs = (Feature("else", type),)
    with pytest.raises(DeviceError, match=r"expected the outputs \['else'\], got \['sr'\]"):
        CoreMLRunner(program, Negative())({"photo": image})


def test_lint_counts_operations_and_weights(packages: dict[str, Path]) -> None:
    report = lint(read_package(packages["generator"]))
    assert report.operations["conv"] == 5
    assert report.operations["pixel_shuffle"] == 2
    (half,) = [storage for storage in report.storage if storage.kind == "fp16"]
    assert half.tensors >= 5
    assert {flag.rule for flag in report.flags} <= {"padding"}


# what raises each rule, from a (1, 4, 6, 8) float32 array
BREAKERS: dict[str, Callable[[Any], Any]] = {
    "rank": lambda a: mb.expand_dims(x=a, axes=[0]),
    "float32": lambda a: mb.relu(x=a),
    "weights": lambda a: mb.conv(x=a, weight=mb.reshape(x=a, shape=[12, 4, 2, 2]), pad_type="valid"),
    "gather": lambda a: mb.gather(
        x=a, indices=mb.reduce_argmax(x=mb.reshape(x=a, shape=[48, 4]), axis=1, keep_dims=False), axis=1
    ),
    "kernel": lambda a: mb.avg_pool(
        x=mb.tile(x=a, reps=[1, 1, 4, 4]), kernel_sizes=[15, 15], pad_type="valid"
    ),
    "size": lambda a: mb.tile(x=mb.reshape(x=a, shape=[1, 192, 1, 1]), reps=[1, 1, 1, 16385]),
    "whole": lambda a: mb.cast(x=a, dtype="int32"),
    "cast": lambda a: mb.relu(x=mb.cast(x=mb.cast(x=mb.sin(x=a), dtype="fp16"), dtype="fp32")),
    "tokens": lambda a: mb.linear(x=mb.reshape(x=a, shape=[1, 24, 8]), weight=np.ones((5, 8), np.float32)),
    "padding": lambda a: mb.tile(x=mb.reshape(x=a, shape=[1, 192, 1, 1]), reps=[1, 1, 32, 1]),
    "unsupported": lambda a: mb.reduce_prod(x=a, axes=[1]),
}


def test_every_rule_of_lint_is_raised_by_what_breaks_it(tmp_path: Path) -> None:
    assert set(BREAKERS) | {"range"} == set(RULES)
    path = save(
        lambda a: tuple(build(a) for build in BREAKERS.values()), tmp_path / "all.mlpackage", inputs=1
    )
    program = read_package(path)
    makers = {output.name: op for op in program.operations for output in op.outputs}
    broken = [makers[feature.name].name for feature in program.outputs]
    raised = {(flag.rule, flag.name) for flag in lint(program).flags}
    for rule, name in zip(BREAKERS, broken, strict=True):
        assert (rule, name) in raised or rule == "cast", (
            rule
        )  # the cast of a cast stands before its last operation
    assert "cast" in {rule for rule, _ in raised}


def test_products_with_a_matrix_are_told_from_attention(tmp_path: Path) -> None:
    def build(a: Any) -> Any:
        first = mb.matmul(x=a, y=np.ones((8, 5), np.float32), name="matrix")
        return (
            first,
            mb.matmul(x=a, y=np.ones((1, 4, 8, 5), np.float32), name="values"),
            mb.matmul(x=a, y=a, transpose_y=True),
        )

    flags = lint(read_package(save(build, tmp_path / "products.mlpackage", inputs=1))).flags
    assert [flag.name for flag in flags if flag.rule == "tokens"] == ["matrix"]


def test_command_lints_and_verifies(
    bundle: Path, packages: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", str(packages["encoder"]), "--all"]) == 0
    shown = capsys.readouterr()
    assert "conv" in shown.out
    assert "fp16[1, 8, 16, 12]" in shown.out
    assert main(["lint", str(bundle), "--json", "--all"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [Path(report["package"]).name for report in reports] == [p.name for p in packages.values()]
    assert ["conv" in {row[0] for row in report["every_operation"]} for report in reports] == [True, True]

    assert main(["verify", str(bundle), "--samples", "1", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [(result["role"], result["ok"]) for result in results] == [
        ("encoder", True),
        ("generator", True),
        ("chain", True),
    ]
    assert (
        main(
            ["verify", str(packages["encoder"]), "--against", str(bundle), "--samples", "1", "--floor", "180"]
        )
        == 1
    )
    shown = capsys.readouterr()
    assert "FAILED" in shown.out
    assert "encoder on reference" in shown.err

    assert main(["verify", str(bundle), "--device", "ane"]) == 2 or device.sys.platform == "darwin"
    assert main(["lint", str(tmp_path)]) == 2
    assert "got none; check the path" in capsys.readouterr().err
    lonely = shutil.copytree(packages["encoder"], tmp_path / "encoder.fp16.mlpackage")
    assert main(["verify", str(lonely)]) == 2
    assert "name it by --against" in capsys.readouterr().err


def test_strict_lint_fails_where_a_flag_is_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(lambda a: mb.relu(x=a), tmp_path / "float.mlpackage", inputs=1)
    assert main(["lint", str(path)]) == 0
    assert main(["lint", str(path), "--strict"]) == 1
    assert "computed in float32" in capsys.readouterr().out
