"""The paper's ablation tables in small: preference tuning of the one-step model in many variants, all from one NAOSD run.

    python -m calibration.studies.onestep_ablation --base runs/naosd --data PHOTOS --lr DIR --hr DIR --sqf-weights FILE \
        --out runs/ablation --steps 100

At the paper's size add `--preset sd21 --device cuda`, and `--text-base` if the run's base has no text encoder.

Every row is written to OUT/results.jsonl as soon as it is measured, and existing rows are not run again. "grpo" has to draw its
samples from the policy, so compare it with "policy samples". `python -m export.student.ablation` does the same for the student.

training/EXPERIMENTS.md uses its earlier name, `calibration.studies.ablation`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.measure.onestep import restore
from calibration.measure.pairs import find_pairs, read_rgb
from runtime.text import print_error
from training.data.photos import PhotoSet, find_images, split_photos
from training.devices import torch_device
from training.loop.accelerator import make_accelerator
from training.loop.budget import Budget
from training.loop.validation import Validation
from training.main import run
from training.metrics import sqf
from training.metrics.fidelity import psnr_y, ssim_y
from training.metrics.niqe import niqe
from training.model.loading import load_model
from training.model.text import PromptSource
from training.pixels import to_pixels
from training.settings import with_settings
from training.stages.presets import PRESETS

log = logging.getLogger("ablation")

GDPO = PRESETS["gdpo"]
# Stands for the preset's metrics without the full-reference ones.
NO_REFERENCE = "metrics=no-reference"
FULL_REFERENCE = ("psnr", "ssim")

# Changes of the gdpo preset. "gdpo" is the preset itself: pocket is conditioned on LR, sd21 on candidates, as the paper is.
VARIANTS: dict[str, tuple[str, ...]] = {
    "gdpo": (),
    "gdpo, LR-conditioned": ("condition=lr",),
    "gdpo, candidate-conditioned": ("condition=candidate",),
    "diffusion-dpo": ("objective=dpo", "condition=candidate"),
    "grpo": ("objective=grpo", "sampler=policy"),
    "fidelity only": ("metrics=psnr",),
    "no-reference only": (NO_REFERENCE,),
    "fixed weights": ("weighting=fixed",),
    "G=2": ("group=2",),
    "G=4": ("group=4",),
    "noise of its own": ("shared_noise=false",),
    "policy samples": ("sampler=policy",),
}
METRICS = ("psnr", "ssim", "sqf", "niqe")


@dataclass(frozen=True)
class TestSet:
    """Pictures to measure on."""

    name: str
    """Name of the set in the table."""
    pairs: list[tuple[np.ndarray, np.ndarray]]
    """LR and HR, (H, W, 3) uint8."""
    paths: list[Path]
    """The photos that they are of, by which captions are found."""
    root: Path
    """Folder of the photos."""


def held_out_set(paths: Sequence[Path], crop: int, root: Path) -> TestSet:
    """The fixed crops of validation during training, degraded as in training."""
    validation = Validation(PhotoSet(paths), Path(), size=crop)
    return TestSet(
        "held out",
        [(to_pixels(lr), to_pixels(hr)) for lr, hr in zip(validation.lr, validation.hr, strict=True)],
        list(paths),
        root,
    )


def folder_set(name: str, lr: Path, hr: Path, every: int) -> TestSet:
    """Every n-th pair of two folders.

    name: of the set.
    lr, hr: the folders.
    every: n; 1: all pairs.
    """
    pairs = find_pairs(lr, hr)[::every]
    return TestSet(
        name, [(read_rgb(pair.lr), read_rgb(pair.hr)) for pair in pairs], [pair.lr for pair in pairs], lr
    )


def changes_of(variant: str, preset: str) -> tuple[str, ...]:
    """The settings, KEY=VALUE, that make a variant of a preset."""
    rated = [name for name in GDPO[preset].metrics if name not in FULL_REFERENCE]  # type: ignore[attr-defined]
    named = f"metrics={','.join(rated)}"
    return tuple(named if change == NO_REFERENCE else change for change in VARIANTS[variant])


def variants_of(preset: str) -> list[str]:
    """The variants that differ from a preset, after the preset itself."""
    plain = GDPO[preset]
    return [
        name
        for name in VARIANTS
        if not VARIANTS[name] or with_settings(plain, changes_of(name, preset)) != plain
    ]


def measure(
    source: str | Path,
    sets: Sequence[TestSet],
    weights: Path,
    seed: int,
    text_base: str | None = None,
    device: str = "cpu",
) -> dict[str, dict[str, float]]:
    """Set -> metric -> mean over its pictures, of one sample each. Lower is better for sqf and niqe.

    source: the model.
    sets: the pictures.
    weights: SqueezeNet 1.1, for sqf.
    seed: of the noise.
    text_base: source of text encoder and scheduler if the model has none.
    device: that runs the model.
    """
    model, score = load_model(source, base=text_base, device=device), sqf.scorer(weights)
    table = {}
    for test in sets:
        rows = []
        prompts: Sequence[str | None] = [None] * len(test.paths)
        if model.text is not None:
            prompts = PromptSource(test.root, model.prompt).prompts_for(test.paths)
        for (lr, hr), prompt in zip(test.pairs, prompts, strict=True):
            sr = restore(model, lr, seed, prompt=prompt)
            rows.append((psnr_y(sr, hr), ssim_y(sr, hr), score(sr, hr), niqe(sr)))
        means = np.mean(rows, axis=0)
        table[test.name] = dict(zip(METRICS, (round(float(m), 5) for m in means), strict=True))
    return table


def tune(args: argparse.Namespace, photos: PhotoSet, changes: Sequence[str], out: Path) -> None:
    """One gdpo run.

    args: of the command.
    photos: those below --data, decoded.
    changes: of the preset, KEY=VALUE.
    out: run folder.
    """
    settings = with_settings(GDPO[args.preset], changes)
    make_accelerator(settings.precision, device=args.device)
    result = run(
        "gdpo",
        settings,
        args.data,
        out,
        Budget(steps=args.steps),
        base=args.base,
        text_base=args.text_base,
        perceptual_weights=args.sqf_weights,
        photos=photos,
        validate=False,
    )
    if not result["finished"]:
        raise KeyboardInterrupt


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table: for each variant and set the mean over seeds and, after ±, the standard deviation between them."""
    names = list(dict.fromkeys(row["variant"] for row in rows))
    sets = list(rows[0]["measured"])
    header = ["variant", "runs", *(f"{test} {metric}" for test in sets for metric in METRICS)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name in names:
        mine = [row["measured"] for row in rows if row["variant"] == name]
        cells = [name, str(len(mine))]
        for test in sets:
            for metric in METRICS:
                values = [m[test][metric] for m in mine]
                digits = 2 if metric in ("psnr", "niqe") else 4
                spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.{digits}f}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m calibration.studies.onestep_ablation", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--base", required=True, help="finished naosd run, model folder or hub name")
    parser.add_argument("--preset", choices=sorted(GDPO), default="pocket", help="of gdpo (default: pocket)")
    parser.add_argument("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda")
    parser.add_argument(
        "--text-base", metavar="SOURCE", help="source of text encoder and scheduler if --base has none"
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=RUN",
        help="measure this model too, without tuning it",
    )
    parser.add_argument("--data", type=Path, required=True, help="training photos")
    parser.add_argument("--lr", type=Path, required=True, help="small photos of the benchmark")
    parser.add_argument("--hr", type=Path, required=True, help="large photos of the benchmark")
    parser.add_argument("--every", type=int, default=5, help="use every n-th pair of the benchmark")
    parser.add_argument("--sqf-weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--variant", action="append", choices=list(VARIANTS), help="only this one; may be repeated"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of all variants"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Exit code 0, or 2 if something is missing."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    try:
        rows = _run(args)
    except (ValueError, OSError, FloatingPointError) as error:
        print_error(error)
        return 2
    print(markdown(rows))
    return 0


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The key of an experiment. A row without a preset is older than the option."""
    preset = row.get("preset", "pocket")
    return row["variant"], preset, row["base"], row["seed"], row["steps"], tuple(row["changes"])


def _run(args: argparse.Namespace) -> list[dict[str, Any]]:
    # resume: rows that are there already
    args.device = torch_device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    # validation during training holds out the same
    own = with_settings(GDPO[args.preset], args.set)
    training, held_out = split_photos(find_images(args.data), own.held_out)
    photos = PhotoSet(training)
    sets = [
        held_out_set(held_out, max(256, own.crop), args.data),
        folder_set("RealSR", args.lr, args.hr, args.every),
    ]

    # rows: measured and kept at once
    def record(
        variant: str, base: str, seed: int, source: str | Path, changes: Sequence[str], steps: int
    ) -> None:
        row = {
            "variant": variant,
            "preset": args.preset,
            "base": base,
            "seed": seed,
            "steps": steps,
            "changes": list(changes),
            "measured": measure(source, sets, args.sqf_weights, seed, args.text_base, args.device),
        }
        rows.append(row)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        log.info("%s, seed %d: %s", variant, seed, row["measured"])

    # starts: the model before tuning, and others to compare with
    done = {_key(row) for row in rows}
    plain = [item.partition("=")[::2] for item in args.also] + [("naosd", args.base)]
    for name, source in plain:
        for seed in range(args.seeds):
            if (name, args.preset, source, seed, 0, ()) not in done:
                record(name, source, seed, source, (), 0)
    for seed in range(args.seeds):
        for variant in args.variant or variants_of(args.preset):
            changes = (*changes_of(variant, args.preset), *args.set, f"seed={seed}")
            if (variant, args.preset, args.base, seed, args.steps, changes) in done:
                continue
            with tempfile.TemporaryDirectory(dir=args.out) as folder:
                tune(args, photos, changes, Path(folder) / "run")
                record(variant, args.base, seed, Path(folder) / "run", changes, args.steps)
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
