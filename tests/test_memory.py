"""Memory: sizes as text, tiles that fit a limit, and the peak of a large photo."""

import dataclasses
import sys
from argparse import ArgumentTypeError
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from upscaling import Pixels, assert_same

from gdposr.console import memory_size
from runtime.bundle.manifest import COLOR_FIXES, SizeRule
from runtime.bundle.reader import Bundle
from runtime.errors import SettingError
from runtime.upscale.memory import Costs, Demand, choose, features, peak
from runtime.upscale.tiling import least_tile
from runtime.upscale.upscaler import Upscaler

RULE = SizeRule(multiple_of=2, minimum=16, tile=256, context=26)
# Megabytes that suffice for a photo of 400x600 pixels. Python takes more from 3.13 on.
LEAST = 130 if sys.version_info >= (3, 13) else 120
COSTS = Costs(weights=1_000_000, pixel=2500, kept=272)


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1), ("4096", 4096), ("900M", 900 << 20), ("1.5G", 3 << 29), ("2 GiB", 2 << 30), ("512kb", 512 << 10),
        (" .5 t ", 1 << 39), ("7B", 7), ("3.G", 3 << 30),
    ],
)  # fmt: skip
def test_sizes_as_text(text: str, size: int) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1G", "1,5G", "1.5X", "1GG", "0", "0.0001K", "1e9", "nan", "inf", "1iB", "."]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="expected a number with K, M or G"):
        memory_size(text)


def plan(limit: int | None, demand: Demand | None = None, **options: Any) -> Any:
    demand = Demand((1000, 1500), 5_000_000, 72_000, 2) if demand is None else demand
    wish: dict[str, Any] = {"tile": None, "lanes": 2, "largest": None, "further": False, **options}
    return choose(demand, COSTS, RULE, limit=limit, **wish)


def test_the_callers_tile_is_kept() -> None:
    assert plan(None, tile=256).tile == (256, 256)
    assert plan(None, tile=31).tile == (32, 32)
    assert plan(None, tile=256).lanes == 2
    assert plan(None, tile=256, lanes=64).lanes == 4, "calls at once stay within their budget"
    wide = plan(None, Demand((1000, 1500), 0, 1 << 20, 2), tile=256)
    assert wide.tile == (64, 256), "strips stay within theirs"


def test_the_fastest_tiles_of_a_picture() -> None:
    """Large, of one size, as many as there are lanes, and within the budgets."""
    assert plan(None) == plan(None, lanes=2)
    assert (plan(None).tile, plan(None).lanes) == ((500, 300), 2)
    assert plan(None, lanes=1).tile == (500, 500)
    assert plan(None, lanes=64).lanes == 1, "64 calls at once would leave each too little"
    photo = plan(None, Demand((400, 500), 0, 0, 2))
    assert (photo.tile, photo.lanes) == ((400, 250), 2)
    thumbnail = plan(None, Demand((60, 80), 0, 0, 2))
    assert (thumbnail.tile, thumbnail.lanes) == ((60, 80), 1)
    wide = plan(None, Demand((1000, 1500), 0, 1 << 20, 2))
    assert wide.tile[0] <= 64, "strips stay within their budget"
    heavy = choose(
        Demand((1000, 1500), 0, 0, 2),
        Costs(0, 1 << 30, 0),
        RULE,
        tile=None,
        lanes=2,
        largest=None,
        further=False,
        limit=None,
    )
    assert (heavy.tile, heavy.lanes) == ((256, 256), 1), "where no budget is enough, as the bundle says"


def test_blended_tiles_do_not_depend_on_the_machine() -> None:
    blended = SizeRule(multiple_of=8, minimum=16, tile=64, context=0, overlap=16)
    for lanes in (1, 8):
        found = choose(
            Demand((300, 500), 0, 0, 2),
            COSTS,
            blended,
            tile=None,
            lanes=lanes,
            largest=None,
            further=False,
            limit=None,
        )
        assert found.tile == (64, 64)


