"""The command as a person meets it: names of outputs, exit codes, reports, bad input, nothing half-written."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gdposr import __version__
from gdposr.cli import main


@pytest.fixture
def gdposr(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """gdposr("upscale", ...) -> (exit code, stdout, stderr), with the toy bundle where none is named."""

    def run(*arguments: object) -> tuple[int, str, str]:
        words = [str(argument) for argument in arguments]
        if words and words[0] == "upscale" and "--bundle" not in words:
            words += ["--bundle", str(toy_bundle)]
        capsys.readouterr()
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def files_in(folder: Path) -> list[str]:
    """Every file below a folder, hidden and temporary ones included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def is_one_line(text: str) -> bool:
    return "Traceback" not in text and text.count("\n") == 1


# --- usage -----------------------------------------------------------------------------------------------------------------


def test_version_and_help(gdposr: Any) -> None:
    assert gdposr("--version") == (0, f"gdposr {__version__}\n", "")
    code, out, _ = gdposr("--help")
    assert code == 0
    for verb in ("upscale", "info", "verify", "bench", "accuracy", "train", "export"):
        assert verb in out
    assert gdposr("upscale", "--help")[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["enlarge"],
        ["upscale"],
        ["upscale", "a.png"],
        ["upscale", "a.png", "-o", "b.png", "--seed", "-1"],
        ["upscale", "a.png", "-o", "b.png", "--seed", "x"],
        ["upscale", "a.png", "-o", "b.png", "--seed", str(2**64)],
        ["upscale", "a.png", "-o", "b.png", "--samples", "0"],
        ["upscale", "a.png", "-o", "b.png", "--scale", "4.5"],
        ["upscale", "a.png", "-o", "b.png", "--scale", "nan"],
        ["upscale", "a.png", "-o", "b.png", "--scale", "0"],
        ["upscale", "a.png", "-o", "b.png", "--select", "worst"],
        ["upscale", "a.png", "-o", "b.png", "--quality", "101"],
        ["upscale", "a.png", "-o", "b.png", "--tyle", "64"],
        ["train", "teapot"],
        ["accuracy", "--lr", "nowhere", "--hr", "nowhere"],
        ["verify", "nowhere.gdposr"],
        ["info", "nowhere.gdposr"],
    ],
)
def test_wrong_usage_is_exit_code_2(gdposr: Any, words: list[str]) -> None:
    code, out, err = gdposr(*words)
    assert code == 2
    assert out == ""
    assert err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("option", "value"), [("--device", "toaster"), ("--precision", "int3"), ("--color-fix", "sepia")]
)
def test_unknown_choices_name_the_known_ones(
    gdposr: Any, make_photo: Any, tmp_path: Path, option: str, value: str
) -> None:
    code, _, err = gdposr("upscale", make_photo("a.png"), "-o", tmp_path / "out.png", option, value)
    assert code == 2
    assert is_one_line(err), err
    assert value in err
    known = {"--device": "cpu", "--precision": "fp32", "--color-fix": "wavelet"}[option]
    assert known in err
    assert files_in(tmp_path) == ["a.png"]


