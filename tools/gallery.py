"""The gallery behind `make gallery`: docs/gallery.md and its pictures, made from open photographs inside installed packages.

Each picture is reduced fourfold and enlarged again as a whole. Then one crop is shown: LR, bicubic, the peer if there is one, two seeds
of ours, the original. The same command with the same versions gives the same bytes.
"""

import argparse
import io
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from gdposr.batch.sheet import contact_sheet, to_rgb8
from gdposr.console import FAILED, OK, USAGE, UsageError, one_line, say
from tools.demo import SCALE, Peer, load_peer, versions
from tools.gallery_pictures import FAILURES, JUDGED, SUBJECTS, VERDICTS, Subject, open_picture

if TYPE_CHECKING:
    from gdposr import Upscaler

# Seeds of our two pictures.
SEEDS = (0, 1)
# Fixed, because the result may depend on the number of threads.
THREADS = 2
# Of the gallery's JPEG files.
QUALITY = 88
# Pictures in a row of a strip.
COLUMNS = 3
# Labels of the input and the original.
LR, ORIGINAL = "LR", "original"
# The page, and the folder of its pictures beside it.
PAGE, FOLDER = "gallery.md", "gallery"

# Metric -> method -> value.
Figures = dict[str, dict[str, float]]
# Two pictures, (H, W, 3) uint8 -> value.
Metric = Callable[[np.ndarray, np.ndarray], float]


def main(argv: Sequence[str] | None = None) -> int:
    from runtime.errors import BundleError, DeviceError, GdposrError

    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(words)
    try:
        subjects = chosen(args.only)
        peer, metrics = load_peer(args.peer_ncnn), load_metrics(args.sqf_weights)
        if peer is None:
            say("no peer: its pictures are left out (--peer-ncnn PARAM shows them)")
        write_gallery(args.out, subjects, args.bundle, peer, metrics, command_line(args))
    except (UsageError, GdposrError, OSError) as error:
        say(f"error: {one_line(error)}")
        return USAGE if isinstance(error, UsageError | BundleError | DeviceError) else FAILED
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.gallery", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for gallery.md and gallery/")
    parser.add_argument("--bundle", type=Path, help="bundle to show (default: the built-in one)")
    parser.add_argument("--peer-ncnn", type=Path, metavar="PARAM", help="another model, as ncnn .param")
    parser.add_argument(
        "--sqf-weights", type=Path, metavar="FILE", help="SqueezeNet 1.1: a perceptual distance beside PSNR"
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="this subject alone on the page; may be repeated"
    )
    return parser


def chosen(names: Sequence[str] | None) -> list[Subject]:
    """The subjects of those names, in the gallery's order; None: all."""
    known = [subject.name for subject in SUBJECTS]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise UsageError(f"--only: expected some of {', '.join(known)}, got {unknown[0]}")
    return [subject for subject in SUBJECTS if names is None or subject.name in names]


def load_metrics(sqf_weights: Path | None) -> dict[str, Metric]:
    """PSNR of Y, and SQF if its weights are given."""
    from training.metrics.fidelity import psnr_y

    if sqf_weights is None:
        return {"PSNR": psnr_y}
    from training.metrics.sqf import scorer, unavailable

    reason = unavailable(sqf_weights)
    if reason is not None or not sqf_weights.is_file():
        raise UsageError(f"--sqf-weights {sqf_weights}: {reason or 'expected a file, there is none'}")
    return {"PSNR": psnr_y, "SQF": scorer(sqf_weights)}


def command_line(args: argparse.Namespace) -> str:
    """The command as the page states it, with files but not their folders, which differ between machines."""
    words = ["python", "-m", "tools.gallery"]
    for option in ("bundle", "peer_ncnn", "sqf_weights"):
        path = getattr(args, option)
        words += [] if path is None else [f"--{option.replace('_', '-')}", path.name]
    return shlex.join(words + [word for name in args.only or () for word in ("--only", name)])


def write_gallery(
    out: Path,
    subjects: Sequence[Subject],
    bundle: Path | None,
    peer: Peer | None,
    metrics: dict[str, Metric],
    command: str,
) -> None:
    """Write the pictures, then the page.

    out: folder of the page; pictures go into a folder inside it.
    subjects: crops in the order shown.
    bundle: None: the built-in one.
    peer: another model; None: leave it out.
    metrics: by name, for the figures under each picture.
    command: how the page was made, as it states it.
    """
    from gdposr import Upscaler
    from runtime.files import atomic_file

    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figures] = {}
    with Upscaler(bundle, device="cpu", threads=THREADS) as upscaler:
        manifest = upscaler.manifest
        if manifest.scale != SCALE:
            raise UsageError(
                f"the gallery shows bundles of scale {SCALE}, {manifest.name} has {manifest.scale}"
            )
        digest = upscaler.bundle.digest
        made = f"bundle {manifest.name}, digest `{digest}`, {upscaler.precision} on the CPU"
        for number, subject in enumerate(subjects, 1):
            shown = shots(subject, upscaler, peer)
            figures[subject.name] = {
                metric: {name: measure(shot, shown[ORIGINAL]) for name, shot in shown.items() if name not in (LR, ORIGINAL)}
                for metric, measure in metrics.items()
            }  # fmt: skip
            sheet = contact_sheet(list(shown.values()), list(shown), columns=COLUMNS)
            with atomic_file(out / FOLDER / f"{subject.name}.jpg") as stream:
                Image.fromarray(sheet).save(stream, "JPEG", quality=QUALITY, optimize=True)
            say(f"{number}/{len(subjects)} {subject.name}: {figures_line(figures[subject.name])}")
    judged = digest == JUDGED
    if not judged:
        say(f"verdicts are left out: they were written for the bundle {JUDGED}, this one is {digest}")
    text = page(subjects, figures, made, command, judged=judged, with_peer=peer is not None)
    with atomic_file(out / PAGE) as stream:
        stream.write(text.encode())
    say(f"wrote {out / PAGE} and {len(subjects)} pictures in {out / FOLDER}")


