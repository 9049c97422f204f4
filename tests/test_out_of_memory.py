"""Where a device runs out of memory: tiles are halved, the work goes on, not a byte changes, and the user is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upscaling import Pixels, altered, assert_same

from runtime.backends.onnx import OnnxBackend
from runtime.bundle.manifest import COLOR_FIXES
from runtime.bundle.reader import Bundle
from runtime.errors import DeviceError, OutOfMemory
from runtime.upscale import upscaler as module
from runtime.upscale.upscaler import Upscaler


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


class Limited(OnnxBackend):
    """The toy, with memory for so many pixels a call. failures: how many calls were refused."""

    room = 10**9
    kind: Callable[[str], Exception] = OutOfMemory
    failures = 0
    after = 0  # calls that succeed whatever their size

    def encode(self, image: np.ndarray) -> dict[str, Any]:
        kind = type(self)
        kind.after -= 1
        if kind.after < 0 and image.shape[2] * image.shape[3] > kind.room:
            kind.failures += 1
            raise kind.kind("Failed to allocate memory")
        return super().encode(image)


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> type[Limited]:
    """A device of its own for each test, in place of the real one."""

    class Device(Limited):
        pass

    monkeypatch.setattr(module, "open_backend", Device)
    return Device


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("kind", [OutOfMemory, MemoryError])
@pytest.mark.parametrize("fix", COLOR_FIXES)
def test_tiles_are_halved_until_they_fit(
    bundle: Bundle, limited: type[Limited], make_pixels: Pixels, threads: int, kind: Any, fix: str
) -> None:
    image = make_pixels(100, 120)
    usual = Upscaler(bundle, color_fix=fix).up(image, seed=4, samples=2)
    limited.room, limited.kind = 24 * 24, kind  # cores of 12 at most
    notes: list[str] = []
    upscaler = Upscaler(bundle, tile=64, threads=threads, color_fix=fix, check=False, notify=notes.append)
    seen: list[tuple[int, int]] = []
    results = upscaler.up(image, seed=4, samples=2, progress=lambda *v: seen.append(v))
    for a, b in zip(results, usual, strict=True):
        assert_same(a, b)
    assert [note.split("tiles of ")[-1].split(",")[0] for note in notes] == ["32", "16", "8"]
    assert "out of memory with tiles of 64 pixels" in notes[0]
    assert tuple(notes) == upscaler.notes
    assert seen[-1][0] == seen[-1][1]
    before = limited.failures
    assert_same(upscaler.up(image, seed=4)[0], usual[0])
    assert limited.failures == before, "the next picture begins with tiles that fit"
    assert len(notes) == 3


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fix", ["none", "wavelet"])
def test_rows_already_done_stay(
    bundle: Bundle, limited: type[Limited], make_pixels: Pixels, threads: int, fix: str
) -> None:
    """Memory runs out in the middle of the picture, as when another program takes it."""
    image = make_pixels(128, 60)
    usual = Upscaler(bundle, color_fix=fix).up(image)[0]
    limited.room, limited.after = 30 * 30, 5
    upscaler = Upscaler(bundle, tile=32, threads=threads, color_fix=fix, check=False)
    done: list[int] = []
    strips = upscaler.strips(image, progress=lambda n, _: done.append(n))
    assert_same(strips.array(), usual)
    rows = 128 // 16 * 4  # of tiles of 16, had all been so
    assert len(done) < rows, "the first rows were not computed again"
    assert limited.failures >= 1


def test_features_are_let_go(bundle: Bundle, limited: type[Limited], make_pixels: Pixels) -> None:
    image = make_pixels(64, 64)
    usual = Upscaler(bundle).up(image, samples=3)
    upscaler = Upscaler(bundle, tile=32, threads=1, check=False)
    picture = upscaler.picture(image, samples=3)
    assert picture.prepare(whole=True).keep
    assert_same(picture.sample(0), usual[0])
    limited.room = 20 * 20  # nothing is encoded again as long as the features are there
    assert_same(picture.sample(1), usual[1])
    assert limited.failures == 0
    upscaler.tile = 16
    other = upscaler.picture(image, samples=3)
    for k in range(3):
        assert_same(other.sample(k), usual[k])
    assert limited.failures == 1
    assert not other.prepare(whole=True).keep


def test_no_memory_at_all_is_an_error(bundle: Bundle, limited: type[Limited], make_pixels: Pixels) -> None:
    for kind in (OutOfMemory, MemoryError):
        limited.room, limited.kind = 0, kind
        with pytest.raises(OutOfMemory):
            Upscaler(bundle, tile=32, check=False).up(make_pixels(40, 40))
    assert issubclass(OutOfMemory, DeviceError)


def test_blended_tiles_begin_the_sample_again(
    toy_copy: Path, limited: type[Limited], make_pixels: Pixels
) -> None:
    """Where tiles are blended, large and small ones do not mix in one picture."""
    bundle = altered(toy_copy, context=2, overlap=8)
    image = make_pixels(120, 70)
    small = Upscaler(bundle, tile=16, check=False).up(image)[0]
    limited.room, limited.after = 24 * 24, 5
    upscaler = Upscaler(bundle, tile=32, check=False)
    assert_same(upscaler.up(image)[0], small)
    limited.after = 5
    bands = Upscaler(bundle, tile=32, check=False).strips(image).bands
    with pytest.raises(OutOfMemory, match="take the sample again"):
        list(bands)
    again = Upscaler(bundle, tile=32, check=False)
    limited.after = 0
    assert_same(again.strips(image).array(), small)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 1"),
        RuntimeError("bad allocation"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA failure 2: out of memory ; GPU=0"),
        RuntimeError("cudaErrorMemoryAllocation"),
        MemoryError(),
    ],
)  # fmt: skip
def test_what_the_backend_calls_out_of_memory(bundle: Bundle, error: Exception) -> None:
    class Session:
        def run(self, *_: Any) -> None:
            raise error

    backend = OnnxBackend(bundle, "cpu", "fp32", 1)
    backend._encoder = Session()
    with pytest.raises(OutOfMemory, match="smaller tile"):
        backend.encode(np.zeros((1, 3, 8, 8), np.float32))
    error.args = ("the shapes do not match",)
    if not isinstance(error, MemoryError):
        with pytest.raises(DeviceError) as caught:
            backend.encode(np.zeros((1, 3, 8, 8), np.float32))
        assert not isinstance(caught.value, OutOfMemory)
