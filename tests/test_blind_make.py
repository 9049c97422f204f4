"""`gdposr blind make`: what a study holds and hides, and which pictures are refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import blind_cases
import numpy as np
import pytest
from blind_cases import KINDS, SCALE, key_of
from cli_helpers import files_in, is_one_line
from PIL import Image

folders, make = blind_cases.folders, blind_cases.make  # fixtures


def test_a_pair_shows_the_same_place_of_input_a_and_b(
    make: Any, folders: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    study = make()
    for entry in key_of(study)["pairs"]:
        y, x, side = (entry["crop"][name] for name in ("y", "x", "size"))
        name = f"{entry['kind']}/{entry['photo']}.png"
        stem = f"{study}/pairs/{entry['pair']:03}"
        shown = {part: np.asarray(Image.open(f"{stem}_{part}.png")) for part in ("input", "left", "right")}
        a, b = (shown["left"], shown["right"]) if entry["a"] == "left" else (shown["right"], shown["left"])
        place = np.s_[y : y + side, x : x + side]
        assert np.array_equal(shown["input"], np.asarray(Image.open(folders[3] / name))[place])
        assert entry["scale"] == SCALE
        place = np.s_[y * SCALE : (y + side) * SCALE, x * SCALE : (x + side) * SCALE]
        assert np.array_equal(a, np.asarray(Image.open(folders[0] / name))[place])
        assert np.array_equal(b, np.asarray(Image.open(folders[1] / name))[place])


def test_kinds_photos_and_sides_are_balanced(make: Any) -> None:
    for seed in range(4):
        entries = key_of(make(f"study{seed}", "--seed", seed))["pairs"]
        kinds = Counter(entry["kind"] for entry in entries)
        assert kinds == {"blur": 5, "jpeg": 5}
        assert Counter(entry["a"] for entry in entries) == {"left": 5, "right": 5}
        for kind in KINDS:
            own = [entry for entry in entries if entry["kind"] == kind]
            assert abs(sum(entry["a"] == "left" for entry in own) * 2 - 5) == 1
            assert sorted(Counter(entry["photo"] for entry in own).values()) == [1, 2, 2]
        places = {(entry["photo"], entry["crop"]["y"], entry["crop"]["x"]) for entry in entries}
        assert len(places) == 10, "no place is asked about twice"
        assert [entry["kind"] for entry in entries] != sorted(entry["kind"] for entry in entries)


def test_same_seed_same_study(make: Any) -> None:
    first, second, other = make("one"), make("two"), make("three", "--seed", 4)
    assert files_in(first) == files_in(second)
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files_in(first)
               if name != "study.json")  # fmt: skip
    assert key_of(first)["pairs"] == key_of(second)["pairs"] != key_of(other)["pairs"]


def test_the_folder_of_a_study_tells_nothing(make: Any) -> None:
    study = make("study", "--names", "Wanda", "Xaver")
    key = key_of(study)
    assert (key["names"], key["seed"]) == ({"a": "Wanda", "b": "Xaver"}, 3)
    assert "--seed 3" in key["command"]
    assert set(json.loads((study / "study.json").read_text())) == {
        "format", "version", "pairs", "question", "key_sha256",
    }  # fmt: skip
    files = [study / name for name in files_in(study)]
    assert len(files) == 1 + 4 * 10
    for path in files:
        content = path.read_bytes()
        assert not any(word in content for word in (b"Wanda", b"Xaver", b"alice", b"bertha", b"jpeg"))
        if path.suffix == ".png":
            chunks = {content[k - 4 : k] for k in _chunk_ends(content)}
            assert chunks == {b"IHDR", b"IDAT", b"IEND"}
            assert Image.open(path).info == {}
    assert len({path.stat().st_mtime_ns for path in files}) == 1


def _chunk_ends(png: bytes) -> list[int]:
    """Where the names of a PNG's chunks end."""
    ends, start = [], 8
    while start < len(png):
        ends.append(start + 8)
        start += 12 + int.from_bytes(png[start : start + 4], "big")
    return ends


