"""Load on the server for apps, for a bounded time on this machine: `make bench-server`.

Clients of seven kinds at once: steady ones, slow senders, slow readers, ones that disconnect while they send and while they wait,
senders of bombs, and ones that speak no HTTP. Counts the answers, compares every picture with the command's, and watches the server's
memory. Nothing may crash, differ or stay behind. Times mean nothing here, since clients and server share the processors.
"""

import argparse
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gdposr.cli import main as gdposr
from gdposr.console import FAILED, OK, table, whole_number
from tools.load_clients import MAX_BYTES, Load, bombs, clients, connected, work

# Sides of the photos, and the query of each.
PHOTOS = (
    (48, 64, "seed=3"),
    (80, 60, "seed=1&format=jpeg"),
    (96, 96, "seed=0&format=webp"),
    (64, 48, "seed=5&scale=2"),
)
# The same queries as options of the command, and the suffixes of its pictures.
OPTIONS = ("--seed 3", "--seed 1", "--seed 0", "--seed 5 --scale 2")
SUFFIXES = (".png", ".jpg", ".webp", ".png")
# Bytes of memory by which the server may grow from the second to the last third of the time.
GROWTH = 24 << 20
# Seconds between readings of the server's memory.
PERIOD = 0.25


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def make_photos(folder: Path, bundle: str) -> list[tuple[bytes, str, bytes]]:
    """Photos of noise and waves, with the command's pictures of them."""
    rng, found = np.random.default_rng(0), []
    for number, (height, width, query) in enumerate(PHOTOS):
        waves = 128 + 60 * np.sin(np.arange(width) / (3 + number))[None, :, None]
        pixels = np.clip(waves + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
        photo, out = folder / f"{number}.png", folder / f"{number}_large{SUFFIXES[number]}"
        Image.fromarray(pixels).save(photo)
        with contextlib.redirect_stderr(io.StringIO()) as told:
            code = gdposr(
                ["upscale", str(photo), "-o", str(out), "--bundle", bundle, *OPTIONS[number].split()]
            )
        if code != OK:
            raise RuntimeError(f"gdposr upscale ended with {code}: {told.getvalue()}")
        found.append((photo.read_bytes(), query, out.read_bytes()))
    return found


@contextlib.contextmanager
def server(folder: Path, bundle: str, workers: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command in a process of its own, and its port. folder: for its files."""
    options = (
        f"--api --port 0 --max-bytes {MAX_BYTES} --max-pixels 0.1 --timeout 60 --workers {workers}".split()
    )
    with open(folder / "stderr", "wb") as told:  # a pipe would have to be read all the time
        process = subprocess.Popen(
            [sys.executable, "-m", "gdposr", "serve", *options, "--bundle", bundle],
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
            env={**os.environ, "TMPDIR": str(folder)},
        )
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline().rstrip("/\n").rsplit(":", 1)[1])
    finally:
        process.kill()
        process.wait()


def watch_memory(pid: int, threads: list[threading.Thread], begin: float) -> list[tuple[float, int]]:
    """(second, bytes of memory) of the server until all clients are done.

    pid: of the server. threads: of the clients. begin: second 0, in seconds of time.monotonic.
    """
    samples = []
    while any(thread.is_alive() for thread in threads):
        with contextlib.suppress(OSError):
            samples.append((time.monotonic() - begin, resident(pid)))
        time.sleep(PERIOD)
    return samples


def in_sixths(samples: list[tuple[float, int]], seconds: float) -> list[int]:
    """The most bytes in each sixth of the time. Later samples count to the last sixth."""
    peaks = [0] * 6
    for at, memory in samples:
        sixth = min(5, int(6 * at / seconds))
        peaks[sixth] = max(peaks[sixth], memory)
    return peaks


def check_at_rest(load: Load, folder: Path) -> None:
    """Record a fault unless the server is idle and its folder empty soon after the clients have gone."""
    for _ in range(100):
        with contextlib.closing(connected(load)) as line:
            line.request("GET", "/healthz")
            health = line.getresponse().read().decode()
        left = list(folder.glob("gdposr-api-*/*"))
        if '"waiting":0,"at_work":0' in health and not left:
            return
        time.sleep(0.1)
    load.fault(f"not at rest 10 s after the last client: {health}, {len(left)} folders of requests")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.server_load", description=__doc__)
    parser.add_argument("--bundle", default="runtime/bundles/pocket.gdposr", help="the model")
    parser.add_argument("--seconds", type=whole_number(1, 600), default=60, help="of load (default: 60)")
    parser.add_argument("--clients", type=whole_number(1, 200), default=32, help="at once (default: 32)")
    parser.add_argument("--workers", type=whole_number(1, 64), default=1, help="of the server (default: 1)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="gdposr-load-") as name:
        folder, files = Path(name), bombs()
        photos = make_photos(folder, args.bundle)
        with server(folder, args.bundle, args.workers) as (process, port):
            idle, begin = resident(process.pid), time.monotonic()
            load = Load(port, photos, begin + args.seconds)
            threads = [
                threading.Thread(target=work, args=(load, kind, seed, files))
                for seed, kind in enumerate(clients(args.clients))
            ]
            for thread in threads:
                thread.start()
            samples = watch_memory(process.pid, threads, begin)
            if process.poll() is None:
                check_at_rest(load, folder)
                after = resident(process.pid)
                process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            errors = (folder / "stderr").read_text()
            if process.returncode != OK or "Traceback" in errors or "fault at" in errors:
                load.fault(f"the server ended with {process.returncode}: {errors[-2000:]}")
                after = 0
        peaks = in_sixths(samples, args.seconds)
        if max(peaks[4:]) > max(peaks[2:4]) + GROWTH:
            load.fault("memory grows")
    print(table([("answers", "count"), *((name, str(load.counts[name])) for name in sorted(load.counts))]))
    shown = ", ".join(f"{peak / 1e6:.0f}" for peak in peaks)
    print(
        f"MB of memory of the server: {idle / 1e6:.0f} idle; most in each sixth of the time {shown}; {after / 1e6:.0f} after it"
    )
    for text in load.faults[:20]:
        print(f"fault: {text}")
    print(f"{sum(load.counts.values())} requests, {len(load.faults)} faults")
    return FAILED if load.faults else OK


if __name__ == "__main__":
    sys.exit(main())