def test_tiles_shrink_with_the_limit() -> None:
    limits = (2000, 600, 400, 250, 150, LEAST - 10)
    plans = [plan(limit << 20) for limit in limits]
    assert [p.peak <= limit << 20 for p, limit in zip(plans, limits, strict=True)] == [True] * 6
    works = [p.tile[0] * p.tile[1] * p.lanes for p in plans]
    assert works == sorted(works, reverse=True)
    assert plans[0] == plan(2000 << 20, tile=2 * RULE.tile), "twice the bundle's side where there is room"
    assert plans[-1].lanes == 1
    assert plans[-1].tile[0] < 100
    assert all(p.tile[0] % RULE.multiple_of == 0 for p in plans)


def test_features_are_kept_where_they_fit() -> None:
    demand = Demand((600, 700), 0, 0, 0)
    free = plan(None, demand)
    kept, least = features(demand, COSTS, RULE, free.tile), free.peak
    assert plan(least + kept, demand, further=True).keep
    assert plan(least + kept, demand, further=True).peak == least + kept
    assert not plan(least + kept - 1, demand, further=True).keep
    assert plan(None, demand, further=True).keep
    assert not plan(None, demand, further=False).keep
    assert not plan(None, Demand((6000, 7000), 0, 0, 0), further=True).keep


def test_too_low_a_limit_names_the_least() -> None:
    with pytest.raises(
        SettingError, match=r"max_memory: expected at least (\d+)M for this picture of 1500x1000"
    ) as caught:
        plan(80 << 20)
    least = memory_size(str(caught.value).split("at least ")[1].split()[0])
    smallest = plan(least)
    assert smallest.tile[0] == least_tile(RULE) == 26
    assert smallest.tile[1] - 26 in (0, 2, 4), (
        "the named limit is whole megabytes, so that some of the last may be left"
    )
    assert smallest.lanes == 1
    with pytest.raises(SettingError):
        plan(least - (1 << 20))


def test_cores_leave_room_for_context_in_what_a_call_takes() -> None:
    for limit in (None, 1 << 40):
        for largest in (256, 257):
            tile = plan(limit, largest=largest).tile
            assert tile == (200, 188), "as many cores as those of 204 pixels, all of one size"
            assert max(tile) + 2 * RULE.context <= largest
        assert 250 <= max(plan(limit, tile=256, largest=1024).tile) <= 256


def test_small_pictures_take_little() -> None:
    small, large = (
        peak(Demand(size, 0, 0, 0), COSTS, RULE, (256, 256), 1) for size in ((20, 30), (900, 900))
    )
    assert large - small == 2500 * (308 * 308 - 20 * 30)


def test_the_limit_changes_the_tiles_and_no_byte(bundle: Bundle, make_pixels: Pixels) -> None:
    image = make_pixels(90, 110)
    usual = Upscaler(bundle, threads=1).up(image)[0]
    rendering = Upscaler(bundle, threads=1, max_memory=1 << 40).picture(image)
    assert rendering.prepare(whole=True).tile == (46, 56), (
        "the picture's halves, since one of 64 pixels would be too small"
    )
    least = rendering.prepare(whole=True).peak
    totals: set[int] = set()
    limits = range(60 << 20, least, 1 << 14)
    limit = limits[bisect_left(limits, True, key=lambda limit: _fits(bundle, image, limit))]
    upscaler = Upscaler(bundle, threads=1, max_memory=limit)
    assert_same(upscaler.up(image, progress=lambda _, total: totals.add(total))[0], usual)
    assert max(totals) > 4, "more tiles than with room"
    with pytest.raises(SettingError, match="max_memory: expected at least"):
        Upscaler(bundle, max_memory=1 << 20).up(image)


def _fits(bundle: Bundle, image: np.ndarray, limit: int) -> bool:
    upscaler = Upscaler(bundle, threads=1, max_memory=limit, check=False)
    try:
        upscaler.picture(image).prepare(whole=True)
    except SettingError:
        return False
    return True


