"""A student between two others of one line of training: network interpolation (Wang et al., ESRGAN, 2018).

    python -m export.student.interpolate FIRST SECOND --share 0.5 [--noise 1.4] --out STUDENT

Weights of two students that began with the same ones, one more faithful and one richer in texture, are mixed linearly; the result
lies between them in what it does, and both ends stay to be had. Only in what noise does it lies below both: where they answer
it differently, the mean of their answers is smaller than either. `--noise` makes up for that.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from export.student.network import Student, load_student, save_student


def interpolate(first: Student, second: Student, share: float, noise: float = 1.0) -> Student:
    """(1 - share) * first + share * second, weight by weight; those that take the noise in times `noise`, which multiplies the noise.
    share in [0, 1], noise above 0. ValueError where the shapes differ."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 (the first student) to 1 (the second), got {share}")
    if not 0 < noise < math.inf:
        raise ValueError(f"noise must be a factor above 0, got {noise}")
    if first.config != second.config:
        raise ValueError(f"students of one shape are expected, got {first.config} and {second.config}")
    mixed = Student(first.config)
    theirs = second.state_dict()
    mixed.load_state_dict(
        {name: torch.lerp(value, theirs[name], share) for name, value in first.state_dict().items()}
    )
    with torch.no_grad():
        mixed.generator.noise.weight.mul_(noise)
    return mixed.eval()


def mix(
    first: Path, second: Path, share: float, out: Path, *, noise: float = 1.0, half: bool = False
) -> None:
    """Interpolate two checkpoints; the new one tells of both. half: its weights are rounded to float16."""
    (one, before), (two, after) = load_student(first), load_student(second)
    save_student(interpolate(one, two, share, noise), out, told(before, after, share, noise), half=half)


def told(first: dict[str, Any], second: dict[str, Any], share: float, noise: float = 1.0) -> dict[str, Any]:
    """Provenance of the mixture: the earlier runs that both began with, told once, then the two with what is their own."""
    histories = [list(parent.get("history", [])) for parent in (first, second)]
    common = 0
    while (
        all(len(history) > common for history in histories) and histories[0][common] == histories[1][common]
    ):
        common += 1
    own = [
        parent | ({"history": history[common:]} if len(history) > common else {})
        for parent, history in zip((_without(first), _without(second)), histories, strict=True)
    ]
    mixed = {"share_of_second": share, "noise": noise, "first": own[0], "second": own[1]}
    return {"interpolated": mixed, "history": histories[0][:common]}


def _without(parent: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parent.items() if name != "history"}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 where an argument is wrong or a student cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m export.student.interpolate",
        description="Write a student between two of one line of training.",
    )
    parser.add_argument("first", type=Path, help="student checkpoint")
    parser.add_argument("second", type=Path, help="another, trained on from the first or from the same one")
    parser.add_argument("--share", type=float, required=True, help="of the second, 0 to 1")
    parser.add_argument(
        "--noise", type=float, default=1.0, metavar="FACTOR", help="that multiplies the noise"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the new checkpoint")
    parser.add_argument("--half", action="store_true", help="store float16: half the bytes")
    args = parser.parse_args(argv)
    try:
        mix(args.first, args.second, args.share, args.out, noise=args.noise, half=args.half)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"student written to {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
