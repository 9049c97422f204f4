"""What the tests of examples/ share: where its sources lie, its files, the built-in bundle, and the constants that a source states."""

import re
from ast import literal_eval
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.bundle.reader import Bundle

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
