"""The examples for iOS and Android state what the runtime and the built-in bundle state; the Kotlin one makes the same pictures."""

import json
import os
import re
import shutil
import struct
import subprocess
from ast import literal_eval
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnxruntime
import pytest

from runtime import noise
from runtime.bundle.manifest import TensorSpec
from runtime.bundle.reader import Bundle
from runtime.upscale.probe import PACKAGE_FLOOR_DB, PACKAGE_MARGIN_DB, read_rgb
from runtime.upscale.upscaler import Upscaler

KOTLIN, KOTLIN_TESTS = "android/src/main/kotlin/gdposr", "android/src/test/kotlin/gdposr"
SWIFT, SWIFT_TESTS = "ios/Sources/Gdposr", "ios/Tests/GdposrTests"


@pytest.fixture(scope="module")
def read(root: Path) -> Callable[[str], str]:
    """read("ios/README.md"): a file of examples/."""
    return lambda name: (root / "examples" / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open()


def constants(source: str) -> dict[str, Any]:
    """`const val NAME = value` of Kotlin, `static let name = value` of Swift, by the Kotlin name."""
    found = {}
    for name, text in re.findall(r"(?:val|static let) (\w+)(?:: \w+)? = (.+?)(?: *//.*)?\n", source):
        key = name if name.isupper() else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
        text = re.sub(r"mapOf\((.*)\)", lambda m: "{" + m[1].replace(" to ", ": ") + "}", text)
        text = re.sub(r"listOf\((.*)\)", r"[\1]", text)
        text = re.sub(r'\[("\w+": .*)\]', r"{\1}", text)
        text = re.sub(r"\b(0x[0-9A-F_]+|\d+)L\b", r"\1", text)
        try:
            found[key] = literal_eval(text)
        except (ValueError, SyntaxError):  # computed, or an array over several lines: see `numbers`
            continue
    return found


def numbers(source: str, name: str) -> tuple[float, ...]:
    """The floating-point numbers of an array of coefficients."""
    match = re.search(rf"val {name} = doubleArrayOf\(([^)]*)\)|let {name.lower()} = \[([^\]]*)\]", source)
    assert match is not None, name
    return tuple(float(word) for word in (match[1] or match[2]).split(","))


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


def test_tables_of_the_readmes(read: Callable[[str], str], bundle: Bundle) -> None:
    manifest = bundle.manifest
    window = constants(read(f"{SWIFT}/Model.swift"))["WINDOW"]

    def fixed(tensor: TensorSpec) -> str:
        side = round(window * tensor.scale)
        return f"1, {tensor.channels}, {side}, {side}"

    def free(tensor: TensorSpec) -> str:
        if tensor.scale < 1:
            return ", ".join(
                ("1", str(tensor.channels), *(f"{side}/{round(1 / tensor.scale)}" for side in "hw"))
            )
        factor = "" if tensor.scale == 1 else str(round(tensor.scale))
        return f"1, {tensor.channels}, {factor}h, {factor}w"

    for name, shape in (("ios/README.md", fixed), ("android/README.md", free)):
        page = read(name)
        for graph, way, tensor in (
            ("encoder", "in", manifest.image),
            *(("encoder", "out", tensor) for tensor in manifest.encoder.outputs),
            ("generator", "in", manifest.noise_input),
            ("generator", "out", manifest.output),
        ):
            assert f"| {graph} | {way} `{tensor.name}` | {shape(tensor)} |" in page
        both = ", ".join(f"`{tensor.name}`" for tensor in manifest.encoder.outputs)
        assert f"| generator | in {both} | as above |" in page


def test_figures_in_the_text_of_the_readmes(read: Callable[[str], str], bundle: Bundle) -> None:
    manifest, rule = bundle.manifest, bundle.manifest.size
    window = constants(read(f"{SWIFT}/Model.swift"))["WINDOW"]
    probe, cell = read_rgb(bundle, manifest.probe.input).shape[0], manifest.noise.downscale
    kind = {1: "number", 2: "even number"}[rule.multiple_of]
    both = (
        "one value per channel and " + ("pixel of" if cell == 1 else f"cell of {cell}x{cell} pixels"),
        f"most {rule.context} LR pixels away",
        f"lies {rule.context} pixels or more inside",
    )
    both += (
        f"{4 * manifest.scale**2} bytes for each pixel",
        manifest.probe.input.file,
        manifest.probe.output.file,
    )
    reliable = probe - rule.context
    swift = (
        f"a side below {window} pixels",
        f"last {rule.context} rows or columns ({manifest.scale * rule.context} of the result)",
        f"{manifest.scale} x ({probe} - {rule.context}) = {manifest.scale * reliable}",
        f"first {manifest.scale * reliable} rows and columns",
        *(f'"$BUNDLE/{package.name}"' for package in manifest.coreml["fp16"].values()),
        *(f"`{variant}`" for variant in manifest.coreml if variant != "fp16"),
    )
    kotlin = (
        f"any {kind}s from {rule.minimum} on",
        f"below {rule.minimum} pixels",
        f"Any {kind} from {2 * rule.context + rule.multiple_of} on",
        *(f'"$BUNDLE/{file.file}"' for file in manifest.graphs["int8"].values()),
    )
    for name, facts in (("ios/README.md", both + swift), ("android/README.md", both + kotlin)):
        page = " ".join(read(name).split())
        assert [fact for fact in facts if fact not in page] == []
    default = re.search(r"window: Int = (\d+)", read(f"{KOTLIN}/Upscaler.kt"))
    assert default is not None
    page = read("android/README.md")
    assert f"window = {default[1]}" in page
    assert f"`columns` ({default[1]})" in page


@pytest.mark.parametrize("name", ["ios/README.md", "android/README.md"])
def test_readmes_name_files_that_exist(name: str, root: Path, read: Callable[[str], str]) -> None:
    page = read(name)
    folder = (root / "examples" / name).parent
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page)
    assert links
    assert [link for link in links if not (folder / link).exists()] == []
    sources = {path.name for path in (folder / ("Sources" if "ios" in name else "src/main")).rglob("*.*")}
    table = {
        word for row in re.findall(r"^\| (\w+\.\w+.*?) \|", page, re.MULTILINE) for word in row.split(", ")
    }
    assert table == sources


