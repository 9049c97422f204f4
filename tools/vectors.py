"""Test vectors for runtimes in other languages, behind `make vectors`: examples/vectors/*.json.

The Kotlin and Swift examples read these files in their tests, so that every runtime must compute what the Python runtime does. Seeds
are decimal strings, since JSON readers may round them. Bits, pixels and digests are hex.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from gdposr.console import FAILED, OK, one_line, say
from runtime.bundle.manifest import SizeRule
from runtime.bundle.reader import Bundle
from runtime.errors import GdposrError
from runtime.noise import NOISE_VERSION, philox4x32
from runtime.upscale.tiling import padded_size, plan_tiles, tile_rows
from runtime.upscale.upscaler import Upscaler
from tools.arm.checks import field_digest, to_rows, value_bits

# Where the files go in a clone.
FOLDER: Final = Path("examples/vectors")
# One more than the largest 32-bit number, and the largest seed.
WORD, LAST = 2**32, 2**64 - 1

# Counters and keys of Random123's published test vectors.
PHILOX: Final = (
    ((0, 0, 0, 0), (0, 0)),
    ((WORD - 1,) * 4, (WORD - 1,) * 2),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)),
)
# What the numbers in a row of VALUES are.
VALUE_KEYS: Final = ("seed", "sample", "y", "x", "channel")
# First the rows of docs/noise.md, in its order.
VALUES: Final = (
    (0, 0, 0, 0, 0),
    (0, 0, 0, 0, 3),
    (0, 0, 1, 2, 1),
    (1, 0, 0, 0, 0),
    (0, 1, 0, 0, 0),
    (0, 0, 7, 7, 0),
    (0, 0, 3, 15, 1),  # a tail: the logarithm
    (0, 0, 11, 4, 0),
    (WORD, 0, 0, 0, 0),  # a seed above 32 bits
    (20260325, 3, 123, 456, 5),
    (LAST, WORD - 1, WORD - 1, WORD - 1, 7),
    (2**53 + 1, 0, 0, 0, 2),  # no float64 holds this seed
    (2**63, 0, 0, 0, 0),  # negative if read as a signed number
    (WORD - 1, 0, 0, 0, 1),
    (0, WORD - 1, 0, 0, 4),  # the second counter of a cell
)
# seed, sample, height, width, y0, x0, channels. The second and third are windows of one field, as tiles take them.
FIELDS: Final = (
    (20260325, 3, 64, 48, 100, 200, 6),
    (7, 0, 30, 20, 0, 0, 4),
    (7, 0, 12, 9, 18, 11, 4),
    (2**63 + 5, 1, 16, 16, WORD - 16, WORD - 16, 9),
    (0, 0, 1, 1, 0, 0, 1),
)
# Settings that a runtime must refuse: name, value.
REFUSED: Final = (
    ("seed", -1),
    ("seed", 2**64),
    ("sample", -1),
    ("sample", WORD),
    ("y0", -1),
    ("x0", WORD),
)
# height, width, tile of the built-in bundle's rule and of one with larger cells and an overlap.
PLANS: Final = ((57, 43, 256), (141, 75, 64), (100, 203, 98), (5, 1, 32), (64, 64, 32))
OTHER_RULE: Final = SizeRule(multiple_of=8, minimum=16, context=16, overlap=8, tile=64)
# length, window of the examples for phones, which show windows of one size.
SPANS: Final = (
    (203, 128),
    (57, 158),
    (57, 128),
    (5, 158),
    (128, 128),
    (129, 128),
    (1000, 128),
    (141, 64),
    (35, 60),
)
# Noise of the small picture.
SEED, SAMPLE = 11, 2
# Processors differ in the last bits of a sum, which moves few values over a rounding border.
MOST_LEVELS, MOST_SHARE = 1, 0.001
# INT8 on x86-64 with AVX2 reaches 49.6 dB. Other processors round elsewhere.
INT8_FLOOR_DB: Final = 45.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.vectors", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="folder for the JSON files (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, content in every().items():
            (args.out / name).write_text(to_text(content), encoding="utf-8")
            say(f"wrote {args.out / name}")
    except (GdposrError, OSError) as error:
        say(f"error: {one_line(error)}")
        return FAILED
    return OK


def every() -> dict[str, dict[str, Any]]:
    """File name -> content."""
    return {"noise.json": noise_vectors(), "tiles.json": tile_cases(), "picture.json": picture_case()}


def noise_vectors() -> dict[str, Any]:
    """Philox, single values, SHA-256 of whole fields, and refused settings; see docs/noise.md."""
    return {
        "about": "The noise of docs/noise.md. sha256: of a field as little-endian float32, (channel, y, x).",
        "version": NOISE_VERSION,
        "philox": [
            {"counter": _words(counter), "key": _words(key), "result": _words(_philox(counter, key))}
            for counter, key in PHILOX
        ],
        "values": [
            case | {"bits": value_bits(case)}
            for case in (dict(zip(VALUE_KEYS, (str(seed), *place), strict=True)) for seed, *place in VALUES)
        ],
        "fields": [
            case | {"sha256": field_digest(case)}
            for case in (
                {"seed": str(seed), "sample": sample, "y0": y0, "x0": x0, "height": height, "width": width, "channels": channels}
                for seed, sample, height, width, y0, x0, channels in FIELDS
            )
        ],
        "refused": [{"setting": name, "value": str(value)} for name, value in REFUSED],
    }  # fmt: skip


def tile_cases() -> dict[str, Any]:
    """Plans of the runtime, and the spans of windows of one size that the examples for phones use. Boxes: y0, y1, x0, x1."""
    manifest = Bundle.open().manifest
    return {
        "about": "core, padded: boxes y0, y1, x0, x1 in LR pixels. crop: the core in the tile's result, SR pixels. "
        "bands: SR rows of each row of tiles; those of an overlap are shared and blended. "
        "spans: window, side, start, end along one side; see examples/.",
        "scale": manifest.scale,
        "plans": [
            _plan(height, width, tile, rule, manifest.scale)
            for rule in (manifest.size, OTHER_RULE)
            for height, width, tile in PLANS
        ],
        "spans": [
            {"length": length, "window": window, "spans": window_spans(length, window, manifest.size)}
            for length, window in SPANS
        ],
    }


def window_spans(length: int, window: int, rule: SizeRule) -> list[list[int]]:
    """(window start, side, core start, core end) along one side of a picture that is shown in windows of one size.

    A core ends `context` pixels inside its window, except at the picture's edge. The last window is moved back to end at the edge.
    Raises ValueError for a window without room between its two contexts.
    """
    if window <= 2 * rule.context:
        raise ValueError(
            f"expected windows of more than {2 * rule.context} LR pixels, twice the context, got {window}"
        )
    whole = padded_size(length, rule)
    side = min(window, whole)
    spans, done = [], 0
    while done < length:
        first = min(max(0, done - rule.context), whole - side)
        end = length if first + side >= whole else first + side - rule.context
        spans.append([first, side, done, end])
        done = end
    return spans


def picture_case() -> dict[str, Any]:
    """A small picture and the built-in bundle's result in fp32, pixels as rows of RGB in hex."""
    bundle, image = Bundle.open(), picture()
    with Upscaler(bundle, device="cpu", precision="fp32", threads=1) as upscaler:
        result = upscaler.up(image, SEED, first=SAMPLE)[0]
    generator = bundle.manifest.graphs["fp32"]["generator"]
    return {
        "about": "rows: one string a row, RGB of 8 bits in hex. int8_floor_db: the least PSNR of INT8 against these rows.",
        "generator_sha256": generator.sha256,
        "seed": str(SEED),
        "sample": SAMPLE,
        "most_levels": MOST_LEVELS,
        "most_share": MOST_SHARE,
        "int8_floor_db": INT8_FLOOR_DB,
        "image": to_rows(image),
        "fp32": to_rows(result),
    }