def shots(subject: Subject, upscaler: "Upscaler", peer: Peer | None) -> dict[str, np.ndarray]:
    """The subject's crop in every version, (height, width, 3) uint8 each, by label in the order shown."""
    picture = open_picture(subject.source)
    small = reduced(picture, subject.jpeg)
    seeds = {f"gdposr seed {seed}": to_rgb8(upscaler.up(small, seed=seed)[0]) for seed in SEEDS}
    coarse = Image.fromarray(to_rgb8(small)).resize(picture.shape[1::-1], Image.Resampling.NEAREST)
    whole = {LR: np.asarray(coarse)} | versions(to_rgb8(small), seeds, to_rgb8(picture), peer)
    window = (
        slice(subject.top, subject.top + subject.height),
        slice(subject.left, subject.left + subject.width),
    )
    return {label: np.ascontiguousarray(version[window]) for label, version in whole.items()}


def reduced(picture: np.ndarray, jpeg: int | None) -> np.ndarray:
    """(H, W[, 3]) uint8 -> (H/4, W/4[, 3]) uint8 by antialiased bicubic. jpeg: quality of compression; None: do not compress."""
    height, width = picture.shape[:2]
    small = Image.fromarray(picture).resize((width // SCALE, height // SCALE), Image.Resampling.BICUBIC)
    if jpeg is not None:
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=jpeg)
        small = Image.open(stream)
    return np.asarray(small)


def figures_line(figures: Figures) -> str:
    """The measures of one crop in a line: `PSNR: bicubic 27.11 dB, ...; SQF: ...`."""
    parts = []
    for metric, values in figures.items():
        digits, unit = (2, " dB") if metric == "PSNR" else (3, "")
        parts.append(
            f"{metric}: " + ", ".join(f"{name} {value:.{digits}f}{unit}" for name, value in values.items())
        )
    return "; ".join(parts)


def page(
    subjects: Sequence[Subject],
    figures: dict[str, Figures],
    made: str,
    command: str,
    *,
    judged: bool,
    with_peer: bool,
) -> str:
    """The page as Markdown.

    subjects: crops in the order shown.
    figures: of each subject, by its name.
    made: bundle, precision and device.
    command: how the page was made.
    judged: whether the verdicts were written for this bundle.
    with_peer: whether the pictures show the peer.
    """
    peer = "the peer (realesr-general-x4v3), " if with_peer else ""
    lines = [
        "# Gallery",
        "",
        f"Crops of open photos: LR (each pixel a block of 4x4), bicubic, {peer}ours with two seeds, and the original. "
        "Each photo was reduced fourfold as a whole by antialiased bicubic, compressed as JPEG or not, and enlarged again. "
        "The crops are shown pixel by pixel: where a screen makes them smaller, open the picture by itself.",
        "",
        f"- made by `make gallery`, which runs `{command}`",
        f"- {made}; seeds {' and '.join(map(str, SEEDS))}",
        "- PSNR is that of Y over the crop, against the original. It favours the blurred: read it as how much was changed, "
        "not as how good it looks. SQF, where given, is a distance of features; lower is closer ([accuracy.md](accuracy.md)).",
        "- The built-in model was trained on none of these pictures. INT8's ranges were set on crops of photos inside "
        "scikit-image, some of them shown here.",
    ]
    if not judged:
        lines.append("- No verdicts: nobody has reviewed this bundle's pictures yet.")
    if not with_peer:
        lines.append("- The peer's pictures are left out: its files were not at hand.")
    sections = {
        "Subjects": [subject for subject in subjects if subject.name not in FAILURES],
        "Where it fails": [subject for subject in subjects if subject.name in FAILURES],
    }
    for title, members in sections.items():
        if members:
            lines += ["", f"## {title}"]
        if members and title != "Subjects" and not judged:
            lines += ["", "Where an earlier bundle failed; this one has not been looked at."]
        for subject in members:
            lines += strip(subject, figures[subject.name], judged)
    return "\n".join(lines) + "\n"


def strip(subject: Subject, figures: Figures, judged: bool) -> list[str]:
    """One subject's part of the page."""
    kind = "not compressed" if subject.jpeg is None else f"JPEG of quality {subject.jpeg}"
    size = f"{subject.width // SCALE}x{subject.height // SCALE}"
    verdict = [f"Verdict: {VERDICTS[subject.name]}", ""] if judged and subject.name in VERDICTS else []
    return [
        "",
        f"### {subject.title}",
        "",
        f"![{subject.title}: LR, its enlargements and the original]({FOLDER}/{subject.name}.jpg)",
        "",
        subject.remark,
        "",
        *verdict,
        f"LR {size} pixels, {kind}. {figures_line(figures)}. Picture: {subject.source.credit}.",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
