"""Which automatic score agrees with the votes of blind studies, compared with the base rate of always naming the usual winner.

    python -m calibration.studies.agreement --study STUDY.key.json --votes votes.csv --hr HR_DIR --sqf-weights FILE

Each score is asked which crop is better, for every pair that the voters (or most of them) decided. Without --a and --b the crops are
those in the study's folder. Several studies are pooled: repeat --study and the other options in the same order; a folder given once is
used for all.

A score that always names the usual winner reaches the base rate but has no information. The last columns show how much a score knows
beyond that: how many of the usual loser's wins it predicts, and how probable that number is for a score that names the loser as often,
but at random (Fisher's exact test, one-sided). Pairs count as independent, and the tests are not corrected for the number of scores.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibration.blind.proportions import wilson
from calibration.studies.judged import Folders, Judged, Votes, read_judged
from calibration.studies.scores import INPUT, TRUTH, Score, all_scores
from runtime.errors import GdposrError, SettingError
from runtime.text import finite, print_error
from training.metrics import sqf

# Below this probability the agreement on the usual loser's wins counts as above chance.
CHANCE = 0.05


@dataclass(frozen=True)
class Agreement:
    """How far one score agrees with the votes, over the pairs that both decide."""

    score: str
    """Name of the metric."""
    against: str
    """The picture that it compares with: "truth", "input" or "nothing"."""
    pairs: int
    """Pairs that both decide."""
    agrees: int
    """Pairs in which it names the voters' choice."""
    low: float
    """Lower end of Wilson's 95 % interval of that share."""
    high: float
    """Upper end of that interval."""
    base: int
    """Pairs that the usual winner of the study won."""
    minority: int
    """Pairs that the usual loser won."""
    minority_agrees: int
    """Pairs that the usual loser won and the score names it."""
    names_loser: int
    """Pairs in which the score names the usual loser, rightly or not."""
    chance: float | None
    """Probability of so many right ones or more by chance; None if the voters, or the score, always name one side."""

    @property
    def share(self) -> float | None:
        return self.agrees / self.pairs if self.pairs else None

    @property
    def base_rate(self) -> float | None:
        return self.base / self.pairs if self.pairs else None

    @property
    def above_chance(self) -> bool:
        """Whether it tells the usual loser's wins from the rest."""
        return self.chance is not None and self.chance < CHANCE

    def to_dict(self) -> dict[str, Any]:
        derived = {"share": self.share, "base_rate": self.base_rate, "above_chance": self.above_chance}
        return asdict(self) | derived


def count(score: str, against: str, named: Sequence[tuple[bool, bool]]) -> Agreement:
    """The agreement of one score. named: for each pair whether the usual winner won, and whether the score names it."""
    pairs = len(named)
    agrees = sum(won == says for won, says in named)
    minority = sum(not won for won, _ in named)
    names_loser = sum(not says for _, says in named)
    right = sum(not won and not says for won, says in named)
    decides = 0 < minority < pairs and 0 < names_loser < pairs
    chance = by_chance(right, minority, names_loser, pairs) if decides else None
    return Agreement(
        score, against, pairs, agrees, *wilson(agrees, pairs), pairs - minority, minority, right, names_loser, chance
    )  # fmt: skip


def by_chance(right: int, minority: int, names: int, pairs: int) -> float:
    """Probability that pairs drawn at random hold so many of the minority.

    right: at least so many of the minority.
    minority: size of the minority.
    names: number of pairs drawn.
    pairs: number of pairs to draw from.

    Hypergeometric; Fisher 1935, The Design of Experiments, sec. 10.
    """
    ways = [
        math.comb(minority, k) * math.comb(pairs - minority, names - k)
        for k in range(right, min(minority, names) + 1)
    ]
    return sum(ways) / math.comb(pairs, names)


def values(score: Score, pair: Judged) -> tuple[float, float] | None:
    """Values of A and B; None if the picture to compare with is missing."""
    reference = {TRUTH: pair.truth, INPUT: pair.enlarged}.get(score.against)
    if score.against in (TRUTH, INPUT) and reference is None:
        return None
    return score.of(pair.a, reference), score.of(pair.b, reference)


def measure(scores: Sequence[Score], pairs: Sequence[Judged]) -> tuple[list[Agreement], list[dict[str, Any]]]:
    """Each score's agreement, sorted by its gain over the base rate, and every pair with the values of A and B."""
    named: dict[str, list[tuple[bool, bool]]] = {score.metric.name: [] for score in scores}
    rows = []
    for pair in pairs:
        found: dict[str, tuple[float, float]] = {}
        for score in scores:
            both = values(score, pair)
            if both is None:
                continue
            found[score.metric.name] = both
            first = score.prefers_first(*both)
            if first is not None:
                says = pair.usual_won if first is pair.a_won else not pair.usual_won
                named[score.metric.name].append((pair.usual_won, says))
        rows.append(
            {"study": pair.study, "pair": pair.number, "kind": pair.kind, "a_won": pair.a_won, "usual_won": pair.usual_won,
             "scores": found}
        )  # fmt: skip
    counted = [count(score.metric.name, score.against, named[score.metric.name]) for score in scores]
    return sorted(counted, key=lambda one: (one.base - one.agrees) / max(one.pairs, 1)), rows


