"""Compressed Core ML packages: how small, how exact, what stays untouched, and which bits the measured noise asks for."""

import itertools
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("coremltools", reason="needs the extra `coreml`")

from test_coreml import op_counts, package_files, weight_bytes  # noqa: E402  (after importorskip)

from calibration.sensitivity import plan, predicted_db  # noqa: E402
from export.coreml import compress as presets  # noqa: E402
from export.coreml.activations import W8A8  # noqa: E402
from export.coreml.compress import BLOCK, FP16, MIXED, VARIANTS, Weight, compress, find_weights, palette  # noqa: E402
from export.coreml.convert import TARGETS, convert  # noqa: E402
from export.coreml.mixed import weight_noise  # noqa: E402
from export.coreml.package import read_spec  # noqa: E402
from export.load import student_source  # noqa: E402
from export.mil.evaluate import Evaluator  # noqa: E402
from export.mil.package.program import read_package  # noqa: E402
from export.mil.package.tensor import PackageError  # noqa: E402
from export.source import Source, psnr  # noqa: E402
from export.student.model.network import Student, StudentConfig  # noqa: E402
from runtime.errors import SettingError  # noqa: E402

SMALL = StudentConfig(width=32, encoder_blocks=1, generator_blocks=1, detail=16)
ROLES = ("encoder", "generator")
# Share of the float16 weights that a variant may take, both packages together; the base and small weights stay as they are.
MOST = {FP16: 1.0, "linear8": 0.60, "palette8": 0.66, "palette6": 0.49, "palette4": 0.36, "linear4": 0.40}
LEAST_DB = {
    FP16: 60.0,
    "linear8": 50.0,
    "palette8": 50.0,
    "palette6": 40.0,
    "palette4": 30.0,
    "linear4": 30.0,
}
CASES = [
    (variant, target)
    for variant, target in itertools.product(MOST, TARGETS)
    if TARGETS[VARIANTS[variant].target] <= TARGETS[target]
]


@pytest.fixture(scope="module")
def source() -> Source:
    torch.manual_seed(0)
    student = Student(SMALL)
    with torch.no_grad():
        student.generator.last.weight.mul_(5)  # a residual in which errors show
    return student_source(student, {}, "0" * 64)


