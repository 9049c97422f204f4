"""Core ML packages in the runtime. What a Mac would run stands behind one seam, the module coremltools: here a stand-in runs the toy's
fp32 graphs in its place, always on whole tiles, or the reference evaluator on the built-in packages."""

import dataclasses
import gc
import hashlib
import importlib.util
import inspect
import json
import os
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from gdposr.bench import machine
from gdposr.cli import main
from runtime.backends import coreml as coreml_backend
from runtime.backends import coreml_cache as compiled
from runtime.backends import devices
from runtime.backends.choice import available_devices, choices, offered, open_backend, placement_note, resolve
from runtime.backends.coreml import CoreMLBackend
from runtime.backends.onnx import OnnxBackend
from runtime.bundle.manifest import NEWEST_VERSION
from runtime.bundle.packages import PACKAGE_FILES
from runtime.bundle.reader import Bundle
from runtime.errors import BundleError, DeviceError, SettingError
from runtime.noise import noise_field
from runtime.upscale.probe import FILLED_FLOOR_DB, psnr_db, run_probe
from runtime.upscale.tiling import pad_edge, plan_tiles
from runtime.upscale.upscaler import Upscaler

TILE = 32
CONTEXT = 6  # of the toy
VARIANTS = {"fp16": 60.0, "palette6": 49.0}  # floor in dB


