"""The options of `gdposr upscale`."""

import argparse
import re
from pathlib import Path

from gdposr.console import memory_size, pixel_limit, scale_factor, whole_number

# Choices of --select: which of several samples become files.
SELECT = ("all", "sheet", "best")


def place(text: str) -> Path | str:
    """An argparse type: a path, or the unchanged text of an address such as s3://bucket/folder."""
    return text if "://" in text else Path(text)


def ray_address(text: str) -> str:
    """An argparse type: the address of a Ray cluster. "": `gdposr.fleet.cluster` chooses."""
    if text not in ("", "auto", "local") and not re.fullmatch(r"[^:/\s]+:\d+", text):
        raise argparse.ArgumentTypeError(
            f"expected HOST:PORT, auto or local, got {text!r}; behind the inputs, --ray alone is this machine"
        )
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # inputs and output
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a photo, a folder of photos, a quoted glob, or - for one photo on stdin; with --ray also an address such as "
        "s3://bucket/folder",
    )
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        type=place,
        help="a picture's name (one output), a folder, or - for a PNG on stdout; with --ray also an address",
    )
    # which pictures
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**64 - 1),
        default=0,
        help="which texture is drawn; same seed, same bytes (default: 0)",
    )
    samples = parser.add_mutually_exclusive_group()
    samples.add_argument(
        "--samples", type=whole_number(1, 10_000), default=1, help="versions per photo (default: 1)"
    )
    samples.add_argument(
        "--sample",
        type=whole_number(0, 9_999),
        metavar="K",
        help="write only version K (the same file as with --samples)",
    )
    parser.add_argument(
        "--select",
        choices=SELECT,
        default="all",
        help="of several samples keep all, a labelled contact sheet, or the best by a no-reference score (default: all)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="how strongly texture is drawn: 0 not at all, 1 as the model learned it (default), 2 twice as strongly, "
        "with rougher edges",
    )
    parser.add_argument("--scale", type=scale_factor, help="any factor up to 4 (default: the model's own)")
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="skip photos whose output files exist; only names are compared, so use another folder for another model, "
        "precision, temperature or colour fix; with --select best any one of the samples counts",
    )
    # how they are computed: model, device, memory
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
        "--max-memory",
        type=memory_size,
        metavar="SIZE",
        help="such as 800M or 1.5G: smaller tiles, and no photo is read ahead (default: no limit)",
    )
    parser.add_argument(
        "--max-pixels",
        type=pixel_limit,
        metavar="MEGAPIXELS",
        help="refuse larger inputs (default: 100 megapixels)",
    )
    # format of the outputs, and what is shown
    parser.add_argument(
        "--quality", type=whole_number(1, 100), default=95, help="for a .jpg or .webp OUT (default: 95)"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="beside each output write NAME_compare.html, which shows before and after with a slider",
    )
    parser.add_argument(
        "--open",
        action="store_true",
        help="show the result in the system's viewer: the picture, its page with --compare, or the folder of several",
    )
    parser.add_argument(
        "--strip",
        action="store_true",
        help="write no metadata: no EXIF, place, XMP, texts, and no note on how the picture was made; colour profiles stay",
    )
    # choose: this machine or a cluster
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        type=ray_address,
        metavar="ADDRESS",
        help="on a Ray cluster: HOST:PORT, auto (the one that runs here) or local (this machine alone; the default unless "
        "RAY_ADDRESS names one); --threads (default 1) and --max-memory then apply to each worker",
    )
    # messages
    reports = parser.add_mutually_exclusive_group()
    reports.add_argument("--json", action="store_true", help="print a report on stdout")
    reports.add_argument(
        "--json-lines",
        action="store_true",
        help="print a line of JSON on stdout for each photo as soon as it is done, and one for the whole run",
    )