def test_debug_shows_the_traceback(gdposr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.errors import BundleError

    monkeypatch.setenv("GDPOSR_DEBUG", "1")
    with pytest.raises(BundleError):
        gdposr("info", "nowhere.gdposr")


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


def test_best_sample_is_the_one_with_the_lowest_niqe(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    from runtime.niqe import niqe

    photo = make_photo("photo.png", 40, 40)
    code, out, _ = gdposr(
        "upscale", photo, "-o", tmp_path / "best", "--samples", 3, "--select", "best", "--json"
    )
    assert code == 0
    report = json.loads(out)
    assert report["score"] == "niqe"
    (written,) = report["files"][0]["outputs"]
    assert files_in(tmp_path / "best") == [f"photo_x4_seed0_s{written['sample']}.png"]
    gdposr("upscale", photo, "-o", tmp_path / "all", "--samples", 3)
    scores = [niqe(np.asarray(Image.open(path))) for path in sorted((tmp_path / "all").iterdir())]
    assert int(np.argmin(scores)) == written["sample"]
    assert written["niqe"] == pytest.approx(min(scores), abs=1e-3)


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


# --- upscale: refused before any work --------------------------------------------------------------------------------------


def test_clashing_names_are_refused_before_work(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    first, second = make_photo("x/a.png"), make_photo("y/a.jpg")
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
    from runtime.upscaler import Upscaler

    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError("the device\nwent away")

    monkeypatch.setattr(Upscaler, "up_photo", fail)
    code, _, err = gdposr("upscale", make_photo("a.png"), "-o", tmp_path / "out")
    assert code == 1
    assert "RuntimeError: the device went away" in err
    assert files_in(tmp_path) == ["a.png"]


def test_interrupt_is_clean(
    gdposr: Any, make_photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import runtime.image as image

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


# --- bundles -----------------------------------------------------------------------------------------------------------------


def test_info(gdposr: Any, toy_bundle: Path) -> None:
    code, out, _ = gdposr("info", toy_bundle)
    assert code == 0
    for word in ("scale", "digest", "fp32", "devices here"):
        assert word in out
    code, out, _ = gdposr("info", toy_bundle, "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["manifest"] == json.loads((toy_bundle / "manifest.json").read_text())
    assert "cpu" in facts["devices"]
    assert len(facts["digest"]) == 16


def test_verify(gdposr: Any, toy_bundle: Path) -> None:
    code, out, _ = gdposr("verify", toy_bundle, "--json")
    assert code == 0
    result = json.loads(out)
    assert result["ok"] is True
    manifest = json.loads((toy_bundle / "manifest.json").read_text())
    assert [probe["precision"] for probe in result["probes"]] == list(manifest["graphs"])
    assert all(probe["psnr_db"] >= probe["floor_db"] for probe in result["probes"])
    code, out, _ = gdposr("verify", toy_bundle)
    assert code == 0
    assert "hashes  ok" in out


def altered(bundle: Path) -> None:
    name = json.loads((bundle / "manifest.json").read_text())["graphs"]["fp32"]["generator"]["file"]
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)


def missing_file(bundle: Path) -> None:
    name = json.loads((bundle / "manifest.json").read_text())["graphs"]["fp32"]["encoder"]["file"]
    (bundle / name).unlink()


def traversal(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"]["fp32"]["generator"]["file"] = "../outside.onnx"
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def no_json(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{ not json")


def newer(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["format_version"] = 99
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [altered, missing_file, traversal, no_json, newer])
def test_damaged_bundle(
    gdposr: Any, toy_copy: Path, make_photo: Any, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(toy_copy)
    code, out, err = gdposr("verify", toy_copy, "--json")
    assert code == 1
    result = json.loads(out)
    assert result["ok"] is False
    assert result["error"]
    assert is_one_line(err), err
    photo, target = make_photo("a.png"), tmp_path / "out" / "big.png"
    code, out, err = gdposr("upscale", photo, "-o", target, "--bundle", toy_copy, "--precision", "fp32")
    assert (code, out) == (2, "")
    assert is_one_line(err), err
    assert not (tmp_path / "out").exists()


def test_failed_probe(gdposr: Any, toy_copy: Path) -> None:
    manifest = json.loads((toy_copy / "manifest.json").read_text())
    manifest["probe"]["floor_db"]["fp32"] = 200.0
    (toy_copy / "manifest.json").write_text(json.dumps(manifest))
    code, out, _ = gdposr("verify", toy_copy, "--precision", "fp32")
    assert code == 1
    assert "FAILED" in out


def test_a_graph_that_cannot_be_loaded_fails_the_check(gdposr: Any, toy_copy: Path) -> None:
    manifest = json.loads((toy_copy / "manifest.json").read_text())
    file = manifest["graphs"]["fp32"]["encoder"]
    content = b"no graph"
    (toy_copy / file["file"]).write_bytes(content)
    file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (toy_copy / "manifest.json").write_text(json.dumps(manifest))
    code, out, err = gdposr("verify", toy_copy, "--json")
    assert code == 1
    assert is_one_line(err), err
    assert {probe["precision"]: probe["ok"] for probe in json.loads(out)["probes"]}["fp32"] is False


def test_a_photo_is_no_bundle(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    photo = make_photo("a.png")
    code, _, err = gdposr("upscale", photo, "-o", tmp_path / "out.png", "--bundle", photo)
    assert code == 2
    assert is_one_line(err), err


# --- bench, accuracy, train, export ------------------------------------------------------------------------------------------


def test_bench(gdposr: Any, toy_bundle: Path) -> None:
    words = ["bench", toy_bundle, "--size", 32, "--rounds", 3, "--warmup", 1, "--threads", 1]
    code, out, _ = gdposr(*words, "--json")
    assert code == 0
    result = json.loads(out)
    manifest = json.loads((toy_bundle / "manifest.json").read_text())
    assert set(result["precisions"]) == set(manifest["graphs"])
    for figures in result["precisions"].values():
        for name in ("encoder_ms", "generator_ms", "first_sample_ms", "further_sample_ms", "picture_ms"):
            assert 0 < figures[name]["low"] <= figures[name]["median"] <= figures[name]["high"]
        assert figures["peak_memory_mb"] is None or figures["peak_memory_mb"] > 10
    assert 0 < result["ratios"]["fp32 further / first sample"] < 1
    assert result["machine"]["cpu_flags"]
    code, out, _ = gdposr(*words, "--precision", "fp32")
    assert code == 0
    assert "first sample" in out


def test_bench_compares_devices(gdposr: Any, toy_bundle: Path, need: Any) -> None:
    need("openvino")
    words = ["bench", toy_bundle, "--size", 32, "--rounds", 2, "--warmup", 0, "--threads", 1, "--json"]
    code, out, err = gdposr(*words, "--device", "cpu", "--device", "openvino")
    assert code == 0, err
    result = json.loads(out)
    assert result["device"] == "cpu, openvino"
    assert set(result["precisions"]) == {"cpu fp32", "cpu int8", "openvino fp32", "openvino int8"}
    for pair in ("cpu int8 / cpu fp32", "openvino int8 / openvino fp32", "openvino int8 / cpu int8"):
        assert result["ratios"][pair] > 0
    assert "openvino int8 / cpu fp32" not in result["ratios"]
    code, out, _ = gdposr(*words, "--device", "cpu", "--device", "cpu", "--precision", "int8")
    assert (code, json.loads(out)["device"], list(json.loads(out)["precisions"])) == (0, "cpu", ["int8"])


def test_placement_is_reported(gdposr: Any, toy_bundle: Path, make_photo: Any, tmp_path: Path) -> None:
    words = ["--bundle", toy_bundle, "--device", "cpu", "--precision", "fp32", "--json"]
    code, out, _ = gdposr("upscale", make_photo("a.png"), "-o", tmp_path / "out.png", *words)
    assert code == 0
    placement = json.loads(out)["placement"]
    if placement is None:
        pytest.skip("needs ONNX Runtime 1.24")
    assert list(placement) == ["CPUExecutionProvider"]
    code, out, _ = gdposr("verify", toy_bundle, "--device", "cpu", "--precision", "fp32", "--json")
    assert (code, json.loads(out)["probes"][0]["placement"]) == (0, placement)
    code, out, _ = gdposr("verify", toy_bundle, "--device", "cpu", "--precision", "fp32")
    assert f"nodes: {placement['CPUExecutionProvider']} CPUExecutionProvider" in out


def test_bench_beside_peers(gdposr: Any, toy_bundle: Path, shared_data: Any, need: Any) -> None:
    need("ncnn", "onnx")
    param = shared_data("peers/RealESRGAN_General_x4_v3.param")
    code, out, _ = gdposr(
        "bench", toy_bundle, "--size", 32, "--rounds", 2, "--warmup", 0, "--precision", "fp32", "--peer-ncnn",
        param, "--json",
    )  # fmt: skip
    assert code == 0
    result = json.loads(out)
    assert set(result["peers"]) == {f"{param.stem} (ncnn)", f"{param.stem} (onnx)"}
    assert all(f"fp32 / {peer}" in result["ratios"] for peer in result["peers"])


def test_ncnn_network_is_the_same_in_onnx(shared_data: Any, need: Any, make_pixels: Any) -> None:
    need("ncnn", "onnx")
    from gdposr.peers import ncnn_peer, ncnn_to_onnx, onnx_peer

    param = shared_data("peers/RealESRGAN_General_x4_v3.param")
    image = make_pixels(24, 32).transpose(2, 0, 1)[None].astype(np.float32) / 255
    ours, theirs = onnx_peer(ncnn_to_onnx(param), 1)(image), ncnn_peer(param, 1)(image)
    psnr = -10 * np.log10(np.mean((ours - theirs) ** 2))
    assert psnr > 40, f"{psnr:.1f} dB, max {np.abs(ours - theirs).max():.2e}"


@pytest.mark.parametrize(
    "wrong", [["--peer-onnx", "nowhere.onnx"], ["--peer-ncnn", "nowhere.param"], ["--size", "33"]]
)
def test_bench_wrong_usage(gdposr: Any, toy_bundle: Path, wrong: list[str]) -> None:
    code, out, err = gdposr("bench", toy_bundle, "--rounds", 1, *wrong)
    assert (code, out) == (2, "")
    assert "Traceback" not in err


@pytest.fixture
def pairs(make_pixels: Any, tmp_path: Path) -> list[object]:
    """--lr and --hr with two pairs, LR 32x32."""
    for folder, side in (("lr", 32), ("hr", 128)):
        (tmp_path / folder).mkdir()
        for index in range(2):
            Image.fromarray(make_pixels(side, side, seed=index)).save(tmp_path / folder / f"{index}.png")
    return ["--lr", tmp_path / "lr", "--hr", tmp_path / "hr"]


def test_accuracy(gdposr: Any, toy_bundle: Path, pairs: list[object], tmp_path: Path) -> None:
    page = tmp_path / "report" / "page.html"
    words = ["accuracy", toy_bundle, *pairs, "--precision", "fp32", "--threads", 1]
    code, out, err = gdposr(
        *words, "--report", page, "--sr", f"copy={tmp_path / 'hr'}", "--rounds", 2, "--json"
    )
    assert code == 0, err
    result = json.loads(out)
    assert [row["name"] for row in result["rows"]] == ["bicubic", "copy", "fp32"]
    assert result["count"] == 2
    assert [row["milliseconds"] is not None for row in result["rows"]] == [False, False, True]
    assert result["rows"][0]["differences"]["psnr"]["real"] in (True, False)
    assert result["machine"]["cpu_flags"]
    assert result["versions"]["gdposr"] == __version__
    assert "timing 32x32, 2 rounds" in err
    assert page.read_text().startswith("<!doctype html>")
    code, out, err = gdposr(*words, "--limit", 1, "--no-speed")
    assert code == 0
    assert "PSNR-Y" in out
    assert "timing" not in err
    (tmp_path / "lr" / "1.png").rename(tmp_path / "lr" / "other.png")
    code, _, err = gdposr(*words)
    assert code == 1
    assert "no partner" in err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--sr", "nonsense"], "--sr expects NAME=DIR"),
        (["--budget", "max_psnr_loss"], "--budget expects GATE=VALUE"),
        (["--budget", "max_psnr_los=1"], "gates among"),
        (["--metric", "psnr"], "metrics among lpips"),
        (["--coreml", "fp16"], "it has none"),
        (["--no-speed", "--rounds", "3"], "not allowed with"),
    ],
)
def test_accuracy_wrong_usage(
    gdposr: Any, toy_bundle: Path, pairs: list[object], wrong: list[str], told: str
) -> None:
    code, out, err = gdposr("accuracy", toy_bundle, *pairs, *wrong)
    assert (code, out) == (2, "")
    assert told in err


def test_accuracy_metric_that_is_not_installed(
    gdposr: Any, toy_bundle: Path, pairs: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    code, _, err = gdposr("accuracy", toy_bundle, *pairs, "--metric", "lpips")
    assert code == 2
    assert "pyiqa not installed: pip install" in err


def test_accuracy_tells_real_differences_from_none(
    gdposr: Any, toy_bundle: Path, pairs: list[object], tmp_path: Path
) -> None:
    """The toy's INT8 graphs differ little from fp32, bicubic by far."""
    words = ["accuracy", toy_bundle, *pairs, "--no-speed"]
    code, out, err = gdposr(*words)
    assert code == 0, err
    lines = out.splitlines()
    assert any(
        re.fullmatch(r"bicubic: PSNR [+-]\d+\.\d{3} dB \(-?\d+\.\d{3} to -?\d+\.\d{3}\)", line)
        for line in lines
    )
    assert any(line.startswith("int8: ") for line in lines)
    assert not any(line.startswith("fp32: ") for line in lines)
    assert "The intervals are over 2 pictures: too few to trust" in out


@pytest.fixture
def checked(gdposr: Any, toy_copy: Path, pairs: list[object]) -> Callable[..., tuple[int, list[Any], str]]:
    """checked({row: {gate: limit}}, ...) -> exit code, [row, gate, limit] of each gate, stderr; the budgets are the manifest's."""

    def run(budgets: dict[str, dict[str, float]], *words: object) -> tuple[int, list[Any], str]:
        manifest = json.loads((toy_copy / "manifest.json").read_text())
        (toy_copy / "manifest.json").write_text(json.dumps(manifest | {"budgets": budgets}))
        code, out, err = gdposr("accuracy", toy_copy, *pairs, "--no-speed", "--json", *words)
        gates = [[gate["row"], gate["gate"], gate["limit"]] for gate in json.loads(out)["gates"]]
        return code, gates, err

    return run


def test_accuracy_check_takes_the_budgets_of_the_manifest(checked: Any) -> None:
    loose, tight = {"max_psnr_loss": 50.0}, {"max_psnr_loss": -50.0}
    assert checked({"int8": loose}, "--check")[:2] == (0, [["int8", "max_psnr_loss", 50]])
    assert checked({"int8": tight}, "--check")[:2] == (1, [["int8", "max_psnr_loss", -50]])
    assert checked({"int8": tight})[:2] == (0, [])  # nothing was asked
    code, gates, _ = checked({"fp32": {"min_psnr": 99.0}, "int8": loose, "w4": tight}, "--check")
    assert (code, gates) == (1, [["fp32", "min_psnr", 99], ["int8", "max_psnr_loss", 50]])
    code, gates, err = checked({"int8": loose}, "--check", "--precision", "fp32")
    assert (code, gates) == (0, [])
    assert "nothing to check" in err


def test_accuracy_check_has_a_budget_where_the_manifest_has_none(checked: Any) -> None:
    """SQF has no weights here: its gate is left out and that is said, where nobody named it."""
    _, gates, err = checked({}, "--check")
    assert gates == [["int8", "max_psnr_loss", 0.1], ["int8", "min_diversity_ratio", 0.95]]
    assert "not checked: max_sqf_rise, which needs --sqf-weights FILE" in err


def test_accuracy_budget_given_by_hand_holds_for_every_model(checked: Any) -> None:
    code, gates, _ = checked({"int8": {"max_psnr_loss": -50.0}}, "--budget", "max_psnr_loss=50")
    assert (code, gates) == (0, [["int8", "max_psnr_loss", 50]])
    code, gates, _ = checked({"int8": {"max_psnr_loss": 50.0}}, "--check", "--budget", "min_psnr=99")
    assert code == 1
    assert gates == [["fp32", "min_psnr", 99], ["int8", "min_psnr", 99], ["int8", "max_psnr_loss", 50]]
    code, gates, err = checked({}, "--budget", "max_sqf=0.5")  # asked for by name: it must be measured
    assert (code, gates) == (1, [["fp32", "max_sqf", 0.5], ["int8", "max_sqf", 0.5]])
    assert "not checked" not in err


@pytest.mark.parametrize(("words", "extra"), [(["train", "student"], "train"), (["export"], "export")])
def test_missing_torch_names_the_extra(
    gdposr: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], extra: str
) -> None:
    import gdposr.commands.stage as stage

    def no_torch(_: str) -> Any:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(stage, "import_module", no_torch)
    code, _, err = gdposr(*words, "--help")
    assert code == 2
    assert f'pip install "gdposr[{extra}]"' in err


def test_stages_have_their_own_help(gdposr: Any, need: Any) -> None:
    need("torch", "safetensors")
    assert gdposr("train")[0] == 0
    code, out, _ = gdposr("train", "student", "--help")
    assert code == 0
    assert "--data" in out
    code, out, _ = gdposr("export", "--help")
    assert code == 0
    assert "--checkpoint" in out


# --- the contact sheet -------------------------------------------------------------------------------------------------------


def test_sheet_adds_a_detail_where_large_versions_differ(make_pixels: Any) -> None:
    from gdposr.sheet import contact_sheet, most_varied

    first = make_pixels(300, 400)
    second = first.copy()
    second[200:260, 300:380] = 255 - second[200:260, 300:380]
    y0, y1, x0, x1 = most_varied([first, second], 100, 100)
    assert y0 <= 200
    assert y1 >= 260
    assert x0 <= 300
    assert x1 >= 380
    small = contact_sheet([first, second], ["first", "second"], cell=400)
    large = contact_sheet([first, second], ["first", "second"], cell=100)
    assert small.shape[1] > 800
    assert small.dtype == large.dtype == np.uint8
    assert np.array_equal(small[34:334, 8:408], first), "shown whole and unscaled where it fits"


def test_sheet_takes_every_kind_of_pixels(make_pixels: Any) -> None:
    from gdposr.sheet import contact_sheet

    for channels in (1, 2, 3, 4):
        for dtype in (np.uint8, np.uint16):
            sheet = contact_sheet([make_pixels(10, 12, channels, dtype=dtype)], ["one"])
            assert sheet.shape[2] == 3
            assert sheet.dtype == np.uint8
    with pytest.raises(ValueError, match="one size"):
        contact_sheet([make_pixels(10, 12), make_pixels(12, 10)], ["a", "b"])
