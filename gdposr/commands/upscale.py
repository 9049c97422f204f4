"""Upscale photos: files, folders (the tree is kept) or globs.

OUT with the suffix of a picture is one file; anything else is a folder, with names that carry the seed:
photo_x4_seed3.png, and for several samples photo_x4_seed3_s0.png, photo_x4_seed3_s1.png, ...
An output of the same name is replaced in one step; an input never is. A photo that cannot be done is
reported and the rest go on.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdposr import __version__
from gdposr.console import (
    FAILED,
    INTERRUPTED,
    OK,
    Update,
    debugging,
    emit,
    one_line,
    progress_bar,
    say,
    scale_factor,
    whole_number,
)
from gdposr.plan import Job, plan_jobs

if TYPE_CHECKING:
    from runtime.image import Photo
    from runtime.upscaler import Upscaler

HELP = "upscale photos: files, folders or globs"

SELECT = ("all", "sheet", "best")
SCORED_SIDE = 2048  # pixels; `best` judges the middle of larger pictures, to bound time and memory


@dataclass(frozen=True)
class Wish:
    """What is to be made of every photo."""

    seed: int
    samples: int
    select: str
    scale: float
    quality: int
    digest: str  # of the bundle

    @property
    def parts(self) -> list[str]:
        """Every name part that an output may carry."""
        if self.select == "sheet":
            return ["_sheet"]
        return [f"_s{sample}" for sample in range(self.samples)] if self.samples > 1 else [""]

    @property
    def pictures(self) -> int:
        """Files written per photo."""
        return self.samples if self.select == "all" else 1


@dataclass
class Outcome:
    """What became of one photo; grows while it is worked on, so that an interrupted run can still tell."""

    input: str
    status: str = "unfinished"  # then "ok" or "failed"
    outputs: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="a photo, a folder of photos, or a quoted glob"
    )
    parser.add_argument(
        "-o", "--out", required=True, type=Path, help="a picture's name (one output) or a folder"
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**64 - 1),
        default=0,
        help="which texture is drawn; same seed, same bytes (default: 0)",
    )
    parser.add_argument(
        "--samples", type=whole_number(1, 10_000), default=1, help="versions per photo (default: 1)"
    )
    parser.add_argument(
        "--select",
        choices=SELECT,
        default="all",
        help="of several samples keep all, a labelled contact sheet, or the best by NIQE, a no-reference score (default: all)",
    )
    parser.add_argument("--scale", type=scale_factor, help="any factor up to 4 (default: the model's own)")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, ... (`gdposr info` lists those at hand)"
    )
    parser.add_argument(
        "--precision", default="auto", help="auto, fp32, fp16 or int8, as the bundle has them"
    )
    parser.add_argument(
        "--bundle", type=Path, help="a model bundle, folder or zip (default: the built-in one)"
    )
    parser.add_argument(
        "--tile", type=whole_number(1), help="tile side in input pixels (default: the model's best)"
    )
    parser.add_argument(
        "--color-fix", help="none, adain or wavelet: take the colours from the input (default: the model's)"
    )
    parser.add_argument(
        "--threads", type=whole_number(1), help="CPU threads (default: all cores); never changes the result"
    )
    parser.add_argument(
        "--quality", type=whole_number(1, 100), default=95, help="for a .jpg or .webp OUT (default: 95)"
    )
    parser.add_argument("--json", action="store_true", help="print a report on stdout")


def run(args: argparse.Namespace) -> int:
    """Plan, load the model once, then photo by photo."""
    from runtime.bundle import Bundle
    from runtime.upscaler import Upscaler

    begin = time.perf_counter()
    bundle = Bundle.open(args.bundle)
    scale = args.scale or float(bundle.manifest.scale)
    wish = Wish(args.seed, args.samples, args.select, scale, args.quality, bundle.digest)
    jobs = plan_jobs(args.inputs, args.out, wish.scale, wish.seed, wish.parts, wish.pictures)
    outcomes: list[Outcome] = []
    interrupted = False
    with Upscaler(
        bundle,
        device=args.device,
        precision=args.precision,
        threads=args.threads,
        tile=args.tile,
        color_fix=args.color_fix,
        notify=say,
    ) as upscaler:
        say(f"{bundle.manifest.name} ({bundle.digest}) on {upscaler.device} in {upscaler.precision}")
        try:
            with progress_bar("upscaling") as update:
                for number, job in enumerate(jobs, 1):
                    label = f"{number}/{len(jobs)} {job.source.name}"
                    outcomes.append(Outcome(str(job.source)))
                    update(0, 1, label)
                    _attempt(outcomes[-1], job, wish, upscaler, _labelled(update, label))
        except KeyboardInterrupt:
            interrupted = True
            say("interrupted; finished files stay, no partial file is left")
        device, precision, notes = upscaler.device, upscaler.precision, list(upscaler.notes)
        placement = upscaler.placement
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    if args.json:
        emit(
            {
                "version": __version__,
                "bundle": {"name": bundle.manifest.name, "path": str(bundle.path), "digest": bundle.digest},
                "device": device,
                "precision": precision,
                "placement": placement,
                "notes": notes,
                "seed": wish.seed,
                "samples": wish.samples,
                "select": wish.select,
                "score": "niqe" if wish.select == "best" else None,
                "scale": wish.scale,
                "files": [vars(outcome) for outcome in outcomes],
                "failed": failed,
                "interrupted": interrupted,
                "seconds": round(time.perf_counter() - begin, 3),
            }
        )
    if interrupted:
        return INTERRUPTED
    if failed:
        say(
            f"{failed} of {len(jobs)} photos failed"
            + ("" if failed == len(jobs) else "; the others are done")
        )
    return FAILED if failed else OK


def _attempt(outcome: Outcome, job: Job, wish: Wish, upscaler: "Upscaler", update: Update) -> None:
    """Work on one photo; whatever goes wrong with it is noted in the outcome and never stops the others."""
    begin = time.perf_counter()

    def note(message: str) -> None:
        outcome.notes.append(message)
        say(message)

    try:
        _upscale(outcome, job, wish, upscaler, note, update)
        outcome.status = "ok"
    except Exception as error:
        if debugging():
            raise
        outcome.status, outcome.error = "failed", one_line(error)
        say(
            f"failed: {outcome.error}"
            if str(job.source) in outcome.error
            else f"failed: {job.source}: {outcome.error}"
        )
    finally:
        outcome.seconds = round(time.perf_counter() - begin, 3)


def _upscale(
    outcome: Outcome, job: Job, wish: Wish, upscaler: "Upscaler", note: Callable[[str], None], update: Update
) -> None:
    from runtime.image import read_photo

    photo = read_photo(job.source, notify=note)
    versions = upscaler.up_photo(
        photo,
        seed=wish.seed,
        samples=wish.samples,
        scale=wish.scale,
        progress=lambda done, total: update(done, total, None),
    )
    if wish.select == "all":
        for sample, version in enumerate(versions):
            _write(outcome, job, wish, upscaler, version, sample, wish.parts[sample])
    elif wish.select == "best":
        score, sample, best = min(
            ((_score(version), sample, version) for sample, version in enumerate(versions)), key=_first
        )
        _write(outcome, job, wish, upscaler, best, sample, wish.parts[sample], niqe=round(score, 4))
    else:
        from gdposr.sheet import contact_sheet
        from runtime.image import Photo

        labels = [f"seed {wish.seed} sample {sample}" for sample in range(wish.samples)]
        sheet = Photo(contact_sheet([version.pixels for version in versions], labels))
        _write(outcome, job, wish, upscaler, sheet, None, "_sheet")


def _write(
    outcome: Outcome,
    job: Job,
    wish: Wish,
    upscaler: "Upscaler",
    picture: "Photo",
    sample: int | None,
    part: str,
    **scores: float,
) -> None:
    """Write one picture with what is needed to make it again. sample: None = all samples on one sheet."""
    from runtime.image import write_photo

    target = job.target(part)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = {
        "Software": f"gdposr {__version__}",
        "gdposr-seed": str(wish.seed),
        "gdposr-sample": str(sample) if sample is not None else f"0-{wish.samples - 1}",
        "gdposr-bundle": wish.digest,
        "gdposr-precision": upscaler.precision,
    }
    write_photo(target, picture, quality=wish.quality, text=text)
    height, width = picture.pixels.shape[:2]
    outcome.outputs.append(
        {"path": str(target), "sample": sample, "width": width, "height": height, **scores}
    )


def _score(picture: "Photo") -> float:
    """NIQE of the middle of a picture; lower is better."""
    from runtime.niqe import niqe

    height, width = picture.pixels.shape[:2]
    top, left = max(0, (height - SCORED_SIDE) // 2), max(0, (width - SCORED_SIDE) // 2)
    return niqe(picture.pixels[top : top + SCORED_SIDE, left : left + SCORED_SIDE])


def _first(entry: tuple[float, int, "Photo"]) -> float:
    return entry[0]


def _labelled(update: Update, label: str) -> Update:
    def relabel(done: int, total: int, text: str | None = None) -> None:
        update(done, total, text or label)

    return relabel
