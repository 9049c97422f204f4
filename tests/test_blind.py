"""`gdposr blind`: what a study holds and hides, and how its votes are counted."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import files_in, is_one_line
from PIL import Image

KINDS, PHOTOS, SCALE, SIDE = ("jpeg", "blur"), 3, 2, 24


@pytest.fixture
def folders(make_photo: Any) -> list[object]:
    """A_DIR, B_DIR and --lr: two kinds of three photos of 24x30 pixels, enlarged twice; red is 7 in all of A and 9 in all of B."""

    def write(folder: str, red: int | None, scale: int) -> Path:
        for kind in KINDS:
            for index in range(PHOTOS):
                path = make_photo(
                    f"{folder}/{kind}/p{index}.png", SIDE * scale, (SIDE + 6) * scale, seed=index
                )
                if red is not None:
                    pixels = np.asarray(Image.open(path)).copy()
                    pixels[..., 0] = red
                    Image.fromarray(pixels).save(path)
        return path.parents[1]

    return [write("alice", 7, SCALE), write("bertha", 9, SCALE), "--lr", write("inputs", None, 1)]


@pytest.fixture
def make(gdposr: Any, folders: list[object], tmp_path: Path) -> Callable[..., Path]:
    """make("study", ...) writes a study of 10 pairs and gives its folder."""

    def run(name: str = "study", *words: object) -> Path:
        code, _, err = gdposr(
            "blind",
            "make",
            *folders,
            "--out",
            tmp_path / name,
            "--pairs",
            10,
            "--crop",
            12,
            "--seed",
            3,
            *words,
        )
        assert code == 0, err
        return tmp_path / name

    return run


def key_of(study: Path) -> dict[str, Any]:
    return json.loads(study.with_name(f"{study.name}.key.json").read_text())


def write_votes(path: Path, votes: list[str], head: str = "pair,vote") -> Path:
    path.write_text("\n".join([head, *(f"{k:03},{vote}" for k, vote in enumerate(votes, 1))]) + "\n")
    return path


# --- make -------------------------------------------------------------------------------------------------------------------


def test_a_pair_shows_the_same_place_of_input_a_and_b(
    make: Any, folders: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    study = make()
    for entry in key_of(study)["pairs"]:
        y, x, side = (entry["crop"][name] for name in ("y", "x", "size"))
        name = f"{entry['kind']}/{entry['photo']}.png"
        stem = f"{study}/pairs/{entry['pair']:03}"
        shown = {part: np.asarray(Image.open(f"{stem}_{part}.png")) for part in ("input", "left", "right")}
        a, b = (shown["left"], shown["right"]) if entry["a"] == "left" else (shown["right"], shown["left"])
        place = np.s_[y : y + side, x : x + side]
        assert np.array_equal(shown["input"], np.asarray(Image.open(folders[3] / name))[place])
        assert entry["scale"] == SCALE
        place = np.s_[y * SCALE : (y + side) * SCALE, x * SCALE : (x + side) * SCALE]
        assert np.array_equal(a, np.asarray(Image.open(folders[0] / name))[place])
        assert np.array_equal(b, np.asarray(Image.open(folders[1] / name))[place])


def test_kinds_photos_and_sides_are_balanced(make: Any) -> None:
    for seed in range(4):
        entries = key_of(make(f"study{seed}", "--seed", seed))["pairs"]
        kinds = Counter(entry["kind"] for entry in entries)
        assert kinds == {"blur": 5, "jpeg": 5}
        assert Counter(entry["a"] for entry in entries) == {"left": 5, "right": 5}
        for kind in KINDS:
            own = [entry for entry in entries if entry["kind"] == kind]
            assert abs(sum(entry["a"] == "left" for entry in own) * 2 - 5) == 1
            assert sorted(Counter(entry["photo"] for entry in own).values()) == [1, 2, 2]
        places = {(entry["photo"], entry["crop"]["y"], entry["crop"]["x"]) for entry in entries}
        assert len(places) == 10, "no place is asked about twice"
        assert [entry["kind"] for entry in entries] != sorted(entry["kind"] for entry in entries)


def test_same_seed_same_study(make: Any) -> None:
    first, second, other = make("one"), make("two"), make("three", "--seed", 4)
    assert files_in(first) == files_in(second)
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files_in(first)
               if name != "study.json")  # fmt: skip
    assert key_of(first)["pairs"] == key_of(second)["pairs"] != key_of(other)["pairs"]


def test_the_folder_of_a_study_tells_nothing(make: Any) -> None:
    study = make("study", "--names", "Wanda", "Xaver")
    key = key_of(study)
    assert (key["names"], key["seed"]) == ({"a": "Wanda", "b": "Xaver"}, 3)
    assert "--seed 3" in key["command"]
    assert set(json.loads((study / "study.json").read_text())) == {
        "format", "version", "pairs", "question", "key_sha256",
    }  # fmt: skip
    files = [study / name for name in files_in(study)]
    assert len(files) == 1 + 4 * 10
    for path in files:
        content = path.read_bytes()
        assert not any(word in content for word in (b"Wanda", b"Xaver", b"alice", b"bertha", b"jpeg"))
        if path.suffix == ".png":
            chunks = {content[k - 4 : k] for k in _chunk_ends(content)}
            assert chunks == {b"IHDR", b"IDAT", b"IEND"}
            assert Image.open(path).info == {}
    assert len({path.stat().st_mtime_ns for path in files}) == 1


def _chunk_ends(png: bytes) -> list[int]:
    """Where the names of a PNG's chunks end."""
    ends, start = [], 8
    while start < len(png):
        ends.append(start + 8)
        start += 12 + int.from_bytes(png[start : start + 4], "big")
    return ends


