"""Preference tuning of the student in several variants from one start, each with several seeds, on photos held out.

    python -m export.student.ablation --init STUDENT --data DIR --out DIR --seeds 3 --steps N \
        --variant gdpo --variant dpo --variant grpo --variant fixed [--critic CRITIC]

A finished run is a row of OUT/results.jsonl, and a row that is there already is not run again, so the same command goes on; another
start, other photos or settings make rows of their own. Every model draws the same noises for the same crops; differences to the start
are taken photo by photo.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.measure.intervals import FEW, differences, interval
from export.student.cli import KINDS, run
from export.student.network import Student, load_student
from export.student.preference import StudentGdpoSettings
from training.data.everyday import degrade_everyday
from training.data.photos import PhotoSet, find_images, split_photos
from training.loop.budget import Budget
from training.loop.validation import Validation
from training.metrics.registry import Metric, create_metrics
from training.randomness import normal
from training.settings import with_settings
from training.stages.rewards import group_rewards

log = logging.getLogger("train")

START = "start"
# Changes of the preset. "gdpo" is what the others are compared with.
VARIANTS: dict[str, tuple[str, ...]] = {
    "gdpo": (),
    "dpo": ("objective=dpo",),
    "grpo": ("objective=grpo", "sampler=policy"),  # it can learn from its own samples only
    "fixed": ("weighting=fixed",),  # halves instead of the photo's own shares
    "policy": ("sampler=policy",),  # gdpo, to compare grpo with
}
DRAWS = 4  # samples of each photo
REPORTED = ("psnr", "ssim", "smooth", "texture", "niqe")  # beside those of the reward


@dataclass(frozen=True)
class HeldOut:
    """Crops that no run has seen, and what judges them."""

    validation: Validation
    metrics: list[Metric]
    rewarded: list[Metric]
    """Those of the reward, by which two models are compared."""


def pictures(student: Student, validation: Validation) -> torch.Tensor:
    """`DRAWS` samples of every held-out crop: (photos, DRAWS, 3, H, W), on the CPU. The noise is the crop's own, for any model."""
    lr, c = validation.lr, student.config
    shape = (DRAWS, c.noise_channels, lr.shape[2] // c.fold, lr.shape[3] // c.fold)
    noise = normal(2, range(len(lr)), shape, "ablation")
    with torch.no_grad():
        return torch.stack(
            [student(x[None].expand(DRAWS, -1, -1, -1), n) for x, n in zip(lr, noise, strict=True)]
        )


def measure(student: Student, start: Student, held_out: HeldOut) -> dict[str, list[float]]:
    """Of each photo: every metric's mean over the samples, and `win rate`, how often a sample's reward beats that of the start's sample
    with the same noise (a tie is half a win)."""
    ours, theirs = (pictures(model, held_out.validation) for model in (student, start))
    hr = held_out.validation.hr
    report = group_rewards(ours, hr, held_out.metrics)
    found = {name: values.mean(1).tolist() for name, values in report.scores.items()}
    wins = []
    for k in range(DRAWS):
        rewards = group_rewards(torch.stack([ours[:, k], theirs[:, k]], dim=1), hr, held_out.rewarded).rewards
        wins.append((rewards[:, 0] > rewards[:, 1]).float() + 0.5 * (rewards[:, 0] == rewards[:, 1]).float())
    return found | {"win rate": torch.stack(wins).mean(0).tolist()}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The start's means, and below them each variant's difference to it with its 95 % interval over the photos, of the mean over its
    seeds; behind a ± the standard deviation between seeds."""
    start = next(row for row in rows if row["variant"] == START)["scores"]
    names = [name for name in start if name != "win rate"]
    lines = [
        "| " + " | ".join(["variant", "runs", "seconds", "win rate over the start", *names]) + " |",
        "|" + "---|" * (len(names) + 4),
    ]
    means = [f"{np.mean(start[name]):.4g}" for name in names]
    lines.append("| " + " | ".join([START, "", "", "", *means]) + " |")
    for variant in dict.fromkeys(row["variant"] for row in rows if row["variant"] != START):
        mine = [row for row in rows if row["variant"] == variant]
        scores = {name: np.mean([row["scores"][name] for row in mine], axis=0).tolist() for name in start}
        wins = interval(scores["win rate"])
        apart = differences({name: scores[name] for name in names}, {name: start[name] for name in names})
        cells = [variant, str(len(mine)), f"{np.mean([row['seconds'] for row in mine]):.0f}"]
        cells.append(f"{np.mean(scores['win rate']):.2f} ({wins.low:.2f} to {wins.high:.2f})")
        for name in names:
            seeds = [float(np.mean(row["scores"][name]) - np.mean(start[name])) for row in mine]
            spread = f" ± {np.std(seeds, ddof=1):.2g}" if len(seeds) > 1 else ""
            d = apart[name]
            cells.append(f"{d.mean:+.3g} ({d.low:+.3g} to {d.high:+.3g}){spread}")
        lines.append("| " + " | ".join(cells) + " |")
    count = len(start[names[0]])
    if count < FEW:
        lines += ["", f"{count} held-out photos are few: the intervals are too narrow."]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export.student.ablation", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--init", type=Path, required=True, metavar="STUDENT", help="the start")
    parser.add_argument("--data", type=Path, required=True, help="photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, the rows and the table")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--variant", action="append", choices=list(VARIANTS), help="only this one; may be repeated"
    )
    parser.add_argument(
        "--critic", type=Path, metavar="RUN", help="of gdposr train critic, for the metric critic"
    )
    parser.add_argument(
        "--perceptual-weights", type=Path, metavar="FILE", help="SqueezeNet 1.1: SQF is measured, too"
    )
    parser.add_argument("--preset", choices=sorted(KINDS["student-gdpo"].presets), default="pocket")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare pictures")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of all variants"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, which is also OUT/table.md; exit code 0, 2 when something is missing, 130 when stopped by the user."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    try:
        rows = _run(args)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if rows is None:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    table = markdown(rows)
    (args.out / "table.md").write_text(table + "\n")
    print(table)
    return 0


def _run(args: argparse.Namespace) -> list[dict[str, Any]] | None:
    """All rows of this start; None when a run was stopped."""
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    settings = with_settings(KINDS["student-gdpo"].presets[args.preset], args.set)
    held_out, start = _held_out(args, settings), load_student(args.init)[0]

    given = {name: getattr(args, name) for name in ("init", "data", "critic", "perceptual_weights")}

    def row(variant: str, seed: int) -> dict[str, Any]:
        """What makes it another experiment."""
        changes = args.set if variant == START else [*VARIANTS[variant], *args.set, f"seed={seed}"]
        return {
            "variant": variant,
            **{name: None if path is None else str(path) for name, path in given.items()},
            "preset": args.preset,
            "steps": 0 if variant == START else args.steps,
            "changes": changes,
        }

    def record(found: dict[str, Any], student: Student, seconds: float) -> None:
        found = found | {"seconds": seconds, "scores": measure(student, start, held_out)}
        rows.append(found)
        with results.open("a") as file:
            file.write(json.dumps(found) + "\n")

    wanted = [row(START, 0)]
    done = [{name: old.get(name) for name in wanted[0]} for old in rows]
    if wanted[0] not in done:
        record(wanted[0], start, 0.0)
    for seed in range(args.seeds):
        for variant in args.variant or VARIANTS:
            wanted.append(row(variant, seed))
            if wanted[-1] in done:
                continue
            out = args.out / f"{variant}-{seed}"
            result = run(
                "student-gdpo",
                with_settings(KINDS["student-gdpo"].presets[args.preset], wanted[-1]["changes"]),
                args.data,
                out,
                Budget(steps=args.steps),
                init=args.init,
                critic=args.critic,
                perceptual_weights=args.perceptual_weights,
                resume=(out / "state").is_dir(),
                workers=args.workers,
            )
            if not result["finished"]:
                return None
            record(wanted[-1], load_student(out / "model")[0], result["seconds"])
    return [old for old in rows if {name: old.get(name) for name in wanted[0]} in wanted]


def _held_out(args: argparse.Namespace, settings: StudentGdpoSettings) -> HeldOut:
    """The photos that the runs leave to validation, and the metrics."""
    if not settings.held_out:
        raise ValueError("the ablation compares on photos held out, got held_out=0: --set held_out=8 or more")
    _, paths = split_photos(find_images(args.data), settings.held_out)
    names = [*settings.metrics, *(name for name in REPORTED if name not in settings.metrics)]
    if args.perceptual_weights and "sqf" not in names:
        names.append("sqf")
    metrics = create_metrics(names, "cpu", args.perceptual_weights, args.critic)
    validation = Validation(PhotoSet(paths), args.out, reduce=degrade_everyday)
    return HeldOut(validation, metrics, [m for m in metrics if m.name in settings.metrics])


if __name__ == "__main__":
    raise SystemExit(main())
