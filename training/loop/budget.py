"""When a run ends: a budget of steps or minutes, or the user's Ctrl-C."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Budget:
    """The end of a run: a number of steps or minutes of training, whichever comes first. Resumed parts are added up."""

    steps: int | None = None
    """Number of steps; None for no limit."""
    minutes: float | None = None
    """Minutes of training; None for no limit."""
    spent: float = 0.0
    """Seconds of the earlier parts of a resumed run."""
    started: float = field(default_factory=time.monotonic)
    """Monotonic time in seconds at which this part began."""

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("give a budget: --minutes or --steps")
        for name in ("steps", "minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name} must be above 0, got {value}")

    def start(self, spent: float = 0.0) -> None:
        """Start the clock, after `spent` seconds of earlier parts."""
        self.spent, self.started = spent, time.monotonic()

    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.started

    def progress(self, step: int) -> float:
        """Progress from 0 at the start to 1 at the end. It determines the learning rate and the phases."""
        parts = [step / self.steps] if self.steps else []
        parts += [self.seconds() / (60 * self.minutes)] if self.minutes else []
        return min(1.0, max(parts))


class Interrupt:
    """Inside `with`, the first Ctrl-C or SIGTERM asks for a stop after the current step. A second Ctrl-C interrupts at once."""

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
