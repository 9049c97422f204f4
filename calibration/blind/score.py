"""Counts votes: how often A, B and neither was chosen, by voter, majority and kind of input, and how far voters agree."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from calibration.blind.proportions import agreement, kappa, wilson
from calibration.blind.study import Key
from calibration.blind.votes import Ballot

A, B, TIE = "a", "b", "tie"
ALL = "all"


@dataclass(frozen=True)
class Tally:
    """Choices counted over some pairs, or over some votes."""

    a: int
    """How often A was chosen."""
    b: int
    """How often B was chosen."""
    ties: int
    """How often neither was."""

    @classmethod
    def of(cls, choices: Sequence[str]) -> "Tally":
        count = Counter(choices)
        return cls(count[A], count[B], count[TIE])

    @property
    def share(self) -> float | None:
        """Share of A among the decided choices, 0..1; None if nothing was decided."""
        return self.a / (self.a + self.b) if self.a + self.b else None

    def to_dict(self, interval: bool) -> dict[str, Any]:
        """The counts, and the share of A.

        interval: whether to give that of the share. Several votes on one pair are not independent, so they have none.
        """
        bounds = wilson(self.a, self.a + self.b) if interval else None
        low, high = bounds or (None, None)
        return {"a": self.a, "b": self.b, "ties": self.ties, "share": self.share, "low": low, "high": high}


@dataclass(frozen=True)
class Row:
    """One line of the result."""

    who: str
    """A voter, "majority" or "votes"."""
    kind: str
    """Kind of input, or "all"."""
    tally: Tally
    """The counts."""
    interval: bool
    """Whether the tally has an interval: it counts pairs, not votes."""

    def to_dict(self) -> dict[str, Any]:
        return {"who": self.who, "kind": self.kind, **self.tally.to_dict(self.interval)}


@dataclass(frozen=True)
class Agreement:
    """How far two voters agree."""

    first: str
    """One voter."""
    second: str
    """The other voter."""
    equal: float
    """Share of pairs with equal votes, 0..1."""
    kappa: float | None
    """Cohen's kappa; None if both always made the same choice."""

    def to_dict(self) -> dict[str, Any]:
        return {"voters": [self.first, self.second], "equal": self.equal, "kappa": self.kappa}


def choices(ballot: Ballot, key: Key) -> list[str]:
    """A voter's choice for each pair: "a", "b" or "tie"."""
    sides = {True: {"left": A, "right": B}, False: {"left": B, "right": A}}
    return [
        TIE if vote == "tie" else sides[a_left][vote]
        for vote, a_left in zip(ballot.votes, key.a_left, strict=True)
    ]


def majority(votes: Sequence[str]) -> str:
    """The choice with more votes than any other, else a tie."""
    (first, most), *rest = Counter(votes).most_common()
    return TIE if rest and rest[0][1] == most else first


def score(ballots: Sequence[Ballot], key: Key) -> list[Row]:
    """Rows for each voter and, with several voters, for the majority of each pair and for all votes. All kinds together come first.

    The majority counts pairs and has an interval. Votes have none, because several votes on one pair are not independent.
    """
    chosen = [choices(ballot, key) for ballot in ballots]
    columns = [
        (ballot.voter, list(zip(key.kinds, own, strict=True)), True)
        for ballot, own in zip(ballots, chosen, strict=True)
    ]
    if len(ballots) > 1:
        agreed = [majority(votes) for votes in zip(*chosen, strict=True)]
        columns.append(("majority", list(zip(key.kinds, agreed, strict=True)), True))
        every = [vote for own in chosen for vote in zip(key.kinds, own, strict=True)]
        columns.append(("votes", every, False))
    kinds = sorted(set(key.kinds))
    rows = []
    for who, votes, interval in columns:
        rows.append(Row(who, ALL, Tally.of([choice for _, choice in votes]), interval))
        if len(kinds) > 1:
            for kind in kinds:
                rows.append(
                    Row(who, kind, Tally.of([choice for each, choice in votes if each == kind]), interval)
                )
    return rows


def agreements(ballots: Sequence[Ballot], key: Key) -> list[Agreement]:
    """Agreement of each two voters on A, B or tie."""
    chosen = {ballot.voter: choices(ballot, key) for ballot in ballots}
    return [
        Agreement(
            first, second, agreement(chosen[first], chosen[second]), kappa(chosen[first], chosen[second])
        )
        for first, second in combinations(chosen, 2)
    ]


def unanimous(ballots: Sequence[Ballot]) -> float:
    """Share of pairs on which all voters agree, 0..1."""
    pairs = list(zip(*(ballot.votes for ballot in ballots), strict=True))
    return sum(len(set(votes)) == 1 for votes in pairs) / len(pairs)
