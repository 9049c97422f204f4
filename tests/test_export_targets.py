"""Bundles with Core ML packages, and bundles of one-step models."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("coremltools", reason="needs the extra `coreml`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from export import cli as command_line  # noqa: E402
from export import write_bundle as writer  # noqa: E402  (after importorskip)
from export.coreml.compress import VARIANTS, find_weights  # noqa: E402
from export.coreml.convert import convert  # noqa: E402
from export.coreml.package import read_spec  # noqa: E402
from export.coreml.target import ONE_STEP_FLOOR_DB, mixed_plans  # noqa: E402
from export.fold.layers import FoldError  # noqa: E402
from export.load import load_source  # noqa: E402
from export.mil.cli import main as coreml  # noqa: E402
from export.student.model.checkpoint import save_student  # noqa: E402
from export.student.model.network import Student, StudentConfig  # noqa: E402
from runtime.bundle.reader import DEFAULT_BUNDLE, Bundle  # noqa: E402
from runtime.errors import SettingError  # noqa: E402
from runtime.upscale.upscaler import Upscaler  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.model.pocket import UnetShape, VaeShape, build_unet, build_vae  # noqa: E402
from training.model.saving import save_merged  # noqa: E402
from training.model.schedule import NoiseSchedule  # noqa: E402

pytestmark = pytest.mark.usefixtures("exports_once")

SMALL = StudentConfig(width=16, encoder_blocks=1, generator_blocks=1, detail=16, noise_gate=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    student = Student(SMALL)
    with torch.no_grad():
        student.generator.last.weight.mul_(3)
    save_student(student, folder, {"steps": 0})
    return folder


@pytest.fixture(scope="module")
def both(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with fp32 graphs and packages in two variants."""
    out = tmp_path_factory.mktemp("bundles") / "both.gdposr"
    wanted = writer.Wanted(("onnx", "coreml"), ("fp32",), ("fp16", "palette6"), tile=32)
    writer.write_bundle(checkpoint, out, wanted)
    return out


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny one-step model with random weights, as a training run leaves it."""
    vae = build_vae(VaeShape(width=8, latent_channels=4, encoder_blocks=(1,) * 4, decoder_blocks=(1,) * 4), 0)
    unet = build_unet(UnetShape(widths=(16,), layers=1, norm_groups=8), 4, 0)
    run = tmp_path_factory.mktemp("run")
    save_merged(OneStepModel(vae, unet, None, NoiseSchedule.scaled_linear()), run / "model", {"steps": 0})
    (run / "config.json").write_text("{}")  # a run has one, too
    return run


def test_a_bundle_holds_graphs_and_packages(both: Path, make_pixels: Callable[..., np.ndarray]) -> None:
    bundle = Bundle.open(both)
    bundle.verify()
    assert list(bundle.manifest.graphs) == ["fp32"]
    assert list(bundle.manifest.coreml) == ["fp16", "palette6"]
    for variant, pair in bundle.manifest.coreml.items():
        for role, package in pair.items():
            assert package.name == f"{role}.{variant}.mlpackage"
            assert (package.height, package.width, package.target) == (32, 32, "iOS17")
            assert package.floor_db == VARIANTS[variant].floor_db
    parity = bundle.manifest.accuracy["coreml_parity_db"]
    assert parity["fp16"] > parity["palette6"] > VARIANTS["palette6"].floor_db
    with Upscaler(both, device="cpu") as upscaler:
        assert upscaler.up(make_pixels(20, 30))[0].shape == (80, 120, 3)


def test_its_packages_are_verified_by_the_command(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert coreml(["verify", str(both)]) == 0
    rows = capsys.readouterr().out
    assert rows.count("chain") == 2
    assert coreml(["verify", str(both), "--floor", "150"]) == 1


def test_the_packages_that_ship_keep_their_promises(capsys: pytest.CaptureFixture[str]) -> None:
    assert coreml(["verify", str(DEFAULT_BUNDLE), "--samples", "2"]) == 0, capsys.readouterr().out
    rows = capsys.readouterr().out
    assert rows.count("ok") == 3 * len(Bundle.open().manifest.coreml)  # encoder, generator, both in a chain


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_packages(checkpoint: Path, both: Path, tmp_path: Path) -> None:
    from coremltools.converters.mil.mil.builder import Builder

    Builder.name_count["const"] += 3  # as if other models had been converted in between
    wanted = writer.Wanted(("onnx", "coreml"), ("fp32",), ("fp16", "palette6"), tile=32)
    writer.write_bundle(checkpoint, tmp_path / "both.gdposr", wanted)
    files = sorted(path.relative_to(both) for path in both.rglob("*") if path.is_file())
    assert len(files) == 2 + 2 + 1 + 4 * 3  # graphs, pictures, manifest, packages
    for name in files:
        assert (tmp_path / "both.gdposr" / name).read_bytes() == (both / name).read_bytes(), name


def test_packages_alone(checkpoint: Path, both: Path, tmp_path: Path) -> None:
    out = tmp_path / "phone.gdposr"
    writer.write_bundle(checkpoint, out, writer.Wanted(("coreml",), variants=("palette6",), tile=32))
    bundle = Bundle.open(out)
    bundle.verify()
    assert not bundle.manifest.graphs
    assert sorted(path.name for path in out.glob("*.mlpackage")) == [
        "encoder.palette6.mlpackage",
        "generator.palette6.mlpackage",
    ]
    assert coreml(["verify", str(out), "--against", str(both)]) == 0


@pytest.mark.slow
def test_a_mixed_plan_spends_bits_where_they_are_needed(checkpoint: Path, tmp_path: Path) -> None:
    source = load_source(checkpoint)
    packages = {
        role: convert(source, role, tmp_path, height=32, width=32) for role in ("encoder", "generator")
    }
    plans, rows = mixed_plans(source, packages, 32, lambda text: None, floor_db=50.0)
    for role, path in packages.items():
        assert set(plans[role]) == {weight.name for weight in find_weights(read_spec(path))}
        assert set(plans[role].values()) <= {4, 6, 8}
    measured = {(row.layer, row.bits) for row in rows}
    assert measured == {(f"{role}/{name}", bits) for role in plans for name in plans[role] for bits in (4, 6)}
    narrow, _ = mixed_plans(source, packages, 32, lambda text: None, floor_db=35.0)
    assert sum(sum(p.values()) for p in narrow.values()) < sum(sum(p.values()) for p in plans.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "palette5"], "variant: expected one of fp16, .*got 'palette5'"),
        (["--variant", "linear4"], "linear4: expected iOS18 or later, got iOS17"),
        (["--tile", "33"], "expected tiles of at least 16 LR pixels each way in multiples of 2, got 33x33"),
        (["--base", "somewhere"], "a student, which takes no base"),
    ],
)
def test_wrong_wishes_leave_the_old_bundle(
    checkpoint: Path,
    both: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = Path(shutil.copytree(both, tmp_path / "b.gdposr"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    command = ["--checkpoint", str(checkpoint), "--out", str(out), "--targets", "coreml", *arguments]
    assert command_line.main(command) == 2
    assert re.search(message, capsys.readouterr().err)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["b.gdposr"]


@pytest.mark.slow
def test_a_one_step_model_becomes_a_bundle_that_runs(
    one_step: Path, tmp_path: Path, make_pixels: Callable[..., np.ndarray]
) -> None:
    out = tmp_path / "teacher.gdposr"
    wanted = writer.Wanted(("onnx", "coreml"), variants=("fp16",), tile=32)
    manifest = writer.write_bundle(one_step, out, wanted)
    assert (manifest.t_n, manifest.t_d) == (250, 100)
    assert list(manifest.graphs) == ["fp32", "fp16"]
    assert manifest.accuracy["folded_db"] >= 80
    assert manifest.accuracy["fp16_emulated_db"].keys() == {"encoder", "generator"}
    assert manifest.accuracy["coreml_parity_db"]["fp16"] >= ONE_STEP_FLOOR_DB["fp16"]
    source = load_source(one_step)
    image = make_pixels(32, 32)
    assert manifest.color_fix == "wavelet"
    with Upscaler(out, device="cpu", precision="fp32", color_fix="none") as upscaler:
        first, second = upscaler.up(image, seed=1, samples=2)
    noise = torch.from_numpy(_noise(manifest, 32, seed=1))
    tensor = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    expected = (source(tensor, noise)[0] * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(first.astype(int) - expected).max() <= 1
    assert not np.array_equal(first, second)


def test_a_variant_without_a_measured_floor_is_refused_for_one_step_models(
    one_step: Path, tmp_path: Path
) -> None:
    wanted = writer.Wanted(("coreml",), variants=("palette4",), tile=32)
    with pytest.raises(
        SettingError, match="expected one of fp16, linear8, palette8, palette6 for a one-step model"
    ):
        writer.write_bundle(one_step, tmp_path / "o.gdposr", wanted)
    assert not list(tmp_path.iterdir())


def test_graphs_that_were_folded_wrongly_are_not_exported(
    one_step: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.fold.one_step.FOLD_FLOOR_DB", 1000.0)
    with pytest.raises(FoldError, match="folded graphs within 1000 dB"):
        writer.write_bundle(one_step, tmp_path / "o.gdposr")
    assert not list(tmp_path.iterdir())


def _noise(manifest: object, side: int, seed: int) -> np.ndarray:
    from runtime.noise import noise_field

    cells = side // manifest.noise.downscale  # type: ignore[attr-defined]
    return noise_field(seed, 0, cells, cells, channels=manifest.noise.channels)[None]  # type: ignore[attr-defined]
