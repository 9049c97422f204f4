"""The records of a run: config.json, log.jsonl and TensorBoard curves."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("train")

# Steps between points on the TensorBoard curves.
LOG_EVERY = 10


class RunLog:
    """The records in a run folder. Only the main process keeps one."""

    def __init__(self, folder: Path, document: Mapping[str, Any], step: int) -> None:
        """document: content of config.json. step: first step of this part of the run; later points of the curves are dropped."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n")
        self.curves = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        self.rows = folder / "log.jsonl"

    def losses(self, step: int, losses: Mapping[str, float]) -> None:
        """Add the losses of a step to the curves, every `LOG_EVERY` steps."""
        if step % LOG_EVERY == 0:
            for name, value in losses.items():
                self.curves.add_scalar(name, value, step)

    def validation(self, step: int, row: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> None:
        """Add a validation to the curves, the log and log.jsonl. pictures: for TensorBoard by name, (h, w, 3) uint8."""
        for name, value in row.items():
            self.curves.add_scalar(f"validation/{name}", value, step)
        for name, picture in pictures.items():
            self.curves.add_image(name, picture, step, dataformats="HWC")
        log.info("validation %s", " ".join(f"{name}={value:.4g}" for name, value in row.items()))
        with self.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        self.curves.close()
