"""The page's modules under node, against the Python runtime: noise, tiles, colour, PNG, JPEG. Without a browser."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import node_cases
import numpy as np
import pytest
from node_cases import FAKES
from PIL import Image

from runtime.bundle.manifest import SizeRule
from runtime.noise import noise_field
from runtime.upscale.color import color_fix
from runtime.upscale.probe import psnr_db
from runtime.upscale.tiling import plan_tiles

pytestmark = node_cases.needs_node
run_node = node_cases.run_node  # a fixture


def test_noise_equals_python_on_whole_fields(run_node: Any) -> None:
    seeds = (0, 1, 2**53 + 1, 2**64 - 1)
    found = run_node(f"""
import {{ noiseField }} from "WEB/noise.js";
const digests = [];
for (const seed of {json.dumps([str(seed) for seed in seeds])}) {{
  const field = noiseField(BigInt(seed), 5, 90, 110, 5, 4294967100, 7);
  digests.push(Buffer.from(await crypto.subtle.digest("SHA-256", field)).toString("hex"));
}}
console.log(JSON.stringify(digests));
""")
    fields = [noise_field(seed, 5, 90, 110, channels=5, y0=4294967100, x0=7) for seed in seeds]
    assert found == [hashlib.sha256(field.tobytes()).hexdigest() for field in fields]


def test_vectors_that_all_runtimes_share(root: Path, run_node: Any) -> None:
    """examples/vectors: what the apps in Swift and Kotlin are tested with, and docs/noise.md states."""
    noise = json.loads((root / "examples/vectors/noise.json").read_text())
    plans = json.loads((root / "examples/vectors/tiles.json").read_text())["plans"]
    # the page refuses a bundle whose tiles are blended
    plans = [plan for plan in plans if plan["overlap"] == 0]
    assert len(noise["values"]) > 10
    assert len(plans) >= 5
    found = run_node(f"""
import {{ noiseField, philox }} from "WEB/noise.js";
import {{ planTiles }} from "WEB/tiling.js";
const noise = {json.dumps(noise)}, plans = {json.dumps(plans)};
const bits = (value) => Buffer.from(Float32Array.of(value).buffer).readUInt32LE().toString(16).padStart(8, "0");
const blocks = noise.philox.map(({{ counter, key }}) => {{
  const out = new Uint32Array(4), of = (words) => words.map((word) => parseInt(word, 16));
  philox(...of(counter), ...of(key), out);
  return [...out].map((word) => word.toString(16).padStart(8, "0"));
}});
const values = noise.values.map(({{ seed, sample, y, x, channel }}) =>
  bits(noiseField(BigInt(seed), sample, 1, 1, channel + 1, y, x).at(-1)));
const fields = [];
for (const {{ seed, sample, height, width, channels, y0, x0 }} of noise.fields) {{
  const field = noiseField(BigInt(seed), sample, height, width, channels, y0, x0);
  fields.push(Buffer.from(await crypto.subtle.digest("SHA-256", field)).toString("hex"));
}}
const box = ({{ y0, y1, x0, x1 }}) => [y0, y1, x0, x1];
const tiles = plans.map((rule) => planTiles(rule.height, rule.width, [rule.tile, rule.tile], rule).flat()
  .map(({{ core, padded }}) => [box(core), box(padded)]));
console.log(JSON.stringify({{ blocks, values, fields, tiles }}));
""")
    assert found["blocks"] == [block["result"] for block in noise["philox"]]
    assert found["values"] == [value["bits"] for value in noise["values"]]
    assert found["fields"] == [field["sha256"] for field in noise["fields"]]
    for plan, ours in zip(plans, found["tiles"], strict=True):
        assert ours == [[tile["core"], tile["padded"]] for tile in plan["tiles"]], plan


RULES = (SizeRule(1, 8, 256, 15), SizeRule(2, 8, 32, 6), SizeRule(8, 64, 64, 16), SizeRule(4, 4, 8, 0))


def test_tiles_equal_python(run_node: Any) -> None:
    cases = [
        (height, width, tile, top, rule)
        for rule in RULES
        for height, width in ((1, 1), (7, 300), (64, 64), (130, 97))
        for tile in ((16, 48), (300, 300))
        for top in (0, 16)
        if top < height
    ]
    found = run_node(f"""
import {{ planTiles }} from "WEB/tiling.js";
const cases = {json.dumps([[h, w, t, top, r.to_dict()] for h, w, t, top, r in cases])};
console.log(JSON.stringify(cases.map(([h, w, tile, top, rule]) => planTiles(h, w, tile, rule, top).flat()
  .map(({{ core, padded }}) => [core, padded].map(({{ y0, y1, x0, x1 }}) => [y0, y1, x0, x1])))));
