"""The runtime and the command start light: no heavy package is loaded, and none before it is needed."""

import os
import resource

import pytest


def test_runtime_loads_no_heavy_package(run_python) -> None:
    code = (
        "import sys, pkgutil, importlib, runtime\n"
        "for module in pkgutil.walk_packages(runtime.__path__, 'runtime.'):\n"
        "    importlib.import_module(module.name)\n"
        "heavy = {'torch', 'diffusers', 'scipy', 'skimage', 'onnx', 'onnxruntime', 'openvino', 'coremltools', 'rich'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_command_starts_light(run_python, argument: str) -> None:
    code = (
        "import sys\n"
        "from gdposr.cli import main\n"
        f"code = main([{argument!r}])\n"
        "heavy = {'numpy', 'torch', 'onnxruntime', 'PIL', 'rich', 'runtime'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr


def test_command_starts_within_half_a_second_of_cpu(run_python) -> None:
    run_python("-m", "gdposr", "--help")  # compiles the modules
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = run_python("-m", "gdposr", "--help", env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert result.returncode == 0
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(spent) < 0.5, f"seconds of CPU: {spent}"


def test_public_names_resolve(run_python) -> None:
    code = (
        "import sys, gdposr\n"
        "assert 'numpy' not in sys.modules\n"
        "names = [getattr(gdposr, name) for name in gdposr.__all__]\n"
        "from gdposr import Upscaler, Bundle, GdposrError, BundleError, ImageError, DeviceError\n"
        "assert issubclass(BundleError, GdposrError)\n"
        "try:\n    gdposr.nothing\nexcept AttributeError:\n    pass\nelse:\n    sys.exit('no AttributeError')\n"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
