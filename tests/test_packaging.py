"""What `pip install .` brings: dependencies, files, entry point. Nothing here reaches a network."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

BASE = {"numpy", "pillow", "onnxruntime", "rich"}
MOST_BYTES = 15_000_000
EXTRAS = {
    "train",
    "export",
    "cuda",
    "coreml",
    "openvino",
    "prior",
    "demo",
    "completion",
    "report",
    "server",
    "ray",
    "dev",
}


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    return requirement.split(";")[0].split("[")[0].split(">")[0].split("<")[0].split("=")[0].strip().lower()


def test_base_dependencies_are_light(project: dict) -> None:
    assert {name_of(requirement) for requirement in project["dependencies"]} == BASE


def test_extras(project: dict) -> None:
    extras = {
        extra: {name_of(each) for each in needs} for extra, needs in project["optional-dependencies"].items()
    }
    assert set(extras) == EXTRAS
    assert "torch" in extras["train"]
    assert "torch" in extras["export"]
    assert "onnxruntime-gpu" in extras["cuda"]


def test_default_bundle_is_package_data(root: Path) -> None:
    from runtime.bundle.reader import DEFAULT_BUNDLE, Bundle

    assert root / "runtime" / "bundles" in DEFAULT_BUNDLE.parents
    Bundle.open().verify()


@pytest.fixture(scope="module")
def sdist(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, built from a copy, so that the tree stays clean. Needs setuptools in this environment."""
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools 77, which `make test` brings")
    folder = tmp_path_factory.mktemp("sdist")
    left = (".venv", ".git", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(root, folder / "tree", ignore=shutil.ignore_patterns(*left))
    run(
        ["-c", "from setuptools import build_meta; build_meta.build_sdist('..')"],
        folder / "tree",
    )
    (path,) = folder.glob("gdposr-*.tar.gz")
    return path


def run(arguments: list[str], folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr


def test_sdist_holds_the_packages_and_no_tests(root: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tops = {name.partition("/")[0] for name in names} - {""}
    assert tops == {
        *("runtime", "training", "calibration", "export", "gdposr", "gdposr.egg-info"),
        *("pyproject.toml", "setup.cfg", "MANIFEST.in", "PKG-INFO", "README.md", "LICENSE", "CHANGELOG.md"),
    }
    assert not any(name.startswith("export/weights/") for name in names)
    assert sdist.stat().st_size < MOST_BYTES


def test_wheel_from_the_sdist_holds_what_is_needed(root: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.glob("gdposr-*")
    run(["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "..", "."], tree)
    (wheel,) = tmp_path.glob("gdposr-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
        entry = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"runtime", "training", "calibration", "export", "gdposr"}
    assert {f"{top}/py.typed" for top in tops} <= names
    bundle = {
        path.relative_to(root).as_posix() for path in (root / "runtime/bundles").rglob("*") if path.is_file()
    }
    assert "runtime/bundles/pocket.gdposr/manifest.json" in bundle
    assert bundle <= names
    page = {path.relative_to(root).as_posix() for path in (root / "runtime/web").rglob("*") if path.is_file()}
    assert page <= names
    assert {
        "runtime/web/index.html",
        "runtime/web/ort/ort-wasm-simd-threaded.wasm.gz",
        "runtime/web/ort/LICENSE",
    } <= page
    assert wheel.stat().st_size < MOST_BYTES
    assert "training/metrics/niqe_pristine.npz" in names
    templates = {path.relative_to(root).as_posix() for path in root.glob("calibration/*/templates/*")}
    assert templates <= names
    assert {"calibration/report/templates/style.css", "calibration/blind/templates/vote.js"} <= templates
    assert "gdposr/commands/upscale.py" in names
    assert "gdposr = gdposr.cli:main" in entry
    plain = [
        line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line
    ]
    assert {name_of(line.removeprefix("Requires-Dist:")) for line in plain} == BASE


@pytest.mark.skipif("ALL_EXTRAS" not in os.environ, reason="needs to run under `make test` or `make check`")
def test_make_test_skips_nothing_for_want_of_a_package() -> None:
    """Tests are skipped where an extra is not installed; `make test`, which CI runs, installs them all."""
    wanted = (
        "torch",
        "diffusers",
        "transformers",
        "peft",
        "accelerate",
        "onnx",
        "nncf",
        "skimage",
        "ncnn",
        "tensorboard",
        "fastapi",
        "uvicorn",
        "prometheus_client",
    )
    assert [name for name in wanted if importlib.util.find_spec(name) is None] == []