def markdown(studies: Sequence[Votes], rows: Sequence[Agreement]) -> str:
    """A line of votes for each study, then the table."""
    lines = []
    for votes in studies:
        a, b = votes.names
        without = ", ".join(f"{kind} {number}" for kind, number in votes.without_truth.items())
        lines.append(
            f"{votes.study}: {a} {votes.a_wins}, {b} {votes.b_wins}, no winner {votes.ties}; voters: {votes.voters}; usual winner: "
            f"{a if votes.a_usual else b}. Pairs without truth, left out where it is needed: {without or 'none'}."
        )
    header = (
        "score", "needs", "pairs", "agrees", "share", "95 %", "base rate", "loser's wins predicted", "names the loser", "by chance"
    )  # fmt: skip
    lines += ["", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        chance = (
            "-" if row.chance is None else f"{row.chance:.3f}{' (above chance)' if row.above_chance else ''}"
        )
        cells = (
            row.score,
            row.against,
            row.pairs,
            row.agrees,
            percent(row.share),
            f"{percent(row.low)} to {percent(row.high)}",
            f"{row.base} ({percent(row.base_rate)})",
            f"{row.minority_agrees} of {row.minority}",
            f"{row.names_loser} of {row.pairs}",
            chance,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Exit code 0, or 2 if something is missing or does not fit."""
    args = _parser().parse_args(argv)
    try:
        scores = all_scores(args.sqf_weights, args.critic)
        studies, pairs = [], []
        for key, votes, folders in _sets(args):
            study, judged = read_judged(key, votes, folders)
            studies.append(study)
            pairs += judged
        rows, measured = measure(scores, pairs)
        if args.json:
            document = {
                "studies": [asdict(study) for study in studies],
                "scores": [row.to_dict() for row in rows],
                "pairs": measured,
            }
            args.json.write_text(json.dumps(finite(document), indent=2) + "\n", encoding="utf-8")
    except (GdposrError, ValueError, OSError) as error:
        print_error(error)
        return 2
    print(markdown(studies, rows))
    if reason := sqf.unavailable(args.sqf_weights):
        print(f"\nSQF was left out: {reason}.")
    return 0


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _sets(args: argparse.Namespace) -> list[tuple[Path, list[Path], Folders]]:
    """Key, files of votes and folders of each study, in the order given."""
    total = len(args.study)
    if len(args.votes) != total:
        raise SettingError(
            f"expected --votes for each of {total} studies, got {len(args.votes)}: repeat it in the order of --study"
        )
    columns: dict[str, list[Path | None]] = {}
    for name in ("a", "b", "hr", "lr"):
        given = getattr(args, name)
        if len(given) not in (0, 1, total):
            raise SettingError(
                f"expected --{name} never, once or for each of {total} studies, got {len(given)}: repeat it in the order of --study"
            )
        columns[name] = given * total if len(given) == 1 else given or [None] * total
    return [
        (key, votes, Folders(**{name: column[k] for name, column in columns.items()}))
        for k, (key, votes) in enumerate(zip(args.study, args.votes, strict=True))
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m calibration.studies.agreement", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    # studies with their votes
    add(
        "--study",
        action="append",
        type=Path,
        required=True,
        metavar="STUDY.key.json",
        help="a study's key; may be repeated",
    )
    add(
        "--votes",
        action="append",
        nargs="+",
        type=Path,
        required=True,
        metavar="votes.csv",
        help="its files of votes",
    )
    # pictures
    add(
        "--a",
        action="append",
        type=Path,
        default=[],
        metavar="A_DIR",
        help="pictures of A (default: those in the study's folder)",
    )
    add("--b", action="append", type=Path, default=[], metavar="B_DIR", help="pictures of B")
    add(
        "--hr",
        action="append",
        type=Path,
        default=[],
        metavar="HR_DIR",
        help="HR pictures, for the scores that need the truth",
    )
    add(
        "--lr",
        action="append",
        type=Path,
        default=[],
        metavar="DIR",
        help="inputs (default: those in the study's folder)",
    )
    # scores that need a model of their own, and the result
    add("--sqf-weights", type=Path, metavar="FILE", help="SqueezeNet 1.1 as safetensors, for SQF")
    add("--critic", type=Path, metavar="FILE", help="a trained critic, compared too")
    add("--json", type=Path, metavar="FILE", help="write the result and every pair's values as JSON, too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
