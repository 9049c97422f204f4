"""What the commands of all stages share: options, the beginning of a run, exit codes."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator

from training.checkpoint import has_state
from training.data.photos import find_images, split_photos
from training.loop.stage import RunSettings
from training.loop.trainer import make_accelerator

log = logging.getLogger("train")

OK, FAILED, INTERRUPTED = 0, 2, 130

S = TypeVar("S", bound=RunSettings)


def add_options(
    parser: argparse.ArgumentParser,
    presets: Mapping[str, RunSettings],
    *,
    preset: str | None = "pocket",
    preset_help: str | None = None,
    validate_minutes: float = 5.0,
) -> None:
    """The options of every stage. preset: the default."""
    parser.add_argument("--preset", choices=sorted(presets), default=preset, help=preset_help)
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, searched recursively")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--minutes", type=float, help="time budget, summed over resumed parts")
    parser.add_argument("--steps", type=int, help="step budget")
    parser.add_argument("--resume", action="store_true", help="go on from RUN/state, with the same settings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the preset"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare pictures")
    parser.add_argument(
        "--validate-minutes",
        type=float,
        default=validate_minutes,
        help="minutes between validations and saved states",
    )


def begin(
    settings: S, data: Path, out: Path, *, resume: bool
) -> tuple[S, Accelerator, list[Path], list[Path]]:
    """What a run needs before its models are loaded: the settings with the precision that auto means here, the accelerator, and the
    photos to train on and to hold out. FileExistsError where out holds a run that is not to be resumed."""
    if has_state(out / "state") and not resume:
        raise FileExistsError(f"{out} holds a run already: go on with --resume, or choose another --out")
    training, held_out = split_photos(find_images(data), settings.held_out)
    accelerator = make_accelerator(settings.precision)
    if not accelerator.is_main_process:
        log.setLevel(logging.WARNING)
    return replace(settings, precision=accelerator.mixed_precision), accelerator, training, held_out


def exit_code(run: Callable[[], Mapping[str, Any]], written: str) -> int:
    """Of a command that runs a stage: 0, 2 when an argument is wrong or the run fails, 130 when it was stopped by the user. The reason
    goes to stderr. run: returns what `Trainer.run` does. written: what the user is told of a finished run."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    try:
        result = run()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as stop:
        print(f"interrupted: {stop}" if str(stop) else "interrupted", file=sys.stderr)
        return INTERRUPTED
    if not result["finished"]:
        log.info("stopped at step %d; go on with --resume", result["step"])
        return INTERRUPTED
    log.info(written)
    return OK
