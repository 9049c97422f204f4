"""Putting a fresh folder in an old one's place: whatever comes between, one of the two stands under the name."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from training.checkpoint import replace_folder  # noqa: E402  (after importorskip)


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def contents(parent: Path) -> dict[str, str]:
    return {path.name: (path / "file").read_text() for path in parent.iterdir()}


@pytest.mark.parametrize("standing", [(), ("target",), ("target.old",), ("target", "target.old")])
def test_fresh_folder_takes_the_place_of_all_that_stood_there(
    standing: tuple[str, ...], tmp_path: Path
) -> None:
    for name in standing:
        folder(tmp_path / name, "earlier")
    replace_folder(folder(tmp_path / "fresh", "new"), tmp_path / "target")
    assert contents(tmp_path) == {"target": "new"}


@pytest.mark.parametrize("reason", [OSError("disk is gone"), KeyboardInterrupt()])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("broken", [1, 2])
def test_failure_of_a_rename_leaves_one_whole_folder_under_the_name(
    broken: int, done: bool, reason: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure comes before or after the move itself, as Ctrl-C may."""
    target, fresh = folder(tmp_path / "target", "earlier"), folder(tmp_path / "fresh", "new")
    rename, calls = Path.rename, 0

    def failing(self: Path, to: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls != broken:
            return rename(self, to)
        if done:
            rename(self, to)
        raise reason

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(type(reason)):
        replace_folder(fresh, target)
    if broken == 2 and done:
        assert contents(tmp_path)["target"] == "new"
    else:
        assert contents(tmp_path) == {"target": "earlier", "fresh": "new"}


def test_what_a_killed_swap_left_survives_a_failure(tmp_path: Path) -> None:
    folder(tmp_path / "target.old", "earlier")
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "missing", tmp_path / "target")
    assert contents(tmp_path) == {"target.old": "earlier"}