def picture() -> np.ndarray:
    """A disc on ramps with stripes: (14, 17, 3) uint8, of whole numbers alone, so that it is the same everywhere."""
    y, x = np.mgrid[:14, :17]
    disc = 150 * ((y - 6) ** 2 + (x - 8) ** 2 < 20)
    return np.stack([13 * x + 10, 60 + disc, 14 * y + 20 * (x // 3 % 2)], axis=2).astype(np.uint8)


def to_text(content: dict[str, Any]) -> str:
    """JSON with one case a line, so that a change shows as the lines it changed."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list):
            lines = ",\n".join(f"    {json.dumps(each)}" for each in value)
            parts.append(f"  {json.dumps(key)}: [\n{lines}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _plan(height: int, width: int, tile: int, rule: SizeRule, scale: int) -> dict[str, Any]:
    """How a picture is cut into tiles, as JSON.

    height, width, tile: in LR pixels.
    rule: sizes that the model takes.
    scale: of the model; bands and crops are in SR pixels.
    """
    tiles = plan_tiles(height, width, tile, rule)
    return {
        "height": height, "width": width, "tile": tile,
        "multiple_of": rule.multiple_of, "minimum": rule.minimum, "context": rule.context, "overlap": rule.overlap,
        "bands": [[scale * row[0].core.y0, scale * row[0].core.y1] for row in tile_rows(tiles)],
        "tiles": [
            {
                "core": [t.core.y0, t.core.y1, t.core.x0, t.core.x1],
                "padded": [t.padded.y0, t.padded.y1, t.padded.x0, t.padded.x1],
                "crop": [
                    scale * (t.core.y0 - t.padded.y0), scale * (t.core.y1 - t.padded.y0),
                    scale * (t.core.x0 - t.padded.x0), scale * (t.core.x1 - t.padded.x0),
                ],
            }
            for t in tiles
        ],
    }  # fmt: skip


def _philox(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    words = philox4x32(np.array(counter, np.uint32), np.array(key, np.uint32))
    return [int(word) for word in words]


def _words(values: Sequence[int]) -> list[str]:
    return [f"{value:08x}" for value in values]


if __name__ == "__main__":
    sys.exit(main())
