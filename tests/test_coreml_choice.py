"""Bundles with Core ML packages: the device and variant that run them, where operations run, what replaces one that computes wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from core_ml_stand_in import FakeTools, add_packages, change

from gdposr.bench import machine
from gdposr.cli import main
from runtime.backends import devices
from runtime.backends.choice import available_devices, choices, offered, open_backend, placement_note, resolve
from runtime.bundle.reader import Bundle
from runtime.errors import BundleError, DeviceError
from runtime.upscale.probe import FILLED_FLOOR_DB, run_probe
from runtime.upscale.upscaler import Upscaler

# --- placement, probe, fallback --------------------------------------------------------------------------------------------


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


# --- choice ----------------------------------------------------------------------------------------------------------------


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


# --- commands --------------------------------------------------------------------------------------------------------------


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
