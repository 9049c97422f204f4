"""Names and directory trees as nobody plans them: every photo is done or named, no traceback, nothing under a wrong name.

Trees are drawn with a seed.
"""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import check_shown, files_in, picture

from gdposr.cli import main
from runtime.errors import ImageError
from runtime.files import atomic_file
from runtime.folders import find_entries
from runtime.text import printable

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX names, links and permissions")

# Bytes of names: text, no text, controls, direction marks, a line end, signs of patterns and shells.
PIECES = (
    b"a", b"photo", "写真".encode(), "é".encode(), b"\xd5\xd5", b"\xff", b"\x1b[31m", "\u202e".encode(), "\u2066".encode(),
    b"\n", b"\r", b"\x9b", b"[1]", b"*", b"?", b"-", b"--o", b" ", b"%s", b"{}", b"&<b>",
    "\U0001f468\u200d\U0001f469".encode(), b"x" * 60,
)  # fmt: skip


def draw_name(draw: random.Random) -> bytes:
    return b"n" + b"".join(draw.choices(PIECES, k=draw.randint(1, 4)))[:200]


def draw_tree(top: Path, draw: random.Random) -> tuple[set[str], set[str]]:
    """Folders, photos, links of every kind. (photos, links that lead nowhere) by their paths."""
    folders, photos, broken = [os.fsencode(top)], set(), set()
    for number in range(draw.randint(4, 12)):
        name = os.path.join(draw.choice(folders), b"%d" % number + draw_name(draw))
        kind = draw.choice(["folder", "photo", "photo", "photo", "link", "loop", "broken", "other", "pipe"])
        if kind == "folder":
            os.mkdir(name)
            folders.append(name)
        elif kind == "photo":
            picture(name + b".png", number)
            photos.add(os.fsdecode(name + b".png"))
        elif kind == "link":
            os.symlink(draw.choice(folders), name)
        elif kind == "loop":
            os.symlink(os.path.basename(name) + b".jpg", name + b".jpg")
            broken.add(os.fsdecode(name + b".jpg"))
        elif kind == "broken":
            os.symlink(b"/nowhere/at/all", name)
            broken.add(os.fsdecode(name))
        elif kind == "pipe":
            os.mkfifo(name + b".png")
            broken.add(os.fsdecode(name + b".png"))
        else:
            with open(name + b".txt", "wb"):
                pass
    return photos, broken


@pytest.mark.parametrize("seed", range(6))
def test_trees(toy_bundle: Path, tmp_path: Path, capfdbinary: Any, seed: int) -> None:
    """Every photo is done, everything that may hide one has failed, and the report is UTF-8."""
    top, out = tmp_path / "in", tmp_path / "out"
    top.mkdir()
    photos, broken = draw_tree(top, random.Random(seed))
    code = main(
        ["upscale", str(top), "-o", str(out), "--bundle", str(toy_bundle), "--threads", "1", "--json-lines"]
    )
    stdout, stderr = capfdbinary.readouterr()
    if not photos and not broken:
        assert code == 2
        return
    check_shown(stdout.decode("utf-8"))
    check_shown(stderr.decode("utf-8"))
    *files, summary = map(json.loads, stdout.splitlines())
    assert code == (1 if broken else 0)
    assert {each["input"] for each in files if each["status"] == "ok"} == photos
    failed = {each["input"] for each in files if each["status"] == "failed"}
    assert {path for path in broken if not maybe_file(path)} <= failed <= broken
    assert summary["photos"] == len(files)
    written = sorted(output["path"] for each in files for output in each["outputs"])
    assert written == sorted(str(out / name) for name in files_in(out))


def maybe_file(path: str) -> bool:
    """Whether a link that leads nowhere may be passed over: its name ends like that of a file of another kind."""
    suffix = Path(path).suffix
    return suffix != ".jpg" and suffix != ".png" and suffix[1:].isalnum()


