"""Files of votes: one file per voter, with columns `pair,vote` and an optional `reason`; lines with `#` are remarks."""

import csv
import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from calibration.blind.study import Study, StudyError

VOTES = ("left", "right", "tie")
REQUIRED, OPTIONAL = ("pair", "vote"), ("reason",)
DIGEST_REMARK = re.compile(r"#\s*study\s*:\s*([0-9a-f]{64})\s*$")


@dataclass(frozen=True)
class Ballot:
    """All votes of one person."""

    voter: str
    """Name of the file without suffix."""
    votes: tuple[str, ...]
    """"left", "right" or "tie" of each pair, pair k at index k - 1."""


def read_votes(path: Path, study: Study) -> Ballot:
    """A voter's file, which must have one vote on each pair. StudyError names file and line of a mistake.

    A remark `# study: DIGEST`, which the page writes, must name this study.
    """
    # read
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise StudyError(f"{path}: expected a file of votes, there is none: check the path") from None
    except OSError as error:
        raise StudyError(
            f"{path}: cannot be read ({error.strerror}): check the path and its permissions"
        ) from None
    except UnicodeDecodeError:
        raise StudyError(
            f"{path}: expected text in UTF-8, got something else: save it as CSV in UTF-8"
        ) from None
    # parse: line by line, so that messages can name the line
    votes: dict[int, str] = {}
    # pair -> line of its vote
    lines: dict[int, int] = {}
    columns: list[str] | None = None
    reader = csv.reader(StringIO(text, newline=""))
    # last line read
    end = 0
    try:
        for row in reader:
            line, end = end + 1, reader.line_num  # a quoted reason may run over several lines
            if not any(cell.strip() for cell in row):
                continue
            if row[0].lstrip().startswith("#"):
                _check_remark(f"{path}, line {line}", ",".join(row), study)
            elif columns is None:
                columns = _columns(f"{path}, line {line}", row)
            else:
                pair, vote = _vote(f"{path}, line {line}", columns, row, study)
                if pair in votes:
                    raise StudyError(
                        f"{path}, line {line}: expected one vote per pair, got another for pair {pair} (first in line {lines[pair]}): "
                        "keep one of them"
                    )
                votes[pair], lines[pair] = vote, line
    except csv.Error as error:
        raise StudyError(
            f"{path}, line {reader.line_num}: expected CSV, got something else ({error}): mend the line"
        ) from None
    # check: a header, and a vote on each pair
    if columns is None:
        raise StudyError(
            f"{path}, line {end + 1}: expected the header pair,vote, the file ends before it: add it"
        )
    missing = [pair for pair in range(1, study.pairs + 1) if pair not in votes]
    if missing:
        named = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise StudyError(
            f"{path}, line {end + 1}: expected votes on all {study.pairs} pairs, the file ends with {len(votes)}; missing {named}: "
            "vote on them and save again"
        )
    return Ballot(path.stem, tuple(votes[pair] for pair in range(1, study.pairs + 1)))


def _check_remark(where: str, remark: str, study: Study) -> None:
    match = DIGEST_REMARK.match(remark.strip())
    if match and match[1] != study.digest:
        raise StudyError(
            f"{where}: expected votes on {study.folder} (digest {study.digest[:12]}), got votes on another study "
            f"(digest {match[1][:12]}): give the study that they were cast on"
        )


def _columns(where: str, row: list[str]) -> list[str]:
    names = [cell.strip().lower() for cell in row]
    if len(set(names)) != len(names) or not set(REQUIRED) <= set(names) <= {*REQUIRED, *OPTIONAL}:
        raise StudyError(
            f"{where}: expected the columns pair,vote and perhaps reason, got {','.join(row)!r}: mend the header"
        )
    return names


def _vote(where: str, columns: list[str], row: list[str], study: Study) -> tuple[int, str]:
    """Pair and vote of one row."""
    if len(row) != len(columns):
        raise StudyError(
            f"{where}: expected {len(columns)} values ({','.join(columns)}), got {len(row)}: put a reason with commas in quotes"
        )
    cells = dict(zip(columns, (cell.strip() for cell in row), strict=True))
    number, vote = cells["pair"], cells["vote"].lower()
    if not (re.fullmatch(r"[0-9]{1,9}", number) and 1 <= int(number) <= study.pairs):
        raise StudyError(f"{where}: expected a pair from 1 to {study.pairs}, got {number!r}: mend the line")
    if vote not in VOTES:
        raise StudyError(f"{where}: expected left, right or tie, got {cells['vote']!r}: mend the line")
    return int(number), vote
