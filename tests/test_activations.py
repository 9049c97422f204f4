"""A student with 8-bit activations: what is quantized and what never is, ranges that fit photos, packages that compute the same."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("coremltools", reason="needs the extra `coreml`")

from test_coreml import op_counts, package_files, weight_bytes  # noqa: E402  (after importorskip)

from calibration.samples import Sample  # noqa: E402
from export.coreml.activations import W8A8, CalibrationError, best_bound, is_quantized, quantize_activations  # noqa: E402
from export.coreml.compress import VARIANTS, compress  # noqa: E402
from export.coreml.convert import convert  # noqa: E402
from export.coreml.package import read_spec  # noqa: E402
from export.coreml.target import write_coreml  # noqa: E402
from export.load import load_source, student_source  # noqa: E402
from export.mil.evaluate import Evaluator  # noqa: E402
from export.mil.lint import is_compressed, lint  # noqa: E402
from export.mil.package.program import Operation, Program, read_package  # noqa: E402
from export.mil.pair import PackagePair  # noqa: E402
from export.source import ROLES, Source, psnr  # noqa: E402
from export.student.model.network import Student, StudentConfig  # noqa: E402
from runtime.errors import SettingError  # noqa: E402
from runtime.noise import noise_field  # noqa: E402

SMALL = StudentConfig(width=16, encoder_blocks=1, generator_blocks=1, detail=8)
SIDE = 16


def draw(count: int, seed: int = 0) -> list[Sample]:
    """Smooth pictures with an edge, each with its own noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    found = []
    for k in range(count):
        waves = [
            0.5 + 0.3 * np.sin(rng.uniform(2, 12) * x + rng.uniform(2, 12) * y) + 0.15 * (x > y)
            for _ in range(3)
        ]
        lr = np.stack(waves).clip(0, 1).astype(np.float32)
        found.append(Sample(lr, noise_field(seed, k, SIDE // 2, SIDE // 2, channels=4), np.empty(0)))
    return found


def run(model: Callable, sample: Sample) -> np.ndarray:
    """One sample of a source or of a pair of packages."""
    image, noise = sample.lr[None], sample.noise[None]
    if isinstance(model, Source):
        return model(torch.from_numpy(image), torch.from_numpy(noise)).numpy()
    return model(image, noise)


@pytest.fixture(scope="module")
def source() -> Source:
    torch.manual_seed(0)
    student = Student(SMALL)
    with torch.no_grad():
        student.generator.last.weight.mul_(5)  # a residual in which errors show
    return student_source(student, {}, "0" * 64)


@pytest.fixture(scope="module")
def quantized(source: Source) -> Source:
    return quantize_activations(source, draw(8))


def packages_of(source: Source, folder: Path, variant: str = W8A8, **settings: object) -> dict[str, Path]:
    size = {"height": SIDE, "width": SIDE, "variant": variant}
    return {role: convert(source, role, folder, **{**size, **settings}) for role in ROLES}


@pytest.fixture(scope="module")
def packages(
    source: Source, quantized: Source, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Path]]:
    """By variant and role."""
    folder = tmp_path_factory.mktemp("packages")
    return {"fp16": packages_of(source, folder, "fp16"), W8A8: packages_of(quantized, folder)}


def squared_error(values: np.ndarray, bound: float, levels: float) -> float:
    """What symmetric quantization to [-bound, bound] costs, by doing it."""
    step = bound / levels
    return float(np.square(np.clip(np.rint(values / step) * step, -bound, bound) - values).sum())


@pytest.mark.parametrize("levels", [127.5, 255.0])
@pytest.mark.parametrize("kind", ["laplace", "normal", "uniform"])
def test_bound_is_nearly_the_best_of_all(levels: float, kind: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(-2, 2, 200_000) if kind == "uniform" else getattr(rng, kind)(size=200_000)
    largest = float(np.abs(values).max())
    counts, _ = np.histogram(np.abs(values), bins=4096, range=(0, largest))
    found = best_bound(torch.from_numpy(counts), largest, levels)
    best = min(squared_error(values, bound, levels) for bound in np.linspace(0.1, 1, 91) * largest)
    assert squared_error(values, found, levels) <= 1.03 * best
    if kind == "uniform":
        assert found == pytest.approx(largest, rel=0.01)
    else:
        assert squared_error(values, found, levels) < 0.9 * squared_error(values, largest, levels)


def test_result_stays_near_the_float_student(source: Source, quantized: Source) -> None:
    for sample in draw(4, seed=9):
        assert psnr(run(quantized, sample), run(source, sample)) > 38


def test_packages_compute_what_the_quantized_student_computes(
    packages: dict[str, dict[str, Path]], source: Source, quantized: Source
) -> None:
    pair = PackagePair(packages[W8A8], source.specs)
    for sample in draw(2, seed=9):
        came = run(pair, sample)
        close = psnr(came, run(quantized, sample))
        assert close > psnr(came, run(source, sample)) + 3  # scales in float16 move a few values by one step
        assert psnr(came, run(source, sample)) > 38


def test_base_of_the_picture_keeps_every_bit(packages: dict[str, dict[str, Path]]) -> None:
    (sample,) = draw(1, seed=5)
    whole, small = (
        Evaluator(read_package(packages[name]["encoder"]))({"image": sample.lr[None]})["base"]
        for name in packages
    )
    assert np.array_equal(whole, small)


def makers(program: Program) -> dict[str, Operation]:
    return {output.name: op for op in program.operations for output in op.outputs}


def made_by(program: Program, op: Operation, argument: str) -> str:
    """Type of the operation that makes an argument; `input` for one of the program's."""
    (name,) = op.arguments[argument]
    found = makers(program).get(str(name))
    return "input" if found is None else found.type


def test_every_layer_of_the_residual_takes_eight_bits_and_the_picture_none(
    packages: dict[str, dict[str, Path]],
) -> None:
    taken = {}
    for role in ROLES:
        program = read_package(packages[W8A8][role])
        layers = [op for op in program.operations if op.type == "conv"]
        taken[role] = [(made_by(program, op, "x"), made_by(program, op, "weight")) for op in layers]
    eight = ("dequantize", "constexpr_affine_dequantize")
    # The photo reaches its two convolutions in float16; only the bicubic one has float16 weights as well.
    assert sorted(taken["encoder"]) == sorted(
        [("pad", "const"), ("pixel_unshuffle", "constexpr_affine_dequantize"), eight, eight]
    )
    assert taken["generator"] == [eight] * 5
    generator = read_package(packages[W8A8]["generator"])
    (total,) = (op for op in generator.operations if "base" in op.sources)
    assert total.type == "add"
    assert {made_by(generator, total, key) for key in ("x", "y")} == {"input", "conv"}


def test_features_cross_the_border_unquantized(packages: dict[str, dict[str, Path]]) -> None:
    program = read_package(packages[W8A8]["encoder"])
    assert {f.name: makers(program)[f.name].type for f in program.outputs} == {
        "features": "add",
        "base": "conv",
    }


def test_package_is_half_the_size_and_free_of_obstacles(packages: dict[str, dict[str, Path]]) -> None:
    for role in ROLES:
        small, program = packages[W8A8][role], read_package(packages[W8A8][role])
        assert weight_bytes(small) < 0.75 * weight_bytes(packages["fp16"][role])
        assert is_compressed(program)
        assert not lint(program).flags
        about = read_spec(small).description.metadata.userDefined
        assert (small.name, about["gdposr.variant"]) == (f"{role}.{W8A8}.mlpackage", W8A8)
        whole = read_spec(packages["fp16"][role]).description
        assert read_spec(small).description.input == whole.input
        assert read_spec(small).description.output == whole.output


def test_the_same_samples_give_the_same_bytes(
    packages: dict[str, dict[str, Path]], source: Source, tmp_path: Path
) -> None:
    again = packages_of(quantize_activations(source, draw(8)), tmp_path)
    for role in ROLES:
        for name in package_files(again[role]):
            assert (again[role] / name).read_bytes() == (packages[W8A8][role] / name).read_bytes(), name


def test_calibration_leaves_the_source_as_it_was(source: Source) -> None:
    before = {role: {k: v.clone() for k, v in source.modules[role].state_dict().items()} for role in ROLES}
    found = quantize_activations(source, draw(4))
    for role in ROLES:
        assert is_quantized(found.modules[role])
        assert not is_quantized(source.modules[role])
        assert not source.modules[role].training
        after = source.modules[role].state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before[role].items())


def test_samples_of_several_sizes_calibrate_together(source: Source) -> None:
    larger = draw(1)[0]
    larger = dataclasses.replace(larger, lr=np.tile(larger.lr, 2), noise=np.tile(larger.noise, 2))
    found = quantize_activations(source, [*draw(4), larger])
    (sample,) = draw(1, seed=9)
    assert psnr(run(found, sample), run(source, sample)) > 38


def test_a_layer_that_never_fires_is_no_error(source: Source) -> None:
    torch.manual_seed(0)
    student = Student(SMALL)
    with torch.no_grad():
        student.generator.blocks[0].conv1.bias.fill_(-1e4)
    dead = student_source(student, {}, "0" * 64)
    (sample,) = draw(1, seed=9)
    assert psnr(run(quantize_activations(dead, draw(4)), sample), run(dead, sample)) > 30


def test_pixel_buffers_and_listed_sizes_hold_quantized_students(quantized: Source, tmp_path: Path) -> None:
    images = packages_of(quantized, tmp_path / "images", images=True)
    assert [op_counts(images[role])["mul"] for role in ROLES] == [1, 1]  # by 1/255 and by 255
    sizes = packages_of(quantized, tmp_path / "sizes", sizes=[(SIDE, 2 * SIDE)], target="iOS18")
    shapes = read_spec(sizes["generator"]).description.input[0].type.multiArrayType.enumeratedShapes.shapes
    assert len(shapes) == 2


def spoilt(source: Source, role: str, name: str) -> Source:
    """A copy whose parameter of that name is NaN."""
    torch.manual_seed(0)
    other = student_source(Student(SMALL), {}, "0" * 64)
    with torch.no_grad():
        other.modules[role].get_parameter(name).fill_(float("nan"))
    return other


def test_what_cannot_be_calibrated_is_refused_by_name(source: Source) -> None:
    with pytest.raises(CalibrationError, match="at least 4 calibration samples, got 3; draw more"):
        quantize_activations(source, draw(3))
    broken = draw(4)
    broken[2].lr[0, 3, 3] = np.nan
    with pytest.raises(
        CalibrationError, match=r"encoder, calibration sample 3: .* first from .* image; check"
    ):
        quantize_activations(source, broken)
    for role, name, layer in (
        ("encoder", "blocks.0.conv1.weight", r"blocks\.0\.conv1"),
        ("generator", "expand.bias", "expand"),
    ):
        message = rf"{role}, calibration sample 1: expected finite numbers, got NaN .* first from .* {layer};"
        with pytest.raises(CalibrationError, match=message):
            quantize_activations(spoilt(source, role, name), draw(4))
    with pytest.raises(SettingError, match=r"w8a8: expected a student.* got a one-step model; distil"):
        quantize_activations(dataclasses.replace(source, kind="one-step model"), draw(4))


def test_a_package_cannot_become_this_variant(packages: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="w8a8: expected a variant of weights alone"):
        compress(packages["fp16"]["encoder"], W8A8, tmp_path / "e.mlpackage")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_export_writes_the_shipped_student_above_its_floor(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="needs the extra `export`")
    from export.parity import samples

    shipped, said = load_source(root / "export" / "weights" / "pocket"), []
    written, measured = write_coreml(
        shipped,
        tmp_path,
        [W8A8],
        "iOS17",
        32,
        False,
        {},
        said.append,
        calibration=samples(shipped, 8, seed=0),
    )
    assert measured["coreml_parity_db"][W8A8] >= VARIANTS[W8A8].floor_db
    assert {path.name for path in tmp_path.iterdir()} == {f"{role}.{W8A8}.mlpackage" for role in ROLES}
    assert all(written[W8A8][role].floor_db == VARIANTS[W8A8].floor_db for role in ROLES)
    assert f"quantizing: {W8A8}, calibrated on 8 samples" in said
