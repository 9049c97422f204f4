"""tools/gpu_run.sh as a dry run on the CPU: a tiny student through all its stages, resumed, and what is missing named."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="needs the extra `train`")
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

LARGEST = 16 << 20  # bytes of a file that comes back


def gpu_run(
    root: Path, folder: Path, stages: str = "all", **values: object
) -> subprocess.CompletedProcess[str]:
    settings = {
        "PYTHON": sys.executable,
        "STATE": folder / "state",
        "OUT": folder / "out",
        "DRY_RUN": 1,
    } | values
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    return subprocess.run(
        ["bash", "tools/gpu_run.sh", stages],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.parametrize("stage", ["core", "noise", "gdpo"])
def test_settings_that_it_gives_are_known_to_the_stage(root: Path, stage: str) -> None:
    from export.student.kinds import KINDS
    from training.settings import with_settings

    script = (root / "tools" / "gpu_run.sh").read_text()
    (words,) = re.findall(rf"\b{stage.upper()}_SET:-(.+?)}}", script)
    preset = KINDS[f"student-{stage}"].presets["pocket"]
    assert with_settings(preset, words.split()) != preset


@pytest.mark.slow
def test_all_stages_one_after_the_other_bring_back_weights_log_and_sheet(
    root: Path, photos: Path, ncnn_network: Path, tmp_path: Path
) -> None:
    from safetensors import safe_open

    from export.student.model.checkpoint import load_student

    values = {"DATA": photos, "PRIOR": ncnn_network}
    first = gpu_run(root, tmp_path, "core", **values)
    assert first.returncode == 0, first.stderr
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"core", "run.log", "samples.jpg"}
    second = gpu_run(root, tmp_path, **values)
    assert second.returncode == 0, second.stderr
    assert "core: done before" in second.stderr
    assert "all done: core noise gdpo" in (out / "run.log").read_text()
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert all(path.stat().st_size < LARGEST and len(path.relative_to(out).parts) <= 2 for path in files)
    for stage in ("core", "noise", "gdpo"):
        _, provenance = load_student(out / stage)
        assert provenance["stage"] == f"student-{stage}"
        with safe_open(out / stage / "model.safetensors", "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    assert [part["stage"] for part in provenance["history"]] == ["student-core", "student-noise"]


def test_what_is_missing_is_named(root: Path, photos: Path, ncnn_network: Path, tmp_path: Path) -> None:
    for values, message in (
        ({"DATA": tmp_path / "none"}, "no folder of photos at"),
        ({"DATA": photos, "FEATURES": tmp_path / "none"}, "FEATURES=FILE, or none"),
        ({"DATA": photos, "INIT": tmp_path / "none"}, "INIT=FOLDER, or none"),
    ):
        found = gpu_run(root, tmp_path, **values)
        assert found.returncode == 2
        assert message in found.stderr
    found = gpu_run(root, tmp_path, "everything")
    assert found.returncode == 2
    assert "usage:" in found.stderr


@pytest.mark.slow
def test_a_stage_without_a_student_and_a_prior_that_is_not_there_are_named(
    root: Path, photos: Path, ncnn_network: Path, tmp_path: Path
) -> None:
    found = gpu_run(root, tmp_path, "noise", DATA=photos, PRIOR=ncnn_network)
    assert found.returncode == 2
    assert "run core first, or give INIT=FOLDER" in found.stderr
    found = gpu_run(root, tmp_path, DATA=photos, PRIOR=tmp_path / "none.param")
    assert found.returncode == 2
    assert "no prior" in found.stderr
