"""`gdposr upscale` in pipes and for the eye: stdin, stdout, the page before and after, the viewer, shell completion."""

import base64
import io
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import files_in, is_one_line
from PIL import Image

from gdposr.batch import compare
from gdposr.batch.compare import Preview

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def piped(root: Path, toy_bundle: Path, content: bytes, *words: object, **options: Any) -> Any:
    command = [sys.executable, "-m", "gdposr", "upscale", *map(str, words), "--bundle", str(toy_bundle)]
    return subprocess.run(
        command, cwd=root, input=content, capture_output=True, timeout=120, check=False, **options
    )


def test_photo_from_stdin_to_stdout(
    gdposr: Any, root: Path, toy_bundle: Path, make_photo: Any, tmp_path: Path
) -> None:
    photo = make_photo("a.png")
    temporary = tmp_path / "private"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    result = piped(root, toy_bundle, photo.read_bytes(), "-", "-o", "-", "--seed", 3, env=environment)
    assert result.returncode == 0, result.stderr
    assert gdposr("upscale", photo, "-o", tmp_path / "big.png", "--seed", 3)[0] == 0
    assert result.stdout == (tmp_path / "big.png").read_bytes()
    assert files_in(temporary) == []


def test_bad_photo_on_stdin_gives_no_byte_and_no_private_name(
    root: Path, toy_bundle: Path, make_photo: Any
) -> None:
    for content in (b"", b"no picture", make_photo("a.png", 90, 90).read_bytes()[:-900]):
        result = piped(root, toy_bundle, content, "-", "-o", "-")
        assert (result.returncode, result.stdout) == (1, b"")
        assert b"failed: stdin: " in result.stderr, result.stderr
        assert b"/gdposr-" not in result.stderr


@pytest.mark.parametrize(
    "words", [["-", "x.png"], ["-", "--json"], ["-", "--compare"], ["-", "--samples", "2"]]
)
def test_what_a_pipe_cannot_carry_is_refused(
    root: Path, toy_bundle: Path, make_photo: Any, words: list[str]
) -> None:
    result = piped(root, toy_bundle, make_photo("a.png").read_bytes(), *words, "-o", "-")
    assert (result.returncode, result.stdout) == (2, b"")
    assert is_one_line(result.stderr.decode())


def embedded(page: Path) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page.read_text())
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]


@pytest.mark.parametrize("words", [[], ["--samples", 2, "--select", "best"], ["--max-memory", "4G"]])
def test_page_shows_before_and_after(
    gdposr: Any, make_photo: Any, tmp_path: Path, words: list[object]
) -> None:
    photo = make_photo("<b>&a.png" if os.name == "posix" else "a.png", channels=4)
    assert gdposr("upscale", photo, "-o", tmp_path / "out", "--compare", *words)[0] == 0
    (page,) = (tmp_path / "out").glob("*_compare.html")
    (picture,) = (tmp_path / "out").glob("*.png")
    assert page.stem == f"{picture.stem}_compare"
    before, after = embedded(page)
    assert (before.size, after.size) == ((32, 24), (128, 96))
    wanted = np.asarray(Image.open(picture))
    from gdposr.batch.sheet import to_rgb8

    assert np.abs(np.asarray(after).astype(int) - to_rgb8(wanted)).mean() < 4
    text = page.read_text()
    assert "<b>&a" not in text
    assert "http" not in text, "nothing is loaded"


def test_large_result_is_reduced_by_the_mean_while_it_passes(
    make_pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "SIDE", 40)
    pixels = make_pixels(101, 70)
    preview = Preview(pixels.shape)
    for top in range(0, 101, 7):
        preview.take(pixels[top : top + 7])
    wanted = pixels[:99, :69].reshape(33, 3, 23, 3, 3).mean(axis=(1, 3))
    assert np.abs(preview.pixels() - wanted).max() <= 0.5001


@posix
@pytest.mark.parametrize("many", [False, True])
def test_open_starts_the_viewer_on_what_was_made(
    gdposr: Any, make_photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    if sys.platform == "darwin":
        pytest.skip("needs the viewer of a free desktop")
    started: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda words, **_: started.append(words))
    program = tmp_path / "bin" / "xdg-open"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent))
    photo, out = make_photo("in/a.png"), tmp_path / "out"
    code, _, _ = gdposr("upscale", photo, "-o", out, "--open", *(["--samples", 2] if many else ["--compare"]))
    assert code == 0
    assert started == [["xdg-open", str(out if many else out / "a_x4_seed0_compare.html")]]


def test_no_viewer_is_said_and_no_failure(
    gdposr: Any, make_photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform == "win32":
        pytest.skip("needs a viewer that may be missing")
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = gdposr("upscale", make_photo("a.png"), "-o", tmp_path / "big.png", "--open")
    assert code == 0
    assert "cannot be shown" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_verbs_and_options(gdposr: Any, need: Any, shell: str) -> None:
    need("shtab")
    code, out, _ = gdposr("--print-completion", shell)
    assert code == 0
    for word in ("upscale", "skip-existing", "max-memory", "sensitivity"):
        assert word in out


def test_completion_without_its_package_names_the_extra(gdposr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, _, err = gdposr("--print-completion", "bash")
    assert code == 2
    assert 'pip install "gdposr[completion]"' in err
