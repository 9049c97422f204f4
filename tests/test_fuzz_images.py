"""Damaged and malicious picture files: a picture or an ImageError, in bounded time and memory, and nothing half written.

A few hundred cases run always, in a process of their own whose memory is limited, so that a crash or a hang of a decoder written
in C is a failed test and not the end of the run. Thousands run in the nightly form: make test PYTEST_ARGS=
"""

import json
import random
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mutations import damage, pictures
from PIL import Image

from gdposr.cli import main
from gdposr.console import FAILED

SECONDS = 5.0  # of processor time for one file of a few hundred bytes and at most a million pixels
CHILD = """
import json, random, resource, sys, time, warnings
from pathlib import Path

import numpy as np
from hostile import hostile
from mutations import damage, pictures
from runtime.errors import ImageError
from runtime.image.read.decode import read_photo

first, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
warnings.simplefilter("ignore")  # Pillow's remarks on what it reads
files, bad = pictures(), hostile() if first < 0 else {}


def cases():
    if first < 0:
        yield from bad.items()
        return
    others = list(files.values())
    for number in range(first, first + count):
        draw = random.Random(number)
        name = draw.choice(sorted(files))
        yield f"{number}_{name}", damage(files[name], draw, others)


def read(name, content):
    path = folder / name
    path.write_bytes(content)
    try:
        return read_photo(path, 1_000_000, notify=lambda note: None)
    except ImageError as error:
        return str(error)
    finally:
        path.unlink()


for name, content in files.items():  # every decoder is loaded before the memory is limited
    read(name, content)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (160 << 20),) * 2)
done, slowest, messages = 0, 0.0, {}
for name, content in cases():
    print(name, file=sys.stderr, flush=True)
    start = time.process_time()
    photo = read(name, content)
    slowest = max(slowest, time.process_time() - start)
    done += 1
    if isinstance(photo, str):
        messages[name] = photo
    else:
        assert photo.pixels.ndim == 3 and photo.pixels.dtype in (np.uint8, np.uint16)
        assert 0 < photo.pixels.shape[0] * photo.pixels.shape[1] <= 1_000_000
print(json.dumps({"done": done, "slowest": slowest, "messages": messages}))
"""
LINUX = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="needs Linux, where memory can be limited"
)


def fuzz(run_python: Callable, root: Path, folder: Path, first: int, count: int) -> dict[str, Any]:
    """The report of a child process over the cases first to first + count; first = -1: over the hostile files."""
    folder.mkdir()
    environment = {
        "PATH": "",
        "PYTHONPATH": f"{root}:{root / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    try:
        result = run_python("-c", CHILD, first, count, folder, env=environment, timeout=60 + count / 10)
    except subprocess.TimeoutExpired as error:
        last = (error.stderr or b"").decode().strip().splitlines()[-1:]
        pytest.fail(f"a case hangs: {last}")
    assert result.returncode == 0, f"exit {result.returncode} after ...{result.stderr[-2000:]}"
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["slowest"] < SECONDS, report
    no_room = [message for message in report["messages"].values() if "not enough memory" in message]
    assert not no_room, no_room[:3]
    assert not list(folder.iterdir())
    return report


@LINUX
def test_damaged_pictures(run_python: Callable, root: Path, tmp_path: Path) -> None:
    report = fuzz(run_python, root, tmp_path / "work", 0, 600)
    refused = len(report["messages"])
    assert report["done"] == 600
    assert 60 < refused < 540, refused  # the damage is neither always fatal nor always harmless


@LINUX
@pytest.mark.nightly
@pytest.mark.parametrize("part", range(8))
def test_thousands_of_damaged_pictures(run_python: Callable, root: Path, tmp_path: Path, part: int) -> None:
    assert fuzz(run_python, root, tmp_path / "work", 1000 + 2500 * part, 2500)["done"] == 2500


@LINUX
def test_pictures_made_to_take_memory_or_time(run_python: Callable, root: Path, tmp_path: Path) -> None:
    messages = fuzz(run_python, root, tmp_path / "work", -1, 0)["messages"]
    for name in ("huge.png", "deep_huge.png", "line.png", "huge.bmp", "huge.ppm", "huge.gif"):
        assert "is more than the limit of 1 megapixels" in messages[name], messages.get(name)
    for name in ("film.png", "film.gif"):
        assert "expected a still picture" in messages[name], messages.get(name)
    for name in ("short.png", "deep_short.png", "no_pixels.png", "deep_no_pixels.png"):
        assert "damaged or cut off" in messages[name], messages.get(name)
    for name in ("texts.png", "zTXt8.png", "iTXt8.png", "iCCP8.png"):  # only metadata is too much
        assert name not in messages, messages[name]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_folder_with_damaged_pictures(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    """The whole command: each file is a complete picture under its name or a line in the report, and nothing else is left."""
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    files, draw = pictures(), random.Random(seed)
    others = list(files.values())
    for number in range(60 if seed == 1 else 2000):
        name = draw.choice(sorted(files))
        content = damage(files[name], draw, others) if number % 10 else files[name]
        (inputs / f"{number}_{name}").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = main(["upscale", str(inputs), "-o", str(out), "--bundle", str(toy_bundle), "--device", "cpu", "--json",
                     "--max-pixels", "0.2", "--threads", "1"])  # fmt: skip
    report = json.loads(capsys.readouterr().out)
    by_status: dict[str, list[dict[str, Any]]] = {"ok": [], "failed": []}
    for file in report["files"]:
        by_status[file["status"]].append(file)
    assert code == FAILED
    assert len(report["files"]) == len(list(inputs.iterdir()))
    assert min(len(by_status["ok"]), len(by_status["failed"])) > 10
    assert all(file["error"] and not file["outputs"] for file in by_status["failed"])
    written = {Path(output["path"]) for file in by_status["ok"] for output in file["outputs"]}
    assert written == {path for path in out.rglob("*") if path.is_file()}
    for path in written:
        with Image.open(path) as image:
            image.load()  # complete
            assert min(image.size) >= 4
