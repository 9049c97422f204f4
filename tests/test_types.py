"""What a type checker sees of the Python interface in a program of somebody else."""

import ast
import inspect
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]


@pytest.mark.slow
def test_a_strict_client_meets_no_any(
    run_python: Run, need: Callable[..., None], root: Path, tmp_path: Path
) -> None:
    need("mypy")
    result = run_python(
        "-m", "mypy", "--strict", "--follow-imports", "silent", "--config-file", "/dev/null",
        "--cache-dir", tmp_path, root / "tests" / "client.py", timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("package", ["gdposr", "runtime"])
def test_a_mistyped_name_is_an_error(
    run_python: Run, need: Callable[..., None], tmp_path: Path, package: str
) -> None:
    need("mypy")
    program = f"from {package} import Upscalar"
    result = run_python(
        "-m", "mypy", "--strict", "--follow-imports", "silent", "--config-file", "/dev/null", "-c", program,
        "--cache-dir", tmp_path, timeout=600,
    )  # fmt: skip
    assert result.returncode == 1
    assert f'Module "{package}" has no attribute "Upscalar"' in result.stdout


@pytest.mark.parametrize("name", ["Bundle", "Upscaler"])
def test_public_attributes_state_their_types(name: str) -> None:
    """What is inferred differs from one type checker to another."""
    import gdposr

    tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(gdposr, name))))
    assigned = [target for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets]
    names = [node.attr for target in assigned for node in ast.walk(target) if isinstance(node, ast.Attribute)]
    assert [name for name in names if not name.startswith("_")] == []


def test_the_client_runs(
    run_python: Run, root: Path, toy_bundle: Path, tmp_path: Path, make_photo: Callable[..., Path]
) -> None:
    photo = make_photo(tmp_path / "photo.png")
    result = run_python(
        root / "tests" / "client.py",
        toy_bundle,
        photo,
        tmp_path / "out.png",
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert result.returncode == 0, result.stderr
    assert "refused: samples" in result.stdout
    assert (tmp_path / "out.png").is_file()
