"""The Makefile: its help, what its targets would run, and messages. Nothing here installs anything."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TARGETS = {
    "help", "setup", "demo", "test", "check", "train-pretrain", "train-naosd", "train-gdpo", "train-student", "distill",
    "chain", "export", "export-onnx", "export-coreml", "verify-coreml", "accuracy", "bench", "gallery", "vectors", "verify-arm",
    "web", "setup-web", "bench-web", "bench-server", "bench-fleet", "clean",
}  # fmt: skip

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without what an outer `make test ARGS=...` hands down to every make below it.
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "ARGS"
    }
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=clean, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def tree(root: Path, tmp_path: Path) -> Path:
    """A folder with the Makefile and a checkpoint, and an environment that only records what it is asked to run."""
    shutil.copy(root / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "export/weights/pocket").mkdir(parents=True)
    (tmp_path / "export/weights/pocket/model.safetensors").write_text("")
    python = tmp_path / "fakepython"
    python.write_text(
        '#!/bin/sh\necho "$@" >> log\n'
        'if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi\n'
        'if [ "$2" = tools.demo ]; then echo "the pictures: here" > build/demo/where.txt; fi\n'
    )
    python.chmod(0o755)
    return tmp_path


def log(tree: Path) -> list[str]:
    path = tree / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    path.write_text("")
    return lines


def test_help_is_the_default_and_names_every_target(root: Path) -> None:
    result = make(root)
    assert result.returncode == 0, result.stderr
    listed = set(re.findall(r"^  ([a-z-]+)  +\S", result.stdout, flags=re.MULTILINE))
    assert listed >= TARGETS


def test_demo_is_the_first_command(tree: Path) -> None:
    result = make(tree, "demo", "PYTHON=./fakepython")
    assert result.returncode == 0, result.stderr
    steps = log(tree)
    assert any(step.startswith("-m venv") for step in steps)
    assert any("pip install" in step for step in steps)
    assert steps[-1].startswith("-m tools.demo --checkpoint export/weights/pocket --out build/demo")
    assert "the pictures" in result.stdout


def test_second_run_does_nothing(tree: Path) -> None:
    make(tree, "demo", "PYTHON=./fakepython")
    log(tree)
    result = make(tree, "demo", "PYTHON=./fakepython")
    assert log(tree) == []
    assert "the pictures" in result.stdout
    make(tree, "demo", "PYTHON=./fakepython", "PHOTO=mine.jpg")
    assert "--photo mine.jpg" in log(tree)[-1]


@pytest.mark.parametrize(
    ("target", "kinds"), [("export", "onnx,coreml"), ("export-onnx", "onnx"), ("export-coreml", "coreml")]
)
def test_export_targets_say_what_to_write(tree: Path, target: str, kinds: str) -> None:
    for checkpoint in ("export/weights/pocket", "runs/mine"):  # the same OUT again, from another checkpoint
        make(tree, target, "PYTHON=./fakepython", "OUT=build/x.gdposr", f"CHECKPOINT={checkpoint}")
        assert log(tree)[-1] == (
            f"-m gdposr export --checkpoint {checkpoint} --out build/x.gdposr --targets {kinds}"
        )


STAGES = ("pretrain", "naosd", "gdpo", "merge", "student", "distill", "export")


def stage_of(line: str) -> str:
    words = line.split()
    return words[3] if words[2] == "train" else words[2]


def test_chain_runs_every_stage_in_order(tree: Path) -> None:
    result = make(tree, "-n", "chain", "CHAIN_MINUTES=100", "DATA=my photos", "WORKERS=3")
    assert result.returncode == 0, result.stderr
    commands = [
        line.replace("\\\n", "")
        for line in result.stdout.replace("\\\n", " ").splitlines()
        if "-m gdposr" in line
    ]
    commands = [line[line.index("-m gdposr") :] for line in commands]
    assert [stage_of("python " + line[3:]) for line in commands] == [*STAGES]
    minutes = [float(line.split("--minutes ")[1].split()[0]) for line in commands if "--minutes" in line]
    assert sum(minutes) == pytest.approx(100)
    trained = [line for line in commands if "--minutes" in line]
    assert all('--data "my photos"' in line and "--workers 3" in line for line in trained)
    assert not any("--resume" in line for line in commands)


def test_chain_leaves_finished_stages_and_resumes_the_one_that_was_stopped(tree: Path) -> None:
    chain = tree / "runs/chain"
    (chain / "pretrain/model").mkdir(parents=True)
    (chain / "pretrain/model/model.json").write_text("{}")
    (chain / "pretrain/state").mkdir()
    (chain / "naosd/state").mkdir(parents=True)
    result = make(tree, "-n", "chain")
    commands = [line for line in result.stdout.splitlines() if "-m gdposr" in line]
    assert not any("train pretrain" in line for line in commands)
    assert [line for line in commands if "--resume" in line] == [
        line for line in commands if "train naosd" in line
    ]


def test_chain_goes_on_from_a_state_that_was_being_replaced(tree: Path) -> None:
    (tree / "runs/chain/photos/state.old").mkdir(parents=True)
    result = make(tree, "-n", "chain", "STUDENT_ARGS=--set compile=false")
    students = [line for line in result.stdout.replace("\\\n", " ").splitlines() if "compile=false" in line]
    assert ["--resume" in line for line in students] == [True, False]


def test_chain_refuses_a_folder_that_make_cannot_name(tree: Path) -> None:
    result = make(tree, "-n", "chain", "CHAIN=my runs")
    assert result.returncode == 2
    assert 'CHAIN must be one folder without spaces, got "my runs"' in result.stderr


def test_test_is_the_first_command(tree: Path) -> None:
    assert make(tree, "test", "PYTHON=./fakepython").returncode == 0
    assert (
        log(tree)[-1]
        == "-m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --durations 10 -m not slow and not nightly"
    )


def test_pip_arguments_and_old_python(tree: Path) -> None:
    make(tree, "setup", "PYTHON=./fakepython", "PIP_ARGS=--extra-index-url https://example.invalid/cpu")
    assert "--extra-index-url https://example.invalid/cpu" in log(tree)[-1]
    shutil.rmtree(tree / ".venv")
    result = make(tree, "setup", "PYTHON=false")
    assert result.returncode == 2
    assert "Python 3.11 or newer" in result.stderr
    assert not (tree / ".venv").exists()


def test_ci_runs_the_readme_command(root: Path) -> None:
    script = root / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().splitlines()[-1] == "make test"
    assert "make test" in (root / "README.md").read_text()
