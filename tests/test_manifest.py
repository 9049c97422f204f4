"""The manifest is strict: what it does not understand, it refuses, and says where."""

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.bundle.entries import GraphFile
from runtime.bundle.manifest import COLOR_FIXES, NEWEST_VERSION, Manifest, SizeRule, TensorSpec
from runtime.errors import BundleError


@pytest.fixture
def data(toy_bundle: Path) -> dict[str, Any]:
    return json.loads((toy_bundle / "manifest.json").read_text(encoding="utf-8"))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place inside a JSON value, except inside the free-form parts."""
    if path:
        yield path
    if path in (("provenance",), ("accuracy",)):
        return
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*path, key))


def changed(data: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    result = copy.deepcopy(data)
    target = result
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return result


def test_round_trip(data: dict[str, Any]) -> None:
    manifest = Manifest.from_dict(data)
    assert manifest.to_dict() == data
    assert json.loads(json.dumps(manifest.to_dict(), allow_nan=False)) == data
    assert Manifest.from_dict(manifest.to_dict()) == manifest


def test_views(data: dict[str, Any]) -> None:
    manifest = Manifest.from_dict(data)
    assert manifest.image.name == "image"
    assert manifest.noise_input.name == "noise"
    assert manifest.output.range == (0.0, 1.0)
    assert len(manifest.files) == 6  # two graphs in two precisions, two pictures
    with pytest.raises(dataclasses.FrozenInstanceError):
        manifest.scale = 2  # type: ignore[misc]


def test_color_fixes_are_those_of_the_color_module() -> None:
    from runtime.upscale import color

    assert COLOR_FIXES == color.COLOR_FIXES


def test_every_unknown_key_is_refused(data: dict[str, Any]) -> None:
    tried = 0
    for path in [(), *places(data)]:
        target: Any = data
        for key in path:
            target = target[key]
        if isinstance(target, dict) and path[:1] not in (
            ("provenance",),
            ("accuracy",),
            ("default_precision",),
        ):
            if path == ("probe", "floor_db"):
                continue
            tried += 1
            with pytest.raises(BundleError, match="colour"):
                Manifest.from_dict(changed(data, (*path, "colour"), {"file": "x"}))
    assert tried > 12


def test_every_missing_key_is_refused(data: dict[str, Any]) -> None:
    for path in places(data):
        if path[:1] == ("default_precision",) or isinstance(path[-1], int):
            continue
        broken = copy.deepcopy(data)
        target = broken
        for key in path[:-1]:
            target = target[key]
        del target[path[-1]]
        if path[-1] in ("range", "overlap") or path == ("graphs", "fp32"):
            Manifest.from_dict(broken)  # these have defaults, and a bundle needs no particular precision
        else:
            with pytest.raises(BundleError):
                Manifest.from_dict(broken)


@pytest.mark.parametrize(
    "value", [None, True, -1, 1.5, float("nan"), "", "x" * 300, "../x", [], [1], {}, {"a": 1}, 10**400]
)
def test_wrong_values_never_crash(data: dict[str, Any], value: Any) -> None:
    """Any value at any place either stands in a manifest that is whole, or is a BundleError."""
    refused = []
    for path in places(data):
        try:
            json.dumps(Manifest.from_dict(changed(data, path, value)).to_dict())
        except BundleError as error:
            refused.append(str(error))
    assert len(refused) > 30
    for message in refused:
        assert message.startswith("manifest: ")
        assert "; " in message, "a remedy"
        assert len(message) < 600


@pytest.mark.parametrize("value", [None, 3, "text", [], True])
def test_not_an_object(value: Any) -> None:
    with pytest.raises(BundleError):
        Manifest.from_dict(value)


def test_newer_version_says_upgrade(data: dict[str, Any]) -> None:
    newer = changed(data, ("format_version",), NEWEST_VERSION + 1) | {"something": "new"}
    with pytest.raises(BundleError, match="upgrade gdposr"):
        Manifest.from_dict(newer)
    with pytest.raises(BundleError, match=r"noise\.version.*upgrade gdposr"):
        Manifest.from_dict(changed(data, ("noise", "version"), 2))


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "C:x",
        ".hidden",
        "..",
        ".",
        "",
        "a\0b",
        "a\nb",
        "-rf",
        "ä.onnx",
        "manifest.json",
    ],
)
def test_file_names_are_plain(name: str) -> None:
    with pytest.raises(BundleError, match="plain file name"):
        GraphFile(name, 10, "0" * 64)


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, 7, None, "0" * 64 + "\n"])
def test_hashes_are_hex(sha256: Any) -> None:
    with pytest.raises(BundleError, match="sha256"):
        GraphFile("a.onnx", 10, sha256)


@pytest.mark.parametrize("size", [0, -1, 2**31, True, 1.0, "10"])
def test_file_sizes(size: Any) -> None:
    with pytest.raises(BundleError, match="bytes"):
        GraphFile("a.onnx", size, "0" * 64)


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ({"multiple_of": 0}, "multiple_of"),
        ({"tile": 33}, "tile"),
        ({"context": 7}, "context"),
        ({"overlap": 3}, "overlap"),
        ({"overlap": 18}, "overlap"),
        ({"minimum": 0}, "minimum"),
    ],
)
def test_size_rule(rule: dict[str, int], word: str) -> None:
    good = {"multiple_of": 2, "minimum": 8, "tile": 32, "context": 6, "overlap": 0}
    SizeRule(**good)
    with pytest.raises(BundleError, match=word):
        SizeRule(**(good | rule))


def test_tensor_range() -> None:
    for bad in ((1.0, 0.0), (0.0,), (0.0, "1"), (0.0, float("nan")), [0.0, 1.0]):
        with pytest.raises(BundleError):
            TensorSpec("x", 3, 1.0, bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("graphs", "fp64"), {}, "got .fp64"),
        (("default_precision", "cpu"), "fp16", "default_precision.cpu"),
        (("color_fix",), "sepia", "color_fix"),
        (("scale",), 2, "scale"),
        (("noise", "channels"), 3, "noise"),
        (("noise", "downscale"), 4, "noise"),
        (("probe", "floor_db"), {"fp32": 50}, "floor"),
        (("generator", "inputs", 0, "channels"), 5, "features"),
        (("generator", "inputs", 0, "name"), "other", "generator.inputs"),
        (("generator", "outputs", 0, "scale"), 3, "scale"),
        (("encoder", "inputs", 0, "channels"), 1, "encoder.inputs"),
        (("encoder", "inputs", 0, "scale"), 2, "encoder.inputs"),
        (("encoder", "outputs", 1, "name"), "features", "different names"),
    ],
)
def test_parts_must_agree(data: dict[str, Any], path: tuple[Any, ...], value: Any, word: str) -> None:
    with pytest.raises(BundleError, match=word):
        Manifest.from_dict(changed(data, path, value))
