"""`gdposr accuracy`: its table, its report and its gates."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gdposr import __version__


@pytest.fixture
def pairs(make_pixels: Any, tmp_path: Path) -> list[object]:
    """--lr and --hr with two pairs, LR 32x32."""
    for folder, side in (("lr", 32), ("hr", 128)):
        (tmp_path / folder).mkdir()
        for index in range(2):
            Image.fromarray(make_pixels(side, side, seed=index)).save(tmp_path / folder / f"{index}.png")
    return ["--lr", tmp_path / "lr", "--hr", tmp_path / "hr"]


def test_accuracy(gdposr: Any, need: Any, toy_bundle: Path, pairs: list[object], tmp_path: Path) -> None:
    need("matplotlib", "jinja2")
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
    assert result["pictures"] == f"{tmp_path / 'lr'} and {tmp_path / 'hr'}"
    code, out, err = gdposr(*words, "--limit", 1, "--no-speed")
    assert code == 0
    assert "PSNR-Y" in out
    assert "ms" not in out.splitlines()[0].split()
    assert "timing" not in err
    code, out, _ = gdposr(*words, "--limit", 1, "--rounds", 1)
    head, *_, row = (line.split() for line in out.splitlines()[:3])
    assert (code, head[-1], row[0]) == (0, "ms", "fp32")
    assert float(row[-1]) > 0


def test_accuracy_pictures_that_cannot_be_used_are_no_broken_budget(
    gdposr: Any, toy_bundle: Path, pairs: list[object], tmp_path: Path, make_pixels: Any
) -> None:
    words = ["accuracy", toy_bundle, *pairs, "--no-speed"]
    hr = tmp_path / "hr" / "1.png"
    Image.fromarray(make_pixels(96, 128)).save(hr)
    code, out, err = gdposr(*words)
    assert (code, out) == (2, "")
    assert "1: HR must be 4 times LR, expected 128x128, got 128x96" in err
    hr.write_bytes(b"no picture")
    assert gdposr(*words)[0] == 2
    hr.rename(tmp_path / "hr" / "other.png")
    code, out, err = gdposr(*words)
    assert (code, out) == (2, "")
    assert "no partner" in err
    assert gdposr(*words, "--precision", "fp7")[0] == 2


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


@pytest.mark.parametrize("command", ["accuracy", "bench", "sensitivity"])
def test_a_report_without_its_extra_is_refused_at_once(
    gdposr: Any, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("gdposr.forward.find_spec", lambda name: None)
    code, out, err = gdposr(command, toy_bundle, "--report", tmp_path / "report.html")
    assert (code, out) == (2, "")
    assert 'pip install "gdposr[report]"' in err


def test_accuracy_on_open_photos_without_their_extra_is_refused_at_once(
    gdposr: Any, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gdposr.forward.find_spec", lambda name: None)
    code, out, err = gdposr("accuracy", toy_bundle)
    assert (code, out) == (2, "")
    assert "accuracy without --lr and --hr needs torch" in err
    assert 'pip install "gdposr[export]"' in err


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
    assert "comparisons are not corrected for" in out


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
    assert "not checked: int8 (leave out --precision)" in err
    assert "nothing to check" in err
    code, gates, err = checked({"int8": loose}, "--check", "--coreml", "all")
    assert (code, gates) == (0, [["int8", "max_psnr_loss", 50]])
    assert "this bundle has no Core ML packages: none is measured" in err


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