def test_sheet_shows_the_input_and_both_sides_twice(make: Any) -> None:
    from calibration.blind.sheet import GAP, LABEL

    study = make()
    sheet = np.asarray(Image.open(study / "pairs" / "001.png"))
    left, right = (np.asarray(Image.open(study / "pairs" / f"001_{side}.png")) for side in ("left", "right"))
    size = left.shape[0]
    assert sheet.shape[1] == 4 * size + 3 * GAP
    large = sheet[-GAP - 2 * size : -GAP]
    assert np.array_equal(large[:, GAP : GAP + 2 * size], left.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(large[:, 2 * GAP + 2 * size : -GAP], right.repeat(2, 0).repeat(2, 1))
    source = np.asarray(Image.open(study / "pairs" / "001_input.png")).repeat(SCALE, 0).repeat(SCALE, 1)
    x = GAP + 2 * size + GAP // 2 - size // 2
    assert np.array_equal(sheet[GAP + LABEL : GAP + LABEL + size, x : x + size], source)


def test_crops_prefer_content() -> None:
    from calibration.blind.pairs import _position, content

    random = np.random.default_rng(0)
    pixels = np.full((100, 200, 3), 128, np.uint8)
    pixels[:, 100:] = random.integers(0, 256, (100, 100, 3))  # the left half is empty
    places = [_position(pixels, 32, [], random) for _ in range(40)]
    assert sum(x >= 68 for _, x in places) > 30
    assert content(pixels[:32, :32]) == 0 < content(pixels[:32, 100:132])


def test_outputs_of_gdposr_upscale_fit_as_they_are(gdposr: Any, folders: list[Any], tmp_path: Path) -> None:
    for path in folders[0].rglob("*.png"):
        path.rename(path.with_name(f"{path.stem}_x2_seed0_s1.png"))
    words = ["blind", "make", *folders, "--pairs", 2, "--crop", 12, "--out"]
    assert gdposr(*words, tmp_path / "study")[0] == 0
    twice = next(folders[0].rglob("*.png"))
    twice.with_name("p0.png").write_bytes(twice.read_bytes())
    twice.with_name("p0_x2_seed1.png").write_bytes(twice.read_bytes())
    code, _, err = gdposr(*words, tmp_path / "other")
    assert (code, "keep one of them" in err) == (2, True)


def test_without_sub_folders_there_is_one_kind(gdposr: Any, folders: list[Any], tmp_path: Path) -> None:
    flat = [folders[0] / "blur", folders[1] / "blur", "--lr", folders[3] / "blur"]
    words = ["--pairs", 4, "--crop", 12, "--names", "one", "two"]
    code, _, err = gdposr("blind", "make", *flat, *words, "--out", tmp_path / "flat")
    assert code == 0, err
    assert {entry["kind"] for entry in key_of(tmp_path / "flat")["pairs"]} == {"all"}
    assert (
        gdposr("blind", "make", *folders, *words, "--kind-from", "none", "--out", tmp_path / "none")[0] == 0
    )
    assert {entry["kind"] for entry in key_of(tmp_path / "none")["pairs"]} == {"all"}
    code, _, err = gdposr("blind", "make", *flat, "--out", tmp_path / "same")
    assert (code, "--names A B" in err) == (2, True)


def test_pictures_that_do_not_fit_are_named(
    gdposr: Any, folders: list[Any], tmp_path: Path, make_pixels: Any
) -> None:
    def refusal(*words: object) -> str:
        code, out, err = gdposr("blind", "make", *folders, "--out", tmp_path / "study", *words)
        assert (code, out) == (2, "")
        assert is_one_line(err)
        assert not (tmp_path / "study").exists()
        assert not (tmp_path / "study.key.json").exists()
        return err

    assert "at least 64x64 pixels, got 30x24: lower --crop to 24" in refusal()
    path = folders[1] / "jpeg" / "p1.png"
    kept = path.read_bytes()
    Image.fromarray(make_pixels(48, 56)).save(path)
    err = refusal("--crop", 12)
    assert "jpeg/p1: expected enlargements of one size, got 60x48" in err
    assert f"56x48 ({path})" in err
    Image.fromarray(make_pixels(48, 56)).save(folders[0] / "jpeg" / "p1.png")
    assert "expected enlargements of 30x24" in refusal("--crop", 12)
    path.unlink()
    err = refusal("--crop", 12)
    assert "have no partner" in err
    assert "jpeg/p1" in err
    path.write_bytes(kept)
    path.with_name("stranger.png").write_bytes(kept)
    assert "jpeg/stranger" in refusal("--crop", 12)


def test_a_study_is_not_overwritten(make: Any, gdposr: Any, folders: list[object]) -> None:
    study = make()
    before = (study / "study.json").read_bytes()
    code, _, err = gdposr("blind", "make", *folders, "--crop", 12, "--out", study)
    assert (code, "choose another --out" in err) == (2, True)
    assert (study / "study.json").read_bytes() == before
    assert sorted(path.name for path in study.parent.iterdir() if "study" in path.name) == [
        "study", "study.key.json",
    ]  # fmt: skip


# --- score ------------------------------------------------------------------------------------------------------------------


def votes_for(study: Path, chosen: str) -> list[str]:
    """Votes that choose what `chosen` says of pair 1, 2, ...: a, b or - for a tie."""
    other = {"left": "right", "right": "left"}
    sides = [entry["a"] for entry in key_of(study)["pairs"]]
    return [
        {"a": side, "b": other[side], "-": "tie"}[choice] for side, choice in zip(sides, chosen, strict=True)
    ]


def test_score_counts_as_by_hand(make: Any, gdposr: Any, tmp_path: Path) -> None:
    study = make()
    votes = write_votes(tmp_path / "eva.csv", votes_for(study, "aaaaaabb--"))
    code, out, err = gdposr("blind", "score", study, votes, "--json", tmp_path / "result.json")
    assert code == 0, err
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["names"] == {"a": "alice", "b": "bertha"}
    assert {row["who"] for row in result["rows"]} == {"eva"}
    everything, *kinds = result["rows"]
    assert [everything[name] for name in ("kind", "a", "b", "ties", "share")] == ["all", 6, 2, 2, 0.75]
    assert (everything["low"], everything["high"]) == pytest.approx((0.4093, 0.9285), abs=1e-4)
    assert [row["kind"] for row in kinds] == ["blur", "jpeg"]
    for name in ("a", "b", "ties"):
        assert sum(row[name] for row in kinds) == everything[name]
    own = [
        c for c, entry in zip("aaaaaabb--", key_of(study)["pairs"], strict=True) if entry["kind"] == "blur"
    ]
    assert [kinds[0]["a"], kinds[0]["b"], kinds[0]["ties"]] == [own.count(c) for c in "ab-"]
    assert result["agreement"] == []
    assert out.startswith("A = alice, B = bertha\n")
    assert out.splitlines()[2].split() == ["eva", "all", "6", "2", "2", "75", "%", "41", "to", "93", "%"]


def test_score_of_several_voters(make: Any, gdposr: Any, tmp_path: Path) -> None:
    study = make()
    given = {"eva": "aaaaaabb--", "jan": "aaaabbbbb-", "kim": "aabbba-a--"}
    files = [write_votes(tmp_path / f"{who}.csv", votes_for(study, chosen)) for who, chosen in given.items()]
    code, out, err = gdposr("blind", "score", study, *files, "--json", tmp_path / "result.json")
    assert code == 0, err
    result = json.loads((tmp_path / "result.json").read_text())
    rows = {row["who"]: row for row in result["rows"] if row["kind"] == "all"}
    assert list(rows) == ["eva", "jan", "kim", "majority", "votes"]
    # by pair: aaa aaa aab aab abb aba bb- bba -b- ---
    assert [rows["majority"][name] for name in ("a", "b", "ties")] == [5, 3, 2]
    assert [rows["votes"][name] for name in ("a", "b", "ties")] == [6 + 4 + 4, 2 + 5 + 3, 2 + 1 + 3]
    assert (rows["votes"]["low"], rows["votes"]["high"]) == (None, None), (
        "votes on one pair are not independent"
    )
    assert rows["majority"]["low"] is not None
    assert [(each["voters"], each["equal"]) for each in result["agreement"]] == [
        (["eva", "jan"], 0.7), (["eva", "kim"], 0.5), (["jan", "kim"], 0.4),
    ]  # fmt: skip
    # expected by chance: (6*4 + 2*5 + 2*1) / 100 = 0.36
    assert result["agreement"][0]["kappa"] == pytest.approx((0.7 - 0.36) / (1 - 0.36))
    assert result["unanimous"] == 0.3
    assert "eva and jan agree on 70% of the pairs, kappa 0.53" in out


def test_majority_is_a_tie_where_no_choice_leads() -> None:
    from calibration.blind.score import majority

    assert majority(["a", "a", "b"]) == "a"
    assert (
        majority(["a", "b"]) == majority(["a", "b", "tie"]) == majority(["a", "a", "b", "b", "tie"]) == "tie"
    )
    assert majority(["tie", "tie", "a"]) == "tie"
    assert majority(["b", "tie", "b", "a"]) == "b"


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    from calibration.blind.proportions import wilson

    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)
    narrow = wilson(successes, trials, confidence=0.5)
    assert low <= narrow[0] <= successes / trials <= narrow[1] <= high + 1e-4


