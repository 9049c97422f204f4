"""`gdposr upscale` as a person meets it: what is written, under which name, and what is reported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import files_in
from PIL import Image

from gdposr import __version__

# --- upscale: what is written, and under which name --------------------------------------------------------------------------


def test_one_photo_to_one_file(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    photo = make_photo("in/a.png", 20, 30)
    code, out, err = gdposr("upscale", photo, "-o", tmp_path / "out" / "big.png", "--seed", 3)
    assert (code, out) == (0, "")
    assert "cpu" in err
    assert files_in(tmp_path / "out") == ["big.png"]
    with Image.open(tmp_path / "out" / "big.png") as picture:
        assert picture.size == (120, 80)
        assert picture.info["gdposr-seed"] == "3"
        assert picture.info["gdposr-sample"] == "0"
        assert picture.info["Software"] == f"gdposr {__version__}"
        assert len(picture.info["gdposr-bundle"]) == 16


def test_same_seed_same_bytes(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    photo = make_photo("a.png", 50, 70)
    options = {"one": [], "two": ["--tile", 32], "three": ["--threads", 1], "other": ["--seed", 9]}
    for name, words in options.items():
        assert gdposr("upscale", photo, "-o", tmp_path / f"{name}.png", *words)[0] == 0
    one, two, three, other = ((tmp_path / f"{name}.png").read_bytes() for name in options)
    assert one == two == three
    assert one != other


def test_temperature_is_noted_in_the_picture(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    photo = make_photo("a.png", 20, 30)
    for words, name in ((["--temperature", 0], "cold"), (["--temperature", "1.5"], "hot"), ([], "usual")):
        assert gdposr("upscale", photo, "-o", tmp_path / f"{name}.png", *words)[0] == 0
    cold, hot, usual = (Image.open(tmp_path / f"{name}.png") for name in ("cold", "hot", "usual"))
    assert (cold.info["gdposr-temperature"], hot.info["gdposr-temperature"]) == ("0", "1.5")
    assert "gdposr-temperature" not in usual.info
    assert len({cold.tobytes(), hot.tobytes(), usual.tobytes()}) == 3
    _, out, _ = gdposr("upscale", photo, "-o", tmp_path / "told.png", "--temperature", 2, "--json")
    assert json.loads(out)["temperature"] == 2
    code, _, err = gdposr("upscale", photo, "-o", tmp_path / "no.png", "--temperature", 3)
    assert code == 2
    assert "temperature: expected 0 to 2, got 3" in err
    assert not (tmp_path / "no.png").exists()


def test_folder_keeps_its_tree_and_names_carry_the_seed(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    make_photo("in/a.png")
    make_photo("in/sub/b.jpg")
    make_photo("in/sub/.hidden.png")
    (tmp_path / "in" / "note.txt").write_text("not a photo")
    code, _, _ = gdposr("upscale", tmp_path / "in", "-o", tmp_path / "out", "--seed", 3, "--scale", 2.5)
    assert code == 0
    assert files_in(tmp_path / "out") == ["a_x2.5_seed3.png", "sub/b_x2.5_seed3.png"]
    with Image.open(tmp_path / "out" / "a_x2.5_seed3.png") as picture:
        assert picture.size == (80, 60)


def test_glob_keeps_the_tree_below_its_fixed_part(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    make_photo("in/x/a.png")
    make_photo("in/y/a.png")
    assert gdposr("upscale", f"{tmp_path}/in/*/*.png", "-o", tmp_path / "out")[0] == 0
    assert files_in(tmp_path / "out") == ["x/a_x4_seed0.png", "y/a_x4_seed0.png"]


def test_samples(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    photo = make_photo("photo.png")
    assert gdposr("upscale", photo, "-o", tmp_path / "all", "--samples", 3, "--seed", 5)[0] == 0
    names = [f"photo_x4_seed5_s{sample}.png" for sample in range(3)]
    assert files_in(tmp_path / "all") == names
    contents = {np.asarray(Image.open(tmp_path / "all" / name)).tobytes() for name in names}
    assert len(contents) == 3, "samples must differ"
    with Image.open(tmp_path / "all" / names[2]) as picture:
        assert picture.info["gdposr-sample"] == "2"


def test_best_sample_is_the_one_with_the_lowest_score(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    from runtime.image.grain import NAME, score

    photo = make_photo("photo.png", 40, 40)
    code, out, _ = gdposr(
        "upscale", photo, "-o", tmp_path / "best", "--samples", 3, "--select", "best", "--json"
    )
    assert code == 0
    report = json.loads(out)
    assert report["score"] == NAME
    (written,) = report["files"][0]["outputs"]
    assert files_in(tmp_path / "best") == [f"photo_x4_seed0_s{written['sample']}.png"]
    gdposr("upscale", photo, "-o", tmp_path / "all", "--samples", 3)
    scores = [score(np.asarray(Image.open(path))) for path in sorted((tmp_path / "all").iterdir())]
    assert int(np.argmin(scores)) == written["sample"]
    assert written[NAME] == pytest.approx(min(scores), abs=1e-3)


def test_sheet_shows_all_samples(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    photo = make_photo("photo.png", 24, 32)
    assert gdposr("upscale", photo, "-o", tmp_path, "--samples", 4, "--select", "sheet")[0] == 0
    with Image.open(tmp_path / "photo_x4_seed0_sheet.png") as sheet:
        assert 2 * 128 < sheet.width < 3 * 128  # two columns of x4
        assert 2 * 96 < sheet.height < 3 * 96  # two rows
        assert sheet.info["gdposr-sample"] == "0-3"


def test_gray_and_alpha_keep_their_channels(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    inputs = [make_photo(f"{channels}.png", channels=channels) for channels in (1, 2, 3, 4)]
    assert gdposr("upscale", *inputs, "-o", tmp_path / "out")[0] == 0
    modes = [Image.open(tmp_path / "out" / f"{channels}_x4_seed0.png").mode for channels in (1, 2, 3, 4)]
    assert modes == ["L", "LA", "RGB", "RGBA"]


def test_opaque_photo_with_alpha_may_be_a_jpeg(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    Image.open(make_photo("rgb.png")).convert("RGBA").save(tmp_path / "opaque.png")
    assert gdposr("upscale", tmp_path / "opaque.png", "-o", tmp_path / "big.jpg")[0] == 0
    assert gdposr("upscale", tmp_path / "rgb.png", "-o", tmp_path / "same.jpg")[0] == 0
    pictures = [np.asarray(Image.open(tmp_path / name)) for name in ("big.jpg", "same.jpg")]
    assert np.array_equal(*pictures)


def test_json_report_is_all_there_is_on_stdout(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    photo = make_photo("a.png", 20, 30)
    code, out, err = gdposr("upscale", photo, "-o", tmp_path / "out", "--samples", 2, "--json")
    assert code == 0
    report = json.loads(out)
    assert err
    assert report["version"] == __version__
    assert report["device"] == "cpu"
    assert report["precision"] in ("fp32", "fp16", "int8")
    assert (report["seed"], report["samples"], report["failed"], report["interrupted"]) == (0, 2, 0, False)
    (entry,) = report["files"]
    assert entry["status"] == "ok"
    assert entry["error"] is None
    assert entry["seconds"] > 0
    assert [each["sample"] for each in entry["outputs"]] == [0, 1]
    assert all(Path(each["path"]).is_file() for each in entry["outputs"])
    assert (entry["outputs"][0]["width"], entry["outputs"][0]["height"]) == (120, 80)


def test_photos_that_differ_in_their_suffix_alone_are_both_done(
    gdposr: Any, make_photo: Any, tmp_path: Path
) -> None:
    for name in ("in/x/a.png", "in/x/a.jpg", "in/y/a.png"):
        make_photo(name)
    arguments = ("upscale", tmp_path / "in", "-o", tmp_path / "out", "--skip-existing", "--json")
    assert gdposr(*arguments)[0] == 0
    assert files_in(tmp_path / "out") == [
        "x/a.jpg_x4_seed0.png",
        "x/a.png_x4_seed0.png",
        "y/a_x4_seed0.png",
    ]
    assert json.loads(gdposr(*arguments)[1])["skipped"] == 3
