"""Streams and permissions as nobody plans them: closed or full streams, every locale, folders and files that may not be read.

Most run in a process of their own. Tests of permissions run as another user where the tests run as root.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import check_shown, files_in, picture
from PIL import Image

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX names, links and permissions")
NOBODY = 65534


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    """Two photos, one with a name that is no text and steers terminals."""
    (tmp_path / "in").mkdir()
    picture(tmp_path / "in" / "a.png")
    picture(os.fsencode(tmp_path / "in") + b"/\xd5\x1b[31m\xe2\x80\xae\xc3\xa9.png")
    return tmp_path


def start(root: Path, toy_bundle: Path, folder: Path, redirect: str, **environment: str) -> Any:
    words = f'"{sys.executable}" -m gdposr upscale "{folder}/in" -o "{folder}/out" --bundle "{toy_bundle}" {redirect}'
    return subprocess.run(
        ["sh", "-c", words],
        cwd=root,
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("redirect", "code"),
    [
        ("--json-lines >&-", 0),
        ("--json 2>&-", 0),
        ("--json-lines <&- >&- 2>&-", 0),
        ("--json-lines | head -c 5; exit 0", 0),
        ("2>/dev/full", 0),
        pytest.param("--json-lines >/dev/full", 1, marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")),
    ],
)  # fmt: skip
def test_streams_that_are_closed_or_full(
    root: Path, toy_bundle: Path, odd_folder: Path, redirect: str, code: int
) -> None:
    result = start(root, toy_bundle, odd_folder, redirect)
    assert result.returncode == code, result.stderr
    assert b"Traceback" not in result.stderr
    assert b"Exception ignored" not in result.stderr
    names = files_in(odd_folder / "out")
    assert len(names) == 2
    for name in names:
        Image.open(odd_folder / "out" / name).load()


@pytest.mark.parametrize(
    "environment",
    [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "cp1252"}],
)
def test_json_is_utf_8_in_every_locale(
    root: Path, toy_bundle: Path, odd_folder: Path, environment: dict[str, str]
) -> None:
    result = start(root, toy_bundle, odd_folder, "--json-lines", **environment)
    assert result.returncode == 0, result.stderr
    files = [json.loads(line) for line in result.stdout.decode("utf-8").splitlines()][:-1]
    check_shown(result.stdout.decode("utf-8"))
    if (
        "LC_ALL" not in environment
    ):  # there Python reads file names as ASCII, and é is two bytes that are no text
        assert "é" in result.stdout.decode("utf-8")
    names = {os.fsencode(each["input"]) for each in files}
    assert names == {os.fsencode(path) for path in (odd_folder / "in").iterdir()}, (
        "the very bytes of each name"
    )


AS_USER = """
import contextlib, io, os, sys
from gdposr.cli import main
warm, words = sys.argv[1], sys.argv[2:]
# Loads every module: the other user may have no right to read them.
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    assert main(["upscale", warm + "/in", "-o", warm + "/out", "--json", *words[words.index("--bundle"):]]) == 1
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
sys.exit(main(["upscale", *words]))
""".replace("NOBODY", str(NOBODY))


def as_user(run_python: Callable, warm: Path, *words: object) -> Any:
    """The command as a user whom permissions hold. warm: a folder of its own for a run before."""
    (warm / "in").mkdir(exist_ok=True)
    picture(warm / "in" / "a.png")
    (warm / "in" / "b.png").write_bytes(b"no picture")
    return run_python("-c", AS_USER, warm, *words)


@pytest.fixture
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that another user can reach and write into."""
    if os.geteuid() != 0:
        return tmp_path_factory.mktemp("open")
    import tempfile

    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o777)
    return folder


def test_closed_folders_and_files_are_failed_entries(
    run_python: Callable, toy_bundle: Path, readable: Path, tmp_path: Path
) -> None:
    import shutil

    bundle = Path(shutil.copytree(toy_bundle, readable / "toy.gdposr"))
    for path in ("in/locked/c.png", "in/list_only/d.png", "in/ok.png", "in/unreadable.png"):
        (readable / path).parent.mkdir(parents=True, exist_ok=True)
        picture(readable / path)
    (readable / "in/locked").chmod(0)
    (readable / "in/list_only").chmod(0o444)
    (readable / "in/unreadable.png").chmod(0)
    try:
        result = as_user(
            run_python, tmp_path, readable / "in", "-o", readable / "out", "--json", "--bundle", bundle
        )
        assert result.returncode == 1, result.stderr
        status = {Path(each["input"]).name: each["status"] for each in json.loads(result.stdout)["files"]}
        wanted = {"locked": "failed", "d.png": "failed", "unreadable.png": "failed", "ok.png": "ok"}
        assert status == wanted, result.stderr
        assert "Traceback" not in result.stderr
        assert files_in(readable / "out") == ["ok_x4_seed0.png"]
        # an output folder that is read-only: one sentence, nothing computed
        picture(readable / "in/ok2.png")
        (readable / "closed").mkdir(mode=0o555)
        (readable / "closed").chmod(0o555)
        words = [
            readable / "in/ok.png",
            readable / "in/ok2.png",
            "-o",
            readable / "closed",
            "--bundle",
            bundle,
        ]
        result = as_user(run_python, tmp_path, "--json", *words)
        assert result.returncode == 1, result.stderr
        assert result.stderr.count("nothing can be written into this folder: check its permissions") == 1
        assert result.stdout, result.stderr
        assert [each["status"] for each in json.loads(result.stdout)["files"]] == ["failed"] * 2
    finally:
        (readable / "in/locked").chmod(0o755)
        (readable / "in/list_only").chmod(0o755)
        shutil.rmtree(readable)


def test_warnings_of_libraries_carry_the_photo_or_are_not_shown(
    gdposr: Any, make_photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging
    import warnings

    import runtime.image.read.decode as decode

    real = decode.check_still

    def warned(path: Path, *rest: Any) -> None:
        warnings.warn("odd\ntag", UserWarning, stacklevel=1)
        warnings.warn("old call", DeprecationWarning, stacklevel=1)
        logging.getLogger("PIL.TiffImagePlugin").warning("more samples")
        real(path, *rest)

    monkeypatch.setattr(decode, "check_still", warned)
    make_photo("in/a.png")
    make_photo("in/b.png")
    code, out, err = gdposr("upscale", tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert code == 0
    for entry in json.loads(out)["files"]:
        assert entry["notes"] == [f"{entry['input']}: odd tag", f"{entry['input']}: more samples"]
    assert err.count("odd tag") == 2, "each photo, not the first alone"
    assert "old call" not in err
