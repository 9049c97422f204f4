"""`gdposr upscale` where something is wrong: refused before any work, broken photos, interrupts; nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import files_in, is_one_line
from PIL import Image

# --- upscale: refused before any work --------------------------------------------------------------------------------------


def test_clashing_names_are_refused_before_work(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    first, second = make_photo("x/a.png"), make_photo("y/a.png")
    code, _, err = gdposr("upscale", first, second, "-o", tmp_path / "out")
    assert code == 2
    assert str(first) in err
    assert str(second) in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("samples", [1, 3])
def test_one_output_file_for_several_pictures_is_refused(
    gdposr: Any, make_photo: Any, tmp_path: Path, samples: int
) -> None:
    inputs = [make_photo("a.png")] if samples > 1 else [make_photo("a.png"), make_photo("b.png")]
    code, _, err = gdposr("upscale", *inputs, "-o", tmp_path / "out.png", "--samples", samples)
    assert code == 2
    assert is_one_line(err)
    assert not (tmp_path / "out.png").exists()


def test_an_input_is_never_overwritten(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    photo = make_photo("a.png")
    before = photo.read_bytes()
    (tmp_path / "link.png").symlink_to(photo)
    os.link(photo, tmp_path / "hard.png")
    for target in (photo, tmp_path / "link.png", tmp_path / "hard.png", tmp_path / "." / "a.png"):
        code, _, err = gdposr("upscale", photo, "-o", target)
        assert code == 2, target
        assert "input" in err
    clash = make_photo("b_x4_seed0.png")
    assert gdposr("upscale", make_photo("b.png"), clash, "-o", tmp_path)[0] == 2
    assert gdposr("upscale", tmp_path, "-o", tmp_path)[0] == 2
    assert photo.read_bytes() == before


def test_outputs_inside_the_input_folder_are_not_inputs(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    make_photo("in/a.png")
    for _ in range(2):
        assert gdposr("upscale", tmp_path / "in", "-o", tmp_path / "in" / "large")[0] == 0
        assert files_in(tmp_path / "in") == ["a.png", "large/a_x4_seed0.png"]


def test_output_that_cannot_be_written(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    photo = make_photo("a.png")
    (tmp_path / "taken").write_text("a file")
    assert gdposr("upscale", photo, "-o", tmp_path / "taken")[0] == 2
    assert gdposr("upscale", photo, "-o", tmp_path / "out.heic")[0] == 2
    assert gdposr("upscale", photo, "-o", tmp_path / "taken" / "out.png")[0] == 1
    transparent = make_photo("t.png", channels=4)
    code, _, err = gdposr("upscale", transparent, "-o", tmp_path / "out.jpg")
    assert code == 1
    assert "transparency" in err
    assert files_in(tmp_path) == ["a.png", "t.png", "taken"]


def test_empty_folder(gdposr: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    code, _, err = gdposr("upscale", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 2
    assert "no photo" in err


# --- upscale: broken photos ------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(make_photo: Callable[..., Path], tmp_path: Path) -> dict[str, Path]:
    """One file of every kind of damage."""
    whole = make_photo("whole.png", 64, 64).read_bytes()
    contents = {"cut.png": whole[: len(whole) // 2], "text.png": b"not a picture\n", "empty.png": b""}
    paths = {name: tmp_path / "broken" / name for name in contents}
    (tmp_path / "broken").mkdir()
    for name, path in paths.items():
        path.write_bytes(contents[name])
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    paths["moving.gif"] = tmp_path / "broken" / "moving.gif"
    frames[0].save(paths["moving.gif"], save_all=True, append_images=frames[1:])
    paths["missing.png"] = tmp_path / "broken" / "missing.png"
    return paths


@pytest.mark.parametrize("name", ["cut.png", "text.png", "empty.png", "moving.gif", "missing.png"])
def test_broken_photo_is_exit_code_1(gdposr: Any, broken: dict[str, Path], tmp_path: Path, name: str) -> None:
    code, out, err = gdposr("upscale", broken[name], "-o", tmp_path / "out" / "big.png", "--json")
    assert code == 1
    report = json.loads(out)
    assert report["failed"] == 1
    assert report["files"][0]["status"] == "failed"
    assert name in report["files"][0]["error"]
    assert name in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists() or not files_in(tmp_path / "out")


def test_broken_photos_never_stop_the_rest(
    gdposr: Any, broken: dict[str, Path], make_photo: Any, tmp_path: Path
) -> None:
    del broken["missing.png"]
    make_photo("broken/aa.png")
    make_photo("broken/zz.png")
    code, out, _ = gdposr("upscale", tmp_path / "broken", "-o", tmp_path / "out", "--json")
    assert code == 1
    report = json.loads(out)
    assert report["failed"] == len(broken)
    assert len(report["files"]) == len(broken) + 2
    assert files_in(tmp_path / "out") == ["aa_x4_seed0.png", "zz_x4_seed0.png"]


def test_failure_while_computing_leaves_nothing(
    gdposr: Any, make_photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.upscale.upscaler import Upscaler

    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError("the device\nwent away")

    monkeypatch.setattr(Upscaler, "picture", fail)
    code, _, err = gdposr("upscale", make_photo("a.png"), "-o", tmp_path / "out")
    assert code == 1
    assert "RuntimeError: the device went away" in err
    assert files_in(tmp_path) == ["a.png"]


def test_interrupt_is_clean(
    gdposr: Any, make_photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import runtime.image.read.decode as image

    real, calls = image.read_photo, []

    def second_time_interrupted(path: Path, *args: Any, **options: Any) -> Any:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(path, *args, **options)

    monkeypatch.setattr(image, "read_photo", second_time_interrupted)
    inputs = [make_photo(name) for name in ("a.png", "b.png", "c.png")]
    code, out, err = gdposr("upscale", *inputs, "-o", tmp_path / "out", "--json")
    assert code == 130
    assert "interrupted" in err
    report = json.loads(out)
    assert report["interrupted"] is True
    assert [entry["status"] for entry in report["files"]] == ["ok", "unfinished"]
    assert files_in(tmp_path / "out") == ["a_x4_seed0.png"]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_ctrl_c_in_a_real_process(root: Path, toy_bundle: Path, make_photo: Any, tmp_path: Path) -> None:
    inputs = [str(make_photo(f"in/{index}.png", 256, 256, seed=index)) for index in range(40)]
    command = [
        sys.executable, "-m", "gdposr", "upscale", *inputs, "-o", str(tmp_path / "out"), "--samples", "8",
        "--bundle", str(toy_bundle),
    ]  # fmt: skip
    # A test run started in the background ignores SIGINT and would hand that on.
    process = subprocess.Popen(
        command, cwd=root, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None and not list(tmp_path.glob("out/*.png")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    written = files_in(tmp_path / "out")
    assert 0 < len(written) < 320
    for name in written:
        assert not name.startswith(".")
        Image.open(tmp_path / "out" / name).load()
