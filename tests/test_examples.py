"""The examples for iOS and Android state what the runtime, the built-in bundle, its packages and the shared vectors state."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import example_cases
import pytest
from example_cases import KOTLIN, KOTLIN_TESTS, SWIFT, SWIFT_TESTS, constants, numbers

from runtime import noise
from runtime.bundle.reader import Bundle
from runtime.upscale.probe import PACKAGE_FLOOR_DB, PACKAGE_MARGIN_DB, read_rgb

read, bundle = example_cases.read, example_cases.bundle  # fixtures


def expected_constants(bundle: Bundle) -> dict[str, Any]:
    """What both examples state."""
    manifest = bundle.manifest
    return {
        "SCALE": manifest.scale,
        "MULTIPLE_OF": manifest.size.multiple_of,
        "CONTEXT": manifest.size.context,
        "NOISE_VERSION": manifest.noise.version,
        "NOISE_CHANNELS": manifest.noise.channels,
        "NOISE_CELL": manifest.noise.downscale,
        "IMAGE": manifest.image.name,
        "FEATURES": [tensor.name for tensor in manifest.encoder.outputs],
        "NOISE": manifest.noise_input.name,
        "RESULT": manifest.output.name,
        "PROBE_INPUT_FILE": manifest.probe.input.file,
        "PROBE_OUTPUT_FILE": manifest.probe.output.file,
        "PROBE_SEED": manifest.probe.seed,
    }


def test_facts_of_the_kotlin_model(read: Callable[[str], str], bundle: Bundle) -> None:
    manifest = bundle.manifest
    graphs = manifest.graphs[manifest.default_precision["cpu"]]
    assert constants(read(f"{KOTLIN}/Model.kt")) == expected_constants(bundle) | {
        "MINIMUM": manifest.size.minimum,
        "ENCODER_FILE": graphs["encoder"].file,
        "GENERATOR_FILE": graphs["generator"].file,
        "PROBE_FLOOR_DB": manifest.probe.floor_db,
    }


def test_facts_of_the_swift_model(read: Callable[[str], str], bundle: Bundle) -> None:
    manifest = bundle.manifest
    packages = [package for pair in manifest.coreml.values() for package in pair.values()]
    (window,) = {side for package in packages for side in (package.height, package.width)}
    sides = set(read_rgb(bundle, manifest.probe.input).shape[:2])
    floors = {
        variant: min(PACKAGE_FLOOR_DB, *(package.floor_db - PACKAGE_MARGIN_DB for package in pair.values()))
        for variant, pair in manifest.coreml.items()
    }
    assert constants(read(f"{SWIFT}/Model.swift")) == expected_constants(bundle) | {
        "WINDOW": window,
        "ENCODER_FILE": "GdposrEncoder",
        "GENERATOR_FILE": "GdposrGenerator",
        "PROBE_SIDE": max(sides),
        "PROBE_FLOOR": floors,
    }
    assert len(sides) == 1
    assert {package.target for package in packages} == {"iOS17"}
    assert ".iOS(.v17)" in read("ios/Package.swift")


def test_examples_know_all_that_the_model_needs(bundle: Bundle) -> None:
    """What the examples leave out: colour fix, blending, further scalar inputs, other ranges, packages of pixel buffers."""
    manifest = bundle.manifest
    assert (manifest.color_fix, manifest.size.overlap, manifest.t_n, manifest.t_d) == ("none", 0, None, None)
    assert [tensor.name for tensor in manifest.encoder.inputs] == [manifest.image.name]
    names = [tensor.name for tensor in manifest.generator.inputs]
    assert names == [*(tensor.name for tensor in manifest.encoder.outputs), manifest.noise_input.name]
    assert manifest.image.range == manifest.output.range == (0.0, 1.0)
    assert manifest.noise.downscale == manifest.size.multiple_of  # windows begin at whole cells
    assert not any(package.images for pair in manifest.coreml.values() for package in pair.values())


@pytest.mark.parametrize("name", [f"{KOTLIN}/Noise.kt", f"{SWIFT}/Noise.swift"])
def test_constants_of_the_noise(name: str, read: Callable[[str], str]) -> None:
    source = read(name)
    assert f"docs/noise.md, version {noise.NOISE_VERSION}:" in source
    for letter in "ABCD":
        assert numbers(source, letter) == getattr(noise, f"_{letter}"), letter
    assert constants(source) == {
        "LN2": noise._LN2,
        "SQRT_HALF": noise._SQRT_HALF,
        "TAIL": noise._TAIL,
        "ROUNDS": noise.ROUNDS,
        "M0": int(noise._M0),
        "M1": int(noise._M1),
        "W0": noise._W0,
        "W1": noise._W1,
        "LOW": int(noise._LOW),
    }
    series = {
        "DoubleArray(11) { 1.0 / (21 - 2 * it) }": [1.0 / (21 - 2 * k) for k in range(11)],
        "stride(from: 21.0, to: 0.0, by: -2.0).map { 1.0 / $0 }": [1.0 / k for k in range(21, 0, -2)],
    }
    (stated,) = [values for text, values in series.items() if text in source]
    assert tuple(stated) == noise._LOG_SERIES


def test_swift_tests_decode_the_vectors(root: Path, read: Callable[[str], str]) -> None:
    """What JSONDecoder asks of the files, read off the structs of the tests: no Swift compiler is needed."""
    opened = set()
    for path in (root / "examples" / SWIFT_TESTS).glob("*Tests.swift"):
        source = path.read_text(encoding="utf-8")
        structs = {
            name: {
                field: kind
                for fields, kind in re.findall("let (.+): (.+)\n", body)
                for field in fields.split(", ")
            }
            for name, body in re.findall(r"struct (\w+): Decodable \{(.*?)\}", source, re.DOTALL)
        }
        (name,) = set(re.findall(r': Vectors = try vectors\("(.+?)"\)', source))
        decode("Vectors", json.loads(read(f"vectors/{name}")), structs)
        opened.add(name)
    assert opened == {"noise.json", "tiles.json"}
    (way,) = re.findall(
        r'#filePath\)\.appendingPathComponent\("(.+?)"\)', read(f"{SWIFT_TESTS}/Vectors.swift")
    )
    # shortened as a text, since Vectors.swift is no folder to go up from
    assert os.path.normpath(f"{SWIFT_TESTS}/Vectors.swift/{way}") == "vectors"


def decode(kind: str, value: Any, structs: dict[str, dict[str, str]]) -> None:
    if kind in structs:
        for name, inner in structs[kind].items():
            decode(inner, value[name], structs)
    elif kind.startswith("["):
        assert isinstance(value, list)
        for each in value:
            decode(kind[1:-1], each, structs)
    elif kind == "String":
        assert isinstance(value, str)
    else:
        assert isinstance(value, int)
        assert 0 <= value < {"UInt32": 2**32, "Int": 2**63}[kind]


def test_kotlin_tests_name_what_the_vectors_hold(root: Path, read: Callable[[str], str]) -> None:
    """Every name that stands in quotes there; test_unit_tests_of_the_kotlin_example runs them, where there is a compiler."""
    opened = set()
    for path in (root / "examples" / KOTLIN_TESTS).glob("*Test.kt"):
        source = path.read_text(encoding="utf-8")
        (name,) = re.findall(r'vectors\("(.+?)"\)', source)
        names = set(re.findall(r'"([a-z]\w*)"', source))
        assert names
        assert names <= set(re.findall(r'"(\w+)"', read(f"vectors/{name}")))
        opened.add(name)
    assert opened == {path.name for path in (root / "examples" / "vectors").iterdir()}


def test_packages_take_what_the_swift_code_gives(
    read: Callable[[str], str], bundle: Bundle, need: Callable[..., None]
) -> None:
    """Names, float16 and sizes of every variant, as the packages themselves declare them."""
    need("torch", "coremltools")
    from export.mil.package.program import read_package

    source, facts = read(f"{SWIFT}/Tensors.swift"), constants(read(f"{SWIFT}/Model.swift"))
    assert set(re.findall(r"dataType: \.(\w+)|ofType: (\w+)\.self", source)) == {
        ("float16", ""),
        ("", "Float16"),
    }
    side = facts["WINDOW"]
    cells = (facts["NOISE_CHANNELS"], side // facts["NOISE_CELL"], side // facts["NOISE_CELL"])
    for pair in bundle.manifest.coreml.values():
        encoder, generator = (
            read_package(bundle.path / pair[graph].name) for graph in ("encoder", "generator")
        )
        assert [feature.name for feature in encoder.inputs] == [facts["IMAGE"]]
        assert {feature.name for feature in encoder.outputs} == set(facts["FEATURES"])
        assert {feature.name for feature in generator.inputs} == {*facts["FEATURES"], facts["NOISE"]}
        assert [feature.name for feature in generator.outputs] == [facts["RESULT"]]
        every = {
            each.name: each.type
            for program in (encoder, generator)
            for each in (*program.inputs, *program.outputs)
        }
        assert {type.dtype for type in every.values()} == {"fp16"}
        assert every[facts["IMAGE"]].shape == (1, 3, side, side)
        assert every[facts["NOISE"]].shape == (1, *cells)
        assert every[facts["RESULT"]].shape == (1, 3, side * facts["SCALE"], side * facts["SCALE"])