def test_names_of_free_sizes(read: Callable[[str], str], bundle: Bundle) -> None:
    """The names that `setSymbolicDimensionValue` takes."""
    page = read("android/README.md")
    names = set()
    for file in bundle.manifest.graphs["int8"].values():
        session = onnxruntime.InferenceSession(bundle.read(file), providers=["CPUExecutionProvider"])
        names |= {size for node in session.get_inputs() for size in node.shape if isinstance(size, str)}
    stated = re.search(r"setSymbolicDimensionValue` for (.*?), and let", " ".join(page.split()))
    assert stated is not None
    assert set(re.findall(r"`(.*?)`", stated[1])) == names


def test_opset(read: Callable[[str], str], bundle: Bundle, need: Callable[..., None]) -> None:
    need("onnx")
    import onnx

    for graphs in bundle.manifest.graphs.values():
        for file in graphs.values():
            opsets = {
                each.domain: each.version for each in onnx.load_from_string(bundle.read(file)).opset_import
            }
            assert f"The graphs are opset {opsets['']}." in read("android/README.md")


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


# The Kotlin code, compiled and run.


@pytest.fixture(scope="module")
def kotlin(root: Path, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the Kotlin example, compiled with stand-ins for what only a phone has."""
    compiler, java = shutil.which("kotlinc"), shutil.which("java")
    if compiler is None or java is None:
        pytest.skip("needs kotlinc and java, which Debian's package kotlin brings")
    # `use` of an AutoCloseable: in the standard library since Kotlin 1.8, in a file of its own before.
    older = Path("/usr/share/java/kotlin-stdlib-jdk7.jar")
    path = [str(older)] if older.exists() else []
    program = tmp_path_factory.mktemp("kotlin") / "example.jar"
    sources = [
        *(root / "examples" / "android").rglob("*.kt"),
        *(root / "tests" / "data" / "kotlin").glob("*.kt"),
    ]
    command = [compiler, "-include-runtime", "-d", str(program), *map(str, sources)]
    if path:
        command += ["-classpath", ":".join(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    assert not re.search(r"examples/android/.*warning: ", result.stderr), result.stderr
    # the tests' resources; a graph's name stands in for its content, see OnnxRuntime.kt
    for file in bundle.manifest.graphs["int8"].values():
        (program.parent / file.file).write_text(file.file)
    path += [str(program), str(program.parent), str(root / "examples" / "vectors")]
    return [java, "-classpath", ":".join(path), "gdposr.MainKt"]


@pytest.mark.slow
def test_unit_tests_of_the_kotlin_example(kotlin: list[str], root: Path, bundle: Bundle) -> None:
    """The vectors' picture, too, goes through both graphs."""
    stated = {
        f"{path.stem}.{name}"
        for path in (root / "examples" / KOTLIN_TESTS).glob("*Test.kt")
        for name in re.findall(r"@Test\n +fun (\w+)", path.read_text(encoding="utf-8"))
    }
    passed = serve([*kotlin, "tests"], b"", bundle).decode().split()
    assert len(stated) == 6
    assert set(passed) == stated


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width", "window", "seed"),
    [
        (141, 75, 64, 3),
        (141, 203, 128, 2**63 + 1),
        (141, 203, 158, 2**63 + 1),
        (5, 19, 158, 0),
        (61, 70, None, 4),
    ],
)
def test_pictures_of_the_kotlin_example(
    kotlin: list[str], bundle: Bundle, make_pixels: Callable[..., np.ndarray],
    height: int, width: int, window: int | None, seed: int,
) -> None:  # fmt: skip
    photo = make_pixels(height, width)
    rule = bundle.manifest.size
    window = window or 2 * rule.context + rule.multiple_of  # the smallest
    words = (width, height, window, seed, 2)
    answer = serve([*kotlin, "upscale", *map(str, words)], argb(photo), bundle)
    scale = bundle.manifest.scale
    colors = np.frombuffer(answer, ">u4").reshape(2, height * scale, width * scale)
    assert (colors >> 24 == 255).all()
    pictures = np.stack([colors >> shift & 255 for shift in (16, 8, 0)], axis=-1).astype(np.uint8)
    with Upscaler(precision="int8", device="cpu", threads=1) as upscaler:
        for picture, expected in zip(pictures, upscaler.up(photo, seed=seed, samples=2), strict=True):
            np.testing.assert_array_equal(picture, expected)


