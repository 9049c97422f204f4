"""Common parts of the training commands: options, the start of a run, pairs of photos, exit codes."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator

from runtime.text import print_error
from training.checkpoint import has_state
from training.data.cards import Variety
from training.data.device.pairs import DevicePreparation, unreduced
from training.data.device.parameters import Mixture
from training.data.photos import CropParams, PairDataset, PhotoSet, find_images, split_photos
from training.loop.accelerator import make_accelerator
from training.loop.resume import keep_step
from training.loop.stage import RunSettings

log = logging.getLogger("train")

# Exit codes.
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
    """Add the options that every stage has.

    parser: the command's parser.
    presets: settings by preset name.
    preset: name of the default preset, None for none.
    preset_help: help text of --preset.
    validate_minutes: default of --validate-minutes."""
    parser.add_argument("--preset", choices=sorted(presets), default=preset, help=preset_help)
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, searched recursively")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--minutes", type=float, help="time budget, summed over resumed parts")
    parser.add_argument("--steps", type=int, help="step budget")
    parser.add_argument(
        "--resume", action="store_true", help="continue from RUN/state, with the same settings"
    )
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
    """Prepare a run before its models are loaded.

    settings: as the user gave them.
    data: folder of photos, searched recursively.
    out: run folder.
    resume: whether the run continues one in `out`.

    Returns the settings with "auto" resolved and, if the run goes on with another number of processes, `accumulate`
    changed to match; the accelerator, the training photos and the held-out photos. Raises FileExistsError if `out` holds a
    run that is not to be resumed, ValueError if it cannot go on with these processes."""
    if has_state(out / "state") and not resume:
        raise FileExistsError(
            f"{out} already holds a run: continue it with --resume, or choose another --out"
        )
    training, held_out = split_photos(find_images(data), settings.held_out)
    accelerator = make_accelerator(settings.precision)
    if not accelerator.is_main_process:
        log.setLevel(logging.WARNING)
    gpu = accelerator.device.type == "cuda"
    chosen: dict[str, Any] = {
        "degrade": "device" if gpu else "loader",
        "memory_format": "channels_last" if gpu else "contiguous",
    }
    chosen = {name: value for name, value in chosen.items() if getattr(settings, name) == "auto"}
    settings = replace(settings, precision=accelerator.mixed_precision, **chosen)
    if resume:
        settings = keep_step(settings, out / "state", accelerator.num_processes)
    return settings, accelerator, training, held_out


def photo_pairs(
    photos: PhotoSet,
    settings: RunSettings,
    variety: Variety = Variety(),  # noqa: B008  (frozen)
    *,
    hr_alone: bool = False,
) -> PairDataset:
    """Photos degraded by the mixture of the settings, in the loaders or by `device_preparation`.

    photos: to cut from.
    settings: of the run, with "auto" resolved.
    variety: shares of drawn and recoloured pictures.
    hr_alone: leave out the LR pictures.
    """
    return PairDataset(
        photos,
        CropParams(settings.crop, zoom_range=(settings.zoom_min, 1.0)),
        mild_share=settings.mild_share,
        plain_share=settings.plain_share,
        reduce=unreduced if hr_alone or settings.degrade == "device" else None,
        variety=variety,
        seed=settings.seed,
    )


def device_preparation(settings: RunSettings) -> DevicePreparation | None:
    """Makes the LR pictures of `photo_pairs` on the device; None if they have them already."""
    if settings.degrade != "device":
        return None
    return DevicePreparation(settings.seed, mixture=Mixture(settings.mild_share, settings.plain_share))


def exit_code(run: Callable[[], Mapping[str, Any]], written: str) -> int:
    """Run a stage and return the command's exit code: 0 on success, 2 on a wrong argument or a failed run, 130 when
    the user stopped it. The reason goes to stderr.

    run: returns the result of `Trainer.run`.
    written: message after a finished run."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    try:
        result = run()
    except (ValueError, OSError, FloatingPointError) as error:
        print_error(error)
        return FAILED
    except KeyboardInterrupt as stop:
        print(f"interrupted: {stop}" if str(stop) else "interrupted", file=sys.stderr)
        return INTERRUPTED
    if not result["finished"]:
        log.info("stopped at step %d; continue with --resume", result["step"])
        return INTERRUPTED
    log.info(written)
    return OK