def test_wilson_interval_at_the_edges() -> None:
    from calibration.blind.proportions import wilson

    assert wilson(0, 0) == (0.0, 1.0)
    for wrong in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="successes from 0 to 2"):
            wilson(*wrong)


def test_kappa() -> None:
    """The example that textbooks give: 50 grant proposals, both yes 20, both no 15, 5 and 10 apart: kappa 0.4."""
    from calibration.blind.proportions import agreement, kappa

    first = ["yes"] * 20 + ["yes"] * 5 + ["no"] * 10 + ["no"] * 15
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert agreement(first, second) == 0.7
    assert kappa(first, second) == pytest.approx(0.4)
    assert kappa(first, first) == 1
    assert kappa(["a"], ["a"]) is None
    assert kappa(["a", "b"], ["b", "a"]) == -1
    with pytest.raises(ValueError, match="equally long"):
        kappa(["a"], [])


def test_votes_may_have_remarks_reasons_and_any_order(make: Any, gdposr: Any, tmp_path: Path) -> None:
    study = make()
    digest = json.loads((study / "study.json").read_text())["key_sha256"]
    rows = [f'{k},Left,"sharper, and\ncleaner"' for k in range(10, 0, -1)]
    text = f'# study: {digest}\r\n# by "me\r\n\r\npair,vote,reason\r\n' + "\r\n".join(rows) + "\r\n\r\n"
    votes = tmp_path / "me.csv"
    votes.write_bytes(b"\xef\xbb\xbf" + text.encode())
    code, out, err = gdposr("blind", "score", study, votes)
    assert code == 0, err
    assert "me: LEFT chosen 10 times, RIGHT 0 times" in out
    assert out.splitlines()[2].split()[:5] == ["me", "all", "5", "5", "0"]


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda lines: [*lines[:3], "011,left", *lines[3:]], "line 4: expected a pair from 1 to 10, got '011'"),
        (lambda lines: [*lines[:3], "x,left", *lines[3:]], "line 4: expected a pair from 1 to 10, got 'x'"),
        (lambda lines: ["# remark", *lines[:-1], "010,up"], "line 12: expected left, right or tie, got 'up'"),
        (lambda lines: [*lines, "2,tie"], "line 12: expected one vote per pair, got another for pair 2 (first in line 3)"),
        (lambda lines: [*lines[:2], *lines[4:]], "the file ends with 8; missing 2, 3"),
        (lambda lines: lines[1:], "line 1: expected the columns pair,vote"),
        (lambda lines: ["pair,vote,mood", *lines[1:]], "line 1: expected the columns pair,vote"),
        (lambda lines: [*lines[:3], "003,left,why", *lines[4:]], "line 4: expected 2 values (pair,vote), got 3"),
        (lambda lines: ["# study: " + "0" * 64, *lines], "line 1: expected votes on"),
        (lambda lines: [], "expected the header pair,vote"),
    ],
)  # fmt: skip
def test_damaged_votes_are_refused_with_file_and_line(
    make: Any, gdposr: Any, tmp_path: Path, edit: Any, told: str
) -> None:
    study = make()
    path = write_votes(tmp_path / "votes.csv", ["left"] * 10)
    path.write_text("\n".join(edit(path.read_text().splitlines())))
    code, out, err = gdposr("blind", "score", study, path)
    assert (code, out) == (2, "")
    assert is_one_line(err)
    assert f"error: {path}, line " in err
    assert told in err


