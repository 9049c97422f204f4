"""The command as a person meets it: usage, exit codes, what it says of bundles, stages that need an extra."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import files_in, is_one_line

from gdposr import __version__


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


def test_info(gdposr: Any, toy_bundle: Path) -> None:
    code, out, _ = gdposr("info", toy_bundle)
    assert code == 0
    for word in ("scale", "digest", "fp32", "devices here"):
        assert word in out
    code, out, _ = gdposr("info")
    assert code == 0
    assert len(out.splitlines()) < 80, "a page of a terminal or two, however long the training's history"
    assert "entries, see --json" in out
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
    assert json.loads(out)["ok"] is False
    assert file["file"] in json.loads(out)["error"]


def test_a_photo_is_no_bundle(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    photo = make_photo("a.png")
    code, _, err = gdposr("upscale", photo, "-o", tmp_path / "out.png", "--bundle", photo)
    assert code == 2
    assert is_one_line(err), err


@pytest.mark.parametrize(("words", "extra"), [(["train", "student"], "train"), (["export"], "export")])
def test_missing_torch_names_the_extra(
    gdposr: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], extra: str
) -> None:
    from gdposr import forward

    def no_torch(_: str) -> Any:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(forward, "import_module", no_torch)
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
