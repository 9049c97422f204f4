"""Compare two models by people who do not know which is which.

  make   writes a study: pairs of crops, LEFT and RIGHT at random, and beside the folder the key that tells which is which
  page   makes one HTML file of it, to vote on with the arrow keys; it needs no server
  score  counts the votes: A against B with the 95 % interval, by kind of input, and how far voters agree

docs/blind.md explains the procedure and the result.
"""

import argparse
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from gdposr import __version__
from gdposr.console import OK, UsageError, progress_bar, say, table, whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calibration.blind.score import Agreement, Row

HELP = "compare two models by people who do not know which is which"
# Pairs of a study, and side of a crop in LR pixels, by default.
PAIRS, CROP = 48, 64
# The largest whole number that signed 64 bits hold.
LARGEST_SEED = 2**63 - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    # make: pictures, what to choose from them, names
    make = actions.add_parser("make", help="write a study: pairs of crops and the key").add_argument
    make("a", type=Path, metavar="A_DIR", help="pictures of the one model")
    make("b", type=Path, metavar="B_DIR", help="pictures of the other, same names")
    make(
        "--lr",
        type=Path,
        required=True,
        metavar="DIR",
        help="the inputs, same names; sub-folders are kinds of input",
    )
    make("--out", type=Path, required=True, metavar="STUDY", help="folder to write; the key goes beside it")
    make(
        "--pairs",
        type=whole_number(1, 99_999),
        default=PAIRS,
        metavar="N",
        help=f"number of pairs (default: {PAIRS})",
    )
    make(
        "--crop",
        type=whole_number(8),
        default=CROP,
        metavar="PIXELS",
        help=f"side of a crop in pixels of the input (default: {CROP})",
    )
    make(
        "--seed",
        type=whole_number(0, LARGEST_SEED),
        help="decides crops, order and sides (default: drawn, and kept in the key)",
    )
    make(
        "--kind-from",
        choices=["folder", "none"],
        default="folder",
        help="how inputs are sorted into kinds (default: folder)",
    )
    make("--names", nargs=2, metavar=("A", "B"), help="names in the result (default: those of the folders)")

    # page: one HTML file
    page = actions.add_parser("page", help="one HTML file to vote on").add_argument
    page("study", type=Path, metavar="STUDY", help="folder of a study")
    page("--out", type=Path, metavar="FILE.html", help="the file (default: STUDY.html)")

    # score: votes and the key
    score = actions.add_parser("score", help="count votes").add_argument
    score("study", type=Path, metavar="STUDY", help="folder of a study")
    score("votes", type=Path, nargs="+", metavar="votes.csv", help="one file per voter")
    score("--key", type=Path, metavar="FILE", help="the key (default: STUDY.key.json beside the study)")
    score("--json", type=Path, metavar="FILE", help="write the result as JSON too")


def run(args: argparse.Namespace) -> int:
    from calibration.blind.study import StudyError
    from runtime.errors import ImageError

    action = {"make": _make, "page": _page, "score": _score}[args.action]
    try:
        return action(args)
    except (StudyError, ImageError) as error:
        raise UsageError(str(error)) from error


def _make(args: argparse.Namespace) -> int:
    import numpy as np

    from calibration.blind.pairs import choose_pairs
    from calibration.blind.scenes import find_scenes
    from calibration.blind.study import key_path, write_study

    names = tuple(args.names) if args.names else (args.a.resolve().name, args.b.resolve().name)
    if names[0] == names[1]:
        raise UsageError(
            f"expected two names for the models, got {names[0]!r} twice: tell them apart with --names A B"
        )
    seed = secrets.randbits(63) if args.seed is None else args.seed
    scenes = find_scenes(args.a, args.b, args.lr, by_folder=args.kind_from == "folder")
    pairs = choose_pairs(scenes, args.pairs, args.crop, np.random.default_rng(seed))
    with progress_bar("pairs") as update:
        write_study(
            args.out,
            pairs,
            crop=args.crop,
            names=(names[0], names[1]),
            seed=seed,
            command=_command(args, names, seed),
            version=__version__,
            progress=lambda done, total: update(done, total, None),
        )
    photos = {pair.scene.photo for pair in pairs}
    kinds = {pair.scene.kind for pair in pairs}
    say(f"{args.out}: {len(pairs)} pairs of {len(photos)} photos, {len(kinds)} kinds of input")
    say(f"the key, not for voters: {key_path(args.out)}")
    return OK