""")
    for (height, width, tile, top, rule), ours in zip(cases, found, strict=True):
        tiles = plan_tiles(height, width, tile, rule, top)
        expected = [[[b.y0, b.y1, b.x0, b.x1] for b in (t.core, t.padded)] for t in tiles]
        assert ours == expected, (height, width, tile, top, rule)


def test_windows_on_webgpu_have_one_shape(run_node: Any) -> None:
    """ONNX Runtime's WebGPU provider reuses buffers wrongly if shapes change. Smaller photos have their own: filling changes edges."""
    found = run_node(f"""
import {{ fixedRule, paddedSize, planTiles }} from "WEB/tiling.js";
const rules = {json.dumps([rule.to_dict() for rule in RULES])};
const all = [];
for (const given of rules) for (const [h, w] of [[5, 9], [100, 300], [256, 256], [700, 1001]]) {{
  const {{ rule, core }} = fixedRule(256, given);
  for (const {{ padded, core: c }} of planTiles(h, w, [core, core], rule).flat()) {{
    all.push([[h, w], [padded.y1 - padded.y0, padded.x1 - padded.x0].map((n, k) => n === Math.min(256, paddedSize([h, w][k], given))),
      Math.min(c.y0 - padded.y0, given.context) === Math.min(c.y0, given.context)]);
  }}
}}
console.log(JSON.stringify(all));
""")
    assert {tuple(size) for size, *_ in found} == {(5, 9), (100, 300), (256, 256), (700, 1001)}
    assert all(same == [True, True] and enough for _, same, enough in found)


@pytest.mark.parametrize("method", ["adain", "wavelet"])
def test_colour_equals_python(run_node: Any, make_pixels: Any, method: str) -> None:
    lr = make_pixels(20, 37, seed=3)
    sr = np.clip(make_pixels(80, 148, seed=5) / np.float32(255) * np.float32(0.8), 0, 1).astype(np.float32)
    fixed = color_fix(sr, (lr / np.float32(255)).astype(np.float32), method)
    found = run_node(f"""
import {{ colored }} from "WEB/color.js";
{FAKES}
const lr = {json.dumps(lr.tolist())}, sr = {json.dumps(sr.round(6).tolist())};
const photo = photoOf(37, 20, (c, y, x) => Math.fround(lr[y][x][c] / 255));
const strips = async function* () {{
  for (let y0 = 0; y0 < 80; y0 += 24) {{
    const rows = sr.slice(y0, y0 + 24);
    const planes = [0, 1, 2].map((c) => Float32Array.from(rows.flat().map((pixel) => pixel[c])));
    yield {{ y0, height: rows.length, planes }};
  }}
}};
const planes = [[], [], []];
for await (const strip of colored("{method}", strips, photo, 4, () => {{}}))
  strip.planes.forEach((plane, c) => planes[c].push(...plane));
console.log(JSON.stringify(planes));
""")
    ours = np.clip(np.array(found, np.float32).reshape(3, 80, 148).transpose(1, 2, 0), 0, 1)
    assert np.abs(ours - fixed).max() < 5e-6, f"largest difference {np.abs(ours - fixed).max()}"


def test_png_is_what_was_written(run_node: Any, make_pixels: Any, tmp_path: Path) -> None:
    pixels = make_pixels(45, 67)
    found = run_node(f"""
import {{ PngWriter }} from "WEB/png.js";
const rows = {json.dumps(pixels.tolist())}, png = new PngWriter(67, 45);
for (const [from, to] of [[0, 1], [1, 30], [30, 45]])
  await png.write(Uint8ClampedArray.from(rows.slice(from, to).flat().flatMap((pixel) => [...pixel, 255])));
console.log(JSON.stringify([...new Uint8Array(await (await png.finish()).arrayBuffer())]));
""")
    with Image.open(io.BytesIO(bytes(found))) as image:
        image.load()
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), pixels)


def test_jpeg_from_a_png_band_by_band(run_node: Any, make_pixels: Any, tmp_path: Path) -> None:
    """Against Pillow's of the same quality: as close to the pixels, and about as large."""
    flat = np.zeros((9, 1, 3), np.uint8)
    noisy = np.random.default_rng(1).integers(0, 256, (70, 33, 3), np.uint8)  # every length of code
    for pixels in (make_pixels(150, 203), flat, noisy):
        height, width = pixels.shape[:2]
        found = run_node(f"""
import {{ JpegWriter }} from "WEB/jpeg.js";
import {{ PngWriter, readPng }} from "WEB/png.js";
const rows = {json.dumps(pixels.tolist())}, writer = new PngWriter({width}, {height});
await writer.write(Uint8ClampedArray.from(rows.flat().flatMap((pixel) => [...pixel, 255])));
const png = await readPng(await writer.finish());
const jpeg = new JpegWriter(png.width, png.height), read = [];
for await (const band of png.bands) {{
  read.push(...band);
  jpeg.write(band);
}}
console.log(JSON.stringify({{ read, jpeg: [...new Uint8Array(await jpeg.finish().arrayBuffer())] }}));
""")
        assert np.array_equal(np.array(found["read"]).reshape(height, width, 4)[..., :3], pixels)
        reference = io.BytesIO()
        Image.fromarray(pixels).save(reference, "JPEG", quality=95, subsampling=0)
        ours, theirs = (
            psnr_db(np.asarray(Image.open(io.BytesIO(content))), pixels)
            for content in (bytes(found["jpeg"]), reference.getvalue())
        )
        assert ours >= theirs - 0.3, f"{ours:.2f} dB, Pillow's {theirs:.2f} dB"
        assert len(found["jpeg"]) <= 1.3 * len(reference.getvalue())


def test_jpeg_has_sides_of_65535_pixels_at_most(run_node: Any) -> None:
    found = run_node("""
import { JpegWriter } from "WEB/jpeg.js";
try { new JpegWriter(65536, 8); } catch (error) { console.log(JSON.stringify(error.message)); }
""")
    assert found == "expected at most 65535 pixels a side for a JPEG, got 65536x8"
