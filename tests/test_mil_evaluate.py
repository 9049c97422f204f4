"""The reference evaluator as a whole: rounding, overflow, inputs. Its other tests build their programs with the functions here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
ct = pytest.importorskip("coremltools", reason="needs the extra `coreml`")

from coremltools.converters.mil import Builder as mb  # noqa: E402  (after importorskip)

from export.mil.evaluate import Evaluator, NonFiniteError  # noqa: E402
from export.mil.ops.registry import OPS  # noqa: E402
from export.mil.package.program import read_package  # noqa: E402
from export.mil.package.tensor import EvaluationError  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1, 4, 6, 8)).astype(np.float32)
P = RNG.uniform(0.1, 0.9, size=(1, 4, 6, 8)).astype(np.float32)
Cases = dict[str, tuple[Callable[..., Any], Any]]  # name -> how to build it from X and P, what must come


def save(build: Callable[..., Any], path: Path, target: str = "iOS17", inputs: int = 2) -> Path:
    """A package of float32 operations exactly as they are built."""
    opset = getattr(ct.target, target)
    specs = [mb.TensorSpec(shape=X.shape) for _ in range(inputs)]
    functions = {1: lambda a: build(a), 2: lambda a, b: build(a, b)}
    program = mb.program(input_specs=specs, opset_version=opset)(functions[inputs])
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=opset,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


def evaluate(cases: Cases, path: Path, target: str = "iOS17") -> dict[str, np.ndarray]:
    """The results of all cases in one program."""
    program = read_package(save(lambda a, b: tuple(build(a, b) for build, _ in cases.values()), path, target))
    found = Evaluator(program)({"a": X, "b": P})
    return dict(zip(cases, (found[feature.name] for feature in program.outputs), strict=True))


def check(came: np.ndarray, expected: Any) -> None:
    """Equal to about 1e-5, in shape as well."""
    wanted = np.asarray(expected, np.float64)
    assert came.shape == wanted.shape
    np.testing.assert_allclose(came, wanted, rtol=1e-5, atol=1e-5)


def test_results_are_rounded_to_the_declared_type(tmp_path: Path) -> None:
    def build(a: Any) -> Any:
        half = mb.cast(x=a, dtype="fp16")
        return mb.cast(x=mb.mul(x=half, y=half), dtype="fp32")

    program = read_package(save(build, tmp_path / "half.mlpackage", inputs=1))
    half = X.astype(np.float16)
    (rounded,) = Evaluator(program)({"a": X}).values()
    assert np.array_equal(rounded, (half * half).astype(np.float32))
    (exact,) = Evaluator(program, round_to_declared=False)({"a": X}).values()
    assert np.array_equal(exact, np.square(X))
    assert not np.array_equal(exact, rounded)


def test_overflow_is_reported_with_the_operation_that_makes_it(tmp_path: Path) -> None:
    def build(a: Any) -> Any:
        half = mb.mul(x=mb.cast(x=a, dtype="fp16"), y=np.float16(200), name="large")
        over = mb.mul(x=half, y=np.float16(30000), name="over")
        return mb.cast(x=mb.clip(x=over, alpha=np.float16(0), beta=np.float16(1)), dtype="fp32", name="image")

    program = read_package(save(build, tmp_path / "over.mlpackage", inputs=1))
    with pytest.raises(NonFiniteError, match=r"first from mul 'over'.*\(fp16\)"):
        Evaluator(program)({"a": X})
    evaluation = Evaluator(program).run({"a": X})
    assert [(found.type, found.name) for found in evaluation.non_finite] == [("mul", "over")]
    assert np.isfinite(evaluation.outputs["image"]).all()
    assert np.isfinite(Evaluator(program, allow_non_finite=True)({"a": X})["image"]).all()
    with pytest.raises(NonFiniteError, match="first from input 'a'"):
        Evaluator(program)({"a": np.full_like(X, np.nan)})


def test_what_is_quantized_saturates_and_nan_is_named_with_its_maker(tmp_path: Path) -> None:
    scale = np.float32(0.5)

    def build(a: Any) -> Any:
        large = mb.cast(
            x=mb.mul(x=mb.cast(x=a, dtype="fp16"), y=np.float16(60000), name="large"), dtype="fp32"
        )
        quantized = mb.quantize(input=large, scale=scale, output_dtype="int8")
        apart = mb.quantize(input=mb.sub(x=large, y=large), scale=scale, output_dtype="int8")
        return mb.dequantize(input=quantized, scale=scale), mb.dequantize(input=apart, scale=scale)

    program = read_package(save(build, tmp_path / "quantize.mlpackage", inputs=1))
    values = np.array([1e-3, -1e-3, 0.3, -0.3], np.float32)
    given = np.broadcast_to(values[:, None, None], X.shape)
    saturated, nothing = Evaluator(program)({"a": given}).values()
    assert saturated[0, :, 0, 0].tolist() == [60.0, -60.0, 63.5, -64.0]
    assert not nothing.any()
    for allow in (False, True):  # infinity saturates, but infinity minus infinity is no number
        with pytest.raises(NonFiniteError, match=r"first from mul 'large'"):
            Evaluator(program, allow_non_finite=allow)({"a": np.full_like(X, 2)})


def test_values_are_let_go_after_their_last_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(a: Any) -> Any:
        skip = a
        for k in range(8):
            a = mb.relu(x=a, name=f"r{k}")
        return mb.add(x=a, y=skip)

    alive: list[set[str]] = []
    compute = Evaluator._compute

    def watched(self: Evaluator, op: Any, values: Any) -> Any:
        alive.append(set(values))
        return compute(self, op, values)

    monkeypatch.setattr(Evaluator, "_compute", watched)
    Evaluator(read_package(save(build, tmp_path / "long.mlpackage", inputs=1)))({"a": X})
    assert alive == [{"a"}, *({"a", f"r{k}"} for k in range(8))]


def test_indices_outside_and_wrong_inputs_are_named(tmp_path: Path) -> None:
    def build(a: Any) -> Any:
        return mb.gather(
            x=a, indices=mb.cast(x=mb.reduce_max(x=a, axes=[1, 2, 3], keep_dims=False), dtype="int32"), axis=1
        )

    evaluator = Evaluator(read_package(save(build, tmp_path / "gather.mlpackage", inputs=1)))
    with pytest.raises(EvaluationError, match=r"gather.*expected indices in \[-4, 4\), got \[100, 100\]"):
        evaluator({"a": np.full_like(X, 100)})
    with pytest.raises(EvaluationError, match=r"whole numbers|int32"):
        evaluator({"a": np.full_like(X, 1e10)})
    with pytest.raises(EvaluationError, match=r"expected the inputs \['a'\], got \['b'\]"):
        evaluator({"b": X})
    with pytest.raises(
        EvaluationError, match=r"input 'a': expected fp32\[1, 4, 6, 8\], got shape \[1, 4, 6, 9\]"
    ):
        evaluator({"a": np.zeros((1, 4, 6, 9), np.float32)})
    with pytest.raises(EvaluationError, match="got elements of complex64"):
        evaluator({"a": X.astype(np.complex64)})


def test_every_known_operation_is_tested_somewhere() -> None:
    """Packed weights have tests of their own."""
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_mil_*.py"))
    missing = [name for name in OPS if not name.startswith("constexpr_") and f"mb.{name}(" not in text]
    assert not missing
