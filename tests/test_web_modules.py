"""The page's modules under node, against the Python runtime: noise, tiles, colour, PNG, devices. Without a browser."""

import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.bundle.manifest import SizeRule
from runtime.noise import noise_field
from runtime.upscale.color import color_fix
from runtime.upscale.probe import psnr_db
from runtime.upscale.tiling import plan_tiles

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs node 20: apt-get install nodejs")

# A model without a network: features are the window, the result is the window times the noise of its first channel.
FAKES = """
const photoOf = (width, height, at) => ({ width, height, close() {}, window({ y0, y1, x0, x1 }) {
  const h = y1 - y0, w = x1 - x0, values = new Float32Array(3 * h * w);
  for (let c = 0; c < 3; c++) for (let y = 0; y < h; y++) for (let x = 0; x < w; x++)
    values[(c * h + y) * w + x] = at(c, Math.min(height - 1, y0 + y), Math.min(width - 1, x0 + x));
  return values;
} });
const modelOf = (manifest, fail = () => null, side = null) => ({ side, label: "fake", calls: [], released: 0,
  async encode(planes, height, width) {
    const error = fail(height, width, this.calls.length); this.calls.push([height, width]);
    if (error) throw error;
    return { planes, height, width };
  },
  async generate({ planes, height, width }, noise) {
    const s = manifest.scale, d = manifest.noise.downscale, out = new Float32Array(3 * height * width * s * s);
    for (let c = 0; c < 3; c++) for (let y = 0; y < height * s; y++) for (let x = 0; x < width * s; x++) {
      const row = Math.floor(y / s), column = Math.floor(x / s);
      const cell = Math.floor(row / d) * (width / d) + Math.floor(column / d);
      out[(c * height * s + y) * width * s + x] = planes[(c * height + row) * width + column] + 0.01 * noise[cell];
    }
    return out;
  },
  release() { this.released++; }, async close() { this.closed = true; },
});
const collect = async (bands) => { let all = []; for await (const { data } of bands) all.push(...data); return all; };
"""


