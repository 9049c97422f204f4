"""What `gdposr bench` times and how it is written down."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdposr.bench.overhead import Overhead, TimedPicture, overhead
from gdposr.bench.report import as_text, markdown, page, picture_table, whole_pictures
from gdposr.bench.timing import LEAST, LONG, measure, ratio


def same(value: float) -> dict[str, float]:
    return {"median": value, "low": value, "high": value}


@pytest.fixture
def result() -> dict[str, Any]:
    """Two devices and a peer, at two sizes."""
    graphs = {
        name: same(1.0) for name in ("encoder_ms", "generator_ms", "first_sample_ms", "further_sample_ms")
    }
    own = {"cpu fp32": (20.0, 0.02), "cpu int8": (10.0, 0.04), "openvino int8": (11.0, 0.05)}
    return {
        "bundle": {"name": "a <bundle>", "digest": "0f0f"}, "device": "cpu, openvino", "threads": 2,
        "machine": {"cpu": "a <CPU>", "cpu_flags": {"avx2": True, "amx_int8": False}, "load": 0.1, "system": "Linux",
                    "python": "3.11", "packages": {"onnxruntime": "1.32.0"}},
        "size": 128, "rounds": 20,
        "precisions": {
            name: graphs | {"picture_ms": same(ms), "overhead": same(share), "peak_memory_mb": None}
            for name, (ms, share) in own.items()
        },
        "peers": {"peer (onnx)": {"ms": same(55.0)}},
        "ratios": {"cpu int8 / peer (onnx)": 0.15},
        "picture_ratios": {"cpu int8 / cpu fp32": 0.5, "cpu int8 / peer (onnx)": 0.1818},
        "pictures": [
            {"size": 1000, "rounds": 3, "ms": {"cpu int8": same(700.0), "peer (onnx)": same(7000.0)},
             "overhead": {"cpu int8": same(0.081)}, "ratios": {"cpu int8 / peer (onnx)": 0.1}},
        ],
    }  # fmt: skip


def test_a_timed_picture_is_the_one_the_user_gets(toy_bundle: Path, make_pixels: Any) -> None:
    """Several tiles in two lanes, so that a backend for these is opened too."""
    from runtime.bundle.reader import Bundle
    from runtime.upscale.upscaler import Upscaler

    pixels, bundle = make_pixels(50, 70), Bundle.open(toy_bundle)
    picture = TimedPicture(bundle, "cpu", "int8", 2, pixels)
    upscaler = Upscaler(bundle, device="cpu", precision="int8", threads=2, check=False)
    assert np.array_equal(picture.enlarge(), upscaler.up(pixels)[0])
    assert 0 < picture().share < 1
    assert 0 < picture().share < 1  # the calls of the picture before no longer count


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([(0.0, 4.0), (5.0, 9.0)], 0.2),  # one call at a time
        ([(0.0, 9.0), (1.0, 8.0)], 0.2),  # two at once, of 20 seconds of lanes 16 in the model
        ([(0.0, 5.0), (5.0, 10.0)], 0.0),  # one begins as the other ends: still one at a time
        ([], 1.0),
    ],
)
def test_overhead_is_the_share_of_lanes_outside_the_model(
    spans: list[tuple[float, float]], share: float
) -> None:
    assert overhead(spans, 10.0) == pytest.approx(share)


def test_contenders_take_turns_and_are_measured_once_a_round() -> None:
    made: list[str] = []
    times = measure({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, rounds=2, warmup=1)
    assert made == ["a", "a", "b", "b"] * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_overheads_stand_beside_their_times() -> None:
    times = measure({"ours": lambda: Overhead(0.25)}, rounds=3, warmup=2)
    assert times["ours overhead"] == [0.25] * 3
    assert len(times["ours"]) == 3


def test_a_limit_of_time_leaves_a_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test's own: each call takes twice as long as what is called long."""
    now, made = [0.0], [0]

    def call() -> None:
        now[0] += 2 * LONG
        made[0] += 1

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    times = measure({"peer": call}, rounds=20, warmup=5, limit=LONG)
    assert times["peer"] == [2e3 * LONG] * LEAST
    assert made[0] == 2 + LEAST  # a warm-up of one round, twice since nobody knew; then once a round
    made[0] = 0
    assert len(measure({"peer": call}, rounds=20, warmup=0, limit=13 * LONG)["peer"]) == 6


def test_ratios_are_taken_round_by_round() -> None:
    assert ratio([10, 40, 10], [20, 80, 30]) == 0.5


def test_each_size_has_its_table(result: dict[str, Any]) -> None:
    small, large = whole_pictures(result)
    assert picture_table(result, small) == [
        ["model", "ms, median [quartiles]", "of fp32's time", "outside the model", "times as fast as peer (onnx)"],
        ["cpu fp32", "20.0 [20.0 20.0]", "-", "2.0%", "-"],
        ["cpu int8", "10.0 [10.0 10.0]", "0.50", "4.0%", "5.5"],
        ["openvino int8", "11.0 [11.0 11.0]", "-", "5.0%", "-"],
        ["peer (onnx)", "55.0 [55.0 55.0]", "-", "-", "-"],
    ]  # fmt: skip
    assert picture_table(result, large)[1] == ["cpu int8", "700.0 [700.0 700.0]", "-", "8.1%", "10.0"]
    text = markdown(result)
    assert "128x128 to 512x512" in text
    assert "1000x1000 to 4000x4000" in text
    assert "avx2), cpu, openvino, load 0.1, 3 rounds:" in text
    assert "amx" not in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {6}


def test_the_terminal_sees_both_sizes(result: dict[str, Any]) -> None:
    text = as_text(result | {"size": 128})
    assert "cpu int8, 1000x1000" in text
    assert "8.1%" in text
    assert "cpu int8 / peer (onnx), 1000x1000 picture  0.100" in text


def test_the_page_is_whole_and_hostile_names_are_harmless(
    result: dict[str, Any], need: Callable[..., None]
) -> None:
    need("matplotlib", "jinja2")
    html = page(result)
    assert "a &lt;bundle&gt;" in html
    assert "a &lt;CPU&gt;" in html
    assert "<CPU>" not in html
    assert "onnxruntime 1.32.0" in html
    assert html.count("<svg") == 2
    assert "http" not in html.replace("http-equiv", "")
