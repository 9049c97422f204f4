"""A Mac for the tests of Core ML packages in the runtime. What it would run stands behind one seam, the module coremltools: here a
stand-in runs the toy's fp32 graphs in its place, always on whole tiles."""

import hashlib
import importlib.util
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from runtime.backends import coreml as coreml_backend
from runtime.backends import devices
from runtime.backends.onnx import OnnxBackend
from runtime.bundle.manifest import NEWEST_VERSION
from runtime.bundle.packages import PACKAGE_FILES
from runtime.bundle.reader import Bundle

TILE = 32
CONTEXT = 6  # of the toy
VARIANTS = {"fp16": 60.0, "palette6": 49.0}  # floor in dB
# Inputs and outputs of the generator in two chunks.
FLOW = {
    "generator-1": {"inputs": ["noise"], "outputs": ["mixed"]},
    "generator-2": {"inputs": ["features", "base", "mixed"], "outputs": ["sr"]},
}


def change(bundle: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


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


def stand_in_mac(monkeypatch: pytest.MonkeyPatch, cache: Path) -> FakeTools:
    """A Mac with coremltools and without OpenVINO, as far as the runtime can tell. Compiled models are kept in `cache`."""
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
    monkeypatch.setenv("GDPOSR_CACHE", str(cache))
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
