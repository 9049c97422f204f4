"""`gdposr blind score`: how votes are counted, what their numbers are worth, and which files are refused."""

import json
from pathlib import Path
from typing import Any

import blind_cases
import pytest
from blind_cases import key_of
from cli_helpers import is_one_line

folders, make = blind_cases.folders, blind_cases.make  # fixtures


def write_votes(path: Path, votes: list[str], head: str = "pair,vote") -> Path:
    path.write_text("\n".join([head, *(f"{k:03},{vote}" for k, vote in enumerate(votes, 1))]) + "\n")
    return path


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
