"""The demonstration, with the toy bundle in place of a real export."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gdposr.cli
from tools import demo


@pytest.fixture(autouse=True)
def toy_export(monkeypatch: pytest.MonkeyPatch, toy_bundle: Path) -> None:
    """`export` lays down the toy bundle; every other verb is the real one."""

    def command(argv: Sequence[str]) -> int:
        if argv[0] != "export":
            return gdposr.cli.main(argv)
        shutil.copytree(toy_bundle, argv[argv.index("--out") + 1], dirs_exist_ok=True)
        return 0

    monkeypatch.setattr(demo, "command", command)


def test_demo_ends_with_pictures(tmp_path: Path, need: Callable[..., None]) -> None:
    need("skimage")
    assert demo.main(["--out", str(tmp_path), "--seeds", "2"]) == 0
    small = np.asarray(Image.open(tmp_path / "photo.png"))
    for seed in range(2):
        with Image.open(tmp_path / f"photo_x4_seed{seed}.png") as picture:
            assert picture.size == (4 * small.shape[1], 4 * small.shape[0])
    where = (tmp_path / "where.txt").read_text()
    assert str(tmp_path / "sheet.png") in where
    assert Image.open(tmp_path / "sheet.png").width > 2 * 4 * small.shape[1]


def test_demo_with_a_photo_of_your_own(tmp_path: Path, make_photo: Callable[..., Path]) -> None:
    photo = make_photo("mine.jpg", 40, 600)
    assert demo.main(["--out", str(tmp_path / "out"), "--photo", str(photo), "--seeds", "1"]) == 0
    assert Image.open(tmp_path / "out" / "photo.png").size == (demo.LARGEST, 40)


def test_demo_with_a_broken_photo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.png").write_text("no picture")
    assert demo.main(["--out", str(tmp_path / "out"), "--photo", str(tmp_path / "mine.png")]) == 2
    assert "mine.png" in capsys.readouterr().err
