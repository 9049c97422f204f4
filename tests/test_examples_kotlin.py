"""The Kotlin code of examples/android, compiled and run: its unit tests, its self-test, and the pictures that gdposr makes."""

import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import example_cases
import numpy as np
import onnxruntime
import pytest
from example_cases import KOTLIN_TESTS

from runtime.bundle.reader import Bundle
from runtime.upscale.probe import read_rgb
from runtime.upscale.upscaler import Upscaler

bundle = example_cases.bundle  # a fixture


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
