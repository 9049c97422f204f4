"""Measure how good a bundle's pictures are, on pairs of small and large photos with the same names.

Reported per precision: PSNR on Y, SSIM, NIQE, SQF where its weights are given, and how much samples differ;
bicubic enlargement stands beside them, and any other method whose pictures lie in a folder (--sr NAME=DIR).
"""

import argparse
from pathlib import Path

from gdposr.console import FAILED, OK, UsageError, emit, progress_bar, say, whole_number

HELP = "measure quality on pairs of small and large photos"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", type=Path, help="a bundle folder or zip (default: the built-in one)")
    parser.add_argument("--lr", required=True, type=Path, metavar="DIR", help="folder of small photos")
    parser.add_argument("--hr", required=True, type=Path, metavar="DIR", help="folder of the large ones, same names")
    parser.add_argument("--sqf-weights", type=Path, metavar="FILE", help="SqueezeNet 1.1 as .safetensors; without it no SQF")
    parser.add_argument("--precision", action="append", help="measure only this one; may be repeated (default: all)")
    parser.add_argument("--sr", action="append", default=[], metavar="NAME=DIR", help="another method's pictures; may be repeated")
    parser.add_argument("--limit", type=whole_number(1), help="only the first N pairs")
    parser.add_argument("--seed", type=whole_number(0, 2**64 - 1), default=0, help="seed of the samples (default: 0)")
    parser.add_argument("--device", default="auto", help="where the model runs (default: auto)")
    parser.add_argument("--threads", type=whole_number(1), help="CPU threads (default: all cores)")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with the table and crops")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
