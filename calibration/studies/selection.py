"""Which of several samples to keep: how well scores without reference agree with SQF against HR, and how much a choice can gain.

    python -m calibration.studies.selection --lr LR --hr HR --sqf-weights FILE

For every pair the bundle's samples are ranked by SQF (the nearest to people's judgement among the weights at hand) and by each
candidate, see `ranking.py`. With `--first` later samples are measured, which had no part in a choice. Results: `runtime.image.grain`.
800 samples took 11 minutes of one shared core.

An earlier bundle (2b090b2a), INT8: the best of 8 samples by SQF is better than the mean sample by 0.0029 (0.57 %; standard deviation
between samples 0.0019). Most of that comes from the two deepest of SQF's five layers. Even the sample nearest to the mean of the others
in SQF's own features agrees with SQF no better than chance (tau 0.01 with a standard error of 0.03, samples 8-15): which sample is
better is mostly luck.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from calibration.measure.pairs import find_pairs
from calibration.studies.ranking import SAMPLES, Estimate, Measured, best_gain, estimate, measure, verdicts
from runtime.errors import GdposrError, ImageError
from runtime.image.grain import NAME
from runtime.text import print_error
from runtime.upscale.upscaler import Upscaler
from training.metrics import sqf


def report(measured: Measured) -> str:
    """How much a choice can gain, and the table of candidates, as Markdown."""
    count, samples = measured.sqf.shape
    gain = estimate(best_gain(measured))
    mean, spread = float(measured.sqf.mean()), float(measured.sqf.std(axis=1, ddof=1).mean())
    psnr = estimate(measured.psnr.max(axis=1) - measured.psnr.mean(axis=1))
    lines = [
        f"{count} pictures, {samples} samples of each. SQF {mean:.4f}, standard deviation between samples {spread:.4f}.",
        f"The best by SQF is better than the mean sample by {_shown(gain, 5)}, {100 * gain.mean / mean:.2f} %; the best by PSNR by "
        f"{_shown(psnr, 4)} dB.",
        f"Two samples differ by {measured.distance.mean():.2f}/255 (RMS of luma), by {measured.low.mean():.2f}/255 after a low-pass of "
        f"about 8 pixels ({measured.low.max():.2f} in the picture where they differ most).",
        "",
        "| candidate | better | tau, 1st half | tau, 2nd half | tau, all | with PSNR | pick beats | pick gains | of the possible |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for v in verdicts(measured):
        lines.append(
            f"| {v.name}{' (chosen)' if v.name == NAME else ''} | {'less' if v.sign > 0 else 'more'} | {v.chosen:+.3f} | "
            f"{v.confirmed:+.3f} | {_shown(v.tau, 3)} | {v.psnr_tau:+.3f} | {_shown(v.wins, 3)} | {_shown(v.gain, 5)} | "
            f"{100 * v.share:.0f} % |"
        )
    lines.append("")
    for swapped, half in ((False, "first"), (True, "second")):
        top = verdicts(measured, swapped)[0]
        lines.append(
            f"Best on the {half} half: {top.name}, {top.chosen:+.3f}; on the other {top.confirmed:+.3f}."
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Exit code 0, or 2 if something is missing."""
    args = _parser().parse_args(argv)
    try:
        reason = sqf.unavailable(args.sqf_weights)
        if reason:
            raise ImageError(f"SQF ranks the samples, but {reason}")
        pairs = find_pairs(args.lr, args.hr, args.limit)
        if len(pairs) < 2:
            raise ImageError(f"expected at least 2 pairs to split in halves, got {len(pairs)}: give more")
        with Upscaler(
            args.bundle, device=args.device, precision=args.precision, threads=args.threads
        ) as upscaler:
            measured = measure(
                upscaler, pairs, args.sqf_weights, samples=args.samples, first=args.first, seed=args.seed,
                progress=_tell,
            )  # fmt: skip
            digest = upscaler.bundle.digest
            print(
                f"{upscaler.manifest.name} ({digest}) {upscaler.precision} on {upscaler.device}, seed {args.seed}"
            )
    except (GdposrError, OSError) as error:
        print_error(error)
        return 2
    print(report(measured))
    return 0


def _tell(done: int, total: int) -> None:
    print(f"\r{done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def _shown(value: Estimate, digits: int) -> str:
    ends = value.interval
    return f"{value.mean:+.{digits}f} [{ends.low:+.{digits}f}, {ends.high:+.{digits}f}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m calibration.studies.selection",
        description="How well scores without reference agree with SQF on which sample is best.",
    )
    parser.add_argument("--lr", type=Path, required=True, help="folder of small photos")
    parser.add_argument("--hr", type=Path, required=True, help="folder of large photos of the same names")
    parser.add_argument("--sqf-weights", type=Path, required=True, help="SqueezeNet 1.1 as safetensors")
    parser.add_argument("--bundle", type=Path, help="a model bundle (default: the built-in one)")
    parser.add_argument("--device", default="auto", help="default: auto")
    parser.add_argument("--precision", default="int8", help="default: int8")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="per picture (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first sample (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--limit", type=int, help="only the first pairs")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
