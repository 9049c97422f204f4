"""Export: ONNX graphs equal to torch, INT8, the bundle as a whole, and what happens when something is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip(
    "skimage", reason="needs the extra `export`, whose scikit-image holds the calibration photos"
)

from export import cli as command_line  # noqa: E402
from export import write_bundle as writer  # noqa: E402  (after importorskip)
from export.load import load_source, student_source  # noqa: E402
from export.onnx.graph.convert import OnnxPair  # noqa: E402
from export.onnx.target import ONNX_FLOOR_DB, STUDENT_PRECISIONS  # noqa: E402
from export.parity import ParityError, check_parity  # noqa: E402
from export.source import Source  # noqa: E402
from export.student.model.checkpoint import save_student  # noqa: E402
from export.student.model.network import Student, StudentConfig  # noqa: E402
from runtime.bundle.reader import Bundle  # noqa: E402
from runtime.upscale.upscaler import Upscaler  # noqa: E402

pytestmark = pytest.mark.usefixtures("exports_once")

SMALL = StudentConfig(width=16, encoder_blocks=1, generator_blocks=1, detail=16, fold=1, consistent=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    student = Student(SMALL)
    with torch.no_grad():
        student.generator.last.weight.mul_(5)  # a residual that is worth quantizing
        student.generator.trust.bias.zero_()
    save_student(student, folder, {"steps": 0})
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "small.gdposr"
    writer.write_bundle(checkpoint, out)
    return out


def graphs(bundle: Path, precision: str) -> dict[str, Path]:
    return {role: bundle / f"{role}.{precision}.onnx" for role in ("encoder", "generator")}


def parity(source: Source, bundle: Path, precision: str) -> float:
    pair = OnnxPair(source.specs, graphs(bundle, precision))
    return check_parity(source, pair, precision, ONNX_FLOOR_DB[precision], remedy="")


@pytest.mark.parametrize("precision", STUDENT_PRECISIONS)
def test_each_precision_keeps_its_floor_against_torch(
    checkpoint: Path, exported: Path, precision: str
) -> None:
    worst = parity(load_source(checkpoint), exported, precision)
    assert worst >= ONNX_FLOOR_DB[precision]
    assert json.loads((exported / "manifest.json").read_text())["accuracy"]["parity_db"][precision] == round(
        worst, 1
    )


def test_parity_check_refuses_other_weights(exported: Path) -> None:
    torch.manual_seed(1)
    with pytest.raises(ParityError, match="fp32: expected at least 100 dB"):
        parity(student_source(Student(SMALL), {}, "0" * 64), exported, "fp32")


def test_graphs_are_dynamic_readable_and_free_of_the_exporting_machine(exported: Path) -> None:
    for role, names in {"encoder": ["image"], "generator": ["features", "base", "noise"]}.items():
        model = onnx.load(exported / f"{role}.fp32.onnx")
        assert [value.name for value in model.graph.input] == names
        assert {"model", "checkpoint_sha256"} <= {entry.key for entry in model.metadata_props}
        text = model.SerializeToString()
        assert b"site-packages" not in text
        assert b".py" not in text
        kinds = {node.op_type for node in model.graph.node}
        phone = {
            "Conv",
            "Relu",
            "LeakyRelu",
            "Add",
            "Sub",
            "Pad",
            "Clip",
            "DepthToSpace",
            "SpaceToDepth",
            "Concat",
        }
        assert kinds <= phone | {
            "Reshape",
            "Transpose",
            "Shape",
            "Slice",
            "Gather",
            "Constant",
            "Div",
            "Mul",
            "Cast",
            "ReduceMean",
            "Sigmoid",
            "Squeeze",
            "AveragePool",
        }, kinds


def test_bundle_runs_in_the_runtime_and_passes_its_probe(
    exported: Path, make_pixels: Callable[..., np.ndarray]
) -> None:
    Bundle.open(exported).verify()
    image = make_pixels(20, 30)
    results = {}
    for precision in STUDENT_PRECISIONS:
        with Upscaler(exported, device="cpu", precision=precision) as upscaler:
            (results[precision],) = upscaler.up(image, seed=3)
            assert upscaler.precision == precision
    assert results["fp32"].shape == (80, 120, 3)
    for precision in ("fp16", "int8"):
        difference = results[precision].astype(float) - results["fp32"]
        assert np.sqrt(np.mean(difference**2)) < 4.0, precision


def test_tiles_of_a_student_agree_to_the_byte(exported: Path, make_pixels: Callable[..., np.ndarray]) -> None:
    image = make_pixels(70, 90)
    with Upscaler(exported, device="cpu", precision="fp32", tile=256) as whole:
        expected = whole.up(image, seed=1)[0].astype(int)
    with Upscaler(exported, device="cpu", precision="fp32", tile=32) as tiled:
        came = tiled.up(image, seed=1)[0].astype(int)
    assert np.array_equal(expected, came), f"largest difference {np.abs(expected - came).max()}"


@pytest.mark.slow
def test_same_checkpoint_gives_the_same_bytes(
    checkpoint: Path, exported: Path, tmp_path: Path, exports_once: dict[Any, bytes]
) -> None:
    exports_once.clear()
    writer.write_bundle(checkpoint, tmp_path / "small.gdposr")
    for path in sorted(exported.iterdir()):
        assert (tmp_path / "small.gdposr" / path.name).read_bytes() == path.read_bytes(), path.name


def test_failed_export_leaves_the_old_bundle(
    checkpoint: Path,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = Path(shutil.copytree(exported, tmp_path / "b.gdposr"))
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    monkeypatch.setattr("export.onnx.target.ONNX_FLOOR_DB", {"fp32": 1000.0})
    arguments = ["--checkpoint", str(checkpoint), "--out", str(out), "--precision", "fp32"]
    assert command_line.main(arguments) == 1
    assert "expected at least 1000 dB" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["b.gdposr"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_the_old_bundle_and_nothing_else(
    checkpoint: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    out = Path(shutil.copytree(exported, tmp_path / "b.gdposr"))
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(writer, "_write_probe", fail)  # after the graphs, before the manifest
    with pytest.raises(type(error)):
        writer.write_bundle(checkpoint, out, writer.Wanted(precisions=("fp32",)))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["b.gdposr"]


def test_a_folder_with_files_of_others_is_not_replaced(
    exported: Path, checkpoint: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "manifest.json").write_text('{"manifest_version": 3}')  # a web extension's
    with pytest.raises(FileExistsError, match="is not a bundle"):
        writer.write_bundle(checkpoint, own)
    mixed = tmp_path / "mixed.gdposr"
    shutil.copytree(exported, mixed)
    (mixed / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt, which is not part of the bundle"):
        writer.write_bundle(checkpoint, mixed)
    assert (mixed / "notes.txt").read_text() == "mine"


def test_wrong_arguments_are_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["--checkpoint", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "not a student checkpoint" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    assert command_line.main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "folder")]) == 2
    assert "not a bundle" in capsys.readouterr().err
    out = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "o")]
    assert command_line.main([*out, "--targets", "tflite"]) == 2
    assert "targets: expected some of onnx, coreml, got 'tflite'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