def test_sheet_shows_the_input_and_both_sides_twice(make: Any) -> None:
    from calibration.blind.sheet import GAP, LABEL

    study = make()
    sheet = np.asarray(Image.open(study / "pairs" / "001.png"))
    left, right = (np.asarray(Image.open(study / "pairs" / f"001_{side}.png")) for side in ("left", "right"))
    size = left.shape[0]
    assert sheet.shape[1] == 4 * size + 3 * GAP
    large = sheet[-GAP - 2 * size : -GAP]
    assert np.array_equal(large[:, GAP : GAP + 2 * size], left.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(large[:, 2 * GAP + 2 * size : -GAP], right.repeat(2, 0).repeat(2, 1))
    source = np.asarray(Image.open(study / "pairs" / "001_input.png")).repeat(SCALE, 0).repeat(SCALE, 1)
    x = GAP + 2 * size + GAP // 2 - size // 2
    assert np.array_equal(sheet[GAP + LABEL : GAP + LABEL + size, x : x + size], source)


def test_crops_prefer_content() -> None:
    from calibration.blind.pairs import _position, content

    random = np.random.default_rng(0)
    pixels = np.full((100, 200, 3), 128, np.uint8)
    pixels[:, 100:] = random.integers(0, 256, (100, 100, 3))  # the left half is empty
    places = [_position(pixels, 32, [], random) for _ in range(40)]
    assert sum(x >= 68 for _, x in places) > 30
    assert content(pixels[:32, :32]) == 0 < content(pixels[:32, 100:132])


def test_outputs_of_gdposr_upscale_fit_as_they_are(gdposr: Any, folders: list[Any], tmp_path: Path) -> None:
    for path in folders[0].rglob("*.png"):
        path.rename(path.with_name(f"{path.stem}_x2_seed0_s1.png"))
    words = ["blind", "make", *folders, "--pairs", 2, "--crop", 12, "--out"]
    assert gdposr(*words, tmp_path / "study")[0] == 0
    twice = next(folders[0].rglob("*.png"))
    twice.with_name("p0.png").write_bytes(twice.read_bytes())
    twice.with_name("p0_x2_seed1.png").write_bytes(twice.read_bytes())
    code, _, err = gdposr(*words, tmp_path / "other")
    assert (code, "keep one of them" in err) == (2, True)


def test_without_sub_folders_there_is_one_kind(gdposr: Any, folders: list[Any], tmp_path: Path) -> None:
    flat = [folders[0] / "blur", folders[1] / "blur", "--lr", folders[3] / "blur"]
    words = ["--pairs", 4, "--crop", 12, "--names", "one", "two"]
    code, _, err = gdposr("blind", "make", *flat, *words, "--out", tmp_path / "flat")
    assert code == 0, err
    assert {entry["kind"] for entry in key_of(tmp_path / "flat")["pairs"]} == {"all"}
    assert (
        gdposr("blind", "make", *folders, *words, "--kind-from", "none", "--out", tmp_path / "none")[0] == 0
    )
    assert {entry["kind"] for entry in key_of(tmp_path / "none")["pairs"]} == {"all"}
    code, _, err = gdposr("blind", "make", *flat, "--out", tmp_path / "same")
    assert (code, "--names A B" in err) == (2, True)


def test_pictures_that_do_not_fit_are_named(
    gdposr: Any, folders: list[Any], tmp_path: Path, make_pixels: Any
) -> None:
    def refusal(*words: object) -> str:
        code, out, err = gdposr("blind", "make", *folders, "--out", tmp_path / "study", *words)
        assert (code, out) == (2, "")
        assert is_one_line(err)
        assert not (tmp_path / "study").exists()
        assert not (tmp_path / "study.key.json").exists()
        return err

    assert "at least 64x64 pixels, got 30x24: lower --crop to 24" in refusal()
    path = folders[1] / "jpeg" / "p1.png"
    kept = path.read_bytes()
    Image.fromarray(make_pixels(48, 56)).save(path)
    err = refusal("--crop", 12)
    assert "jpeg/p1: expected enlargements of one size, got 60x48" in err
    assert f"56x48 ({path})" in err
    Image.fromarray(make_pixels(48, 56)).save(folders[0] / "jpeg" / "p1.png")
    assert "expected enlargements of 30x24" in refusal("--crop", 12)
    path.unlink()
    err = refusal("--crop", 12)
    assert "have no partner" in err
    assert "jpeg/p1" in err
    path.write_bytes(kept)
    path.with_name("stranger.png").write_bytes(kept)
    assert "jpeg/stranger" in refusal("--crop", 12)


def test_a_study_is_not_overwritten(make: Any, gdposr: Any, folders: list[object]) -> None:
    study = make()
    before = (study / "study.json").read_bytes()
    code, _, err = gdposr("blind", "make", *folders, "--crop", 12, "--out", study)
    assert (code, "choose another --out" in err) == (2, True)
    assert (study / "study.json").read_bytes() == before
    assert sorted(path.name for path in study.parent.iterdir() if "study" in path.name) == [
        "study", "study.key.json",
    ]  # fmt: skip