def _command(args: argparse.Namespace, names: "Sequence[str]", seed: int) -> str:
    """The command that makes this study again, with all defaults and drawn values."""
    words = [
        "gdposr",
        "blind",
        "make",
        args.a,
        args.b,
        "--lr",
        args.lr,
        "--out",
        args.out,
        "--pairs",
        args.pairs,
    ]
    words += ["--crop", args.crop, "--seed", seed, "--kind-from", args.kind_from, "--names", *names]
    return shlex.join(str(word) for word in words)


def _page(args: argparse.Namespace) -> int:
    from calibration.blind.page import study_page
    from calibration.blind.study import read_study
    from runtime.files import atomic_file

    out = args.out or args.study.resolve().with_name(f"{args.study.resolve().name}.html")
    page = study_page(read_study(args.study))
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as stream:
        stream.write(page.encode())
    say(f"the page: {out} ({len(page) / 2**20:.1f} MB); open it in a browser")
    return OK


def _score(args: argparse.Namespace) -> int:
    import json

    from calibration.blind.score import agreements, score, unanimous
    from calibration.blind.study import key_path, read_key, read_study
    from calibration.blind.votes import read_votes
    from runtime.files import atomic_file

    # read: study, key and votes
    study = read_study(args.study)
    key = read_key(args.key or key_path(args.study), study)
    ballots = [read_votes(path, study) for path in args.votes]
    voters = [ballot.voter for ballot in ballots]
    # check: a name for each voter
    for voter in voters:
        if voters.count(voter) > 1 or (voter in ("majority", "votes") and len(voters) > 1):
            raise UsageError(
                f"{voter}.csv: expected a name of its own for each voter's file, got one that is taken: rename it after its voter"
            )
    # count
    rows, agreed = score(ballots, key), agreements(ballots, key)
    # report: as JSON, and for people
    if args.json:
        result = {
            "version": __version__,
            "study": study.digest,
            "pairs": study.pairs,
            "names": {"a": key.names[0], "b": key.names[1]},
            "rows": [row.to_dict() for row in rows],
            "left": {
                ballot.voter: {vote: ballot.votes.count(vote) for vote in ("left", "right")}
                for ballot in ballots
            },
            "agreement": [each.to_dict() for each in agreed],
            "unanimous": unanimous(ballots) if agreed else None,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(args.json) as stream:
            stream.write((json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    _show(rows, agreed, key.names)
    for ballot in ballots:
        left, right = ballot.votes.count("left"), ballot.votes.count("right")
        print(f"{ballot.voter}: LEFT chosen {left} times, RIGHT {right} times")
    if agreed and len(ballots) > 2:
        print(f"all voters agree on {unanimous(ballots):.0%} of the pairs")
    return OK


def _show(rows: "Sequence[Row]", agreed: "Sequence[Agreement]", names: tuple[str, str]) -> None:
    print(f"A = {names[0]}, B = {names[1]}")
    lines: list[tuple[str, ...]] = [("votes of", "kind", "A", "B", "ties", "A of the decided", "95 %")]
    for row in rows:
        cells = row.tally.to_dict(row.interval)
        decided = cells["share"] is not None
        share = f"{100 * cells['share']:.0f} %" if decided else "-"
        bounds = (
            f"{100 * cells['low']:.0f} to {100 * cells['high']:.0f} %" if decided and row.interval else "-"
        )
        lines.append((row.who, row.kind, str(cells["a"]), str(cells["b"]), str(cells["ties"]), share, bounds))
    print(table(lines))
    for each in agreed:
        beyond = "not defined" if each.kappa is None else f"{each.kappa:.2f}"
        print(f"{each.first} and {each.second} agree on {each.equal:.0%} of the pairs, kappa {beyond}")
