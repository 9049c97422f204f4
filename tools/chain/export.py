"""The cost of each precision and variant in a chain's bundle: dB to the photo against fp32, and the time of a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from calibration.measure.intervals import Difference, difference, differences
from gdposr.accuracy.coreml_rows import open_methods
from gdposr.bench.timing import measure, own_calls
from gdposr.console import say
from runtime.bundle.reader import Bundle
from runtime.upscale.upscaler import Upscaler
from tools.chain.scores import Held, columns, on_pixels

# Rounds of the timing, and the side in LR pixels of its picture.
ROUNDS, SIDE = 10, 128
# The precision that the others are compared with.
PRECISE = "fp32"


@dataclass(frozen=True)
class Exported:
    """One precision of the graphs or one variant of the packages."""

    HEAD: ClassVar[tuple[str, ...]] = (
        "file",
        "PSNR to the photo, dB",
        "against fp32, dB",
        "seeds differ, 1/255",
        "bytes",
        f"ms, {SIDE}x{SIDE}",
    )
    name: str
    """Precision, or "coreml" and the variant."""
    photo: float
    """Mean PSNR to the photos in dB."""
    seeds: float
    """RMS difference of two samples in levels of 1/255."""
    size: int
    """Bytes of its files."""
    loss: Difference | None
    """PSNR to the photos against fp32's in dB; None for fp32 itself."""
    milliseconds: float | None = None
    """Median time of a picture; None if it was not timed."""
    slower: Difference | None = None
    """Milliseconds against fp32's."""

    def cells(self) -> list[str]:
        loss = "-" if self.loss is None else _interval(self.loss, 3)
        time = "-" if self.milliseconds is None else f"{self.milliseconds:.1f}"
        return [self.name, f"{self.photo:.2f}", loss, f"{self.seeds:.2f}", f"{self.size:,}", time]

    def verdict(self) -> str:
        """In words: the loss, and whether it is faster."""
        assert self.loss is not None
        costs = f"costs {_interval(self.loss, 3)} dB" if self.loss.high < 0 else "costs no dB"
        costs += "" if self.loss.high < 0 else f" that these pictures show: {_interval(self.loss, 3)}"
        if self.slower is None:
            return f"**{self.name}** {costs}; {self.size:,} bytes; not timed here."
        faster = "is faster" if self.slower.high < 0 else "adds nothing in speed"
        return f"**{self.name}** {costs}; it {faster}: {_interval(self.slower, 1)} ms against fp32."


def exported(folder: Path, held: Held) -> list[Exported]:
    """A row per precision and per Core ML variant of a bundle.

    ONNX graphs run in ONNX Runtime on the CPU and are timed. Packages run in the slow reference evaluator, so they are not timed,
    and are compared on the first crop of each photo."""
    bundle = Bundle.open(folder)
    say(f"measuring the graphs of {folder}")
    names = sorted(bundle.manifest.graphs, key=lambda name: name != PRECISE)
    found = {}
    for name in names:
        upscaler = Upscaler(bundle, device="cpu", precision=name)
        found[name] = columns(on_pixels(_samples(upscaler)), _plain(held))
    times = _times(bundle, names)
    rows = []
    for name, values in found.items():
        size = sum(file.total_bytes for file in bundle.manifest.graphs[name].values())
        first = name == PRECISE
        loss = None if first else _loss(values["photo"], found[PRECISE]["photo"], held.names)
        slower = None if first else difference(times[name], times[PRECISE])
        rows.append(
            Exported(
                name, _mean(values["photo"]), _mean(values["seeds"]), size, loss, _median(times[name]), slower
            )
        )
    return rows + _packages(bundle, held, found[PRECISE]["photo"])


def _samples(upscaler: Upscaler) -> Callable[[np.ndarray, int], Sequence[np.ndarray]]:
    return lambda lr, count: upscaler.up(lr, seed=0, samples=count)


def _packages(bundle: Bundle, held: Held, precise: Sequence[float]) -> list[Exported]:
    variants, count = list(bundle.manifest.coreml), len(set(held.names))
    if not variants:
        return []
    few = Held(held.lr[:count], held.hr[:count], held.names[:count], ())
    rows = []
    with open_methods(bundle, variants, 0) as methods:
        for method in methods:
            say(f"measuring {method.name}")
            assert method.samples is not None
            values = columns(on_pixels(method.samples), few)
            loss = _loss(values["photo"], precise[:count], few.names)
            size = 0 if method.bytes is None else method.bytes
            rows.append(Exported(method.name, _mean(values["photo"]), _mean(values["seeds"]), size, loss))
    return rows


def _times(bundle: Bundle, names: Sequence[str]) -> dict[str, list[float]]:
    """Milliseconds of a whole picture per round, by precision, all in turns on one thread."""
    calls: dict[str, Callable[[], object]] = {}
    for name in names:
        calls |= own_calls(bundle, "cpu", name, 1, SIDE)
    wanted = {name: f"{name} picture" for name in names}
    taken = measure({key: calls[key] for key in wanted.values()}, ROUNDS, 2)
    return {name: list(taken[key]) for name, key in wanted.items()}


def _plain(held: Held) -> Held:
    """The pictures without cards and prior, which are not used for the files."""
    return Held(held.lr, held.hr, held.names, ())


def _loss(values: Sequence[float], precise: Sequence[float], names: Sequence[str]) -> Difference:
    return differences({"photo": values}, {"photo": precise}, groups=names)["photo"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _interval(change: Difference, digits: int) -> str:
    return f"{change.mean:+.{digits}f} ({change.low:+.{digits}f} to {change.high:+.{digits}f})"