@pytest.mark.slow
def test_self_test_of_the_kotlin_example(kotlin: list[str], bundle: Bundle) -> None:
    probe = read_rgb(bundle, bundle.manifest.probe.input)
    expected = read_rgb(bundle, bundle.manifest.probe.output)
    command = [*kotlin, "self-test", str(len(probe))]
    assert serve(command, argb(probe) + argb(expected), bundle) == b"\x01"
    assert serve(command, argb(probe) + argb(expected[::-1]), bundle) == b"\x00"


def argb(photo: np.ndarray) -> bytes:
    """Pixels of (h, w, 3) uint8 as Kotlin reads them, half of them transparent, which must not matter."""
    red, green, blue = photo.astype(np.uint32).transpose(2, 0, 1)
    return (red << 16 | green << 8 | blue | 0x80000000).astype(">u4").tobytes()


def serve(command: list[str], given: bytes, bundle: Bundle) -> bytes:
    """Run the example, answer its calls of ONNX Runtime until it is done, and give what it writes then."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        file.file: onnxruntime.InferenceSession(
            bundle.read(file), options, providers=["CPUExecutionProvider"]
        )
        for file in bundle.manifest.graphs["int8"].values()
    }
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(given)
        process.stdin.flush()
        while (file := read_text(process.stdout)) != "done":
            feeds = dict(read_array(process.stdout) for _ in range(read_number(process.stdout)))
            names = [node.name for node in sessions[file].get_outputs()]
            results = sessions[file].run(names, feeds)
            process.stdin.write(struct.pack(">i", len(names)))
            for name, array in zip(names, results, strict=True):
                process.stdin.write(struct.pack(">H", len(name)) + name.encode())
                process.stdin.write(struct.pack(f">{1 + array.ndim}i", array.ndim, *array.shape))
                process.stdin.write(array.astype(">f4").tobytes())
            process.stdin.flush()
        answer = process.stdout.read()
    assert process.returncode == 0
    return answer


def read_number(stream: BinaryIO) -> int:
    return int(struct.unpack(">i", stream.read(4))[0])


def read_text(stream: BinaryIO) -> str:
    head = stream.read(2)
    assert head, "the example stopped early; its message is above"
    return stream.read(struct.unpack(">H", head)[0]).decode()


def read_array(stream: BinaryIO) -> tuple[str, np.ndarray]:
    name = read_text(stream)
    shape = [read_number(stream) for _ in range(read_number(stream))]
    values = np.frombuffer(stream.read(4 * int(np.prod(shape))), ">f4")
    return name, values.reshape(shape).astype(np.float32)
