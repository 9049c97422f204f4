"""The tests of OpenVINO, in a process of their own.

Loaded beside all that the training's and the exporters' tests load, OpenVINO 2026.4 crashed when a later thread ended; alone, or beside
torch in the commands, it does not.
"""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_openvino_in_a_process_of_its_own(run_python: Callable[..., Any]) -> None:
    if importlib.util.find_spec("openvino") is None:  # not importorskip, which would load it here
        pytest.skip("needs the extra `openvino`")
    cases = Path(__file__).with_name("openvino_cases.py")
    result = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", cases, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None
    assert int(passed[1]) >= 10, result.stdout
