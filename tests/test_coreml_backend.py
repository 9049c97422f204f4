"""Core ML packages in the runtime: one call on a window of a picture, and the built-in packages in the reference evaluator."""

import dataclasses
import inspect
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from core_ml_stand_in import CONTEXT, TILE, VARIANTS, FakeTools, add_packages, picture

from runtime.backends import coreml as coreml_backend
from runtime.backends import devices
from runtime.backends.choice import open_backend
from runtime.backends.coreml import CoreMLBackend
from runtime.backends.onnx import OnnxBackend
from runtime.bundle.reader import Bundle
from runtime.errors import BundleError, DeviceError, SettingError
from runtime.noise import noise_field
from runtime.upscale.probe import psnr_db, run_probe
from runtime.upscale.tiling import pad_edge, plan_tiles
from runtime.upscale.upscaler import Upscaler

# --- one call --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 20), (26, 32), (16, 28), (8, 8)])
def test_window_agrees_with_onnx_but_near_what_was_filled_up(
    packed: Path, mac: FakeTools, height: int, width: int
) -> None:
    bundle = Bundle.open(packed)
    backend, reference = open_backend(bundle, "ane", "fp16"), OnnxBackend(bundle, "cpu", "fp32", 1)
    assert isinstance(backend, CoreMLBackend)
    assert (backend.device, backend.precision, backend.largest) == ("ane", "fp16", TILE)
    image = picture(height, width)
    features, expected_features = backend.encode(image), reference.encode(image)
    for sample in range(2):  # the features serve any number of samples
        noise = noise_field(3, sample, height // 2, width // 2)[None]
        came, expected = backend.generate(features, noise), reference.generate(expected_features, noise)
        assert came.shape == expected.shape == (1, 3, 4 * height, 4 * width)
        assert came.dtype == np.float32
        rows = 4 * (height if height == TILE else max(0, height - CONTEXT))
        columns = 4 * (width if width == TILE else max(0, width - CONTEXT))
        inner = psnr_db(came[..., :rows, :columns], expected[..., :rows, :columns], peak=1.0)
        whole = psnr_db(came, expected, peak=1.0)
        assert inner > VARIANTS["fp16"], f"{inner:.1f} dB where nothing was filled up, {whole:.1f} dB in all"
        assert whole > 30, f"{whole:.1f} dB"


def test_tiles_of_the_full_size_agree_with_the_whole_picture_in_onnx(packed: Path, mac: FakeTools) -> None:
    """The plan for a backend of one tile size: a minimum of that size moves windows inwards, so that none is filled up."""
    bundle = Bundle.open(packed)
    backend, reference = open_backend(bundle, "ane", "fp16"), OnnxBackend(bundle, "cpu", "fp32", 1)
    assert backend.largest is not None
    rule = dataclasses.replace(bundle.manifest.size, minimum=backend.largest)
    for height, width in ((50, 75), (32, 33), (33, 90)):
        image = pad_edge(picture(height, width)[0], height + height % 2, width + width % 2)[None]
        field = noise_field(1, 0, image.shape[2] // 2, image.shape[3] // 2)[None]
        expected = reference.generate(reference.encode(image), field)
        tiles = plan_tiles(height, width, backend.largest - 2 * rule.context, rule)
        assert len(tiles) > 1
        for tile in tiles:
            box, core = tile.padded, tile.core
            assert (box.height, box.width) in {(TILE, TILE)}
            features = backend.encode(image[:, :, box.y0 : box.y1, box.x0 : box.x1])
            noise = noise_field(1, 0, TILE // 2, TILE // 2, y0=box.y0 // 2, x0=box.x0 // 2)[None]
            sr = backend.generate(features, noise)
            cut = sr[
                ...,
                4 * (core.y0 - box.y0) : 4 * (core.y1 - box.y0),
                4 * (core.x0 - box.x0) : 4 * (core.x1 - box.x0),
            ]
            there = expected[..., 4 * core.y0 : 4 * core.y1, 4 * core.x0 : 4 * core.x1]
            assert psnr_db(cut, there, peak=1.0) > VARIANTS["fp16"], (
                f"{psnr_db(cut, there, peak=1.0):.1f} dB in {core}"
            )


@pytest.mark.parametrize("variant", ["auto", "palette6"])
def test_upscaler_runs_packages(packed: Path, mac: FakeTools, variant: str) -> None:
    pixels = (picture(50, 61)[0].transpose(1, 2, 0) * 255).astype(np.uint8)
    core = TILE - 2 * CONTEXT
    with Upscaler(packed, device="ane", precision=variant, tile=core) as upscaler:
        assert (upscaler.device, upscaler.precision) == ("ane", "fp16" if variant == "auto" else variant)
        assert upscaler.notes == ()
        came = upscaler.up(pixels, seed=5, samples=2)
    expected = Upscaler(packed, device="cpu", precision="fp32").up(pixels, seed=5, samples=2)
    for a, b in zip(came, expected, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1  # windows at the edges take in more of the picture


def test_several_pictures_in_one_call(packed: Path, mac: FakeTools) -> None:
    backend = open_backend(Bundle.open(packed), "ane", "fp16")
    images = picture(20, 24, count=3)
    noise = np.stack([noise_field(0, k, 10, 12) for k in range(3)])
    features = backend.encode(images)
    assert all(value.dtype == np.float16 and len(value) == 3 for value in features.values()), (
        "as the package gives them"
    )
    came = backend.generate(features, noise)
    assert came.shape == (3, 3, 80, 96)
    for k in range(3):
        alone = backend.generate(backend.encode(images[k : k + 1]), noise[k : k + 1])
        np.testing.assert_array_equal(came[k], alone[0])


def test_what_does_not_fit_the_tile_is_refused(packed: Path, mac: FakeTools) -> None:
    backend = open_backend(Bundle.open(packed), "ane", "fp16")
    for height, width in ((34, 32), (32, 34)):
        with pytest.raises(
            DeviceError, match=rf"at most 32x32 LR pixels .*\(1, 3, {height}, {width}\).*smaller tile"
        ):
            backend.encode(picture(height, width))
    features = backend.encode(picture(32, 32))
    with pytest.raises(DeviceError, match=r"at most .* cells of noise"):
        backend.generate(features, noise_field(0, 0, 17, 16)[None])
    with pytest.raises(DeviceError, match="as many samples of features as of noise"):
        backend.generate(features, np.zeros((2, 4, 16, 16), np.float32))
    with pytest.raises(SettingError, match="threads"):
        open_backend(Bundle.open(packed), "ane", "fp16", 0)


def test_packages_of_pixel_buffers(toy_copy: Path, mac: FakeTools) -> None:
    add_packages(toy_copy, images=True)
    mac.images = True
    bundle = Bundle.open(toy_copy)
    backend, reference = open_backend(bundle, "ane", "fp16"), OnnxBackend(bundle, "cpu", "fp32", 1)
    image = np.rint(picture(32, 32) * 255).astype(np.float32) / np.float32(255)
    noise = noise_field(0, 0, 16, 16)[None]
    came = backend.generate(backend.encode(image), noise)
    expected = reference.generate(reference.encode(image), noise)
    assert np.abs(came - expected).max() < 0.51 / 255 + 1e-3, "no more than its 8 bits take away"


def test_prediction_that_fails_is_a_device_error(packed: Path, mac: FakeTools) -> None:
    backend = open_backend(Bundle.open(packed), "ane", "fp16")
    mac.compute = lambda role, feeds: {}  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match=r"ane \(fp16\) failed on inputs .*'features'"):
        backend.encode(picture(32, 32))


def test_threads_take_turns(packed: Path, mac: FakeTools) -> None:
    backend = open_backend(Bundle.open(packed), "ane", "fp16")
    image = picture(32, 32)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: backend.encode(image)["features"], range(16)))
    assert all(np.array_equal(result, results[0]) for result in results)


def test_chunks_of_a_graph_run_one_after_the_other(toy_copy: Path, mac: FakeTools) -> None:
    whole = Path(shutil.copytree(toy_copy, toy_copy.parent / "whole"))
    add_packages(whole)
    add_packages(toy_copy, chunks=True)
    bundle = Bundle.open(toy_copy)
    bundle.verify()
    assert bundle.manifest.to_dict() == json.loads((toy_copy / "manifest.json").read_text())
    backends = [open_backend(one, "ane", "fp16") for one in (Bundle.open(whole), bundle)]
    image, noise = picture(32, 24), noise_field(0, 0, 16, 12)[None]
    expected, came = (backend.generate(backend.encode(image), noise) for backend in backends)
    np.testing.assert_array_equal(came, expected)
    loaded = [event[1] for event in mac.log if event[0] == "load"]
    assert loaded[2:] == ["encoder", "generator-1", "generator-2"]
    assert backends[1].placement == {"ane": 9, "cpu": 3}  # of three packages


def test_the_smallest_size_that_holds_a_window_is_taken(toy_copy: Path, mac: FakeTools) -> None:
    add_packages(toy_copy, sizes=(16, 24))
    backend = open_backend(Bundle.open(toy_copy), "ane", "fp16")
    assert backend.largest == 32
    for side, tile in ((12, 16), (16, 16), (18, 24), (32, 32)):
        mac.tile = tile  # the stand-in takes no other
        came = backend.generate(backend.encode(picture(side, 10)), noise_field(0, 0, side // 2, 5)[None])
        assert came.shape == (1, 3, 4 * side, 40)
    with pytest.raises(DeviceError, match="expected at most 16x16 or 24x24 or 32x32 LR pixels in one call"):
        backend.encode(picture(34, 10))


# --- coremltools itself ----------------------------------------------------------------------------------------------------


def test_missing_coremltools_names_the_remedy(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r'expected Core ML .*pip install "gdposr\[coreml\]"'):
        CoreMLBackend(Bundle.open(packed), "ane", "fp16")
    with pytest.raises(BundleError, match="expected one of fp16, palette6, got 'int4'"):
        CoreMLBackend(Bundle.open(packed), "ane", "int4")
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(
        DeviceError, match=r'expected the package coremltools.*pip install "gdposr\[coreml\]"'
    ):
        coreml_backend.core_ml()


def test_coremltools_has_what_the_stand_in_has(
    packed: Path, mac: FakeTools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And where Core ML itself is missing, its words reach the user."""
    pytest.importorskip("coremltools", reason="needs the extra `coreml`")
    monkeypatch.undo()
    tools = coreml_backend.core_ml()
    for device in devices.DEVICE_TABLE:
        if device.units is not None:
            units = getattr(tools.ComputeUnit, device.units)
            inspect.signature(tools.models.CompiledMLModel).bind("path", units)
            inspect.signature(tools.models.compute_plan.MLComputePlan.load_from_path).bind("path", units)
    inspect.signature(tools.models.utils.compile_model).bind("source", "target")
    for name in coreml_backend._PLACES:
        assert hasattr(tools.models.compute_device, name)
    if sys.platform == "darwin":
        return
    monkeypatch.setattr(devices, "core_ml_here", lambda: True)
    monkeypatch.setenv("GDPOSR_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DeviceError, match=r"encoder\.fp16\.mlpackage cannot be loaded on ane: .*macOS"):
        open_backend(Bundle.open(packed), "ane", "fp16")


# --- the built-in packages -------------------------------------------------------------------------------------------------


class EvaluatedTools(FakeTools):
    """Models that compute what the built-in packages compute, in the reference evaluator."""

    def compile(self, source: str, target: str) -> str:
        shutil.copytree(source, Path(target) / "whole.mlpackage")
        return target

    def load(self, path: str, units: str) -> Any:
        from export.mil.device import open_runner
        from export.mil.package.program import read_package

        run = open_runner(read_package(Path(path) / "whole.mlpackage"))
        return SimpleNamespace(predict=run)


@pytest.fixture
def evaluated(mac: FakeTools, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The built-in bundle on a Mac whose Core ML is the reference evaluator."""
    pytest.importorskip("torch", reason="needs the extra `export`")
    pytest.importorskip("coremltools", reason="needs the extra `coreml`")
    tools = EvaluatedTools()
    tools.models.CompiledMLModel = tools.load
    monkeypatch.setattr(coreml_backend, "core_ml", lambda: tools)
    return Bundle.open()


@pytest.mark.parametrize("variant", ["fp16"])
def test_built_in_packages_agree_with_onnx_within_their_floor(evaluated: Bundle, variant: str) -> None:
    backend, reference = open_backend(evaluated, "ane", variant), OnnxBackend(evaluated, "cpu", "fp32", 1)
    packages, context = evaluated.manifest.coreml[variant], evaluated.manifest.size.context
    cell = evaluated.manifest.noise.downscale
    floor = min(package.floor_db for package in packages.values())
    assert backend.largest == packages["encoder"].height
    assert run_probe(evaluated, backend).ok
    side = backend.largest
    for height, width in ((side, side), (side, 64), (90, 102)):
        image, noise = picture(height, width), noise_field(9, 0, height // cell, width // cell)[None]
        came = backend.generate(backend.encode(image), noise)
        expected = reference.generate(reference.encode(image), noise)
        assert came.shape == expected.shape
        rows = 4 * (height if height == side else height - context)
        columns = 4 * (width if width == side else width - context)
        inner = psnr_db(came[..., :rows, :columns], expected[..., :rows, :columns], peak=1.0)
        assert inner >= floor, f"{variant} {height}x{width}: {inner:.1f} dB, floor {floor:g} dB"
        assert psnr_db(came, expected, peak=1.0) > 40, "what the tile was filled up with changes an edge only"


@pytest.mark.coreml
def test_core_ml_itself_runs_the_built_in_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="needs the extra `coreml`")
    monkeypatch.setenv("GDPOSR_CACHE", str(tmp_path / "cache"))
    bundle = Bundle.open()
    for device in ("ane", "coreml-gpu", "coreml-all"):
        for variant in bundle.manifest.coreml:
            for _ in range(2):  # compiled, then from the cache
                backend = open_backend(bundle, device, variant)
                assert isinstance(backend, CoreMLBackend)
                result = run_probe(bundle, backend)
                assert result.ok, (
                    f"{variant} on {device}: {result.psnr_db:.1f} dB, floor {result.floor_db:g} dB"
                )
            assert backend.placement is None or sum(backend.placement.values()) > 10
    assert len(list((tmp_path / "cache").iterdir())) == 2 * len(bundle.manifest.coreml)
