"""The runtime stands alone: numpy, Pillow, ONNX Runtime and the standard library."""

import ast
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BLOCKED = ("torch", "torchvision", "diffusers", "transformers", "onnx", "onnxscript", "scipy", "skimage", "cv2", "training",
           "calibration", "export", "gdposr")  # fmt: skip
BLOCK = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError(f"{{name}} is blocked by the test")

sys.meta_path.insert(0, Block())
"""
USE = """
from pathlib import Path

import numpy as np
from PIL import Image

from runtime import Bundle, ImageError, Upscaler, available_devices, noise_field
from runtime.image.read.decode import read_photo
from runtime.image.write.encode import write_photo
from runtime.upscale.probe import run_probe

bundle, folder = Bundle.open(sys.argv[1]), Path(sys.argv[2])
bundle.verify()
Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(folder / "in.png")
with Upscaler(bundle, color_fix="wavelet") as upscaler:
    for k, photo in enumerate(upscaler.up_photo(read_photo(folder / "in.png"), samples=2, scale=3)):
        write_photo(folder / f"out{k}.png", photo)
assert "cpu" in available_devices() and noise_field(0, 0, 1, 1).shape == (4, 1, 1)
loaded = sorted({name.split(".")[0] for name in sys.modules} & set(BLOCKED))
assert not loaded, loaded
print("done")
"""


def test_works_where_everything_else_is_blocked(
    run_python: Callable, toy_bundle: Path, tmp_path: Path
) -> None:
    result = run_python("-c", f"{BLOCK}\nBLOCKED = {BLOCKED!r}\n{USE}", toy_bundle, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"
    assert (tmp_path / "out1.png").exists()


def test_the_block_works(run_python: Callable) -> None:
    result = run_python("-c", f"{BLOCK}\nimport torch")
    assert "blocked by the test" in result.stderr


def test_import_is_light(run_python: Callable) -> None:
    """`import runtime` loads nothing heavy; noise and manifests need no ONNX Runtime."""
    heavy = "{'numpy', 'PIL', 'onnxruntime'}"
    code = f"import sys, runtime; print(sorted({heavy} & set(sys.modules)))"
    assert run_python("-c", code).stdout == "[]\n"
    code = f"import sys, runtime.upscale.upscaler, runtime.upscale.probe; print(sorted({heavy} & set(sys.modules)))"
    assert run_python("-c", code).stdout == "['PIL', 'numpy']\n"


def test_public_names() -> None:
    import runtime

    for name in runtime.__all__:
        assert getattr(runtime, name) is not None
        assert name in dir(runtime)
    with pytest.raises(AttributeError, match="nothing"):
        _ = runtime.nothing


def test_imports_inside_are_relative(root: Path) -> None:
    """So that the folder can be copied into another program."""
    allowed = {"numpy", "PIL", "onnxruntime", "openvino", "coremltools"}
    allowed.add("typing_extensions")  # for type checkers, which know it; never imported
    for path in (root / "runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, f"{path.name}: import {name}"
