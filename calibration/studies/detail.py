"""The scores of detail for candidate models: means over a folder of pairs, and the share of pictures that reach the goals.

    python -m calibration.studies.detail --sr NAME=DIR --second NAME=DIR --baseline NAME --lr DIR --hr DIR

Goals:
- gradients nearer to the truth than the baseline's, in half of the pictures;
- on the truth's flat parts grain and chroma at most 1.5 times the truth's, in nine of ten pictures;
- two samples (--sr and --second hold one each) that differ on texture and nowhere else.

A picture without flat or textured parts does not count for the goals that need them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.blind.proportions import wilson
from calibration.measure.methods import Method, bicubic_method
from calibration.measure.pairs import Pair, complete, find_pairs, read_rgb
from calibration.measure.table import check_sizes
from calibration.studies.agreement import percent
from calibration.studies.judged import outputs
from runtime.errors import GdposrError, ImageError, SettingError
from runtime.text import finite, print_error
from training.metrics import detail
from training.metrics.fidelity import psnr, ssim
from training.metrics.registry import to_tensor

# Times the truth's grain or chroma that still look clean.
MOST = 1.5
# Grain of a perfectly flat picture, in levels.
ROUNDING = 1e-3
# Key -> title, digits.
MEANS = {
    "psnr": ("PSNR", 2),
    "ssim": ("SSIM", 4),
    "gradients": ("gradients", 3),
    "wavelets": ("wavelets", 3),
    "gmsd": ("GMSD", 4),
    "grain": ("grain on flats", 2),
    "truth_grain": ("the truth's", 2),
    "chroma": ("chroma on flats", 2),
    "truth_chroma": ("the truth's", 2),
    "texture": ("seeds on texture (>= 3)", 2),
    "flat": ("on flats (<= 0.7)", 2),
    "low": ("low-pass (<= 1)", 2),
}
# Key -> title with the goal.
SHARES = {
    "nearer": "nearer gradients (>= 50 %)",
    "clean_grain": f"grain <= {MOST} x (>= 90 %)",
    "clean_chroma": f"chroma <= {MOST} x (>= 90 %)",
}


def measure_picture(sr: np.ndarray, hr: np.ndarray, second: np.ndarray | None = None) -> dict[str, float]:
    """Scores of one picture by the keys of `MEANS`; NaN if the picture lacks the flat or textured parts that a score needs.

    sr, hr, second: (H, W, 3) uint8; second is another sample, None: measure no diversity.
    """
    x, y = to_tensor(sr), to_tensor(hr)
    grain, chroma = detail.fine_grain(x, y), detail.fine_chroma(x, y)
    found = {
        "psnr": psnr(x, y),
        "ssim": ssim(x, y),
        "gradients": detail.gradient_distance(x, y),
        "wavelets": detail.wavelet_distance(x, y),
        "gmsd": detail.gmsd(x, y),
        "grain": grain.value,
        "truth_grain": grain.truth,
        "chroma": chroma.value,
        "truth_chroma": chroma.truth,
    }
    if second is not None:
        apart = detail.seed_diversity(x, to_tensor(second), y)
        found |= {"texture": apart.texture, "flat": apart.flat, "low": apart.low}
    return {name: float(value) for name, value in found.items()}


def measure(
    method: Method, pairs: Sequence[Pair], scale: int, second: Mapping[str, Path] | None = None
) -> list[dict[str, float]]:
    """`measure_picture` for one method on all pairs, in their order.

    method: makes the pictures.
    pairs: with their HR.
    scale: HR over LR.
    second: picture name -> another sample; None: there is none.
    """
    rows = []
    for pair in pairs:
        lr, hr = read_rgb(pair.lr), read_rgb(pair.hr)
        check_sizes(pair, lr, hr, scale)
        pictures = [method.upscale(pair.name, lr)]
        if second is not None:
            pictures.append(read_rgb(second[pair.name]))
        for picture in pictures:
            if picture.shape != hr.shape:
                raise ImageError(
                    f"{method.name}: {pair.name}: expected {hr.shape} like HR, got {picture.shape}: make it at scale {scale}"
                )
        rows.append(measure_picture(pictures[0], hr, *pictures[1:]))
    return rows


def good_enough(
    rows: Sequence[Mapping[str, float]], baseline: Sequence[Mapping[str, float]]
) -> dict[str, list[bool]]:
    """Whether each picture that counts reaches the goal, by the keys of `SHARES`. baseline: the same pictures of the baseline."""
    found = {
        "nearer": [row["gradients"] < base["gradients"] for row, base in zip(rows, baseline, strict=True)]
    }
    for key in ("grain", "chroma"):
        asked = [row for row in rows if not math.isnan(row[key])]
        found[f"clean_{key}"] = [row[key] <= MOST * row[f"truth_{key}"] + ROUNDING for row in asked]
    return found


def summary(
    name: str, rows: Sequence[Mapping[str, float]], baseline: Sequence[Mapping[str, float]] | None
) -> dict[str, Any]:
    """One line of the table and of the JSON. baseline: None: this model is the baseline, so gradients are not compared."""
    enough = good_enough(rows, baseline or rows)
    if baseline is None:
        del enough["nearer"]
    shares = {}
    for key, reached in enough.items():
        low, high = wilson(sum(reached), len(reached))
        share = sum(reached) / len(reached) if reached else None
        shares[key] = {"share": share, "low": low, "high": high, "pictures": len(reached)}
    return {"name": name, "pictures": len(rows), "means": _means(rows), "shares": shares}


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table, without columns that no line has."""
    means = [key for key in MEANS if any(key in line["means"] for line in lines)]
    header = ["model", *(MEANS[key][0] for key in means), *SHARES.values()]
    table = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for line in lines:
        cells = [line["name"]]
        for key in means:
            value = line["means"].get(key)
            cells.append("-" if value is None or math.isnan(value) else f"{value:.{MEANS[key][1]}f}")
        for key in SHARES:
            share = line["shares"].get(key)
            if share is None or share["share"] is None:
                cells.append("-")
            else:
                ends = f"{percent(share['low'])} to {percent(share['high'])}"
                cells.append(f"{percent(share['share'])} ({ends})")
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Exit code 0, or 2 if something is missing or does not fit."""
    args = _parser().parse_args(argv)
    try:
        if args.every < 1:
            raise SettingError(f"expected --every of at least 1, got {args.every}: 1 takes all pairs")
        pairs = find_pairs(args.lr, args.hr)[:: args.every]
        scale = read_rgb(pairs[0].hr).shape[0] // read_rgb(pairs[0].lr).shape[0]
        models, seconds = (
            {name: complete(name, folder, outputs(folder), pairs) for name, folder in _named(given).items()}
            for given in (args.sr, args.second)
        )
        methods = [bicubic_method(scale), *(_method(name, pictures) for name, pictures in models.items())]
        names = [method.name for method in methods]
        strangers = [name for name in (*seconds, args.baseline) if name not in names]
        if strangers or len(set(names)) != len(names):
            raise SettingError(
                f"expected names of their own for --sr, and those of them for --second and --baseline, got {', '.join(names)} and "
                f"{', '.join(strangers) or 'no other'}: correct them"
            )
        rows = {method.name: measure(method, pairs, scale, seconds.get(method.name)) for method in methods}
        lines = [
            summary(name, found, None if name == args.baseline else rows[args.baseline])
            for name, found in rows.items()
        ]
        if args.json:
            pictures = {
                name: dict(zip((pair.name for pair in pairs), found, strict=True))
                for name, found in rows.items()
            }
            document = {"baseline": args.baseline, "models": lines, "pictures": pictures}
            args.json.write_text(json.dumps(finite(document), indent=2) + "\n", encoding="utf-8")
    except (GdposrError, ValueError, OSError) as error:
        print_error(error)
        return 2
    print(
        f"{len(pairs)} pictures; nearer than {args.baseline}. Distances and deviations in levels of 1/255.\n"
    )
    print(markdown(lines))
    return 0


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the pictures that have a value; NaN if none has."""
    found = {}
    for key in rows[0]:
        known = [row[key] for row in rows if not math.isnan(row[key])]
        found[key] = float(np.mean(known)) if known else math.nan
    return found


def _named(given: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for item in given:
        name, separator, folder = item.partition("=")
        if not (name and separator and folder) or name in found:
            raise SettingError(f"expected NAME=DIR, each name once, got {item!r}")
        found[name] = Path(folder)
    return found


def _method(name: str, pictures: Mapping[str, Path]) -> Method:
    return Method(name, "folder", lambda picture, lr: read_rgb(pictures[picture]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m calibration.studies.detail", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add(
        "--sr",
        action="append",
        required=True,
        metavar="NAME=DIR",
        help="pictures of a candidate; may be repeated",
    )
    add(
        "--second",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="pictures of the same candidate with another seed",
    )
    add(
        "--baseline",
        default="bicubic",
        metavar="NAME",
        help="the model to compare gradients with (default: bicubic)",
    )
    add("--lr", type=Path, required=True, metavar="DIR", help="folder of small photos")
    add("--hr", type=Path, required=True, metavar="DIR", help="folder of large photos of the same names")
    add("--every", type=int, default=1, metavar="N", help="only every n-th pair")
    add("--json", type=Path, metavar="FILE", help="write the result and every picture's values as JSON, too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
