"""The vectors of examples/vectors are what the Python runtime computes, and they hold what another runtime may get wrong."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundle.manifest import SizeRule
from runtime.bundle.reader import Bundle
from runtime.errors import SettingError
from runtime.noise import noise_field
from runtime.upscale.probe import psnr_db
from runtime.upscale.tiling import padded_size
from runtime.upscale.upscaler import Upscaler
from tools import vectors
from tools.arm.checks import to_pixels


@pytest.fixture(scope="module")
def stored(root: Path) -> dict[str, dict[str, Any]]:
    folder = root / "examples" / "vectors"
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}


def test_noise_and_tiles_are_the_runtimes(root: Path) -> None:
    """To the byte. `make vectors` writes them anew where the bundle changes."""
    for name, content in (("noise.json", vectors.noise_vectors()), ("tiles.json", vectors.tile_cases())):
        text = (root / "examples" / "vectors" / name).read_text(encoding="utf-8")
        assert vectors.to_text(content) == text, f"{name}: run make vectors"


@pytest.mark.parametrize("tile", [None, 8])
def test_picture_in_fp32(stored: dict[str, dict[str, Any]], tile: int | None) -> None:
    case = stored["picture.json"]
    generator = Bundle.open().manifest.graphs["fp32"]["generator"]
    assert case["generator_sha256"] == generator.sha256, "run make vectors"
    result, expected = enlarged(case, "fp32", tile), to_pixels(case["fp32"])
    assert result.shape == expected.shape
    off = np.abs(result.astype(int) - expected)
    assert off.max() <= case["most_levels"], psnr_db(result, expected)
    assert np.count_nonzero(off) <= case["most_share"] * off.size


def test_picture_in_int8(stored: dict[str, dict[str, Any]]) -> None:
    case = stored["picture.json"]
    psnr = psnr_db(enlarged(case, "int8", None), to_pixels(case["fp32"]))
    assert psnr >= case["int8_floor_db"], f"{psnr:.1f} dB"


def enlarged(case: dict[str, Any], precision: str, tile: int | None) -> np.ndarray:
    with Upscaler(device="cpu", precision=precision, tile=tile, threads=1) as upscaler:
        return upscaler.up(to_pixels(case["image"]), int(case["seed"]), first=case["sample"])[0]


def test_rows_of_the_page_come_first(root: Path, stored: dict[str, dict[str, Any]]) -> None:
    """docs/noise.md and the file agree, so that a reader of one has the other."""
    page = (root / "docs" / "noise.md").read_text(encoding="utf-8")
    row = r"^\| (\d+) +\| (\d+) +\| (\d+) +\| (\d+) +\| (\d+) +\| ([0-9a-f]{8}) \|"
    rows = re.findall(row, page, re.MULTILINE)
    names = ("seed", "sample", "y", "x", "channel", "bits")
    listed = [tuple(str(value[name]) for name in names) for value in stored["noise.json"]["values"]]
    assert rows
    assert listed[: len(rows)] == rows
    assert stored["noise.json"]["fields"][0]["sha256"] in page


def test_no_test_has_a_copy(root: Path, stored: dict[str, dict[str, Any]]) -> None:
    """Every runtime's tests read the files. A page for people repeats some, which the test above compares."""
    noise, picture = stored["noise.json"], stored["picture.json"]
    copies = {value["bits"] for value in noise["values"]} | {field["sha256"] for field in noise["fields"]}
    copies |= {word for case in noise["philox"] for word in case["result"]} | {
        *picture["image"],
        *picture["fp32"],
    }
    sources = [
        path
        for folder in ("examples", "tests", "tools", "runtime", "gdposr")
        for suffix in ("py", "js", "kt", "swift")
        for path in (root / folder).rglob(f"*.{suffix}")
    ]
    assert {path.suffix for path in sources} == {".py", ".js", ".kt", ".swift"}
    for path in sources:
        text = path.read_text(encoding="utf-8").lower().replace("_", "")
        assert not [copy for copy in copies if copy in text], f"{path}: read examples/vectors"
    # numbers of tiles are short and stand elsewhere by chance
    for folder in (root / "examples/android/src/test", root / "examples/ios/Tests"):
        for path in folder.rglob("*.*"):
            assert not re.search(r"\b(?<!SHA-)\d{3,}\b", path.read_text(encoding="utf-8")), path


def test_a_window_is_part_of_its_field(stored: dict[str, dict[str, Any]]) -> None:
    whole, part = stored["noise.json"]["fields"][1:3]
    assert (whole["seed"], whole["sample"], whole["channels"]) == (
        part["seed"],
        part["sample"],
        part["channels"],
    )
    assert part["y0"] + part["height"] == whole["height"]
    assert part["x0"] + part["width"] == whole["width"]


def test_what_is_refused(stored: dict[str, dict[str, Any]]) -> None:
    for case in stored["noise.json"]["refused"]:
        words = {"seed": 0, "sample": 0, "y0": 0, "x0": 0} | {case["setting"]: int(case["value"])}
        with pytest.raises(SettingError, match=case["setting"]):
            noise_field(words.pop("seed"), words.pop("sample"), 1, 1, **words)


def test_spans_hold_their_context(stored: dict[str, dict[str, Any]]) -> None:
    """Every window holds its core with the context around it, up to the photo's edge, and cores leave no gap."""
    rule: SizeRule = Bundle.open().manifest.size
    for case in stored["tiles.json"]["spans"]:
        length, spans = case["length"], case["spans"]
        whole = padded_size(length, rule)
        assert [start for _, _, start, _ in spans] == [0, *(end for *_, end in spans[:-1])]
        assert spans[-1][3] == length
        for first, side, start, end in spans:
            assert side == min(case["window"], whole)
            assert first % rule.multiple_of == 0
            assert first <= max(0, start - rule.context)
            assert first + side >= min(whole, end + rule.context if end < length else length)


def test_command_writes_the_files(tmp_path: Path, root: Path) -> None:
    assert vectors.main(["--out", str(tmp_path)]) == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {path.name for path in (root / "examples" / "vectors").glob("*.json")}
    assert (tmp_path / "noise.json").read_bytes() == (
        root / "examples" / "vectors" / "noise.json"
    ).read_bytes()
