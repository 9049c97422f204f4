"""Optional metrics: nothing is loaded unless asked, what is missing is named, values come as pyiqa gives them."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import ImageError, SettingError
from training.metrics import pyiqa as perceptual
from training.metrics.pyiqa import METRICS, NAMES, available, scorers, wanted

Pixels = Callable[..., np.ndarray]

# Stands in for the package: LPIPS is the mean distance, MUSIQ the mean level in percent, MANIQA refuses pictures below 224 pixels.
PYIQA = """
import torch
made = []
KINDS = {"lpips": ("FR", True), "musiq": ("NR", False), "maniqa": ("NR", False)}


class Network:
    def __init__(self, name):
        self.name = name
        self.metric_mode, self.lower_better = KINDS[name]

    def __call__(self, sr, hr=None):
        if self.name == "lpips":
            return (sr - hr).abs().mean().reshape(1, 1)
        if self.name == "maniqa" and min(sr.shape[2:]) < 224:
            raise AssertionError("Image size too small")
        return 100 * sr.mean().reshape(1, 1)


def create_metric(name, device, as_loss):
    made.append(name)
    return Network(name)
"""


@pytest.fixture
def pyiqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: Callable[..., None]) -> Path:
    """The stand-in as an importable package; gives its file, to change it."""
    need("torch", "safetensors")
    module = tmp_path / "pyiqa.py"
    module.write_text(PYIQA)
    monkeypatch.delitem(sys.modules, "pyiqa", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return module


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test imported as pyiqa is gone after it."""
    monkeypatch.setitem(sys.modules, "pyiqa", None)


def test_names_are_chosen_in_a_fixed_order_each_once() -> None:
    assert NAMES == ("lpips", "musiq", "maniqa")
    assert wanted(["maniqa", "lpips", "maniqa"]) == ("lpips", "maniqa")
    assert wanted(["all", "lpips"]) == NAMES
    assert wanted([]) == ()
    with pytest.raises(SettingError, match=r"among lpips, musiq, maniqa or all, got 'psnr'"):
        wanted(["psnr"])


def test_the_table_says_what_a_value_means() -> None:
    assert {m.name: (m.reference, m.higher_is_better) for m in METRICS} == {
        "lpips": (True, False), "musiq": (False, True), "maniqa": (False, True)
    }  # fmt: skip


def test_without_pyiqa_the_reason_and_the_remedy_are_told() -> None:
    names, reason = available()
    assert names == ()
    assert reason is not None
    assert "pyiqa not installed: pip install" in reason
    with pytest.raises(SettingError, match=r"lpips, musiq: .*pyiqa not installed: pip install .* pyiqa"):
        scorers(["musiq", "lpips"])
    assert scorers([]) == {}


def test_asking_what_is_available_imports_nothing(pyiqa: Path) -> None:
    assert available() == (NAMES, None)
    assert sys.modules.get("pyiqa") is None


def test_scores_are_those_of_the_package(pyiqa: Path, make_pixels: Pixels) -> None:
    judges = scorers(["all"])
    assert tuple(judges) == NAMES
    sr, hr = make_pixels(240, 230, seed=1), make_pixels(240, 230)
    distance = np.abs(sr.astype(float) - hr).mean() / 255
    assert judges["lpips"](sr, hr) == pytest.approx(distance, rel=1e-4)
    assert judges["lpips"](hr, hr) == 0
    assert judges["musiq"](sr, hr) == pytest.approx(100 * sr.mean() / 255, rel=1e-4)
    assert judges["maniqa"](sr, hr) == judges["musiq"](sr, hr)
    assert sys.modules["pyiqa"].made == ["lpips", "musiq", "maniqa"]


def test_a_picture_that_a_metric_cannot_judge_is_named(pyiqa: Path, make_pixels: Pixels) -> None:
    (judge,) = scorers(["maniqa"]).values()
    with pytest.raises(
        ImageError, match=r"maniqa cannot judge a picture of 80x64 \(AssertionError: Image size too small\)"
    ):
        judge(make_pixels(64, 80), make_pixels(64, 80))


def test_a_value_that_is_no_number_is_refused(pyiqa: Path, make_pixels: Pixels) -> None:
    pyiqa.write_text(PYIQA.replace("100 * sr.mean()", "float('nan') * sr.mean()"))
    (judge,) = scorers(["musiq"]).values()
    with pytest.raises(ImageError, match="musiq: expected a finite value for a picture of 32x24, got nan"):
        judge(make_pixels(24, 32), make_pixels(24, 32))


def test_a_package_that_means_something_else_is_refused(pyiqa: Path) -> None:
    pyiqa.write_text(PYIQA.replace('"musiq": ("NR", False)', '"musiq": ("NR", True)'))
    with pytest.raises(
        SettingError,
        match="musiq: expected a metric with reference False and higher better True, got False and False",
    ):
        scorers(["musiq"])


def test_a_package_that_cannot_be_imported_is_told(pyiqa: Path) -> None:
    pyiqa.write_text("import torchvision_of_another_version")
    with pytest.raises(Exception, match=r"pyiqa cannot be imported .*torchvision_of_another_version"):
        perceptual.scorers(["lpips"])