@pytest.fixture(scope="module")
def packages(source: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """float16 packages by target and role."""
    folder = tmp_path_factory.mktemp("packages")
    return {
        target: {
            role: convert(source, role, folder / target, height=16, width=16, target=target) for role in ROLES
        }
        for target in TARGETS
    }


def run(packages: dict[str, Path], source: Source) -> float:
    """PSNR in dB of both packages' joint result against torch."""
    image, noise = source.examples("encoder", 16, 16)[0], source.examples("generator", 16, 16)[-1]
    features = Evaluator(read_package(packages["encoder"]))({"image": image.numpy()})
    came = Evaluator(read_package(packages["generator"]))({**features, "noise": noise.numpy()})["sr"]
    return psnr(came, source(image, noise).numpy())


@pytest.mark.parametrize(("variant", "target"), CASES)
def test_variant_is_small_exact_and_otherwise_the_same_package(
    packages: dict[str, dict[str, Path]], source: Source, tmp_path: Path, variant: str, target: str
) -> None:
    whole = packages[target]
    small = {
        role: compress(path, variant, tmp_path / f"{role}.{variant}.mlpackage")
        for role, path in whole.items()
    }
    share = sum(map(weight_bytes, small.values())) / sum(map(weight_bytes, whole.values()))
    assert share <= MOST[variant], f"{variant} for {target} takes {share:.2f} of float16"
    assert run(small, source) >= LEAST_DB[variant]
    for role in ROLES:
        before, after = read_spec(whole[role]), read_spec(small[role])
        assert after.specificationVersion == TARGETS[target]
        assert after.description.input == before.description.input
        assert after.description.output == before.description.output
        told = dict(after.description.metadata.userDefined)
        assert told.pop("gdposr.variant") == variant
        assert float(told.pop("gdposr.floor_db")) == VARIANTS[variant].floor_db
        assert told.items() <= dict(before.description.metadata.userDefined).items()
        plain = {name: n for name, n in op_counts(small[role]).items() if not name.startswith("constexpr")}
        assert plain == op_counts(whole[role])


def constants(path: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(op.value.read()) for name, op in read_package(path).constants.items()}


@pytest.mark.parametrize("variant", ["linear8", "palette4"])
def test_bicubic_weights_keep_every_bit(
    packages: dict[str, dict[str, Path]], source: Source, tmp_path: Path, variant: str
) -> None:
    path = compress(packages["iOS17"]["encoder"], variant, tmp_path / "e.mlpackage")
    names = [weight.name for weight in find_weights(read_spec(packages["iOS17"]["encoder"]))]
    assert names
    assert not [name for name in names if "bicubic" in name]
    (kept,) = (value for name, value in constants(path).items() if "bicubic" in name)
    assert kept.dtype == np.float16
    assert np.array_equal(kept, source.modules["encoder"].bicubic.numpy().astype(np.float16))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_values_are_counted_as_numpy_sorts_them(dtype: type) -> None:
    weight = np.random.default_rng(0).standard_normal((7, 5, 300)).astype(dtype)
    weight[0, 0, :4] = 0.0, -0.0, 65504, -6e-8
    expected = np.unique(weight, return_inverse=True, return_counts=True)
    for came, wanted in zip(presets.distinct(weight), expected, strict=True):
        np.testing.assert_array_equal(came, wanted.ravel())


def test_compression_of_pixel_buffer_packages_scales_them_once(source: Source, tmp_path: Path) -> None:
    for role in ROLES:
        path = convert(source, role, tmp_path, height=16, width=16, images=True)
        small = compress(path, "palette6", tmp_path / f"{role}.palette6.mlpackage")
        assert op_counts(small)["mul"] == 1
        for variant, floor in (("palette6", "48"), ("palette8", "50")):  # 8 bits keep no more
            exact = compress(path, variant, tmp_path / f"{role}.floor.mlpackage")
            assert read_spec(exact).description.metadata.userDefined["gdposr.floor_db"] == floor
        assert read_spec(small).description.input == read_spec(path).description.input
        assert read_spec(small).description.output == read_spec(path).description.output


def test_compression_gives_the_same_bytes_again(packages: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    one, two = (
        compress(packages["iOS18"]["generator"], "palette6", tmp_path / name / "g.mlpackage") for name in "ab"
    )
    for name in package_files(one):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_palette_is_close_to_the_best_of_its_size(bits: int) -> None:
    weight = np.random.default_rng(0).standard_t(5, size=(40, 40, 3, 3)).astype(np.float16)
    table, index = palette(weight, bits)
    assert table.dtype == np.float16
    assert (len(table), index.shape, index.dtype) == (2**bits, (weight.size,), np.uint8)
    error = np.square(table[index].astype(float) - weight.ravel()).mean()
    step = np.ptp(weight.astype(float)) / (2**bits - 1)
    assert error < 0.5 * step**2 / 12  # a uniform grid's
    nearest = np.abs(weight.ravel()[:2000, None].astype(float) - table.astype(float)).min(axis=1)
    assert np.allclose(
        np.abs(table[index][:2000].astype(float) - weight.ravel()[:2000]), nearest, atol=step / 50
    )


def test_palette_of_few_values_is_exact() -> None:
    weight = np.tile(np.array([-1, 0, 0.5], np.float16), 700).reshape(7, 3, 10, 10)
    table, index = palette(weight, 4)
    assert np.array_equal(table[index], weight.ravel())
    assert len(table) == 16


def test_measured_sensitivity_leads_to_a_mixed_package_that_keeps_its_floor(
    packages: dict[str, dict[str, Path]], source: Source, tmp_path: Path
) -> None:
    pair = packages["iOS17"]

    def evaluate(generator: Path) -> float:
        return run({**pair, "generator": generator}, source)

    weights = find_weights(read_spec(pair["generator"]))
    rows = weight_noise(pair["generator"], evaluate, bits=(4, 6))
    measured = [row for row in rows if row.bits < 8]
    assert [(row.layer, row.bits) for row in measured] == [(w.name, b) for w in weights for b in (4, 6)]
    assert all(row.psnr < evaluate(pair["generator"]) for row in rows if row.bits == 4)
    reference = evaluate(pair["generator"])
    narrow, wide = (predicted_db(rows, {w.name: b for w in weights}, reference_db=reference) for b in (4, 6))
    floor = (narrow + wide) / 2
    chosen = plan(rows, floor, reference_db=reference)
    assert len(set(chosen.values())) > 1
    path = compress(pair["generator"], MIXED, tmp_path / "g.mlpackage", plan=chosen)
    assert evaluate(path) == pytest.approx(predicted_db(rows, chosen, reference_db=reference), abs=1.5)
    sizes = [
        weight_bytes(compress(pair["generator"], name, tmp_path / "other.mlpackage"))
        for name in ("palette4", "palette6")
    ]
    assert sizes[0] < weight_bytes(path) < sizes[1]


def test_every_preset_is_sound() -> None:
    assert list(VARIANTS) == [variant.name for variant in VARIANTS.values()]
    assert set(VARIANTS) == {*MOST, MIXED, W8A8}
    for variant in VARIANTS.values():
        assert variant.target in TARGETS
        assert 20 <= variant.floor_db <= 80
        assert variant.bits in (None, 4, 6, 8, 16)


def test_weights_without_whole_blocks_keep_eight_bits(
    packages: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    path = packages["iOS18"]["encoder"]
    widths = {weight.name: weight.shape[1] % BLOCK for weight in find_weights(read_spec(path))}
    assert any(widths.values())
    assert not all(widths.values())
    small = read_package(compress(path, "linear4", tmp_path / "e.mlpackage"))
    packed = [operation for operation in small.operations if operation.type.startswith("constexpr")]
    stored = {op.name.removesuffix("_quantized"): op.arguments["data"][0].type.dtype for op in packed}
    assert stored == {name: "int8" if rest else "int4" for name, rest in widths.items()}


@pytest.mark.parametrize(
    ("target", "variant", "bits", "message"),
    [
        ("iOS17", "tiny", None, "variant: expected one of fp16, linear8, .*got 'tiny'"),
        ("iOS17", "linear4", None, "linear4: expected a package for iOS18 or later.* convert with target iOS18"),
        ("iOS17", MIXED, None, "mixed: expected a plan .*got none; `sensitivity` and `plan` make one"),
        ("iOS17", "palette4", {}, "palette4: expected no plan"),
        ("iOS17", MIXED, {"nobody": 4}, "plan: expected weights among .*got nobody"),
        ("iOS17", MIXED, {"p_expand_weight_to_fp16": 5}, r"expected a width of \(4, 6, 8\) bits, got 5"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(
    packages: dict[str, dict[str, Path]],
    tmp_path: Path,
    target: str,
    variant: str,
    bits: dict[str, int] | None,
    message: str,
) -> None:
    with pytest.raises(SettingError, match=message):
        compress(packages[target]["generator"], variant, tmp_path / "g.mlpackage", plan=bits)
    assert list(tmp_path.iterdir()) == []


def test_a_compressed_package_is_not_compressed_again(
    packages: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    once = compress(packages["iOS17"]["generator"], "palette6", tmp_path / "once.mlpackage")
    with pytest.raises(PackageError, match="got one that is compressed; give the fp16 package"):
        compress(once, "palette4", tmp_path / "twice.mlpackage")


def test_failure_leaves_nothing_half_written(
    packages: dict[str, dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        compress(packages["iOS17"]["generator"], "palette6", tmp_path / "g.mlpackage")
    assert list(tmp_path.iterdir()) == []


def test_small_weights_and_biases_are_left_alone(packages: dict[str, dict[str, Path]]) -> None:
    found = [w for path in packages["iOS17"].values() for w in find_weights(read_spec(path))]
    assert Weight("p_noise_weight_to_fp16", (32, 4, 3, 3)) not in found, "1,152 elements"
    assert Weight("p_expand_weight_to_fp16", (64, 32, 3, 3)) in found
    assert all(w.parameters >= presets.MIN_ELEMENTS and len(w.shape) == 4 for w in found)
