"""Packages of a student from end to end: verify against a bundle, devices, and the command."""

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

import mil_cases  # noqa: E402  (after importorskip)
from coremltools.converters.mil import Builder as mb  # noqa: E402
from mil_cases import HEIGHT, SMALL, WIDTH  # noqa: E402
from test_mil_evaluate import save  # noqa: E402

from export.load import load_source  # noqa: E402
from export.mil import device  # noqa: E402
from export.mil.cli import main  # noqa: E402
from export.mil.device import CoreMLRunner, open_runner, unit_range  # noqa: E402
from export.mil.evaluate import Evaluator  # noqa: E402
from export.mil.package.feature import Feature  # noqa: E402
from export.mil.package.program import Operation, Program, read_package  # noqa: E402
from export.mil.package.tensor import PackageError, TensorType  # noqa: E402
from export.mil.pair import PackagePair  # noqa: E402
from export.mil.verify import CHAIN, FLOOR_KEY, VerifyError, default_floor, verify  # noqa: E402
from export.source import psnr  # noqa: E402
from export.student.model.checkpoint import load_student  # noqa: E402
from runtime.bundle.reader import Bundle  # noqa: E402
from runtime.errors import DeviceError  # noqa: E402

bundle, packages = mil_cases.bundle, mil_cases.packages  # fixtures


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