def test_loops_of_links_end_soon(tmp_path: Path) -> None:
    """Ten links to the top in each of three folders: ways without end, and one photo in each folder."""
    for name in "abc":
        (tmp_path / name).mkdir()
        picture(tmp_path / name / "a.png")
        for number in range(10):
            (tmp_path / name / f"up{number}").symlink_to("..")
    wanted = [tmp_path / name / "a.png" for name in "abc"]
    assert [entry.path for entry in find_entries(tmp_path)] == wanted
    assert [entry.path for entry in find_entries(tmp_path / "**/*.png")] == wanted


def test_linked_folder_is_followed_and_a_real_one_goes_first(tmp_path: Path) -> None:
    picture_folder = tmp_path / "elsewhere"
    picture_folder.mkdir()
    picture(picture_folder / "a.png")
    top = tmp_path / "top"
    (top / "z").mkdir(parents=True)
    picture(top / "z" / "b.png")
    (top / "a_link").symlink_to("z")
    (top / "other").symlink_to(picture_folder)
    inside = [entry.inside.as_posix() for entry in find_entries(top)]
    assert inside == ["other/a.png", "z/b.png"]


@pytest.mark.parametrize("name", ["photos [2019]", "a*b", "[!x]"])
def test_signs_of_patterns_in_a_real_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    picture(tmp_path / name / "a.png")
    assert [entry.inside.as_posix() for entry in find_entries(f"{tmp_path}/{name}/*.png")] == ["a.png"]
    (entry,) = find_entries(f"{tmp_path}/{name}/*.gif")
    assert "no photo matches this pattern" in str(entry.fault)
    assert ("[[] for a bracket" in str(entry.fault)) == ("[" in name)


def test_own_outputs_are_not_taken_again_from_a_folder(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    photo, top = make_photo("in/a.png"), tmp_path / "in"
    for suffix in ("png", "jpg", "tif", "webp"):
        assert gdposr("upscale", photo, "-o", top / f"{suffix}/a.{suffix}")[0] == 0
    assert gdposr("upscale", photo, "-o", top / "a.jpg")[0] == 0  # would clash with a.png
    code, out, err = gdposr("upscale", top, "-o", tmp_path / "out", "--json")
    assert code == 0
    assert files_in(tmp_path / "out") == ["a_x4_seed0.png"]
    report = json.loads(out)
    assert (report["ok"], report["own"], report["photos"]) == (1, 5, 6)
    assert "5 left out" in err
    assert gdposr("upscale", top / "png/a.png", "-o", tmp_path / "again")[0] == 0
    assert files_in(tmp_path / "again") == ["a_x4_seed0.png"]


def test_empty_folder_beside_others_is_one_failed_entry(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = gdposr("upscale", make_photo("a.png"), tmp_path / "empty", "-o", tmp_path / "out")
    assert code == 1
    assert "empty: no photo found" in err
    assert files_in(tmp_path / "out") == ["a_x4_seed0.png"]


def test_longest_names(gdposr: Any, make_photo: Any, tmp_path: Path) -> None:
    """An output's name may have 255 bytes; one byte more is a failed photo with the remedy, and the rest go on."""
    fits, too_long = "a" * 242, "b" * 243  # and _x4_seed0.png
    make_photo(f"in/{fits}.png")
    make_photo(f"in/{too_long}.png")
    code, _, err = gdposr("upscale", tmp_path / "in", "n" * 300, "-o", tmp_path / "out")
    assert code == 1
    assert files_in(tmp_path / "out") == [f"{fits}_x4_seed0.png"]
    assert "its name takes 256 bytes: give the photo a shorter one" in err
    assert err.count("failed: ") == 2


def test_cleaning_up_never_hides_the_first_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(KeyError, match="first"), atomic_file(tmp_path / "a.png"):  # noqa: PT012
        monkeypatch.setattr(Path, "unlink", closed)
        raise KeyError("first")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 写真 é", "plain 写真 é"),
        ("a\x1b[31m", "a\\x1b[31m"),
        ("\udcd5\udcff.png", "\\xd5\\xff.png"),
        ("a\u202egnp", "a\\u202egnp"),
        ("\U000e0041", "\\U000e0041"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_make_folder_says_what_stands_in_the_way(tmp_path: Path) -> None:
    from runtime.files import make_folder

    (tmp_path / "taken").touch()
    with pytest.raises(ImageError, match="taken: cannot be written"):
        make_folder(tmp_path / "taken")
