"""The import order of the packages, and what the runtime may need."""

import ast
import sys
from pathlib import Path

import pytest

INSTALLED = ("runtime", "training", "calibration", "export", "gdposr")
CHAIN = (*INSTALLED, "tools")
# The rooms of each package: a module imports from its own and from those before it.
ROOMS = {
    "runtime": ("errors", "checks", "text", "files", "folders", "noise", "image", "bundle", "backends", "upscale"),
    "training": (
        "randomness", "pixels", "settings", "checkpoint", "devices", "metrics", "model", "data", "loop", "stages", "bench", "main",
    ),
    "calibration": ("sensitivity", "samples", "measure", "report", "blind", "studies"),
    "export": (
        "prior", "student", "distill", "source", "fold", "load", "parity", "mil", "onnx", "coreml", "write_bundle", "cli",
    ),
    "gdposr": ("streams", "console", "forward", "bench", "batch", "accuracy", "web", "server", "fleet", "commands", "cli"),
    "tools": (
        "demo", "gallery_pictures", "gallery", "arm", "vectors", "web_peers", "web_bench", "load_clients", "server_load", "fleet_bench",
        "sd21_size", "chain",
    ),
}  # fmt: skip
ROOM_SIZE = range(3, 13)  # modules and folders of a folder, without __init__.py
TYPES_ONLY = {"typing_extensions"}  # type checkers know it, whether or not it is installed
RUNTIME_NEEDS = {"numpy", "PIL", "onnxruntime", "openvino", "coremltools", "pillow_heif", *TYPES_ONLY}
RUNTIME_LAZY = {
    "onnxruntime",
    "openvino",
    "coremltools",
    "pillow_heif",
    *TYPES_ONLY,
}  # slow to import, or not installed


