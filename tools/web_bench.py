"""`make bench-web`: milliseconds of one picture in headless Chromium, on one and two threads of WebAssembly.

Beside it, in the same run: Python on as many threads; UpscalerJS with its models esrgan-slim and esrgan-medium, from npm; and
realesr-general-x4v3 in the page's own engine, from its ncnn files. UpscalerJS runs on TensorFlow.js, in WebAssembly too.
"""

import argparse
import io
import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from gdposr.console import FAILED, OK, add_bundle, say, table
from tools.web_peers import UPSCALERS, npm_files, peer_onnx

# Precisions of our model that are timed.
PRECISIONS: Final = ("int8", "fp32")
# Chromium's options: without a window, without services that would take time beside the model.
FLAGS: Final = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage",
)  # fmt: skip
# TensorFlow.js runs code from strings and starts its threads from blobs, which the page's own policy forbids.
POLICY: Final = (
    "default-src 'self' data: blob:; script-src 'self' blob: 'unsafe-eval'; worker-src 'self' blob:"
)
# Command of Chromium's protocol that sets how many processors a page sees.
CORES: Final = "Emulation.setHardwareConcurrencyOverride"
# Script that starts tools/web/bench.js; the result appears in `answer`.
BENCH: Final = """
globalThis.answer = null;
import(new URL("bench.js", location.href).href)
  .then(({ bench }) => bench(arguments[0]))
  .then((times) => (globalThis.answer = { times }), (error) => (globalThis.answer = { failed: String(error.stack || error) }));
"""
# The row that the others are compared with.
REFERENCE: Final = "Chromium, gdposr int8"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.web_bench", description=__doc__)
    add_bundle(parser, "--bundle")
    parser.add_argument(
        "--peer-ncnn", type=Path, help="realesr-general-x4v3's .param file, with its .bin beside it"
    )
    parser.add_argument(
        "--npm",
        type=Path,
        default=Path("build/npm"),
        help="where the packages of npm go (default: build/npm)",
    )
    parser.add_argument(
        "--without-npm", action="store_true", help="leave out UpscalerJS, which needs npm and a connection"
    )
    parser.add_argument("--side", type=int, default=128, help="side of the picture in pixels (default: 128)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="timed runs of each (default: 5, the median counts)"
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=(1, 2), help="numbers of threads (default: 1 2)"
    )
    args = parser.parse_args(argv)
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        say(f"needs {' and '.join(missing)}: make setup-web")
        return FAILED
    photo = _photo(args.side)
    rows = []
    for row in itertools.chain(_in_python(args, photo), _in_browser(args, photo)):
        say(f"{row[0]}, {row[1]} threads: {row[2]:.0f} ms")
        rows.append(row)
    print(
        f"{args.side}x{args.side} pixels, median of {args.rounds}; ratio: to {REFERENCE} on as many threads"
    )
    print(table([("", "threads", "ms", "ratio"), *_with_ratios(rows)]))
    return OK


def _with_ratios(rows: Sequence[tuple[str, int, float]]) -> Iterator[tuple[str, str, str, str]]:
    ours = {threads: ms for name, threads, ms in rows if name == REFERENCE}
    for name, threads, ms in rows:
        yield name, str(threads), f"{ms:.0f}", f"{ms / ours[threads]:.2f}"


def _photo(side: int) -> np.ndarray:
    """(side, side, 3) uint8: an open photograph of scikit-image, reduced."""
    from skimage import data

    image = Image.fromarray(data.astronaut())
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


def _in_python(args: argparse.Namespace, photo: np.ndarray) -> Iterator[tuple[str, int, float]]:
    from runtime.upscale.upscaler import Upscaler

    for threads in args.threads:
        for precision in PRECISIONS:
            with Upscaler(args.bundle, device="cpu", precision=precision, threads=threads) as upscaler:
                times = []
                for _ in range(args.rounds + 1):
                    start = time.perf_counter()
                    upscaler.up(photo)
                    times.append(1000 * (time.perf_counter() - start))
            yield f"Python, gdposr {precision}", threads, statistics.median(times[1:])


def _in_browser(args: argparse.Namespace, photo: np.ndarray) -> Iterator[tuple[str, int, float]]:
    from gdposr.web.site import site_files
    from runtime.bundle.reader import Bundle

    folder = Path(__file__).parent / "web"
    files = site_files(Bundle.open(args.bundle))
    files |= {
        f"bench/{name}": (folder / name).read_bytes() for name in ("index.html", "bench.js", "worker.js")
    }
    content = io.BytesIO()
    Image.fromarray(photo).save(content, "PNG")
    files["bench/photo.png"] = content.getvalue()
    if args.peer_ncnn is not None:
        files["bench/peer.onnx"] = peer_onnx(args.peer_ncnn, args.side)
    if not args.without_npm:
        files |= {f"bench/npm/{name}": content for name, content in npm_files(args.npm).items()}
    wish = {
        "precisions": PRECISIONS,
        "peer": None if args.peer_ncnn is None else "peer.onnx",
        "upscalers": [] if args.without_npm else UPSCALERS,
        "rounds": args.rounds,
    }
    with _chromium(files) as (driver, url):
        for threads in args.threads:
            # TensorFlow.js takes at most half of the cores that it sees
            driver.execute_cdp_cmd(CORES, {"hardwareConcurrency": 2 * threads})
            driver.get(f"{url}bench/index.html")
            for name, times in _answer(driver, wish | {"threads": threads}):
                yield f"Chromium, {name}", threads, statistics.median(times)


def _answer(driver: Any, wish: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """Names with their milliseconds. The driver is polled, since one call to it may take two minutes at most."""
    driver.execute_script(BENCH, wish)
    while (answer := driver.execute_script("return globalThis.answer")) is None:
        time.sleep(0.5)
    if "failed" in answer:
        console = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        raise RuntimeError("\n".join(("the browser failed: " + answer["failed"], *console)))
    return answer["times"]


@contextmanager
def _chromium(files: dict[str, bytes]) -> Iterator[tuple[Any, str]]:
    """A driver of headless Chromium, and the address of a server of these files."""
    from selenium import webdriver

    from gdposr.web.server import HEADERS, PageServer

    headers = HEADERS | {"Content-Security-Policy": POLICY}
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory() as profile, PageServer(files, 0, headers) as server:
        for flag in (*FLAGS, f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            yield driver, server.url
        finally:
            driver.quit()
            server.shutdown()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, subprocess.CalledProcessError) as error:
        say(f"error: {error}")
        sys.exit(FAILED)
