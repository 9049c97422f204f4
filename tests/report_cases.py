"""What the tests of the HTML report share: a report on six pictures, its crops, readers of the page. Needs the extra `report`."""

import dataclasses
import re
from collections.abc import Callable
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from calibration.measure.accuracy import AccuracyReport, ImageScore, Row
from calibration.measure.gates import GateResult
from calibration.measure.intervals import Difference, Interval
from calibration.report.accuracy import CropCollector
from calibration.sensitivity import LayerNoise

Pixels = Callable[..., np.ndarray]
PICTURES = [f"p{k}" for k in range(6)]
VOID = {"meta", "br", "img", "input"}


def scored(name: str, psnr: float, niqe: float, sqf: float | None) -> ImageScore:
    return ImageScore(name, psnr, 0.75, sqf, niqe, (0.1, -0.2, 0.3), 0.4, {"lpips": 0.25})


def make_row(name: str, kind: str, sqf: float | None = 0.5, loss: float = 0.0) -> Row:
    images = tuple(
        scored(p, 25.0 + k - loss * (k == 2), 5.0 + (k == 4), None if sqf is None else sqf + (k == 3))
        for k, p in enumerate(PICTURES)
    )
    return Row(
        name, kind, 27.5, 0.75, sqf, 5.2, (0.1, -0.2, 0.3), 0.2, 0.4, 3.25 if kind == "model" else None,
        3_600_000, 4_100_000, "cpu", ("a note",), images,
        target="onnx" if kind == "model" else "", seam=1.04 if kind == "model" else None, extra={"lpips": 0.25},
        intervals={"psnr": Interval(26.25, 28.75), "diversity": Interval(3.05, 3.45)}, milliseconds=42.0,
    )  # fmt: skip


@pytest.fixture
def report() -> AccuracyReport:
    changes = {"psnr": Difference(-0.0185, -0.021, -0.016), "niqe": Difference(-0.05, -0.06, -0.04),
               "ssim": Difference(0.001, -0.002, 0.004)}  # fmt: skip
    int8 = dataclasses.replace(make_row("int8", "model", loss=0.5), differences=changes)
    rows = (make_row("bicubic", "bicubic"), make_row("<peer>", "peer"), make_row("fp32", "model"), int8)
    gates = (
        GateResult("int8", "max_psnr_loss", 0.1, 0.0185, True),
        GateResult("int8", "max_sqf_rise", 0.01, None, False),
    )
    return AccuracyReport(
        {"name": "pocket", "digest": "0" * 16}, 4, "six <photos>", 6, 6, 0, 6, 4, None, 5.9, -0.3, rows, gates,
        extra_metrics=("lpips",),
        budgets={"int8": {"max_psnr_loss": 0.1, "max_sqf_rise": 0.01, "max_seam": 1.25}},
        sensitivity={"onnx": tuple(LayerNoise(f"layer{k}", 8, 40.0 + k, 10.0) for k in range(20))},
        machine={"cpu": "a processor"}, versions={"numpy": "2.4.0"},
    )  # fmt: skip


@pytest.fixture
def crops(report: AccuracyReport, make_pixels: Pixels) -> CropCollector:
    collector = CropCollector(64)
    for seed, name in enumerate(PICTURES):
        hr = make_pixels(160, 200, seed=seed)
        collector("HR", name, hr)
        collector("LR", name, hr[::4, ::4])
        for row in report.rows:
            collector(row.name, name, hr)
    return collector


class Checker(HTMLParser):
    """Tags closed in order; what is loaded, and attributes that would run a script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.events: list[str] = []
        self.images: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        named = {key: value or "" for key, value in attrs}
        self.links += [named[key] for key in ("src", "href", "srcset", "xlink:href") if key in named]
        self.events += [key for key in named if key.startswith("on")]
        if tag == "img":
            self.images.append((named["alt"], named["src"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def plots(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def section(page: str, heading: str) -> str:
    return page.partition(f"<h2>{heading}")[2].partition("<h2>")[0]
