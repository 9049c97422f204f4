"""The Swift files of examples/ios are free of errors of syntax. No test compiles them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def faults() -> Callable[[bytes], list[str]]:
    """faults(source): the place and the first characters of each part that tree-sitter's grammar of Swift does not understand."""
    tree_sitter = pytest.importorskip("tree_sitter", reason="needs tree-sitter: pip install .[dev]")
    swift = pytest.importorskip("tree_sitter_swift", reason="needs tree-sitter-swift: pip install .[dev]")
    parser = tree_sitter.Parser(tree_sitter.Language(swift.language()))

    def wrong(node: Any) -> list[str]:
        if node.is_error or node.is_missing:
            return [f"line {node.start_point[0] + 1}: {node.text[:60].decode()}"]
        return [fault for child in node.children if child.has_error for fault in wrong(child)]

    return lambda source: wrong(parser.parse(source).root_node)


def test_every_file_parses(root: Path, faults: Callable[[bytes], list[str]]) -> None:
    files = sorted((root / "examples" / "ios").rglob("*.swift"))
    assert {"Package.swift", "Model.swift", "Upscaler.swift", "NoiseTests.swift"} <= {
        file.name for file in files
    }
    assert {file.name: found for file in files if (found := faults(file.read_bytes()))} == {}


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("return arrays", "return arrays ="),
        ("{", "{ {"),
        ("let ", "let let "),
        ("func ", "func func "),
    ],
)
def test_the_grammar_finds_a_fault(
    root: Path, faults: Callable[[bytes], list[str]], good: str, bad: str
) -> None:
    source = (root / "examples" / "ios" / "Sources" / "Gdposr" / "Upscaler.swift").read_text(encoding="utf-8")
    assert good in source
    assert faults(source.replace(good, bad, 1).encode()) != []
