"""Temporary files of killed runs: removed where nobody can still be writing them, left alone otherwise."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_helpers import files_in

from gdposr.batch.temporary import OLD, claimed
from runtime.files import TEMPORARY, atomic_file, name_mark

LEFT = f".{name_mark('a.png')}.0123abcd.tmp"


def test_names_are_those_of_atomic_file(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a.b.png") as stream:
        stream.write(b"x")
        (name,) = files_in(tmp_path)
    match = TEMPORARY.fullmatch(name)
    assert match is not None
    assert match["mark"] == name_mark("a.b.png")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX locks")
def test_leftovers_of_own_outputs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    mark = name_mark("a.png")
    others = [
        f".{name_mark('b.png')}.0123abcd.tmp",
        f".{mark}.tmp",
        "a.png",
        f".{mark}.xyz.tmp",
        f"sub/{LEFT}",
    ]
    (tmp_path / "sub").mkdir()
    for name in (LEFT, *others):
        (tmp_path / name).write_bytes(b"")
    with claimed(tmp_path, [tmp_path / "a.png", tmp_path / "c.png", tmp_path / "none" / "a.png"]) as removed:
        assert removed == 1
    assert files_in(tmp_path) == sorted(others)


HOLD = """
import sys
from pathlib import Path
from gdposr.batch.temporary import claimed
with claimed(Path(sys.argv[1]), []):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX locks")
def test_nothing_fresh_is_removed_beside_a_live_run(root: Path, tmp_path: Path) -> None:
    def removed() -> int:
        with claimed(tmp_path, [tmp_path / "a.png"]) as number:
            return number

    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        (tmp_path / LEFT).write_bytes(b"")
        assert removed() == 0
        os.utime(tmp_path / LEFT, (time.time() - OLD - 10,) * 2)
        assert removed() == 1, "untouched for a day"
        (tmp_path / LEFT).write_bytes(b"")
        process.kill()
        process.wait()
        assert removed() == 1, "the lock ended with the process"


def test_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    with claimed(tmp_path / "none", [tmp_path / "none" / "a.png"]) as removed:
        assert removed == 0
