"""`make verify-arm`: what it compares, how it knows a kernel, its messages. Nothing is downloaded or emulated."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools.arm import checks, verify
from tools.arm import root as arm_root


@pytest.fixture(scope="module")
def vectors(root: Path) -> Path:
    return root / "examples" / "vectors"


@pytest.fixture(scope="module")
def cases(vectors: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    noise, picture = (
        json.loads((vectors / name).read_text(encoding="utf-8")) for name in ("noise.json", "picture.json")
    )
    return noise, picture


@pytest.fixture(scope="module")
def host(vectors: Path) -> dict[str, Any]:
    """What this machine computes, by the very code that the emulated one runs."""
    return checks.results(vectors)


def test_this_machine_keeps_every_limit(
    host: dict[str, Any], cases: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    rows, faults = verify.compare(host, host, *cases)
    assert faults == []
    assert len(rows) == 10


def test_every_difference_is_a_fault(
    host: dict[str, Any], cases: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    arm = copy.deepcopy(host)
    arm["bits"][3] = "00000000"
    arm["digests"][1] = "0" * 64
    arm["probe"]["int8"]["ok"] = False
    for precision in checks.PRECISIONS:
        pixels = checks.to_pixels(arm["picture"][precision]).astype(int)
        arm["picture"][precision] = checks.to_rows(np.clip(pixels + 9, 0, 255).astype(np.uint8))
    faults = verify.compare(arm, host, *cases)[1]
    assert [fault.split(":")[0] for fault in faults] == [
        "noise, values",
        "noise, fields",
        "probe, int8",
        "picture, fp32, to the vectors",
        "picture, int8, to the vectors",
        "picture, fp32, to x86",
        "picture, int8, to x86",
    ]
    assert faults[0] == "noise, values: expected 15 bit-equal, got 14 bit-equal"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("4e82a420", "matrix products"),  # smmla v0.4s, v1.16b, v2.16b
        ("6e82a420", "matrix products"),  # ummla
        ("4e82ac20", "matrix products"),  # usmmla
        ("4e829420", "dot products"),  # sdot v0.4s, v1.16b, v2.16b
        ("6e829420", "dot products"),  # udot
        ("4f82e020", "dot products"),  # sdot v0.4s, v1.16b, v2.4b[0]
        ("6f82e020", "dot products"),  # udot by element
        ("0e62c020", "neither"),  # smlal of halfwords
        ("4e20cc20", "neither"),  # fmla
    ],
)
def test_kernel_is_read_from_the_instructions(word: str, expected: str) -> None:
    log = ["----------------\n", "IN: \n", f"0x55088ccaf0:  {word}  any text\n", "\n"]
    assert verify.kernel(log) == expected


def test_another_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(arm_root.RootError, match=r"expected a host of x86_64, got aarch64: .*make test"):
        arm_root.prepare(tmp_path, "aarch64")


def test_root_that_is_there_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arm_root, "run", lambda *_: pytest.fail("nothing should run"))
    (tmp_path / "done.json").write_text(json.dumps(arm_root.digest(arm_root.MIRROR)))
    arm_root.prepare(tmp_path, "x86_64")


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(arm_root.RootError, match=r"apt-get and dpkg .* run it on Debian"):
        arm_root.need_programs()


def test_failing_program_is_quoted() -> None:
    with pytest.raises(arm_root.RootError, match=r"sh could not read .*exit code 3.*no route; .*--mirror"):
        arm_root.run(["sh", "-c", "echo W: note >&2; echo no route >&2; exit 3"], "read lists")


def test_root_without_a_python_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with one line and exit code 1."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(verify, "prepare", lambda *_: None)
    assert verify.main(["--out", str(tmp_path)]) == 1
    assert "qemu-aarch64-static" in capsys.readouterr().err