def imports(source: str) -> list[tuple[int, str, bool]]:
    """Every import in a module: (level of dots, name, whether it runs at import time)."""
    found = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((0, alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", at_import))
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.append((0, name.value, at_import))
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        checked_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, at_import and not inside and not checked_only)

    visit(ast.parse(source), True)
    return found


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def faults(package: str, source: str) -> list[str]:
    """What a module of `package` imports against the rules."""
    allowed = CHAIN[: CHAIN.index(package) + 1]
    result = []
    for level, name, at_import in imports(source):
        top = name.partition(".")[0]
        if level == 0 and top in CHAIN and top not in allowed:
            result.append(f"{package} imports {name}, which comes later in the chain {' <- '.join(CHAIN)}")
        if package == "runtime":
            if level == 0 and top == "runtime":
                result.append(
                    f"runtime imports {name} by its full name: imports inside runtime/ are relative"
                )
            elif level == 0 and top not in CHAIN and top not in RUNTIME_NEEDS | sys.stdlib_module_names:
                result.append(f"runtime imports {name}: it may need {', '.join(sorted(RUNTIME_NEEDS))} only")
            elif top in RUNTIME_LAZY and at_import:
                result.append(
                    f"runtime imports {top} at import time: do it inside the function that needs it"
                )
        if package == "gdposr" and level == 0 and top in INSTALLED[:-1] and at_import:
            result.append(f"gdposr imports {name} at import time: stages are imported inside functions")
    return result


def room(package: str, name: str) -> int:
    """Place of the room of a module `name`, dotted, in its package; that of the package itself is behind all."""
    rooms, parts = ROOMS[package], name.split(".")
    return rooms.index(parts[1]) if len(parts) > 1 and parts[1] in rooms else len(rooms)


def backward(module: str, is_package: bool, source: str) -> list[str]:
    """What a module imports from a room behind its own, inside its package."""
    package, result = module.split(".")[0], []
    base = module.split(".") if is_package else module.split(".")[:-1]
    for level, name, _ in imports(source):
        if level:
            name = ".".join(base[: len(base) - level + 1] + ([name] if name else []))
        if (
            name.split(".")[0] == package
            and len(name.split(".")) > 1
            and room(package, name) > room(package, module)
        ):
            result.append(f"{module} imports {name}, which stands behind it in {', '.join(ROOMS[package])}")
    return result


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other in a circle, each sorted."""

    def behind(start: str) -> set[str]:
        found, ahead = set(), list(arrows[start])
        while ahead:
            module = ahead.pop()
            if module not in found:
                found.add(module)
                ahead += arrows[module]
        return found

    reached = {module: behind(module) for module in arrows}
    groups = {
        tuple(sorted(other for other in arrows if other in reached[module] and module in reached[other]))
        for module in arrows
    }
    return [list(group) for group in sorted(groups) if group]


def arrows_of(root: Path) -> dict[str, set[str]]:
    """What each module imports of the others, inside functions too. A package stands for its __init__.py alone."""
    names = {_dotted(path.relative_to(root)): path for path in modules(root)}
    arrows: dict[str, set[str]] = {}
    for module, path in names.items():
        base = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        arrows[module] = set()
        for node in ast.walk(_without_type_checking(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                arrows[module] |= {alias.name for alias in node.names} & names.keys()
            elif isinstance(node, ast.ImportFrom):
                home = [*base[: len(base) - node.level + 1]] if node.level else []
                home += [node.module] if node.module else []
                inside = {".".join([*home, alias.name]) for alias in node.names} & names.keys()
                arrows[module] |= inside or ({".".join(home)} & names.keys())
    return arrows


def between_folders(arrows: dict[str, set[str]], packages: set[str]) -> dict[str, set[str]]:
    """The same between folders. What stands directly in one of `CHAIN` stands for itself, since `ROOMS` orders it."""

    def folder(module: str) -> str:
        alone = module in packages or module.count(".") < 2
        return module if alone else module.rpartition(".")[0]

    found: dict[str, set[str]] = {folder(module): set() for module in arrows}
    for module, imported in arrows.items():
        found[folder(module)] |= {folder(other) for other in imported} - {folder(module)}
    return found


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _without_type_checking(source: str) -> ast.Module:
    class Remove(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Remove().visit(ast.parse(source))


def modules(root: Path) -> list[Path]:
    return sorted(path for package in CHAIN for path in (root / package).rglob("*.py"))


def test_chain_is_kept(root: Path) -> None:
    files = modules(root)
    assert {path.relative_to(root).parts[0] for path in files} == set(CHAIN)
    broken = [
        f"{path.relative_to(root)}: {fault}"
        for path in files
        for fault in faults(path.relative_to(root).parts[0], path.read_text(encoding="utf-8"))
    ]
    assert not broken, "\n".join(broken)


def test_rooms_follow_each_other(root: Path) -> None:
    broken = []
    for path in modules(root):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        if "." in module:
            assert parts[1] in ROOMS[parts[0]] or is_package or parts[1] == "__main__", (
                f"{module} has no room"
            )
            broken += backward(module, is_package, path.read_text(encoding="utf-8"))
    assert not broken, "\n".join(broken)


def test_no_module_imports_itself_by_way_of_others(root: Path) -> None:
    assert not circles(arrows_of(root))


def test_no_folder_needs_one_that_needs_it(root: Path) -> None:
    packages = {_dotted(path.relative_to(root)) for path in modules(root) if path.name == "__init__.py"}
    assert not circles(between_folders(arrows_of(root), packages))


def test_a_circle_of_a_folder_and_one_inside_it_is_found() -> None:
    arrows = {
        "export.mil": set(),
        "export.mil.evaluate": {"export.mil.ops.call"},
        "export.mil.program": set(),
        "export.mil.ops": set(),
        "export.mil.ops.call": {"export.mil.program"},
        "export.cli": {"export.mil.evaluate"},
        "export.source": set(),
    }
    assert not circles(arrows)
    assert circles(between_folders(arrows, {"export.mil", "export.mil.ops"})) == [
        ["export.mil", "export.mil.ops"]
    ]


def test_a_circle_is_found() -> None:
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": {"e"}}
    assert circles(arrows) == [["b", "c"], ["e"]]


def test_a_room_is_easy_to_look_over(root: Path) -> None:
    for folder in {path.parent for path in modules(root)}:
        names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        names |= {path.parent.name for path in folder.glob("*/__init__.py")}
        assert len(names) in ROOM_SIZE, f"{folder.relative_to(root)} holds {len(names)}: {sorted(names)}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("runtime.image.arrays", "from ..upscale.color import adain"),
        ("runtime.noise", "from .bundle.reader import Bundle"),
        ("training.data.photos", "def f():\n    from training.loop.trainer import Trainer"),
        ("export.student.core", "import export.write_bundle"),
    ],
)
def test_check_finds_a_way_back(module: str, source: str) -> None:
    assert backward(module, False, source)


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("runtime", "import torch"),
        ("runtime", "def f():\n    import torch.nn"),
        ("runtime", "from training.data.degradation import blur"),
        ("runtime", "from runtime.noise import noise_field"),
        ("runtime", "import onnxruntime"),
        ("runtime", "import openvino"),
        ("runtime", "import coremltools"),
        ("training", "from calibration import metrics"),
        ("calibration", "import export.student.model.network"),
        (
            "export",
            "def f():\n    from importlib import import_module\n    return import_module('gdposr.cli')",
        ),
        ("gdposr", "from runtime.upscale.upscaler import Upscaler"),
        ("gdposr", "def f():\n    from tools.demo import load_peer"),
    ],
)
def test_check_finds_a_broken_chain(package: str, source: str) -> None:
    assert faults(package, source)


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("runtime", "import numpy as np\nfrom PIL import Image\nfrom .noise import noise_field"),
        ("runtime", "def f():\n    import onnxruntime"),
        ("export", "from runtime.noise import noise_field\nimport torch"),
        ("gdposr", "def f():\n    from runtime.upscale.upscaler import Upscaler"),
        (
            "gdposr",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from runtime.bundle.reader import Bundle",
        ),
    ],
)
def test_check_leaves_a_kept_chain_alone(package: str, source: str) -> None:
    assert not faults(package, source)
