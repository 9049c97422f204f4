"""Times a bundle and its peers in turns: the calls, the measurement, and ratios, which vary less between machines than times."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdposr.bench.overhead import Overhead, TimedPicture
from gdposr.console import UsageError, progress_bar, say

if TYPE_CHECKING:
    import numpy as np

    from runtime.bundle.reader import Bundle

# Rounds that run in spite of a time limit.
LEAST = 3
# Calls longer than this (seconds) run once, since the state of the caches hardly matters.
LONG = 1.0

# Call -> milliseconds per round; "CALL overhead" -> share per round.
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Contender:
    """A precision on a device."""

    label: str
    """The precision's name, after the device's name if several devices are compared."""
    device: str
    """Name as `resolve` gives it, never "auto"."""
    precision: str
    """Name as `resolve` gives it, never "auto"."""


def choose(bundle: "Bundle", devices: Sequence[str], precisions: Sequence[str]) -> list[Contender]:
    """Every precision on every device, each once. Prints the notes on the choice."""
    from runtime.backends.choice import resolve

    chosen: list[tuple[str, str]] = []
    for device in dict.fromkeys(devices):
        for precision in precisions:
            name, kind, notes = resolve(bundle, device, precision)
            for note in notes:
                say(note)
            chosen.append((name, kind))
    several = len({name for name, _ in chosen}) > 1
    return [
        Contender(f"{name} {kind}" if several else kind, name, kind) for name, kind in dict.fromkeys(chosen)
    ]


def own_calls(
    bundle: "Bundle", device: str, precision: str, threads: int, size: int, label: str | None = None
) -> dict[str, Callable[[], object]]:
    """The timed calls of a contender: each graph alone, and a whole picture through the pipeline (tiles, colour, noise).

    bundle: the model.
    device, precision: as of a `Contender`.
    threads: for the model.
    size: side of the picture in LR pixels.
    label: first word of the calls' names; None: the precision.
    UsageError for a size that the model does not take.
    """
    import numpy as np

    from runtime.backends.choice import open_backend
    from runtime.noise import noise_field

    rule, noise = bundle.manifest.size, bundle.manifest.noise
    if size % rule.multiple_of or size < rule.minimum:
        raise UsageError(
            f"--size: this model takes multiples of {rule.multiple_of} from {rule.minimum} on, got {size}"
        )
    label = precision if label is None else label
    backend = open_backend(bundle, device, precision, threads)
    picture = test_picture(size)
    image = picture.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    cells = size // noise.downscale
    grain = noise_field(0, 0, cells, cells, channels=noise.channels)[None]
    features = backend.encode(image)
    return {
        f"{label} encoder": lambda: backend.encode(image),
        f"{label} generator": lambda: backend.generate(features, grain),
        f"{label} picture": TimedPicture(bundle, device, precision, threads, picture),
    }


def peer_calls(
    onnx_files: Sequence[Path], param: Path | None, threads: int, size: int
) -> dict[str, Callable[[], object]]:
    """The timed calls of other models, by name.

    onnx_files: a model each.
    param: of an ncnn model, its weights beside it; None: there is none.
    threads: for each model.
    size: side of the picture in LR pixels.
    """
    import numpy as np

    from gdposr.bench.peers import load_peers

    image = test_picture(size).transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    return {name: bound(run, image) for name, run in load_peers(onnx_files, param, threads).items()}


def measure(
    calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int, limit: float | None = None
) -> Times:
    """Milliseconds of every call in every round. The calls take turns. A short call runs twice, and the second run is timed.

    calls: name -> call. If one returns an `Overhead`, it is noted beside the time.
    rounds: timed rounds.
    warmup: rounds before them.
    limit: seconds after which no further round begins, unless fewer than `LEAST` are done. After a quarter of it the warm-up ends.
        None: no limit.
    """
    times: Times = {name: [] for name in calls}
    took: dict[str, float] = {}
    begin, done = time.perf_counter(), 0

    def late(share: float) -> bool:
        return limit is not None and time.perf_counter() - begin > share * limit

    def one_round(update: Callable[[int, int, str | None], None], keep: bool) -> None:
        for name, call in calls.items():
            if took.get(name, 0.0) < LONG:
                call()  # threads of the call before may still spin, and the caches hold its data
            start = time.perf_counter()
            result = call()
            took[name] = time.perf_counter() - start
            if keep:
                times[name].append(took[name] * 1e3)
                if isinstance(result, Overhead):
                    times.setdefault(f"{name} overhead", []).append(result.share)
        update(done + 1, warmup + rounds, None)

    with progress_bar("measuring") as update:
        for _ in range(warmup):
            one_round(update, keep=False)
            done += 1
            if late(0.25):
                break
        for number in range(rounds):
            if number >= LEAST and late(1.0):
                break
            one_round(update, keep=True)
            done += 1
    return times


def own_figures(times: Times, label: str) -> dict[str, Any]:
    """Figures of a contender. first: encoder and generator. further: the generator alone, since the features are kept. picture: as
    `Upscaler.up`. overhead: the picture's share outside the model."""
    encoder, generator = times[f"{label} encoder"], times[f"{label} generator"]
    return {
        "encoder_ms": spread(encoder),
        "generator_ms": spread(generator),
        "first_sample_ms": spread(added(encoder, generator)),
        "further_sample_ms": spread(generator),
        "picture_ms": spread(times[f"{label} picture"]),
        "overhead": spread(times[f"{label} picture overhead"]),
    }


