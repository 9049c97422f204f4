"""`gdposr upscale --ray` beside the plain command on the same processors, in one run: `make bench-fleet`.

Both enlarge thumbnails in turn: measured are photos per second from the first to the last, and the seconds before the first, in which
the command starts and loads. Then one large photo among thumbnails: the most memory of a worker and of the plain command. Outputs are
compared. The ratio shows the cost of Ray; the photos per second hold for this machine only.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gdposr.console import FAILED, OK, table, whole_number
from gdposr.fleet.report import REPORT

# By default Ray gives its workers a low priority, which the plain command does not have.
ENVIRONMENT = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
# Seconds between readings of memory.
PERIOD = 0.1
# Rows of a large photo that are made at once.
BAND = 500


@dataclass
class Run:
    """One run of the command."""

    start: float
    """Seconds to its first photo."""
    rate: float
    """Photos a second from the first to the last."""
    memory: int
    """The most bytes of memory of one process that enlarges."""


def make_photos(folder: Path, count: int, side: int, megapixels: float = 0.0) -> None:
    """Thumbnails of noise and waves as JPEG, and one large photo among them.

    folder: that is created for them.
    count: of thumbnails.
    side: of a thumbnail in pixels.
    megapixels: of the large photo; 0: there is none.
    """
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        _picture(rng, side, side, number).save(folder / f"{number:05d}.jpg", quality=90)
    if megapixels:
        width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
        height = round(megapixels * 1e6 / width)
        large = Image.new("RGB", (width, height))
        for top in range(0, height, BAND):
            large.paste(_picture(rng, min(BAND, height - top), width, top), (0, top))
        large.save(folder / f"{count // 2:05d}_large.jpg", quality=90)


def _picture(rng: np.random.Generator, height: int, width: int, phase: int) -> Image.Image:
    """A picture of waves and noise. rng: of the noise. height, width: in pixels. phase: shift of the waves in pixels."""
    waves = 128 + 60 * np.sin((np.arange(width) + phase) / 7)[None, :, None]
    pixels = waves + rng.normal(0, 12, (height, width, 3)).astype(np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def peak(pid: int) -> int:
    """The most bytes of memory that a process has held. 0 if it has ended."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def ray_workers() -> list[int]:
    """Ray's worker processes on this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(entry.name))
    return found


def timed(words: Sequence[str], by_ray: bool) -> Run:
    """Run the command, and watch its lines and its memory. RuntimeError if it fails."""
    begin, at, most = time.monotonic(), [], 0
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "gdposr", "upscale", *words, "--json-lines"],
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
        done = threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.wait(PERIOD):
                most = max(most, *(peak(pid) for pid in (ray_workers() if by_ray else [process.pid])), 0)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if json.loads(line)["type"] == "file":
                    at.append(time.monotonic() - begin)
            code = process.wait()
        finally:
            done.set()
            watcher.join()
        if code != OK:
            told.seek(0)
            raise RuntimeError(f"gdposr upscale {' '.join(words)} ended with {code}: {told.read()[-2000:]}")
    return Run(at[0], (len(at) - 1) / (at[-1] - at[0]), most)


@contextlib.contextmanager
def ray_cluster(processors: int) -> Iterator[str]:
    """The address of a Ray with so many workers on this machine."""
    os.environ.update(ENVIRONMENT)
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": processors, "include_dashboard": False}
    )
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def differing(one: Path, other: Path) -> list[str]:
    """The pictures that differ between two folders or are only in one."""
    first, second = (
        {path.name: path.read_bytes() for path in folder.glob("*.png")} for folder in (one, other)
    )
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def main(argv: Sequence[str] | None = None) -> int:
    from runtime.backends.devices import usable_processors

    parser = argparse.ArgumentParser(prog="python -m tools.fleet_bench", description=__doc__)
    parser.add_argument("--bundle", default="runtime/bundles/pocket.gdposr", help="the model")
    parser.add_argument("--photos", type=whole_number(8), default=200, help="thumbnails (default: 200)")
    parser.add_argument("--side", type=whole_number(16), default=128, help="of a thumbnail (default: 128)")
    parser.add_argument("--rounds", type=whole_number(1), default=3, help="of both in turn (default: 3)")
    parser.add_argument("--large", type=float, default=100, help="megapixels of the one among them; 0: none")
    parser.add_argument("--processors", type=whole_number(1), default=usable_processors())
    args = parser.parse_args(argv)
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gdposr-fleet-") as name, ray_cluster(args.processors) as address:
        folder = Path(name)
        common = ["--bundle", args.bundle]
        ways = {"plain": ["--threads", str(args.processors)], "ray": ["--ray", address]}

        # both ways on the same photos, with the same bytes as the result
        def both(photos: Path, *more: str) -> dict[str, Run]:
            runs = {}
            for way, words in ways.items():
                out = folder / f"{photos.name}-{way}"
                runs[way] = timed([str(photos), "-o", str(out), *common, *words, *more], way == "ray")
            if different := differing(*(folder / f"{photos.name}-{way}" for way in ways)):
                faults.append(f"{len(different)} pictures differ, such as {different[0]}")
            return runs

        # speed: thumbnails, several rounds
        make_photos(folder / "small", args.photos, args.side)
        rounds = [both(folder / "small") for _ in range(args.rounds)]
        rows: list[tuple[str, ...]] = [("way", "start, s", "photos/s", "MB")]
        for way in ways:
            runs = [both_ways[way] for both_ways in rounds]
            rows.append(
                (
                    way,
                    f"{statistics.median(run.start for run in runs):.1f}",
                    f"{statistics.median(run.rate for run in runs):.2f}",
                    f"{max(run.memory for run in runs) / 1e6:.0f}",
                )
            )
        print(
            f"{args.photos} photos of {args.side}x{args.side} on {args.processors} processors, median of {args.rounds}"
        )
        print(table(rows))
        ratios = sorted(both_ways["ray"].rate / both_ways["plain"].rate for both_ways in rounds)
        print(f"ray/plain, photos a second: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
        # report: the cluster's run wrote one
        report = folder / "small-ray" / REPORT
        if not report.is_file():
            faults.append("no report")
        # memory: one large photo among small ones
        if args.large:
            make_photos(folder / "mixed", 20, args.side, args.large)
            mixed = both(folder / "mixed", "--scale", "1")
            told = ", ".join(f"{way} {run.memory / 1e6:.0f} MB" for way, run in mixed.items())
            print(f"one photo of {args.large:g} megapixels among 20, most memory of a process: {told}")
    # verdict
    for fault in faults:
        print(f"fault: {fault}")
    print(f"{len(faults)} faults")
    return FAILED if faults else OK


if __name__ == "__main__":
    sys.exit(main())
