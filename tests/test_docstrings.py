"""Every field of a dataclass says what it is: its unit, its shape, what None means."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("runtime", "training", "calibration", "export", "gdposr", "tools")

# The classes of a name.
Classes = dict[str, list[ast.ClassDef]]


def named(node: ast.expr) -> str:
    """The last part of a name: "dataclass" for `@dataclasses.dataclass(frozen=True)`."""
    node = node.func if isinstance(node, ast.Call) else node
    node = node.value if isinstance(node, ast.Subscript) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def fields_of(node: ast.ClassDef) -> Iterator[tuple[str, bool]]:
    """(name, whether a docstring follows) of each annotated name in the body of a class, without its ClassVars."""
    following: list[ast.stmt | None] = [*node.body[1:], None]
    for statement, after in zip(node.body, following, strict=True):
        if not isinstance(statement, ast.AnnAssign) or named(statement.annotation) == "ClassVar":
            continue
        text = after.value if isinstance(after, ast.Expr) else None
        yield named(statement.target), isinstance(text, ast.Constant) and isinstance(text.value, str)


def inherited(node: ast.ClassDef, by_name: Classes) -> set[str]:
    """Names of the fields of its parents, of whichever classes have their names."""
    parents = [parent for base in node.bases for parent in by_name.get(named(base), []) if parent is not node]
    return {name for parent in parents for name, _ in fields_of(parent)}.union(
        *(inherited(parent, by_name) for parent in parents)
    )


def silent(sources: dict[str, str]) -> list[str]:
    """The fields without a docstring. Private dataclasses and a new default for a parent's field need none."""
    found = {
        path: [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
        for path, source in sources.items()
    }
    by_name: Classes = {}
    for classes in found.values():
        for node in classes:
            by_name.setdefault(node.name, []).append(node)
    return [
        f"{path}: {node.name}.{name}"
        for path, classes in found.items()
        for node in classes
        if any(named(one) == "dataclass" for one in node.decorator_list) and not node.name.startswith("_")
        for name, explained in fields_of(node)
        if not explained and name not in inherited(node, by_name)
    ]


def test_every_field_has_a_docstring(root: Path) -> None:
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    assert len(paths) > 200
    assert silent({str(path.relative_to(root)): path.read_text() for path in paths}) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("@dataclass\nclass A:\n    x: int\n", ["m.py: A.x"]),
        ("@dataclass(frozen=True)\nclass A:\n    x: int\n    '''Of it.'''\n    y: int = 0\n", ["m.py: A.y"]),
        ("@dataclasses.dataclass\nclass A:\n    '''A.'''\n    x: int\n    def f(self): 'text'\n", ["m.py: A.x"]),
        ("@dataclass\nclass A:\n    x: int\n    '''Of it.'''\n", []),
        ("@dataclass\nclass A:\n    X: ClassVar[int] = 1\n", []),
        ("@dataclass\nclass _A:\n    x: int\n", []),
        ("class A:\n    x: int\n", []),
        ("@dataclass\nclass A:\n    x: int\n    '''Of it.'''\n@dataclass\nclass B(A):\n    x: int = 2\n    y: int = 3\n",
         ["m.py: B.y"]),
    ],
)  # fmt: skip
def test_check_finds_a_field_without_one(source: str, expected: list[str]) -> None:
    assert silent({"m.py": source}) == expected