def ratios(times: Times, contenders: Sequence[Contender], peers: Sequence[str]) -> dict[str, float]:
    """Ratios of times, each the median over the rounds: every contender against fp32 on its own device, against its own precision on
    the first device, and against the peers."""
    first = {
        one.label: added(times[f"{one.label} encoder"], times[f"{one.label} generator"]) for one in contenders
    }
    labels = {(one.device, one.precision): one.label for one in contenders}
    result = {}
    for one in contenders:
        result[f"{one.label} further / first sample"] = ratio(
            times[f"{one.label} generator"], first[one.label]
        )
        for other in ((one.device, "fp32"), (contenders[0].device, one.precision)):
            if other in labels and other != (one.device, one.precision):
                result[f"{one.label} / {labels[other]}"] = ratio(first[one.label], first[labels[other]])
        for peer in peers:
            result[f"{one.label} / {peer}"] = ratio(first[one.label], times[peer])
    return result


def picture_ratios(
    times: Times, calls: Mapping[str, str], contenders: Sequence[Contender], peers: Sequence[str]
) -> dict[str, float]:
    """Ratios for whole pictures: every contender against fp32 on its own device and against the peers.

    times: of every call.
    calls: label -> name in times.
    contenders: ours.
    peers: names in times.
    """
    fp32 = {one.device: one.label for one in contenders if one.precision == "fp32"}
    result = {}
    for one in contenders:
        base = fp32.get(one.device, one.label)
        if base != one.label:
            result[f"{one.label} / {base}"] = ratio(times[calls[one.label]], times[calls[base]])
        for peer in peers:
            result[f"{one.label} / {peer}"] = ratio(times[calls[one.label]], times[peer])
    return result


def peak_memory(bundle: "Bundle", device: str, precision: str, threads: int, size: int) -> float | None:
    """Peak memory of a fresh process that loads the model and upscales one picture, in 10^6 bytes. None: the system does not tell.

    bundle: the model.
    device, precision: as of a `Contender`.
    threads: for the model.
    size: side of the picture in LR pixels.
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_memory_job, str(bundle.path), device, precision, threads, size).result()


def _memory_job(path: str, device: str, precision: str, threads: int, size: int) -> float | None:
    """`peak_memory` inside the fresh process. path: of the bundle. device, precision, threads, size: as there."""
    from gdposr.bench.machine import peak_memory_mb
    from runtime.upscale.upscaler import Upscaler

    with Upscaler(path, device=device, precision=precision, threads=threads, check=False) as upscaler:
        upscaler.up(test_picture(size))
    peak = peak_memory_mb()
    return None if peak is None else round(peak, 1)


def test_picture(size: int) -> "np.ndarray":
    """A picture of the given side, (size, size, 3) uint8: ramps with some grain, always the same."""
    import numpy as np

    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    grain = (np.arange(size * size, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(24)).reshape(
        size, size
    ) / 2048
    return np.rint(np.clip(np.stack([x, y, (x + y) / 2], axis=2) + grain[..., None], 0, 1) * 255).astype(
        np.uint8
    )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, milliseconds."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    )
    return {"median": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def added(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(first, second, strict=True)]


def ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(ours, other, strict=True)), 4)


def bound(run: Callable[["np.ndarray"], object], image: "np.ndarray") -> Callable[[], object]:
    return lambda: run(image)
