"""The Makefile: its help, what its targets would run, and messages. Nothing here installs anything."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TARGETS = {
    "help", "setup", "demo", "test", "test-lowest", "check", "dist", "lock", "train-pretrain", "train-naosd", "train-gdpo",
    "train-student", "distill", "chain", "export", "export-onnx", "export-coreml", "verify-coreml", "accuracy", "bench", "gallery",
    "vectors", "verify-arm", "web", "setup-web", "bench-web", "bench-server", "bench-fleet", "clean",
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


STAGES = [
    "pictures",
    "student-core",
    "student-core",
    "student-noise",
    "student-gdpo",
    "interpolate",
    "export",
    "table",
]


def chain_commands(tree: Path, *arguments: str) -> list[str]:
    """What `make chain` would run, from -m on."""
    result = make(tree, "-n", "chain", *arguments)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.replace("\\\n", " ").splitlines()
    return [line[line.index("-m ") :] for line in lines if "/python -m " in line and "-m pip" not in line]


def stage_of(command: str) -> str:
    words = command.split()
    name = words[3] if words[2] == "train" else words[2]
    return name if words[1] == "gdposr" else words[1].split(".")[-1]


def settings_of(command: str) -> dict[str, str]:
    words = command.split()
    given = [words[k + 1].split("=", 1) for k, word in enumerate(words) if word == "--set"]
    return dict(given)


def test_chain_runs_every_stage_in_order(tree: Path) -> None:
    commands = chain_commands(
        tree, "CORE=", "CHAIN_MINUTES=100", "DATA=my photos", "WORKERS=3", "PRIOR=my.param"
    )
    assert [stage_of(command) for command in commands] == STAGES
    trained = [line for line in commands if "gdposr train student-" in line]
    assert ["--minutes 88 " in trained[0], "--minutes 8 " in trained[1]] == [
        True,
        True,
    ]  # the pictures have about four
    assert ["--steps 2500 " in trained[2], "--steps 350 " in trained[3]] == [True, True]
    assert all('--data "my photos"' in line and "--workers 3" in line for line in trained)
    assert not any("--resume" in line for line in commands)
    assert '--prior "my.param" --out runs/chain/pictures --items 500' in commands[0]
    for core in trained[:2]:
        assert settings_of(core)["student.far_blocks"] == "2"
        assert settings_of(core)["student.consistent"] == "true"
        assert "--pictures runs/chain/pictures" in core
    assert ["own" in settings_of(line) for line in trained] == [False, True, False, False]
    for line, before in zip(trained[1:], ("soft/model", "core/model", "noise/model"), strict=True):
        assert line.partition("--init ")[2].split()[0] == f"runs/chain/{before}"
    assert commands[-3].startswith(
        "-m export.student.interpolate runs/chain/gdpo/model runs/chain/noise/model"
    )
    assert "--targets onnx,coreml" in commands[-2]
    assert '--prior "my.param"' in commands[-1]
    assert "--ships" not in commands[-1]


def test_chain_has_settings_that_its_stages_know(tree: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra `export`")
    from export.student.kinds import KINDS
    from training.settings import with_settings

    for command in chain_commands(tree, "CORE=", "PRIOR=my.param"):
        if stage_of(command) in KINDS:
            given = [f"{name}={value}" for name, value in settings_of(command).items()]
            with_settings(KINDS[stage_of(command)].presets["pocket"], given)


def test_chain_begins_with_the_core_of_what_ships_and_compares_with_that(tree: Path) -> None:
    commands = chain_commands(tree, "PRIOR=my.param")
    assert [stage_of(command) for command in commands] == STAGES[3:]
    assert '--init "export/weights/pocket-core"' in commands[0]
    assert '--core "export/weights/pocket-core" --ships "export/weights/pocket"' in commands[-1]
    assert '--prior "my.param"' in commands[-1]
    assert "--prior" not in chain_commands(tree, "PRIOR=")[-1]
    assert "--prior" not in chain_commands(tree, "PEER_NCNN=none")[-1]  # no x4plus for the table alone
    shown = make(tree, "-n", "chain").stdout
    assert "begins with the core in export/weights/pocket-core" in shown


def test_chain_makes_fewer_pictures_with_a_slow_prior(tree: Path) -> None:
    slow, quick = (chain_commands(tree, "CORE=", f"PRIOR={prior}")[0] for prior in ("x4plus", "small.param"))
    assert ("--items 172" in slow, "--items 2400" in quick) == (True, True)
    assert '--prior "x4plus"' in chain_commands(tree, "CORE=", "PEER_NCNN=none")[0]


def test_chain_leaves_finished_stages_and_resumes_the_one_that_was_stopped(tree: Path) -> None:
    chain = tree / "runs/chain"
    for stage in ("soft", "core"):
        (chain / stage / "model").mkdir(parents=True)
        (chain / stage / "model/config.json").write_text("{}")
    (chain / "pictures.done").write_text("")
    (chain / "core/state").mkdir()
    (chain / "noise/state").mkdir(parents=True)
    commands = chain_commands(tree, "CORE=", "PRIOR=my.param")
    assert [stage_of(command) for command in commands] == STAGES[3:]
    assert ["--resume" in command for command in commands] == [True] + [False] * 4


def test_chain_goes_on_from_a_state_that_was_being_replaced(tree: Path) -> None:
    (tree / "runs/chain/soft/state.old").mkdir(parents=True)
    commands = chain_commands(tree, "CORE=", "PRIOR=my.param", "CHAIN_ARGS=--preset tiny")
    trained = [line for line in commands if "--preset tiny" in line]
    assert ["--resume" in line for line in trained] == [True] + [False] * 3


def test_chain_refuses_a_folder_that_make_cannot_name(tree: Path) -> None:
    result = make(tree, "-n", "chain", "CHAIN=my runs")
    assert result.returncode == 2
    assert 'CHAIN must be one folder without spaces, got "my runs"' in result.stderr


def test_chain_from_nothing_asks_for_a_prior(tree: Path) -> None:
    result = make(tree, "-n", "chain", "CORE=", "PRIOR=")
    assert result.returncode == 2
    assert "expected PRIOR=FILE.param or PRIOR=x4plus, got none" in result.stderr


def test_test_is_the_first_command(tree: Path) -> None:
    assert make(tree, "test", "PYTHON=./fakepython").returncode == 0
    assert (
        log(tree)[-1]
        == "-m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --durations 10 -m not slow and not nightly"
    )


def test_lowest_versions_are_those_of_pyproject(root: Path, tree: Path) -> None:
    shutil.copy(root / "pyproject.toml", tree)
    result = make(tree, "test-lowest", f"PYTHON={sys.executable}", "-n")
    assert result.returncode == 0, result.stderr
    (install,) = (line for line in result.stdout.splitlines() if " -m pip install " in line)
    pinned = subprocess.run(
        ["sh", "-c", f"echo {install[install.index('$(') :]}"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    needs = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    assert pinned == [need.replace(">=", "==") for need in needs]
    assert len(pinned) == 4
    assert "build/lowest/bin/python -m pytest" in result.stdout


def test_lock_covers_what_setup_installs(root: Path, tree: Path) -> None:
    text = (root / "Makefile").read_text()
    (extras,) = re.findall(r"^DEV_EXTRAS *= (\S+)$", text, flags=re.MULTILINE)
    result = make(tree, "lock", "-n")
    assert re.findall(r"--extra (\S+)", result.stdout) == extras.split(",")
    assert set(re.findall(r"https://[^/\s]+", result.stdout)) == {"https://pypi.org"}


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
    assert "make test" in script.read_text().splitlines()
    assert "make test" in (root / "README.md").read_text()