def change(bundle: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


# Inputs and outputs of the generator in two chunks.
FLOW = {
    "generator-1": {"inputs": ["noise"], "outputs": ["mixed"]},
    "generator-2": {"inputs": ["features", "base", "mixed"], "outputs": ["sr"]},
}


def add_packages(
    bundle: Path, tile: int = TILE, images: bool = False, chunks: bool = False, sizes: tuple[int, ...] = ()
) -> None:
    """Packages of each variant, whose model file tells the stand-in which graph to run."""
    packages: dict[str, dict[str, Any]] = {}
    for variant, floor in VARIANTS.items():
        packages[variant] = {}
        for role in ("encoder", *(FLOW if chunks else ("generator",))):
            files = []
            for name in PACKAGE_FILES:
                path = bundle / f"{role}.{variant}.mlpackage" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                content = f"{role} {variant} {name}".encode()
                path.write_bytes(content)
                files.append(
                    {"file": path.relative_to(bundle).as_posix(), "bytes": len(content),
                     "sha256": hashlib.sha256(content).hexdigest()}
                )  # fmt: skip
            packages[variant][role] = {
                "files": files, "height": tile, "width": tile, "target": "iOS17", "floor_db": floor, "images": images
            } | (FLOW.get(role, {})) | ({"sizes": [[side, side] for side in sizes]} if sizes else {})  # fmt: skip
        if chunks:
            packages[variant]["generator"] = [packages[variant].pop(role) for role in FLOW]
    version = NEWEST_VERSION if chunks or sizes else 1
    change(bundle, lambda m: m.update(coreml=packages, format_version=version))


@pytest.fixture
def packed(toy_copy: Path) -> Path:
    """The toy bundle with packages for tiles of 32x32."""
    add_packages(toy_copy)
    return toy_copy


class FakeModel:
    """A compiled model: the toy's graph of its role in fp32, on whole tiles only, float16 features as real packages have them."""

    def __init__(self, tools: "FakeTools", path: str, units: str) -> None:
        if tools.broken:
            raise RuntimeError("no such model version\nmore lines")
        self.tools, self.units = tools, units
        self.role, self.variant, _ = Path(path, "model.mlmodel").read_text().split()
        tools.log.append(("load", self.role, units))
        self.busy = threading.Lock()

    def predict(self, feeds: dict[str, Any]) -> dict[str, Any]:
        assert self.busy.acquire(blocking=False), "Core ML runs one call of a model at a time"
        try:
            return self.tools.compute(self.role, feeds)
        finally:
            self.busy.release()


class FakeTools:
    """What the runtime uses of coremltools. log: what was compiled and loaded."""

    __version__ = "9.0"
    ComputeUnit = SimpleNamespace(CPU_AND_NE="CPU_AND_NE", CPU_AND_GPU="CPU_AND_GPU", ALL="ALL")

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.broken = False  # nothing can be loaded
        self.error = 1.0  # factor of the generator's output
        self.images = False
        self.tile = TILE
        self.toy = OnnxBackend(Bundle.open(Path(__file__).parent / "data" / "toy.gdposr"), "cpu", "fp32", 1)
        utils = SimpleNamespace(compile_model=self.compile)
        plan = SimpleNamespace(MLComputePlan=SimpleNamespace(load_from_path=self.plan))
        self.models = SimpleNamespace(
            CompiledMLModel=lambda path, units: FakeModel(self, path, units), utils=utils, compute_plan=plan
        )

    def compile(self, source: str, target: str) -> str:
        assert target.endswith(".mlmodelc"), "coremltools insists"
        assert sorted(
            p.relative_to(source).as_posix() for p in Path(source).rglob("*") if p.is_file()
        ) == sorted(PACKAGE_FILES)
        Path(target, "weights").mkdir(parents=True)
        shutil.copy(Path(source, PACKAGE_FILES[1]), Path(target, "model.mlmodel"))
        shutil.copy(Path(source, PACKAGE_FILES[2]), Path(target, "weights", "weight.bin"))
        self.log.append(("compile", Path(source).name))
        return target

    def compute(self, role: str, feeds: dict[str, Any]) -> dict[str, Any]:
        if role == "encoder":
            image = feeds["image"]
            if self.images:
                image = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / np.float32(255)
            assert image.shape == (1, 3, self.tile, self.tile)
            return {k: v.astype(np.float16) for k, v in self.toy.encode(image).items()}
        if role == "generator-1":
            return {"mixed": feeds["noise"]}
        if role == "generator-2":
            assert sorted(feeds) == ["base", "features", "mixed"]
            feeds = {"noise" if name == "mixed" else name: value for name, value in feeds.items()}
        assert feeds["features"].dtype == np.float16
        features = {k: v.astype(np.float32) for k, v in feeds.items() if k != "noise"}
        assert features["base"].shape == (1, 3, self.tile, self.tile)
        sr = self.toy.generate(features, feeds["noise"]) * np.float32(self.error)
        if not self.images:
            return {"sr": sr}
        pixels = np.rint(np.clip(sr[0], 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
        return {"sr": Image.fromarray(pixels).convert("RGBA")}

    def plan(self, path: str, units: str) -> Any:
        """Three operations on the Neural Engine, one of them in an inner block, one on the CPU, and a constant."""
        assert Path(path, "model.mlmodel").is_file()

        def on(place: str | None, *inner: Any) -> Any:
            device = None if place is None else type(f"ML{place}ComputeDevice", (), {})()
            return SimpleNamespace(
                usage=None if device is None else SimpleNamespace(preferred_compute_device=device),
                blocks=[SimpleNamespace(operations=list(inner))] if inner else [],
            )

        engine = "NeuralEngine"
        operations = [on(None), on(engine), on(engine, on(engine)), on("CPU")]
        function = SimpleNamespace(block=SimpleNamespace(operations=operations))
        program = SimpleNamespace(functions={"main": function})
        return SimpleNamespace(
            model_structure=SimpleNamespace(program=program),
            get_compute_device_usage_for_mlprogram_operation=lambda operation: operation.usage,
        )


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTools:
    """A Mac with coremltools and without OpenVINO, as far as the runtime can tell. Compiled models are kept in tmp_path/cache."""
    tools, real = FakeTools(), importlib.util.find_spec
    monkeypatch.setattr(
        devices.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "openvino" else real(name, *rest),
    )
    monkeypatch.setattr(devices, "core_ml_here", lambda: True)
    monkeypatch.setattr(coreml_backend, "core_ml", lambda: tools)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CoreMLExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setenv("GDPOSR_CACHE", str(tmp_path / "cache"))
    return tools


def picture(height: int, width: int, seed: int = 0, count: int = 1) -> np.ndarray:
    """(count, 3, height, width) float32 in [0, 1]."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    rng = np.random.default_rng(seed)
    planes = [0.5 + 0.4 * np.sin(x / 5 + y / 7 + k) for k in range(3 * count)]
    noisy = np.stack(planes).reshape(count, 3, height, width) + 0.05 * rng.standard_normal(
        (count, 3, height, width)
    )
    return np.clip(noisy, 0, 1).astype(np.float32)


# --- one call ---------------------------------------------------------------------------------------------------------------


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


# --- bytes, compiled models, cache ------------------------------------------------------------------------------------------


def test_packages_come_from_verified_bytes(packed: Path, mac: FakeTools) -> None:
    path = packed / "generator.fp16.mlpackage" / PACKAGE_FILES[2]
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    with pytest.raises(BundleError, match=r"generator\.fp16\.mlpackage.*expected sha256"):
        open_backend(Bundle.open(packed), "ane", "fp16")
    with pytest.raises(BundleError):  # an altered bundle is no reason to take another device
        Upscaler(packed)


def test_zip_and_folder_compile_once_and_load_from_the_cache(
    packed: Path, mac: FakeTools, tmp_path: Path
) -> None:
    archive = tmp_path / "toy.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(packed.rglob("*")):
            file.write(path, path.relative_to(packed))
    first = open_backend(Bundle.open(archive), "ane", "fp16")
    loads = [("load", "encoder", "CPU_AND_NE"), ("load", "generator", "CPU_AND_NE")]
    compiled_files = [("compile", f"{role}.fp16.mlpackage") for role in ("encoder", "generator")]
    assert mac.log == [x for pair in zip(compiled_files, loads, strict=True) for x in pair]
    mac.log.clear()
    bundle = Bundle.open(packed)
    shutil.rmtree(packed)  # what was compiled from these very bytes needs them no more
    second = open_backend(bundle, "ane", "fp16")
    assert mac.log == loads
    image = picture(32, 32)
    np.testing.assert_array_equal(first.encode(image)["base"], second.encode(image)["base"])
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not list((tmp_path / "cache").glob(".*")), "nothing half done is left"


@pytest.mark.parametrize("newer", ["coremltools", "macOS"])
def test_another_version_compiles_anew(
    packed: Path, mac: FakeTools, monkeypatch: pytest.MonkeyPatch, newer: str
) -> None:
    open_backend(Bundle.open(packed), "ane", "fp16")
    mac.log.clear()
    if newer == "coremltools":
        monkeypatch.setattr(FakeTools, "__version__", "9.1")
    else:
        monkeypatch.setattr(coreml_backend.platform, "mac_ver", lambda: ("27.0", ("", "", ""), "arm64"))
    open_backend(Bundle.open(packed), "ane", "fp16")
    assert [step for step, *_ in mac.log].count("compile") == 2


def truncate(entry: Path) -> None:
    path = entry / "model.mlmodelc" / "weights" / "weight.bin"
    path.write_bytes(path.read_bytes()[:-1])


def flip(entry: Path) -> None:
    path = entry / "model.mlmodelc" / "weights" / "weight.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def add(entry: Path) -> None:
    (entry / "model.mlmodelc" / "more.bin").write_bytes(b"?")


def lose(entry: Path) -> None:
    shutil.rmtree(entry / "model.mlmodelc")


def garble(entry: Path) -> None:
    (entry / "index.json").write_text("{")


@pytest.mark.parametrize("damage", [truncate, flip, add, lose, garble])
def test_damaged_cache_is_made_again(
    packed: Path, mac: FakeTools, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    open_backend(Bundle.open(packed), "ane", "fp16")
    for entry in (tmp_path / "cache").iterdir():
        damage(entry)
    mac.log.clear()
    open_backend(Bundle.open(packed), "ane", "fp16")
    assert [step for step, *_ in mac.log].count("compile") == 2
    mac.log.clear()
    assert run_probe(Bundle.open(packed), open_backend(Bundle.open(packed), "ane", "fp16")).ok
    assert "compile" not in [step for step, *_ in mac.log]


def test_compiled_model_that_will_not_load_is_made_again(packed: Path, mac: FakeTools) -> None:
    open_backend(Bundle.open(packed), "ane", "fp16")
    mac.log.clear()
    load, refused = mac.models.CompiledMLModel, []

    def once(path: str, units: str) -> FakeModel:
        if path not in refused:
            refused.append(path)
            raise RuntimeError("compiled for another processor")
        return load(path, units)

    mac.models.CompiledMLModel = once
    open_backend(Bundle.open(packed), "ane", "fp16")
    assert [step for step, *_ in mac.log] == ["compile", "load", "compile", "load"]


def test_without_a_cache_the_model_stays_with_the_backend(
    packed: Path, mac: FakeTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("GDPOSR_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "work"))
    backend = open_backend(Bundle.open(packed), "ane", "fp16")
    assert backend.encode(picture(32, 32))["base"].shape == (1, 3, 32, 32)
    kept = {path.name for path in (tmp_path / "work").glob("*/*")}
    assert kept == {f"{role}.fp16.mlpackage.mlmodelc" for role in ("encoder", "generator")}, (
        "the packages themselves are gone"
    )
    del backend
    gc.collect()
    assert not list((tmp_path / "work").iterdir())


def test_cache_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDPOSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "MAX_BYTES", 3500)
    model = tmp_path / "model.mlmodelc"
    model.mkdir()
    (model / "weight.bin").write_bytes(b"0" * 1000)
    old = [compiled.key_of("model", str(k)) for k in range(5)]
    for age, key in enumerate(old):
        assert compiled.store(key, model) is not None
        os.utime(tmp_path / "cache" / key / "index.json", (1e9 - age, 1e9 - age))
    assert compiled.find(old[4]) is not None  # used just now
    abandoned = tmp_path / "cache" / ".new-abandoned"
    abandoned.mkdir()
    os.utime(abandoned, (1e9, 1e9))
    assert compiled.store("0" * 32, model) is not None
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    assert kept == {old[4], old[0], "0" * 32}
    for key in "123":
        compiled.store(key * 32, model)
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    assert {"1" * 32, "2" * 32, "3" * 32, "0" * 32, old[4]} == kept, "what was used today stays"


def test_default_cache_is_the_systems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GDPOSR_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert compiled.cache_folder() == tmp_path / "Library" / "Caches" / "gdposr"
    assert compiled.find(compiled.key_of("nothing")) is None
    assert compiled.key_of("a", "b") != compiled.key_of("b", "a") != compiled.key_of("ab")


# --- placement, probe, fallback ---------------------------------------------------------------------------------------------


def test_operations_are_counted_by_processor(packed: Path, mac: FakeTools) -> None:
    backend = open_backend(Bundle.open(packed), "ane", "fp16")
    assert backend.placement == {"ane": 6, "cpu": 2}
    assert placement_note(backend) is None
    little = open_backend(
        Bundle.open(packed), "coreml-gpu", "fp16"
    )  # the plan of the stand-in stays the same
    assert placement_note(little) == (
        "only 0 of 8 graph nodes of fp16 run on coreml-gpu (6 by ane, 2 by cpu); the device cpu or another precision may be faster"
    )
    assert placement_note(open_backend(Bundle.open(packed), "coreml-all", "fp16")) is None


def test_older_macos_tells_no_placement(packed: Path, mac: FakeTools) -> None:
    def plan(path: str, units: str) -> Any:
        raise RuntimeError("MLComputePlan is only available on macOS 14.4 or later")

    mac.models.compute_plan.MLComputePlan.load_from_path = plan
    backend = open_backend(Bundle.open(packed), "ane", "fp16")
    assert backend.placement is None
    assert placement_note(backend) is None


def test_compute_units_follow_the_device(packed: Path, mac: FakeTools) -> None:
    for device, units in (("ane", "CPU_AND_NE"), ("coreml-gpu", "CPU_AND_GPU"), ("coreml-all", "ALL")):
        mac.log.clear()
        assert open_backend(Bundle.open(packed), device, "palette6").device == device
        assert mac.log[-1] == ("load", "generator", units)


@pytest.mark.parametrize("tile", [16, 24, 32])
def test_probe_is_cut_or_filled_up_to_the_tile(toy_copy: Path, mac: FakeTools, tile: int) -> None:
    """The toy's probe is 24x20: larger than the tile, as high, or smaller. What was filled up or cut away does not count."""
    add_packages(toy_copy, tile=tile)
    mac.tile = tile
    bundle = Bundle.open(toy_copy)
    result = run_probe(bundle, open_backend(bundle, "ane", "fp16"))
    assert result.psnr_db > 50
    assert result.floor_db == 45.0
    assert result.ok
    assert run_probe(bundle, open_backend(bundle, "ane", "palette6")).floor_db == 45.0
    mac.error = 0.8
    wrong = run_probe(bundle, open_backend(bundle, "ane", "fp16"))
    assert not wrong.ok, f"{wrong.psnr_db:.1f} dB"


def test_probe_of_a_model_whose_tiles_never_agree(packed: Path, mac: FakeTools) -> None:
    """With attention across the tile, what it is filled up with reaches everything: only something else altogether is found."""
    change(packed, lambda m: m["size"].update(overlap=4))
    bundle = Bundle.open(packed)
    assert run_probe(bundle, open_backend(bundle, "ane", "fp16")).floor_db == FILLED_FLOOR_DB
    mac.error = 0.5
    assert not run_probe(bundle, open_backend(bundle, "ane", "fp16")).ok


def test_device_that_computes_something_else_is_replaced_or_refused(
    packed: Path, mac: FakeTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxruntime.InferenceSession

    def session(content: bytes, options: Any, providers: list[Any]) -> Any:
        if providers[0][0] == "CoreMLExecutionProvider":
            raise RuntimeError("no Neural Engine")
        return real(content, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    mac.error = 0.8
    notes: list[str] = []
    with Upscaler(packed, notify=notes.append) as upscaler:
        assert (upscaler.device, upscaler.precision) == ("cpu", "int8")
    assert "ane fp16 does not compute the model rightly: expected at least 45.0 dB" in notes[0]
    assert notes[0].endswith("using ane fp32 instead")
    assert notes[1].endswith("using cpu int8 instead")
    with pytest.raises(DeviceError, match="ane palette6 does not compute the model rightly"):
        Upscaler(packed, device="ane", precision="palette6")


def test_packages_that_cannot_be_loaded(packed: Path, mac: FakeTools, tmp_path: Path) -> None:
    mac.broken = True
    with pytest.raises(
        DeviceError,
        match=r"encoder\.fp16\.mlpackage cannot be loaded on ane: no such model version; it is for iOS17",
    ):
        open_backend(Bundle.open(packed), "ane", "fp16")
    assert not list((tmp_path / "cache").iterdir()), "what cannot be loaded is not kept"


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


# --- choice -----------------------------------------------------------------------------------------------------------------


def test_packages_go_before_graphs_of_the_same_name(packed: Path, mac: FakeTools) -> None:
    bundle = Bundle.open(packed)
    assert available_devices() == ("ane", "cpu", "coreml-gpu", "coreml-all")
    assert offered(bundle, "ane") == ("fp16", "palette6", "fp32", "int8")
    assert offered(bundle, "cpu") == ("fp32", "int8")
    assert offered(bundle) == ("fp16", "palette6", "fp32", "int8")
    assert choices(bundle)[:4] == [("ane", "fp16"), ("ane", "fp32"), ("cpu", "int8"), ("cpu", "fp32")]
    assert choices(bundle, "ane", "palette6") == [("ane", "palette6")]
    assert [name for name, _ in choices(bundle, precision="palette6")] == ["ane", "coreml-gpu", "coreml-all"]
    assert resolve(bundle) == ("ane", "fp16", [])
    with pytest.raises(
        BundleError,
        match="expected one of fp32, int8, got 'palette6', Core ML packages that only the devices ane",
    ):
        choices(bundle, "cpu", "palette6")
    with pytest.raises(BundleError, match="expected one of fp16, palette6, fp32, int8, got 'w8a8'"):
        choices(bundle, "ane", "w8a8")


def test_default_variant_is_the_manifests_then_fp16_then_the_first(packed: Path, mac: FakeTools) -> None:
    def first() -> str:
        return choices(Bundle.open(packed), "ane")[0][1]

    change(packed, lambda m: m["default_precision"].update(ane="int8"))
    assert first() == "fp16", "a graph's precision is no variant"
    change(packed, lambda m: m["coreml"].update(int8=m["coreml"].pop("palette6")))
    assert first() == "int8"
    change(
        packed,
        lambda m: (m["default_precision"].pop("ane"), m["coreml"].update(w8a8=m["coreml"].pop("fp16"))),
    )
    assert first() == "int8"
    change(packed, lambda m: m["coreml"].pop("int8"))
    assert first() == "w8a8"


def test_bundle_of_packages_alone_runs_on_a_mac_only(
    packed: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    change(packed, lambda m: m.update(graphs={}, default_precision={}, probe={**m["probe"], "floor_db": {}}))
    for device, remedy in (
        ("auto", "on a Mac"),
        ("cpu", "export it again"),
        ("ane", r"on a Mac: pip install"),
    ):
        with pytest.raises(BundleError, match=f"Core ML packages only .*{remedy}"):
            choices(Bundle.open(packed), device)
    assert main(["verify", str(packed), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["probes"] == []
    assert "no probe: nothing of this bundle runs on any device here" in told.err
    mac = request.getfixturevalue("mac")
    with Upscaler(packed) as upscaler:
        assert (upscaler.device, upscaler.precision) == ("ane", "fp16")
        assert upscaler.up(np.zeros((10, 12, 3), np.uint8))[0].shape == (40, 48, 3)
    mac.error = 0.8
    notes: list[str] = []
    with pytest.raises(DeviceError, match="coreml-all fp16 does not compute the model rightly"):
        Upscaler(packed, notify=notes.append)
    assert [note.rpartition("; using ")[2] for note in notes] == [
        "coreml-gpu fp16 instead",
        "coreml-all fp16 instead",
    ]


def test_provider_alone_runs_the_graphs_and_says_what_is_missing(
    packed: Path, mac: FakeTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "core_ml_here", lambda: False)
    bundle = Bundle.open(packed)
    assert choices(bundle, "ane") == [("ane", "fp32")]
    (note,) = resolve(bundle)[2]
    assert note.startswith("ane runs the ONNX graphs through ONNX Runtime")
    assert 'pip install "gdposr[coreml]"' in note


def test_coremltools_alone_runs_the_packages(
    packed: Path, toy_bundle: Path, mac: FakeTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime of another source may lack its Core ML provider."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert choices(Bundle.open(packed), "ane") == [("ane", "fp16")]
    assert choices(Bundle.open(toy_bundle)) == [("cpu", "int8"), ("cpu", "fp32")], "no packages, no ane"
    with pytest.raises(DeviceError, match="expected ONNX Runtime with CoreMLExecutionProvider"):
        choices(Bundle.open(toy_bundle), "ane")


def test_core_ml_is_looked_for_on_macos_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(devices.sys, "platform", "linux")
    assert not devices.core_ml_here()
    monkeypatch.setattr(devices.sys, "platform", "darwin")
    assert devices.core_ml_here()
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    assert not devices.core_ml_here()


# --- commands ---------------------------------------------------------------------------------------------------------------


def test_commands_tell_where_packages_run(
    packed: Path, mac: FakeTools, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(packed)]) == 0
    assert "ane: fp16, palette6, fp32, int8; cpu: fp32, int8" in capsys.readouterr().out
    assert main(["info", str(packed), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["devices"] == list(facts["runs"])
    assert facts["runs"]["coreml-gpu"] == ["fp16", "palette6", "fp32", "int8"]
    code = main(["verify", str(packed), "--device", "ane", "--precision", "fp16", "--precision", "palette6"])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "fp16 on ane" in told.out
    assert told.out.count("nodes: 6 ane, 2 cpu") == 2
    assert main(["verify", str(packed), "--precision", "palette6", "--json"]) == 0
    (probe,) = json.loads(capsys.readouterr().out)["probes"]
    assert (probe["device"], probe["placement"], probe["floor_db"]) == ("ane", {"ane": 6, "cpu": 2}, 45.0)


def test_machine_tells_the_version_of_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    assert machine.describe_machine()["system"] == "macOS 15.1 arm64"
    assert "coremltools" in machine.PACKAGES


# --- the built-in packages ----------------------------------------------------------------------------------------------------


class EvaluatedTools(FakeTools):
    """Models that compute what the built-in packages compute, in the reference evaluator."""

    def compile(self, source: str, target: str) -> str:
        shutil.copytree(source, Path(target) / "whole.mlpackage")
        return target

    def load(self, path: str, units: str) -> Any:
        from export.mil.device import open_runner
        from export.mil.program import read_package

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
