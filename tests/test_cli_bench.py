"""`gdposr bench` and the peers it runs beside a bundle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upscaling import placement_known


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


def test_bench_compares_devices(run_python: Any, toy_bundle: Path, need: Any) -> None:
    """In a process of its own: OpenVINO does not always survive the libraries that the training's tests leave behind."""
    need("openvino")
    words = ["bench", toy_bundle, "--size", 32, "--rounds", 2, "--warmup", 0, "--threads", 1, "--json"]
    run = run_python("-m", "gdposr", *words, "--device", "cpu", "--device", "openvino")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["device"] == "cpu, openvino"
    assert set(result["precisions"]) == {"cpu fp32", "cpu int8", "openvino fp32", "openvino int8"}
    for pair in ("cpu int8 / cpu fp32", "openvino int8 / openvino fp32", "openvino int8 / cpu int8"):
        assert result["ratios"][pair] > 0
    assert "openvino int8 / cpu fp32" not in result["ratios"]


def test_a_device_named_twice_counts_once(gdposr: Any, toy_bundle: Path) -> None:
    words = ["bench", toy_bundle, "--size", 32, "--rounds", 2, "--warmup", 0, "--threads", 1, "--json"]
    code, out, _ = gdposr(*words, "--device", "cpu", "--device", "cpu", "--precision", "int8")
    assert (code, json.loads(out)["device"], list(json.loads(out)["precisions"])) == (0, "cpu", ["int8"])


@placement_known
def test_placement_is_reported(gdposr: Any, toy_bundle: Path, make_photo: Any, tmp_path: Path) -> None:
    words = ["--bundle", toy_bundle, "--device", "cpu", "--precision", "fp32", "--json"]
    code, out, _ = gdposr("upscale", make_photo("a.png"), "-o", tmp_path / "out.png", *words)
    assert code == 0
    placement = json.loads(out)["placement"]
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
    from gdposr.bench.peers import ncnn_peer, ncnn_to_onnx, onnx_peer

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


def test_bench_writes_a_table_and_a_page(gdposr: Any, need: Any, toy_bundle: Path, tmp_path: Path) -> None:
    need("matplotlib", "jinja2")
    page, lines = tmp_path / "new" / "bench.html", tmp_path / "bench.md"
    code, out, err = gdposr(
        "bench", toy_bundle, "--size", 32, "--rounds", 2, "--warmup", 0, "--picture", 40, "--json",
        "--report", page, "--table", lines,
    )  # fmt: skip
    assert code == 0, err
    (large,) = json.loads(out)["pictures"]
    assert (large["size"], set(large["ms"])) == (40, {"fp32", "int8"})
    assert all(ms["low"] <= ms["median"] <= ms["high"] for ms in large["ms"].values())
    assert large["rounds"] == 2
    assert set(large["ratios"]) == {"int8 / fp32"}
    shares = [
        large["overhead"],
        {name: row["overhead"] for name, row in json.loads(out)["precisions"].items()},
    ]
    assert all(0 < share["median"] < 1 for group in shares for share in group.values())
    text = lines.read_text()
    assert "32x32 to 128x128" in text
    assert "40x40 to 160x160" in text
    assert text.count("| int8 |") == 2
    html = page.read_text()
    assert html.count("<svg") == 2
    assert "http" not in html.replace("http-equiv", "")
