"""Damaged and malicious manifests: a bundle or a BundleError, and an upscaler that works or says why not.

The cases run in a process of their own whose memory is limited: what a manifest asks for must be refused, not tried. Thousands run
in the nightly form: make test PYTEST_ARGS=
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SECONDS = 5.0  # of processor time, for opening a bundle, its probe, and a picture of 5x7 pixels
CHILD = r"""
import copy, hashlib, json, random, resource, sys, time, warnings
from pathlib import Path

import numpy as np
from PIL import Image
from mutations import EDGES, damage
from runtime.bundle.reader import Bundle
from runtime.errors import BundleError, GdposrError
from runtime.upscale.upscaler import Upscaler

kind, first, count, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
warnings.simplefilter("ignore")
path = folder / "manifest.json"
whole = path.read_bytes()
plain = json.loads(whole)
ODD = (None, True, False, 0, -1, 1, 2, 3, 5, 7, 64, 1023, 1024, 0.5, -0.0, 1.5, 1e-300, 1e18, 2**63, 2**64, 10**40, "", "x",
       "fp32", "int8", "../x", "/", "con", "a" * 300, "\x00", "\x1b[2J", "\ud800", "\u202e", "写真", [], {}, [[]], [0, 1], [None],
       {"": 0}, {"x": {}}, [1.0, 0.0], "manifest.json", "probe.png", *EDGES)


def places(value):
    # every (container, key) of the JSON
    keys = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in keys:
        yield value, key
        if isinstance(part, dict | list):
            yield from places(part)


def changed(draw):
    data = copy.deepcopy(plain)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        found = list(places(data))
        if not found:
            break
        box, key = draw.choice(found)
        what = draw.randrange(8)
        if what < 3:
            box[key] = copy.deepcopy(draw.choice(ODD))
        elif what == 3:
            del box[key]
        elif what == 4 and isinstance(box, dict):
            box[draw.choice(("x", "", "data", "fp16", "w4", "coreml", "budgets", "range", "decoder", "k" * 300))] = draw.choice(ODD)
        elif what == 5:
            other, name = draw.choice(found)
            box[key] = copy.deepcopy(other[name])
        elif what == 6 and isinstance(box[key], int | float) and not isinstance(box[key], bool):
            box[key] = draw.choice((-box[key], box[key] + 1, box[key] - 1, box[key] * 2, box[key] / 2, float(box[key]), str(box[key])))
        else:
            for _ in range(draw.choice((1, 2, 40, 2000))):
                box[key] = [box[key]] if draw.random() < 0.5 else {"x": box[key]}
            return deep_text(data)
    return json.dumps(data).encode("utf-8", "surrogatepass")


def deep_text(data):
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # of the writer alone
    try:
        return json.dumps(data).encode()
    finally:
        sys.setrecursionlimit(limit)


def case(draw):
    # the manifest of this case; for "probe", the toy's own one over a damaged picture whose hash is right
    if kind == "bytes":
        return damage(whole, draw, [whole, b'{"a": [1e999, NaN, -1]}' * 20])
    if kind == "values":
        return changed(draw)
    data = copy.deepcopy(plain)
    entry = data["probe"][draw.choice(("input", "output"))]
    content = damage(pictures[entry["file"]], draw, list(pictures.values()))
    (folder / entry["file"]).write_bytes(content)
    entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    return json.dumps(data).encode()


pictures = {name: (folder / name).read_bytes() for name in ("probe.png", "probe_expected.png")}
image = (np.arange(105) * 2).astype(np.uint8).reshape(5, 7, 3)
Upscaler(folder, device="cpu", threads=1).up(image)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (4096 << 20),) * 2)
opened, worked, slowest = 0, 0, 0.0
for number in range(first, first + count):
    print(number, file=sys.stderr, flush=True)
    content = case(random.Random(number))
    path.write_bytes(content)
    start = time.process_time()
    try:
        bundle = Bundle.open(folder)
    except BundleError as error:
        assert len(str(error)) < 3000
        str(error).encode()  # can be printed
    else:
        opened += 1
        json.dumps(bundle.manifest.to_dict(), allow_nan=False).encode()
        try:
            with Upscaler(bundle, device="cpu", threads=1) as upscaler:
                (result,) = upscaler.up(image)
            assert result.dtype == np.uint8 and result.ndim == 3
            worked += 1
        except GdposrError as error:
            str(error).encode()
    slowest = max(slowest, time.process_time() - start)
    for name, content in pictures.items():
        if kind == "probe":
            (folder / name).write_bytes(content)
print(json.dumps({"opened": opened, "worked": worked, "slowest": slowest}))
"""
LINUX = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="needs Linux, where memory can be limited"
)


@pytest.fixture
def fuzz(run_python: Callable, root: Path, toy_copy: Path) -> Callable[..., dict[str, Any]]:
    """fuzz(kind, first, count): the report of a child process over these cases."""

    def run(kind: str, first: int, count: int) -> dict[str, Any]:
        environment = {"PATH": "", "PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1"}
        try:
            result = run_python(
                "-c", CHILD, kind, first, count, toy_copy, env=environment, timeout=100 + count / 5
            )
        except subprocess.TimeoutExpired as error:
            last = (error.stderr or b"").decode().strip().splitlines()[-1:]
            pytest.fail(f"a case hangs: {kind} {last}")
        assert result.returncode == 0, f"exit {result.returncode} after ...{result.stderr[-3000:]}"
        report = json.loads(result.stdout.splitlines()[-1])
        assert report["slowest"] < SECONDS, report
        return report

    return run


@LINUX
def test_changed_values(fuzz: Callable) -> None:
    report = fuzz("values", 0, 600)
    assert (
        10 < report["worked"] < report["opened"] < 400
    )  # some are harmless, some are noticed only by the graphs


@LINUX
def test_changed_bytes(fuzz: Callable) -> None:
    assert 0 < fuzz("bytes", 0, 300)["opened"] < 200


@LINUX
def test_damaged_probe_pictures_with_the_right_hash(fuzz: Callable) -> None:
    report = fuzz("probe", 0, 150)
    assert report["opened"] == 150
    assert 0 < report["worked"] < 150


@LINUX
@pytest.mark.nightly
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("kind", ["values", "bytes", "probe"])
def test_thousands(fuzz: Callable, kind: str, part: int) -> None:
    assert fuzz(kind, 1000 + 1000 * part, 1000)["opened"] > 0