@pytest.mark.parametrize("limit", [0, -1, 1.5, "1G"])
def test_bad_limit(bundle: Bundle, limit: Any) -> None:
    with pytest.raises(SettingError, match="max_memory"):
        Upscaler(bundle, max_memory=limit)


def test_costs_follow_from_the_manifest(bundle: Bundle) -> None:
    costs = Costs.of(bundle.manifest, "fp32")
    assert costs.kept == 4 * (4 / 4 + 3)  # features at half the size, and the image
    assert 4 * costs.kept < costs.pixel < 10 * 4 * (3 + 4 + 1 + 48)
    assert costs.weights == sum(file.total_bytes for file in bundle.manifest.graphs["fp32"].values())
    assert dataclasses.replace(costs, weights=0) == Costs.of(bundle.manifest, "no such precision")


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from runtime.upscale.upscaler import Upscaler

bundle, fix, height, width, limit, way = sys.argv[1:]
image = np.random.default_rng(0).integers(0, 255, (int(height), int(width), 3), dtype=np.uint8)
bundle = None if bundle == "built-in" else bundle
upscaler = Upscaler(bundle, device="cpu", color_fix=fix, max_memory=int(limit) or None, threads=2)
if way == "whole":
    size = upscaler.up(image)[0].nbytes
else:
    size = sum(band.nbytes for band in upscaler.strips(image).bands)
# not ru_maxrss, which begins with what the parent had before this program replaced it
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(size, int(peak.split()[1]) * 1024)
"""


def measured(run_python: Callable[..., Any], *arguments: object) -> tuple[int, int]:
    """(bytes of the result, peak bytes of the process)."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux, which tells the most memory a process had")
    result = run_python("-c", MEMORY, *arguments, timeout=900)
    assert result.returncode == 0, result.stderr
    size, most = map(int, result.stdout.split())
    return size, most


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "fix"), [(LEAST, "none"), (200, "none"), (200, "wavelet")])
def test_the_built_in_model_keeps_the_limit(run_python: Callable[..., Any], limit: int, fix: str) -> None:
    size, most = measured(run_python, "built-in", fix, 400, 600, limit << 20, "strips")
    assert size == 400 * 600 * 48
    assert most <= limit << 20, f"peak {most / 2**20:.0f}M for a limit of {limit}M"


@pytest.mark.parametrize("limit", [LEAST, pytest.param(200, marks=pytest.mark.slow)])
def test_the_command_keeps_the_limit_while_it_writes(
    run_python: Callable[..., Any], tmp_path: Path, limit: int
) -> None:
    """With noise, which deflate cannot shorten, so that finished rows wait for the writer."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux, which tells the most memory a process had")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 600, 3), np.uint8)).save(
        tmp_path / "a.png"
    )
    program = (
        "import sys\nfrom gdposr.cli import main\n"
        "code = main(['upscale', sys.argv[1], '-o', sys.argv[2], '--max-memory', sys.argv[3], '--threads', '2'])\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))\nsys.exit(code)"
    )
    result = run_python("-c", program, tmp_path / "a.png", tmp_path / "b.png", f"{limit}M")
    assert result.returncode == 0, result.stderr
    most = int(result.stdout.split()[1]) * 1024
    assert most <= limit << 20, f"peak {most / 2**20:.0f}M for a limit of {limit}M"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["whole", "strips"])
@pytest.mark.parametrize("fix", COLOR_FIXES)
def test_memory_of_a_large_photo(
    run_python: Callable[..., Any], toy_bundle: Path, fix: str, way: str
) -> None:
    """12 megapixels enlarged 4 times: peak RSS at most 1.3 times the result plus 400 MB, in bands 500 MB."""
    size, most = measured(run_python, toy_bundle, fix, 3000, 4000, 0, way)
    bound = 1.3 * size + 400e6 if way == "whole" else 500e6
    assert most <= bound, f"peak {most / 1e6:.0f} MB for a result of {size / 1e6:.0f} MB"
