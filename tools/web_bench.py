"""`make bench-web`: milliseconds of one picture in headless Chromium, on one and two threads of WebAssembly.

Beside it, in the same run: Python on as many threads; UpscalerJS with its models esrgan-slim and esrgan-medium, from npm; and
realesr-general-x4v3 in the page's own engine, from its ncnn files. UpscalerJS runs on TensorFlow.js, in WebAssembly too.
"""

import argparse
import io
import itertools
import json
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

from gdposr.console import FAILED, OK, say, table
from tools.web_peers import PACKAGES, npm_files, peer_onnx

PRECISIONS: Final = ("int8", "fp32")
THREADS: Final = (1, 2)
FLAGS: Final = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage",
)  # fmt: skip
UPSCALERJS: Final = """
const [model, rounds] = arguments, done = (answer) => (globalThis.answer = answer);
(async () => {
  const wasm = tf.setWasmPaths ? tf : tf.wasm; // where the script puts its names
  wasm.setWasmPaths(new URL("npm/", location.href).href);
  wasm.setThreadsCount(2);
  await tf.setBackend("wasm");
  const definition = { ...globalThis[model], path: new URL(`npm/${model}/model.json`, location.href).href };
  const upscaler = new Upscaler({ model: definition });
  const photo = await createImageBitmap(await (await fetch("photo.png")).blob());
  const times = [];
  for (let round = -1; round < rounds; round++) {
    const image = tf.browser.fromPixels(photo), start = performance.now();
    const output = await upscaler.execute(image, { output: "tensor" });
    await output.data();
    if (round >= 0) times.push(performance.now() - start);
    image.dispose();
    output.dispose();
  }
  return { times, backend: tf.getBackend(), threads: wasm.getThreadsCount() };
})().then(done, (error) => done({ failed: String(error.stack || error) }));
"""
OURS: Final = """
const [message] = arguments, done = (answer) => (globalThis.answer = answer);
const worker = new Worker("worker.js", { type: "module" });
worker.onmessage = ({ data }) => { worker.terminate(); done(data); };
worker.onerror = (event) => done({ failed: event.message });
worker.postMessage(message);
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.web_bench", description=__doc__)
    parser.add_argument("--bundle", type=Path, help="a bundle folder or zip (default: the built-in one)")
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
    print(f"{args.side}x{args.side} pixels, median of {args.rounds}")
    print(table([("", "threads", "ms"), *((name, str(threads), f"{ms:.0f}") for name, threads, ms in rows)]))
    return OK


def _photo(side: int) -> np.ndarray:
    """(side, side, 3) uint8: an open photograph of scikit-image, reduced."""
    from skimage import data

    image = Image.fromarray(data.astronaut())
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


def _in_python(args: argparse.Namespace, photo: np.ndarray) -> Iterator[tuple[str, int, float]]:
    from runtime.upscale.upscaler import Upscaler

    for threads in THREADS:
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
    files |= {f"bench/{name}": (folder / name).read_bytes() for name in ("index.html", "worker.js")}
    content = io.BytesIO()
    Image.fromarray(photo).save(content, "PNG")
    files["bench/photo.png"] = content.getvalue()
    if args.peer_ncnn is not None:
        files["bench/peer.onnx"] = peer_onnx(args.peer_ncnn, args.side)
    if not args.without_npm:
        files |= {f"bench/npm/{name}": content for name, content in npm_files(args.npm).items()}
    with _chromium(files) as (driver, url):
        for threads in THREADS:
            driver.get(f"{url}bench/index.html")
            peer = None if args.peer_ncnn is None else "peer.onnx"
            message = {"threads": threads, "precisions": PRECISIONS, "peer": peer, "rounds": args.rounds}
            for name, times in _answer(driver, OURS, message).items():
                yield f"Chromium, {name}", threads, statistics.median(times)
        for model, name in () if args.without_npm else PACKAGES:
            driver.get(f"{url}bench/index.html")
            found = _answer(driver, UPSCALERJS, model, args.rounds)
            yield (
                f"Chromium, UpscalerJS {name} ({found['backend']})",
                found["threads"],
                statistics.median(found["times"]),
            )


def _answer(driver: Any, code: str, *arguments: Any) -> Any:
    """What the code leaves in `answer`. Asked for again and again, since a single call to the driver may take two minutes at most."""
    driver.execute_script("globalThis.answer = null;" + code, *arguments)
    while (answer := driver.execute_script("return globalThis.answer")) is None:
        time.sleep(0.5)
    if "failed" in answer:
        raise RuntimeError(f"the browser failed: {json.dumps(answer['failed'])}")
    return answer


@contextmanager
def _chromium(files: dict[str, bytes]) -> Iterator[tuple[Any, str]]:
    """A driver of headless Chromium, and the address of a server of these files."""
    from selenium import webdriver

    from gdposr.web.server import PageServer

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory() as profile, PageServer(files, 0) as server:
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
