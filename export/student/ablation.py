r"""Compare variants of preference tuning from one start, each with several seeds, on held-out photos.

    python -m export.student.ablation --init STUDENT --data DIR --out DIR --seeds 3 --steps N \
        --variant gdpo --variant dpo --variant grpo --variant fixed [--critic CRITIC]

Every finished run adds a row to OUT/results.jsonl. A run whose row exists is not repeated, so the same command
resumes an interrupted ablation. Rows of another start, other photos or other settings are kept apart.

All models are measured on the same crops with the same noise. Differences to the start are paired by photo."""

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
from export.student.cli import run
from export.student.gdpo import StudentGdpoSettings
from export.student.kinds import KINDS
from export.student.model.checkpoint import load_student
from export.student.model.network import Student
from runtime.text import print_error
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
# Settings that each variant changes in the preset. "gdpo" is the baseline.
VARIANTS: dict[str, tuple[str, ...]] = {
    "gdpo": (),
    "dpo": ("objective=dpo",),
    "grpo": ("objective=grpo", "sampler=policy"),  # GRPO is on-policy: it needs samples of the policy
    "fixed": ("weighting=fixed",),  # weights of one half each instead of the photo's share of detail
    "policy": ("sampler=policy",),  # GDPO on the policy's samples, for a fair comparison with GRPO
}
# Samples drawn of each held-out photo.
DRAWS = 4
# Metrics that are reported in addition to those of the reward.
REPORTED = ("psnr", "ssim", "smooth", "texture", "niqe")


@dataclass(frozen=True)
class HeldOut:
    """The held-out crops and the metrics that are measured on them."""

    validation: Validation
    """The crops and their LR versions. No run trains on their photos."""
    metrics: list[Metric]
    """All metrics that are reported."""
    rewarded: list[Metric]
    """The subset that makes up the reward. It decides which of two samples wins."""


def pictures(student: Student, validation: Validation) -> torch.Tensor:
    """Draw `DRAWS` samples of every held-out crop. The noise depends on the crop's number only, so all models get the same.

    Returns (photos, DRAWS, 3, H, W) on the CPU."""
    lr, c = validation.lr, student.config
    shape = (DRAWS, c.noise_channels, lr.shape[2] // c.fold, lr.shape[3] // c.fold)
    noise = normal(2, range(len(lr)), shape, "ablation")
    with torch.no_grad():
        return torch.stack(
            [student(x[None].expand(DRAWS, -1, -1, -1), n) for x, n in zip(lr, noise, strict=True)]
        )


def measure(student: Student, start: Student, held_out: HeldOut) -> dict[str, list[float]]:
    """Per-photo scores: every metric's mean over the samples, and `win rate`.

    The win rate is the share of samples with a higher reward than the start's sample from the same noise. A tie counts one half."""
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
    """A table: the start's mean scores, then each variant's difference to them.

    Each difference is a mean over photos and seeds with its 95 % interval over the photos. The number after ± is the
    standard deviation between seeds."""
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
    parser.add_argument(
        "--init", type=Path, required=True, metavar="STUDENT", help="checkpoint that all runs start from"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, searched recursively")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs, the rows and the table")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--variant",
        action="append",
        choices=list(VARIANTS),
        help="run only this variant; may be repeated (default: all)",
    )
    parser.add_argument(
        "--critic", type=Path, metavar="RUN", help="critic from gdposr train critic, for the metric critic"
    )
    parser.add_argument(
        "--perceptual-weights",
        type=Path,
        metavar="FILE",
        help="SqueezeNet 1.1 weights; SQF is then measured too",
    )
    parser.add_argument("--preset", choices=sorted(KINDS["student-gdpo"].presets), default="pocket")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare pictures")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting in all variants"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and write it to OUT/table.md.

    Exit code 0 on success, 2 on an error, 130 when the user stopped it."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    try:
        rows = _run(args)
    except (ValueError, OSError, FloatingPointError) as error:
        print_error(error)
        return 2
    if rows is None:
        print("stopped; repeat the same command to resume", file=sys.stderr)
        return 130
    table = markdown(rows)
    (args.out / "table.md").write_text(table + "\n")
    print(table)
    return 0


def _run(args: argparse.Namespace) -> list[dict[str, Any]] | None:
    """All rows that belong to this start; None if a run was stopped by the user."""
    # resume: rows that are there already
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    settings = with_settings(KINDS["student-gdpo"].presets[args.preset], args.set)
    held_out, start = _held_out(args, settings), load_student(args.init)[0]

    # rows: the key of an experiment, and its file
    given = {name: getattr(args, name) for name in ("init", "data", "critic", "perceptual_weights")}

    def row(variant: str, seed: int) -> dict[str, Any]:
        """The part of a row that identifies the experiment."""
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

    # start: the model before tuning, measured once
    wanted = [row(START, 0)]
    done = [{name: old.get(name) for name in wanted[0]} for old in rows]
    if wanted[0] not in done:
        record(wanted[0], start, 0.0)
    # tune and measure: each variant with each seed, unless it is there
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
    """The photos that training leaves out, and the metrics to measure on them."""
    if not settings.held_out:
        raise ValueError("the ablation needs held-out photos, got held_out=0: use --set held_out=8 or more")
    _, paths = split_photos(find_images(args.data), settings.held_out)
    names = [*settings.metrics, *(name for name in REPORTED if name not in settings.metrics)]
    if args.perceptual_weights and "sqf" not in names:
        names.append("sqf")
    metrics = create_metrics(names, "cpu", args.perceptual_weights, args.critic)
    validation = Validation(PhotoSet(paths), args.out, reduce=degrade_everyday)
    return HeldOut(validation, metrics, [m for m in metrics if m.name in settings.metrics])


if __name__ == "__main__":
    raise SystemExit(main())
