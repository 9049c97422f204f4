"""How the page renders a photo, under node, on a model without a network: tiles of any size, too little memory, choosing a device."""

import io
import json
from typing import Any

import node_cases
from node_cases import FAKES
from PIL import Image

pytestmark = node_cases.needs_node
run_node = node_cases.run_node  # a fixture

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