@pytest.fixture(scope="session")
def run_node(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """run_node(code): the JSON that the code prints. It imports modules of the page by "WEB/name.js"."""
    # the folder says that these are modules, which a browser knows without being told
    folder = tmp_path_factory.mktemp("modules")
    for path in (root / "runtime/web").glob("*.js"):
        shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}')

    def run(code: str) -> Any:
        file = folder / f"case_{len(list(folder.glob('case_*')))}.js"
        file.write_text(code.replace("WEB/", "./"))
        result = subprocess.run([str(NODE), file], capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


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


MANIFEST = {
    "scale": 4, "color_fix": "none",
    "size": {"multiple_of": 2, "minimum": 8, "tile": 32, "context": 6, "overlap": 0},
    "noise": {"version": 1, "channels": 4, "downscale": 2},
    "encoder": {"outputs": [{"name": "features", "channels": 4, "scale": 0.5}]},
}  # fmt: skip
PHOTO = "photoOf(37, 51, (c, y, x) => ((x * 7 + y * 13 + c * 29) % 100) / 100)"


def test_tile_size_region_and_order_of_seeds_do_not_change_the_result(run_node: Any) -> None:
    found = run_node(f"""
import {{ Rendering }} from "WEB/rendering.js";
{FAKES}
const manifest = {json.dumps(MANIFEST)}, photo = {PHOTO};
const whole = async (tile, seed, side) => {{
  const model = modelOf(manifest, undefined, side);
  const rendering = new Rendering(photo, manifest, model, {{ tile }});
  await collect(rendering.bands(3n));
  return [await collect(rendering.bands(BigInt(seed))), model.calls.length];
}};
const [reference] = await whole(64, 7, null);
const same = [];
for (const [tile, side] of [[6, null], [16, null], [32, null], [128, 24], [128, 256]]) same.push(
  JSON.stringify((await whole(tile, 7, side))[0]) === JSON.stringify(reference));
const region = await new Rendering(photo, manifest, modelOf(manifest), {{}}).region({{ y0: 11, y1: 20, x0: 5, x1: 16 }}, 7n);
const {{ box }} = region;
const cut = [];
for (let y = 4 * box.y0; y < 4 * box.y1; y++)
  cut.push(...reference.slice(4 * (y * 148 + 4 * box.x0), 4 * (y * 148 + 4 * box.x1)));
const other = JSON.stringify((await whole(64, 8, null))[0]) === JSON.stringify(reference);
const regions = JSON.stringify(cut) === JSON.stringify([...region.data]);
console.log(JSON.stringify({{ same, other, box, regions, encodes: (await whole(16, 7, null))[1] }}));
""")
    assert all(found["same"])
    assert not found["other"]
    assert found["box"] == {"y0": 10, "y1": 20, "x0": 4, "x1": 16}
    assert found["regions"]
    assert found["encodes"] == 12  # 4 rows of 3 tiles, for two seeds


def test_out_of_memory_halves_the_tile_and_goes_on(run_node: Any) -> None:
    found = run_node(f"""
import {{ Rendering }} from "WEB/rendering.js";
{FAKES}
const manifest = {json.dumps(MANIFEST)}, photo = {PHOTO}, notes = [];
const small = (height, width, call) => (call > 1 && height * width > 800 ? new RangeError("Array buffer allocation failed") : null);
const model = modelOf(manifest, small);
const rendering = new Rendering(photo, manifest, model, {{ tile: 24, note: (text) => notes.push(text) }});
const calm = new Rendering(photo, manifest, modelOf(manifest), {{ tile: 24 }});
const same = JSON.stringify(await collect(rendering.bands(1n))) === JSON.stringify(await collect(calm.bands(1n)));
let refused = null;
try {{ await collect(new Rendering(photo, manifest, modelOf(manifest, () => new Error("std::bad_alloc")), {{}}).bands(1n)); }}
catch (error) {{ refused = [error.name, error.message]; }}
console.log(JSON.stringify({{ same, notes, refused }}));
""")
    assert found["same"]
    assert found["notes"] == ["Memory ran out with tiles of 24 pixels; going on with 12, more slowly."]
    assert found["refused"][0] == "OutOfMemory"
    assert "close other tabs" in found["refused"][1]


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


# A machine whose devices fail as they are told to.
MACHINE = """
const bundle = { precisions: ["int8", "fp16", "fp32"], manifest };
const machineOf = (gpu, faults, times) => ({ findWebgpu: async () => gpu,
  create: async (_, device, precision) => {
    if (faults[device] === "broken") throw new Error("no adapter");
    const lost = (h, w, call) => (device === "webgpu" && faults.lost === call ? new DeviceLost("it was unplugged") : null);
    const engine = modelOf(manifest, lost);
    return Object.assign(engine, { device, precision, label: `${device} ${precision}` });
  },
  probe: async (_, { device, precision }) => {
    const bad = faults[device] === "wrong" || faults[device] === precision;
    return { psnr: bad ? 11 : 50, floor: 32, ok: !bad, milliseconds: times[precision] };
  } });
"""


def test_choice_of_device(run_node: Any) -> None:
    found = run_node(f"""
import {{ chooseEngine }} from "WEB/choice.js";
import {{ DeviceLost }} from "WEB/errors.js";
{FAKES}
const manifest = {json.dumps(MANIFEST)};
{MACHINE}
const GPU = {{ half: true }}, NONE = {{ missing: "this browser has no WebGPU" }};
const fast8 = {{ int8: 1, fp32: 2 }}, fast32 = {{ int8: 3, fp32: 2 }};
const cases = [
  [{{}}, machineOf(GPU, {{}}, fast8)], [{{}}, machineOf({{ half: false }}, {{}}, fast8)],
  [{{}}, machineOf(GPU, {{ webgpu: "wrong" }}, fast8)], [{{}}, machineOf(GPU, {{ webgpu: "broken" }}, fast32)],
  [{{}}, machineOf(NONE, {{}}, fast32)], [{{ backend: "webgpu" }}, machineOf(NONE, {{}}, fast8)],
  [{{}}, machineOf({{ half: true, slow: true }}, {{}}, fast8)], [{{ backend: "wasm", precision: "fp32" }}, machineOf(GPU, {{}}, fast8)],
  [{{}}, machineOf(NONE, {{ wasm: "int8" }}, fast8)], [{{}}, machineOf(NONE, {{ wasm: "wrong" }}, fast8)],
];
const found = [];
for (const [request, machine] of cases) {{
  const notes = [];
  const chosen = chooseEngine(bundle, request, (text) => notes.push(text), machine);
  const result = await chosen.then(({{ engine }}) => engine.label, (error) => error.message);
  found.push([result, notes]);
}}
console.log(JSON.stringify(found));
""")
    labels = [label for label, _ in found]
    assert labels[:2] == ["webgpu fp16", "webgpu fp32"]
    assert labels[2:9] == [
        "wasm int8",
        "wasm fp32",
        "wasm fp32",
        "wasm int8",
        "wasm int8",
        "wasm fp32",
        "wasm fp32",
    ]
    assert labels[9].startswith("No device here computes the model rightly")
    notes = [note for _, note in found]
    assert "got 11.0 dB; it is not used" in notes[2][0]
    assert "no adapter" in notes[3][0]
    assert notes[5] == ["This browser has no WebGPU; using WASM instead."]
    assert not notes[0] + notes[4] + notes[6]
    assert len(notes[9]) == 2


def test_lost_graphics_card_falls_back_to_wasm_and_says_so(run_node: Any) -> None:
    found = run_node(f"""
import {{ Model }} from "WEB/model.js";
import {{ Rendering }} from "WEB/rendering.js";
import {{ DeviceLost }} from "WEB/errors.js";
{FAKES}
const manifest = {json.dumps(MANIFEST)}, photo = {PHOTO}, notes = [];
{MACHINE}
const machine = machineOf({{ half: true }}, {{ lost: 2 }}, {{ int8: 1, fp32: 2 }});
const model = await Model.load(bundle, {{}}, (text) => notes.push(text), machine);
const before = model.facts.backend;
model._rendering = new Rendering(photo, manifest, model._engine, {{ tile: 16 }});
const {{ png }} = await model.render(5n, () => {{}}, () => false);
const calm = await collect(new Rendering(photo, manifest, modelOf(manifest), {{}}).bands(5n));
const content = [...new Uint8Array(await png.arrayBuffer())];
console.log(JSON.stringify({{ before, after: model.facts.backend, notes, png: content, calm }}));
""")
    assert (found["before"], found["after"]) == ("webgpu fp16", "wasm int8")
    assert found["notes"] == ["WebGPU was lost: it was unplugged. Going on with wasm int8."]
    with Image.open(io.BytesIO(bytes(found["png"]))) as image:
        assert list(image.convert("RGBA").tobytes()) == found["calm"]
