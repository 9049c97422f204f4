"""Checks whether a run may be resumed: its settings must be the same, but the number of processes may change.

A step still trains on the same pairs, since their numbers depend on the step alone (`training.data.batches`): fewer processes
take several batches one after the other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from training.checkpoint import has_state, read_values
from training.loop.stage import RunSettings
from training.settings import differences, to_dict

log = logging.getLogger("train")

S = TypeVar("S", bound=RunSettings)

# Value of settings that are resolved for each machine.
RESOLVED = "auto"


def keep_step(settings: S, state: Path, processes: int) -> S:
    """The settings of a resumed run, with `accumulate` set so that a step trains on as many pairs as before.

    settings: as given now.
    state: folder of the run's state; without one the settings stay as they are.
    processes: number of processes now.

    Raises ValueError if they take more pairs at once than a step has, or a number that does not divide it."""
    if not has_state(state):
        return settings
    about = read_values(state)["about"]
    before = about["settings"]
    if (about["processes"], before["batch"]) == (processes, settings.batch):
        return settings
    pairs = _pairs(about)
    together = processes * settings.batch
    if pairs % together:
        raise ValueError(
            f"the run in {state.parent} trains on {pairs} pairs a step, got {processes} processes with batch={settings.batch}, "
            f"which take {together} at once: resume with processes and batch whose product divides {pairs}"
        )
    accumulate = pairs // together
    if accumulate != settings.accumulate:
        log.info("accumulate=%d, so that a step still trains on %d pairs", accumulate, pairs)
    return replace(settings, accumulate=accumulate)


def check(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any], default: RunSettings) -> None:
    """Raise ValueError if a run was begun with other settings.

    folder: the run's.
    saved: its facts when the state was saved, with `settings` and `processes`.
    now: the same facts now.
    default: settings by default, for those that are newer than the run."""
    newer = {name: now["settings"][name] if x == RESOLVED else x for name, x in to_dict(default).items()}
    saved = {**saved, "settings": newer | saved["settings"]}
    if _pairs(saved) == _pairs(now):
        saved, now = (
            {
                **facts,
                "processes": 1,
                "settings": {**facts["settings"], "batch": _pairs(facts), "accumulate": 1},
            }
            for facts in (saved, now)
        )
    changed = differences(saved, now)
    if changed:
        raise ValueError(
            f"{folder} was begun with other settings ({'; '.join(changed)}): resume with the same ones"
        )


def _pairs(about: Mapping[str, Any]) -> int:
    """Pairs that a step trains on."""
    settings = about["settings"]
    return int(about["processes"] * settings["batch"] * settings["accumulate"])
