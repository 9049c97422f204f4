"""`gdposr upscale` over folders: what is left out, limits, reports, and what a kill leaves."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import contents, files_in, is_one_line
from PIL import Image

from runtime.files import name_mark

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


# --- what is left out ------------------------------------------------------------------------------------------------------


def test_finished_photos_are_skipped(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    for index in range(4):
        make_photo(f"in/sub/{index}.png", seed=index)
    words = ["upscale", tmp_path / "in", "-o", tmp_path / "out"]
    assert gdposr(*words)[0] == 0
    whole = contents(tmp_path / "out")
    (tmp_path / "out/sub/1_x4_seed0.png").unlink()
    (tmp_path / "out/sub/2_x4_seed0.png").write_bytes(b"mine")
    code, out, err = gdposr(*words, "--skip-existing", "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["photos"], report["ok"], report["skipped"], report["failed"]) == (4, 1, 3, 0)
    assert [entry["status"] for entry in report["files"]] == ["skipped", "ok", "skipped", "skipped"]
    assert all(Path(entry["outputs"][0]["path"]).is_file() for entry in report["files"])
    assert "1 done; 3 skipped" in err
    after = contents(tmp_path / "out")
    assert after.pop("sub/2_x4_seed0.png") == b"mine", "what is there is not touched"
    assert after == {name: data for name, data in whole.items() if "2_x4" not in name}


def test_nothing_left_to_do_loads_no_model(
    gdposr: Any, make_photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import runtime.upscale.upscaler as upscaler

    words = ["upscale", make_photo("a.png"), "-o", tmp_path / "big.png", "--skip-existing"]
    assert gdposr(*words)[0] == 0

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(upscaler, "Upscaler", load)
    code, out, _ = gdposr(*words, "--json")
    assert code == 0
    assert json.loads(out)["device"] is None
    assert json.loads(out)["files"][0]["outputs"] == [{"path": str(tmp_path / "big.png"), "sample": 0}]


def test_what_counts_as_finished(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    """All samples, or the one that was best; another seed, scale or number of samples is another output."""
    photo, out = make_photo("a.png"), tmp_path / "out"

    def skipped(*words: object) -> bool:
        code, text, _ = gdposr("upscale", photo, "-o", out, "--skip-existing", "--json", *words)
        assert code == 0
        return json.loads(text)["skipped"] == 1

    assert [skipped("--samples", 2) for _ in range(2)] == [False, True]
    assert not skipped("--samples", 3)
    (out / "a_x4_seed0_s1.png").unlink()
    assert not skipped("--samples", 3)
    assert not skipped("--samples", 3, "--seed", 1)
    assert not skipped("--samples", 3, "--scale", 2)
    assert not skipped()
    assert [skipped("--sample", 7) for _ in range(2)] == [False, True]
    assert [skipped("--samples", 2, "--select", "sheet") for _ in range(2)] == [False, True]
    best = ["--samples", 2, "--select", "best", "--seed", 5]
    assert [skipped(*best) for _ in range(2)] == [False, True]


# --- options ---------------------------------------------------------------------------------------------------------------


def test_one_sample_of_a_seed_alone(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    photo = make_photo("a.png", 40, 50)
    assert gdposr("upscale", photo, "-o", tmp_path / "many", "--samples", 3, "--seed", 8)[0] == 0
    code, out, _ = gdposr("upscale", photo, "-o", tmp_path / "one", "--sample", 2, "--seed", 8, "--json")
    assert code == 0
    assert (json.loads(out)["sample"], json.loads(out)["files"][0]["outputs"][0]["sample"]) == (2, 2)
    name = "a_x4_seed8_s2.png"
    assert contents(tmp_path / "one") == {name: contents(tmp_path / "many")[name]}
    assert gdposr("upscale", photo, "-o", tmp_path / "one.png", "--sample", 2, "--seed", 8)[0] == 0
    assert (tmp_path / "one.png").read_bytes() == contents(tmp_path / "many")[name]


@pytest.mark.parametrize(
    "words",
    [
        ["--sample", "1", "--samples", "3"],
        ["--sample", "1", "--select", "best"],
        ["--sample", "-1"],
        ["--json", "--json-lines"],
        ["--max-pixels", "0"],
        ["--max-pixels", "nan"],
        ["--max-memory", "much"],
    ],
)
def test_wrong_options(gdposr: Any, make_photo: Any, tmp_path: Path, words: list[str]) -> None:
    code, out, err = gdposr("upscale", make_photo("a.png"), "-o", tmp_path / "out.png", *words)
    assert (code, out) == (2, "")
    assert words[0] in err
    assert "Traceback" not in err
    assert files_in(tmp_path) == ["a.png"]


def test_limit_of_pixels(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    make_photo("in/large.png", 40, 50)
    make_photo("in/small.png", 20, 50)
    words = ["upscale", tmp_path / "in", "-o", tmp_path / "out", "--max-pixels"]
    code, _, err = gdposr(*words, 0.0015)
    assert code == 1
    assert "large.png" in err
    assert "0.0015 megapixels" in err
    assert files_in(tmp_path / "out") == ["small_x4_seed0.png"]
    assert gdposr(*words, 0.002)[0] == 0


def test_limit_of_memory_too_small_for_a_photo(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    code, _, err = gdposr("upscale", make_photo("a.png"), "-o", tmp_path / "out.png", "--max-memory", "1M")
    assert code == 1
    assert "a.png" in err
    assert "memory" in err
    assert files_in(tmp_path) == ["a.png"]


# --- reports ---------------------------------------------------------------------------------------------------------------


def test_json_lines(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    for name in ("a", "c", "d"):
        make_photo(f"in/{name}.png")
    (tmp_path / "in/b.png").write_bytes(b"no picture")
    words = ["upscale", tmp_path / "in", "-o", tmp_path / "out", "--json-lines"]
    code, out, err = gdposr(*words)
    assert code == 1
    *files, summary = map(json.loads, out.splitlines())
    assert [Path(each["input"]).stem for each in files] == ["a", "b", "c", "d"]
    assert [each["status"] for each in files] == ["ok", "failed", "ok", "ok"]
    assert {each["type"] for each in files} == {"file"}
    assert [len(each["outputs"]) for each in files] == [1, 0, 1, 1]
    assert all(each["seconds"] > 0 for each in files if each["status"] == "ok")
    assert "b.png" in files[1]["error"]
    assert (summary["type"], summary["photos"], summary["ok"], summary["failed"]) == ("summary", 4, 3, 1)
    assert summary["device"] == "cpu"
    assert "4 photos: 3 done; 1 failed" in err


def command(toy_bundle: Path, *words: object) -> list[str]:
    return [sys.executable, "-m", "gdposr", "upscale", *map(str, words), "--bundle", str(toy_bundle)]


def test_lines_come_as_soon_as_a_photo_is_done(
    root: Path, toy_bundle: Path, make_photo: Any, tmp_path: Path
) -> None:
    for index in range(20):
        make_photo(f"in/{index:02}.png", 96, 96, seed=index)
    words = command(toy_bundle, tmp_path / "in", "-o", tmp_path / "out", "--json-lines", "--threads", 1)
    with subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        written = len(list(tmp_path.glob("out/[!.]*.png")))
        assert first["status"] == "ok"
        assert Path(first["outputs"][0]["path"]).is_file()
        assert written < 20
        assert len(process.stdout.read().splitlines()) == 20


@posix
def test_reader_of_the_lines_may_leave(root: Path, toy_bundle: Path, make_photo: Any, tmp_path: Path) -> None:
    """As with `| head -1`: the work goes on, nobody is blamed, and the exit code is that of the photos."""
    for index in range(40):
        make_photo(f"in/{index:02}.png", seed=index)
    words = command(toy_bundle, tmp_path / "in", "-o", tmp_path / "out", "--json-lines")
    process = subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 0
    assert "failed" not in err
    assert "Traceback" not in err
    written = files_in(tmp_path / "out")
    assert len(written) == 40
    assert not [name for name in written if name.startswith(".")]


@posix
def test_lines_go_down_the_pipe_while_the_terminal_shows_a_bar(
    root: Path, toy_bundle: Path, make_photo: Any, tmp_path: Path
) -> None:
    for index in range(3):
        make_photo(f"in/{index}.png", seed=index)
    master, slave = os.openpty()
    words = command(toy_bundle, tmp_path / "in", "-o", tmp_path / "out", "--json-lines")
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, stderr=slave, env=environment) as process:
        os.close(slave)
        out, _ = process.communicate(timeout=60)
    shown = os.read(master, 1 << 20).decode(errors="replace")
    os.close(master)
    assert [json.loads(line)["type"] for line in out.splitlines()] == ["file"] * 3 + ["summary"]
    assert "3/3 2.png" in shown
    assert '"type"' not in shown


def test_report_is_one_line_where_every_photo_fails(gdposr: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    code, out, err = gdposr("upscale", tmp_path / "a.png", "-o", tmp_path / "out.png")
    assert (code, out) == (1, "")
    assert is_one_line(err.partition("\n")[2]), err


# --- killed and terminated ---------------------------------------------------------------------------------------------------


@posix
def test_terminated_as_cleanly_as_interrupted(
    root: Path, toy_bundle: Path, make_photo: Any, tmp_path: Path
) -> None:
    for index in range(30):
        make_photo(f"in/{index}.png", 96, 96, seed=index)
    words = command(toy_bundle, tmp_path / "in", "-o", tmp_path / "out", "--samples", 4, "--json-lines")
    process = subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "terminated; finished files stay" in err
    assert "Traceback" not in err
    summary = json.loads(out.splitlines()[-1])
    assert (summary["type"], summary["interrupted"]) == ("summary", True)
    assert 0 < summary["ok"] < 30
    written = files_in(tmp_path / "out")
    assert not [name for name in written if name.startswith(".")]
    for name in written:
        Image.open(tmp_path / "out" / name).load()


def killed(words: list[str], root: Path, ready: Callable[[], bool], delay: float) -> None:
    """Start, wait until ready or ended, then as long as told, and kill -9."""
    process = subprocess.Popen(words, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while process.poll() is None and not ready() and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.wait(60)


@posix
@pytest.mark.slow
def test_killed_at_any_moment_leaves_whole_files_and_can_be_resumed(
    gdposr: Any, root: Path, toy_bundle: Path, make_photo: Any, tmp_path: Path
) -> None:
    """Twelve kills at moments drawn with a seed, half of the runs replacing what is there and half going on after it."""
    for index in range(60):
        make_photo(f"in/{index % 3}/{index}.png", 24 + index, 40, seed=index)
    out, words = tmp_path / "out", ["upscale", tmp_path / "in", "--samples", 2]
    assert gdposr(*words, "-o", tmp_path / "reference")[0] == 0
    reference = contents(tmp_path / "reference")
    moments = random.Random(7)
    for turn in range(12):
        begin = time.time_ns()

        def begun(begin: int = begin) -> bool:
            return any(path.stat().st_ctime_ns >= begin for path in out.glob("*/[!.]*.png"))

        mode = ["--skip-existing"] if turn % 2 else []
        child = command(toy_bundle, *words[1:], "-o", out, *mode)
        killed(child, root, (lambda: True) if turn == 6 else begun, moments.uniform(0, 0.2))
        for name, data in contents(out).items():
            if not Path(name).name.startswith("."):
                assert data == reference[name], f"{name} after kill {turn}"
    (out / f"0/.{name_mark('0_x4_seed0_s0.png')}.0123abcd.tmp").write_bytes(
        b"cut"
    )  # as an unlucky kill leaves it
    code, text, err = gdposr(*words, "-o", out, "--skip-existing", "--json")
    assert code == 0
    assert contents(out) == reference
    assert json.loads(text)["skipped"] > 0
    assert "removed" in err
