"""The best validation of a run by one named value, and when to stop waiting for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from training.loop.stage import RunSettings


class Best:
    """Compares validations by the value that `RunSettings.best` names. Without a name nothing is ever best."""

    def __init__(self, settings: RunSettings) -> None:
        self.name, self.lower = settings.best.removeprefix("-"), settings.best.startswith("-")
        self.patience = settings.patience
        self.value: float | None = None  # of the best validation
        self.step = 0  # of the best validation
        self.since = 0  # validations after the best one

    def update(self, row: Mapping[str, Any]) -> bool:
        """Record a validation. Returns whether it is the best so far. NaN never is.

        Raises ValueError if the validation lacks the value."""
        if not self.name:
            return False
        if self.name not in row:
            known = ", ".join(name for name in row if name not in ("step", "seconds"))
            raise ValueError(f"best={self.name} is no value of this run's validation: choose one of {known}")
        value = float(row[self.name])
        better = self.value is None or (value < self.value if self.lower else value > self.value)
        if better and not math.isnan(value):
            self.value, self.step, self.since = value, int(row["step"]), 0
            return True
        self.since += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether `patience` validations in a row brought nothing better."""
        return self.patience > 0 and self.since >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "step": self.step, "since": self.since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value, self.step, self.since = state["value"], state["step"], state["since"]
