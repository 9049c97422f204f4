"""`make bench-server`: a short run of it, and that it finds what it looks for."""

import re
import time
from pathlib import Path

import pytest

from tools.load_clients import MAX_BYTES, Load, bombs, clients


def load() -> Load:
    return Load(0, [], time.monotonic())


def test_another_picture_and_an_unknown_status_are_faults() -> None:
    one = load()
    one.judge("steady", 200, b"right", b"right")
    one.judge("steady", 429, b"", b"right")
    assert (one.faults, sum(one.counts.values())) == ([], 2)
    one.judge("steady", 200, b"wrong", b"right")
    one.judge("steady", 500, b"", b"right")
    assert len(one.faults) == 2
    assert sum(one.counts.values()) == 2


def test_clients_are_of_all_kinds_and_half_of_them_steady() -> None:
    kinds = clients(32)
    assert len(kinds) == 32
    assert kinds.count("steady") == 16
    assert len(set(kinds)) == 7


def test_bombs_are_small_files_but_for_the_one_that_is_not() -> None:
    sizes = {name: len(content) for name, content in bombs().items()}
    assert [name for name, size in sizes.items() if size > MAX_BYTES] == ["too many bytes"]


@pytest.mark.slow
def test_a_short_load_has_no_faults(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastapi", reason="needs the extra server: pip install 'gdposr[server]'")
    from tools.server_load import main

    code = main(["--bundle", str(toy_bundle), "--seconds", "5", "--clients", "16"])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert re.search(r"^\d+ requests, 0 faults$", printed, flags=re.MULTILINE)
    assert "steady: 200, the command's bytes" in printed
