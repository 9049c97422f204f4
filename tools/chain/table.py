"""The table of `make chain`: the change by each stage against the stage before it, in figures with intervals and in words.

    python -m tools.chain.table --chain runs/chain --data photos/ [--prior general.param] [--core STUDENT] [--ships STUDENT]

A difference counts if its 95 % interval (bootstrap over photos) excludes zero. If no aim of a stage improved in this sense, the table
says that the stage adds nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from calibration.measure.intervals import FEW, Difference, differences
from export.student.model.checkpoint import load_student
from export.student.sample import enlarger
from gdposr.console import say
from runtime.text import print_error
from tools.chain.export import Exported, exported
from tools.chain.scores import Draw, Held, columns, held_pictures, wins
from tools.chain.stages import BICUBIC, GIVEN, MEASURES, STAGES, find_stages
from training.metrics.squeezenet import SqueezeFeatures

# Share of wins if nothing was learned.
EVEN = 0.5


@dataclass(frozen=True)
class Row:
    """A stage with its figures."""

    name: str
    """Name of the stage."""
    aims: tuple[str, ...]
    """Keys of `MEASURES` that it should improve."""
    values: Mapping[str, Sequence[float]]
    """Measure -> one value per picture."""
    change: Mapping[str, Difference]
    """Measure -> difference to the stage before. Wins are compared with one half."""


def changes(
    values: Mapping[str, Sequence[float]], before: Mapping[str, Sequence[float]], names: Sequence[str]
) -> dict[str, Difference]:
    """Differences to the stage before, by measure. names: photo of each picture; cards are independent."""
    photos = {key: column for key, column in values.items() if key not in ("cards", "wins")}
    found = differences(photos, before, groups=names)
    if "cards" in values and "cards" in before:
        found |= differences({"cards": values["cards"]}, before)
    if "wins" in values:
        found |= differences({"wins": values["wins"]}, {"wins": [EVEN] * len(values["wins"])}, groups=names)
    return found


def measure(chain: Path, held: Held, features: SqueezeFeatures | None, core: Path | None = None) -> list[Row]:
    """A row for bicubic and for each stage of training.

    chain: as in `find_stages`.
    held: pictures to measure on.
    features: for SQF; None: without.
    core: as in `find_stages`.
    """
    say(f"measuring {BICUBIC}")
    bicubic = enlarger(BICUBIC)
    before = columns(lambda lr, sample: bicubic(lr), held, features)
    rows = [Row(BICUBIC, (), before, {})]
    start: Draw | None = None
    for stage, folder in find_stages(chain, core):
        say(f"measuring {stage.name}: {folder}")
        draw = _drawn(folder)
        values: dict[str, list[float]] = columns(draw, held, features)
        if stage.name == "noise":
            start = draw
        elif start is not None:
            values["wins"] = wins(draw, start, held)
        rows.append(Row(stage.name, stage.aims, values, changes(values, before, held.names)))
        before = values
    return rows


def beside(built: Path, ships: Path, held: Held) -> str:
    """Whether a chain's student is the one that ships, in words. Both are checkpoints.

    On one machine, with as many threads, the stages give the same weights each time. Elsewhere sums are rounded differently."""
    (one, _), (other, _) = load_student(built), load_student(ships)
    ours, theirs = one.state_dict(), other.state_dict()
    if ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours):
        return f"The student is {ships}, weight for weight."
    pictures = [[draw(lr, 0) for lr in held.lr] for draw in (_drawn(built), _drawn(ships))]
    apart = [255 * float((a - b).square().mean().sqrt()) for a, b in zip(*pictures, strict=True)]
    return (
        f"The student is not {ships}, weight for weight: their pictures differ by {sum(apart) / len(apart):.2f} levels "
        "of 255 (RMS, first seed)."
    )


def verdict(row: Row) -> str:
    """A stage in words: its gains, or that it adds nothing, and its losses."""
    measured = [key for key in row.aims if key in row.change]
    better = [key for key in measured if _gain(key, row.change[key]) > 0]
    worse = [key for key in row.change if _gain(key, row.change[key]) < 0]
    if row.name == GIVEN:
        text = "was not trained here"
        if better:
            text += f"; over bicubic: {_told(better, row)}"
    elif not measured:
        text = f"not measured: {', '.join(MEASURES[key].about for key in row.aims)}"
    elif better:
        text = f"adds {_told(better, row)}"
        rest = [key for key in measured if key not in better and key not in worse]
        text += f"; nothing in {_told(rest, row)}" if rest else ""
    else:
        text = f"adds nothing: {_told(measured, row)}"
    others = [key for key in worse if key not in measured or better]
    return f"**{row.name}** {text}" + (f". It costs {_told(others, row)}" if others else "") + "."


def markdown(rows: Sequence[Row], files: Sequence[Exported], notes: Sequence[str]) -> str:
    """The whole report. files: rows of the bundle. notes: paragraphs before the tables."""
    keys = [key for key in MEASURES if any(key in row.values for row in rows)]
    lines = ["# What each stage brought", "", *(line for note in notes for line in (note, ""))]
    lines += [_line(["stage", *(MEASURES[key].about for key in keys)]), _line(["---"] * (len(keys) + 1))]
    lines += [_line([row.name, *(_cell(row, key) for key in keys)]) for row in rows]
    lines += ["", *(f"- {verdict(row)}" for row in rows[1:])]
    if files:
        lines += ["", _line(Exported.HEAD), _line(["---"] * len(Exported.HEAD))]
        lines += [_line(file.cells()) for file in files]
        if any(file.milliseconds is None for file in files):
            lines += ["", "Core ML packages: the first crop of each photo alone, by the reference evaluator."]
        lines += ["", *(f"- {file.verdict()}" for file in files if file.loss is not None)]
    return "\n".join(lines) + "\n"


def _drawn(folder: Path) -> Draw:
    models = [enlarger(str(folder), seed=0, sample=sample) for sample in range(2)]
    return lambda lr, sample: models[sample](lr)


def _gain(key: str, change: Difference) -> int:
    """1: better, -1: worse, 0: the interval holds zero, or the mean is below the digits that are shown."""
    if not change.real or abs(change.mean) < 0.5 * 10 ** -MEASURES[key].digits:
        return 0
    return 1 if (change.mean > 0) == MEASURES[key].up else -1


def _told(keys: Sequence[str], row: Row) -> str:
    """Measures with their changes, such as "SQF -0.0123 (-0.0150 to -0.0090)". For wins it is the share itself."""
    parts = []
    for key in keys:
        change, digits = row.change[key], MEASURES[key].digits
        shift, sign = (EVEN, "") if key == "wins" else (0.0, "+")
        mean, low, high = (
            f"{value + shift:{sign}.{digits}f}" for value in (change.mean, change.low, change.high)
        )
        parts.append(f"{MEASURES[key].about} {mean} ({low} to {high})")
    return ", ".join(parts)


def _cell(row: Row, key: str) -> str:
    if key not in row.values:
        return "-"
    values = row.values[key]
    return f"{sum(values) / len(values):.{MEASURES[key].digits}f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _notes(held: Held, prior: str | None, core: Path | None, features: bool) -> list[str]:
    """The sentences above the table.

    held: the pictures.
    prior: the published network that the core learned from; None: it was not given.
    core: the core that the chain began with; None: it trained its own.
    features: whether SQF was measured.
    """
    photos = len(set(held.names))
    notes = [
        f"{len(held.lr)} crops of {photos} photos that no stage has trained on, degraded as users' photos are, and {len(held.cards)} "
        "drawn cards. Behind a change stands its 95 % interval (bootstrap over photos). A change counts where that excludes zero."
    ]
    if photos < FEW:
        notes.append(f"Of fewer than {FEW} photos the intervals are too narrow: do not trust them.")
    if core is not None:
        notes.append(
            f"The chain began with the core in {core} and trained none (CORE= trains one from nothing)."
        )
    if prior is None:
        notes.append("No prior was given (PRIOR=): how near the core is to its pictures is not measured.")
    if not features:
        notes.append("No SqueezeNet weights were given (SQF_WEIGHTS=): SQF is not measured.")
    return notes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.chain.table", description="Measure what each stage of a finished chain brought."
    )
    parser.add_argument("--chain", type=Path, required=True, help="folder of make chain")
    parser.add_argument("--data", type=Path, required=True, help="the photos that it trained on")
    parser.add_argument("--prior", help="a .param file or x4plus, whose pictures the core should be near to")
    parser.add_argument(
        "--core", type=Path, metavar="STUDENT", help="the core that it began with, if it trained none"
    )
    parser.add_argument(
        "--ships", type=Path, metavar="STUDENT", help="the student that ships, which it should have built"
    )
    parser.add_argument("--perceptual-weights", type=Path, metavar="FILE", help="SqueezeNet 1.1, for SQF")
    parser.add_argument("--draws", type=int, default=3, help="crops of each photo (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=16, help="photos that were left out of training")
    parser.add_argument("--out", type=Path, help="also write it to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Exit code 0 on success, 2 on a wrong argument or a model that is missing."""
    args = _parser().parse_args(argv)
    try:
        if args.prior is None and args.core is None:
            raise ValueError(
                "give --prior, the chain's prior, or --core, what it began with instead, or both"
            )
        held = held_pictures(args.data, held_out=args.held_out, draws=args.draws)
        if args.prior is not None:
            say(f"pictures of the prior, {len(held.lr)} of them")
            prior = enlarger(args.prior)
            held = replace(held, prior=tuple(prior(lr).clamp(0, 1) for lr in held.lr))
        features = SqueezeFeatures(args.perceptual_weights) if args.perceptual_weights else None
        rows = measure(args.chain, held, features, args.core)
        files = exported(args.chain / "pocket.gdposr", held)
        built = None if args.ships is None else beside(args.chain / STAGES[-1].model, args.ships, held)
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    notes = _notes(held, args.prior, args.core, features is not None)
    text = markdown(rows, files, [*notes, built] if built else notes)
    if args.out is not None:
        args.out.write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