def test_files_that_do_not_belong_are_refused(make: Any, gdposr: Any, tmp_path: Path) -> None:
    study, other = make(), make("other", "--seed", 4)
    votes = write_votes(tmp_path / "me.csv", ["left"] * 10)

    def refusal(*words: object) -> str:
        code, out, err = gdposr("blind", "score", *words)
        assert (code, out, is_one_line(err)) == (2, "", True)
        return err

    key = tmp_path / "study.key.json"
    assert "got another or a changed one" in refusal(study, votes, "--key", tmp_path / "other.key.json")
    assert "there is no such file" in refusal(tmp_path / "nowhere", votes)
    assert "expected a file of votes" in refusal(study, tmp_path / "nobody.csv")
    assert "expected a name of its own" in refusal(study, votes, votes)
    votes.with_name("binary.csv").write_bytes(b"\xff\xfe\x00")
    assert "expected text in UTF-8" in refusal(study, votes.with_name("binary.csv"))
    text = key.read_text()
    key.write_text(json.dumps(json.loads(text)))
    assert gdposr("blind", "score", study, votes)[0] == 0, "indentation does not matter"
    key.write_text(text.replace('"a": "left"', '"a": "right"', 1))
    assert "got another or a changed one" in refusal(study, votes)
    key.unlink()
    assert "or --key FILE" in refusal(study, votes)
    (other / "study.json").write_text("{}")
    assert "expected pairs, question and key_sha256" in refusal(other, votes)
