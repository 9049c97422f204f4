"""Mix the weights of two students: network interpolation (Wang et al., ESRGAN, 2018).

    python -m export.student.interpolate FIRST SECOND --share 0.5 [--noise 1.4] [--contrast 1.1] --out STUDENT

Both students must descend from the same weights, such as a faithful one and one richer in texture. The mixture
behaves like something between the two, except for its response to noise, which is weaker than either's, because
different responses partly cancel. `--noise` compensates for that.

A core, which has no path for noise yet, as the first student gets the second's path: convolution and gate. With
`--share 0` the picture without noise is exactly the core's, and the second gives the noise alone."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from export.student.model.checkpoint import load_student, save_student
from export.student.model.growing import with_noise
from export.student.model.network import NOISE_PATH, Student
from runtime.text import print_error


def interpolate(
    first: Student, second: Student, share: float, noise: float = 1.0, contrast: float = 1.0
) -> Student:
    """(1 - share) * first + share * second, weight by weight.

    first, second: of one shape, with two exceptions. If the first lacks the gate of the noise, it takes the second's path of
        the noise. If only the first is consistent, the mixture has its trust.
    share: in [0, 1].
    noise: factor above 0 on the weights of the noise's convolution, with the same effect as scaling the noise.
    contrast: factor above 0 on the last convolution, hence on what the picture has beyond the bicubic upscale.

    Raises ValueError if the shapes differ."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 (the first student) to 1 (the second), got {share}")
    for name, factor in (("noise", noise), ("contrast", contrast)):
        if not 0 < factor < math.inf:
            raise ValueError(f"{name} must be a factor above 0, got {factor}")
    borrowed = second.config.noise_gate and not first.config.noise_gate
    if borrowed:
        first = with_noise(first, second.config.noise_channels)
    theirs = second.state_dict()
    shape = second.config
    if first.config.consistent and not shape.consistent:
        shape = replace(shape, consistent=True)
        theirs = first.state_dict() | theirs
    if first.config != shape:
        raise ValueError(f"students of one shape are expected, got {first.config} and {second.config}")
    mixed = Student(first.config)
    mixed.load_state_dict(
        {
            name: theirs[name]
            if borrowed and name.removeprefix("generator.") in NOISE_PATH
            else torch.lerp(value, theirs[name], share)
            for name, value in first.state_dict().items()
        }
    )
    with torch.no_grad():
        mixed.generator.noise.weight.mul_(noise)
        for parameter in mixed.generator.last.parameters():
            parameter.mul_(contrast)
    return mixed.eval()


def mix(
    first: Path,
    second: Path,
    share: float,
    out: Path,
    *,
    noise: float = 1.0,
    contrast: float = 1.0,
    half: bool = False,
) -> None:
    """Interpolate two checkpoints and write the result.

    first, second: folders of the students.
    share: of the second, 0 to 1.
    out: folder of the new checkpoint; its provenance describes both students.
    noise: factor on the weights of the noise's convolution.
    contrast: factor on the last convolution.
    half: store the weights as float16."""
    (one, before), (two, after) = load_student(first), load_student(second)
    mixed = interpolate(one, two, share, noise, contrast)
    save_student(mixed, out, told(before, after, share, noise, contrast), half=half)


def told(
    first: dict[str, Any], second: dict[str, Any], share: float, noise: float = 1.0, contrast: float = 1.0
) -> dict[str, Any]:
    """Provenance of the mixture: of both students, and under "history" each stage that either had before, once, the first's first.

    first, second: provenance of the students.
    share, noise, contrast: as given to `interpolate`."""
    parents = {"first": _without(first), "second": _without(second)}
    history: list[Any] = []
    for parent in (first, second):
        history += [
            stage for stage in parent.get("history", []) if stage not in (*history, *parents.values())
        ]
    factors = {"share_of_second": share, "noise": noise, "contrast": contrast}
    return {"interpolated": {**factors, **parents}, "history": history}


def _without(parent: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parent.items() if name != "history"}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 on success, 2 on a wrong argument or an unreadable student."""
    parser = argparse.ArgumentParser(
        prog="python -m export.student.interpolate",
        description="Interpolate between the weights of two students that descend from the same weights.",
    )
    parser.add_argument("first", type=Path, help="student checkpoint")
    parser.add_argument("second", type=Path, help="another, trained from the first or from the same start")
    parser.add_argument("--share", type=float, required=True, help="share of the second student, 0 to 1")
    parser.add_argument(
        "--noise",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="strengthens (above 1) or weakens the effect of the noise",
    )
    parser.add_argument(
        "--contrast",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="strengthens (above 1) or weakens what is drawn beyond the bicubic upscale",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the new checkpoint")
    parser.add_argument("--half", action="store_true", help="store float16 weights, half the bytes")
    args = parser.parse_args(argv)
    try:
        mix(
            args.first,
            args.second,
            args.share,
            args.out,
            noise=args.noise,
            contrast=args.contrast,
            half=args.half,
        )
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    print(f"student written to {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
