"""Compiled Core ML packages: made from verified bytes, kept, made again when damaged or of another version, and not too many."""

import gc
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from core_ml_stand_in import FakeModel, FakeTools, picture

from runtime.backends import coreml as coreml_backend
from runtime.backends import coreml_cache as compiled
from runtime.backends.choice import open_backend
from runtime.bundle.packages import PACKAGE_FILES
from runtime.bundle.reader import Bundle
from runtime.errors import BundleError, DeviceError
from runtime.upscale.probe import run_probe
from runtime.upscale.upscaler import Upscaler


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


def test_packages_that_cannot_be_loaded(packed: Path, mac: FakeTools, tmp_path: Path) -> None:
    mac.broken = True
    with pytest.raises(
        DeviceError,
        match=r"encoder\.fp16\.mlpackage cannot be loaded on ane: no such model version; it is for iOS17",
    ):
        open_backend(Bundle.open(packed), "ane", "fp16")
    assert not list((tmp_path / "cache").iterdir()), "what cannot be loaded is not kept"
