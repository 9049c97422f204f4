"""What ends a run: a budget of steps or minutes, or the user."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Budget:
    """End of the run: a number of steps, or minutes of training (summed over resumed parts), whichever comes first."""

    steps: int | None = None
    minutes: float | None = None
    spent: float = 0.0  # seconds of earlier parts
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("give a budget: --minutes or --steps")
        for name in ("steps", "minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name} must be above 0, got {value}")

    def start(self, spent: float = 0.0) -> None:
        """Begin to count now, after `spent` seconds of earlier parts."""
        self.spent, self.started = spent, time.monotonic()

    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.started

    def progress(self, step: int) -> float:
        """From 0 at the start to 1 at the end; it drives the learning rate and the phases of a run."""
        parts = [step / self.steps] if self.steps else []
        parts += [self.seconds() / (60 * self.minutes)] if self.minutes else []
        return min(1.0, max(parts))


class Interrupt:
    """Inside `with`, Ctrl-C and SIGTERM only ask for a stop after the current step; a second Ctrl-C is the usual one."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupt:
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
