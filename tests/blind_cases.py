"""What the tests of `gdposr blind` share: folders of pictures, studies of them, and their keys."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

KINDS, PHOTOS, SCALE, SIDE = ("jpeg", "blur"), 3, 2, 24


@pytest.fixture
def folders(make_photo: Any) -> list[object]:
    """A_DIR, B_DIR and --lr: two kinds of three photos of 24x30 pixels, enlarged twice; red is 7 in all of A and 9 in all of B."""

    def write(folder: str, red: int | None, scale: int) -> Path:
        for kind in KINDS:
            for index in range(PHOTOS):
                path = make_photo(
                    f"{folder}/{kind}/p{index}.png", SIDE * scale, (SIDE + 6) * scale, seed=index
                )
                if red is not None:
                    pixels = np.asarray(Image.open(path)).copy()
                    pixels[..., 0] = red
                    Image.fromarray(pixels).save(path)
        return path.parents[1]

    return [write("alice", 7, SCALE), write("bertha", 9, SCALE), "--lr", write("inputs", None, 1)]


@pytest.fixture
def make(gdposr: Any, folders: list[object], tmp_path: Path) -> Callable[..., Path]:
    """make("study", ...) writes a study of 10 pairs and gives its folder."""

    def run(name: str = "study", *words: object) -> Path:
        code, _, err = gdposr(
            "blind",
            "make",
            *folders,
            "--out",
            tmp_path / name,
            "--pairs",
            10,
            "--crop",
            12,
            "--seed",
            3,
            *words,
        )
        assert code == 0, err
        return tmp_path / name

    return run


def key_of(study: Path) -> dict[str, Any]:
    return json.loads(study.with_name(f"{study.name}.key.json").read_text())
