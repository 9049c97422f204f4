"""The page of `gdposr serve` in headless Chromium: its pictures are Python's, and nothing leaves the machine."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import web_page_cases
from browsers import Page, chromium, serving
from PIL import Image
from web_page_cases import INT8, pixels_of

from gdposr.web.site import site_files
from runtime.bundle.reader import Bundle
from runtime.upscale.probe import psnr_db
from runtime.upscale.upscaler import Upscaler
from tools.arm.checks import to_pixels

browser, files, server = web_page_cases.browser, web_page_cases.files, web_page_cases.server  # fixtures
page, picture = web_page_cases.page, web_page_cases.picture

# The page's INT8 sums in another order than Python's.
INT8_FLOOR_DB = 45.0
# Without them headless Chromium has no WebGPU where there is no graphics card.
WEBGPU = ("enable-unsafe-webgpu", "use-webgpu-adapter=swiftshader", "enable-features=Vulkan,WebGPU")


def enlarged(path: Path, precision: str, seed: int = 0, **options: float) -> np.ndarray:
    with Image.open(path) as image, Upscaler(device="cpu", precision=precision, **options) as upscaler:
        return upscaler.up(image.convert("RGB"), seed)[0]


@pytest.mark.slow
def test_webgpu_gives_pythons_picture(toy_bundle: Path, tmp_path: Path, make_pixels: Any, need: Any) -> None:
    """On a graphics card in software (SwiftShader), where a window of 64 pixels takes up to a minute."""
    need("selenium")
    files = site_files(Bundle.open(toy_bundle))
    engine = files["engine.js"].replace(b"WEBGPU_SIDE = 256", b"WEBGPU_SIDE = 64")
    assert engine != files["engine.js"]
    photo = tmp_path / "photo.png"
    Image.fromarray(make_pixels(30, 81)).save(photo)  # lower than a window, and wider
    with (
        serving(files | {"engine.js": engine}) as server,
        chromium(tmp_path / "profile", *WEBGPU) as driver,
    ):
        page = Page(driver, server.url, tmp_path / "saved")
        page.load("?backend=webgpu&precision=fp32", seconds=600)
        assert "WebGPU fp32" in page.text("facts")  # so the probe has passed there
        page.add(photo)
        page.done(600)
        found = pixels_of(page.save())
        assert "WebGPU was lost" not in page.text("notes"), page.text("notes")
        assert page.errors() == []
    with Image.open(photo) as image, Upscaler(toy_bundle, device="cpu", precision="fp32") as upscaler:
        expected = upscaler.up(image, 0)[0]
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 1


def test_fp32_is_python_to_one_level_for_every_tile_size(page: Page, picture: Path) -> None:
    page.load("?backend=wasm&precision=fp32")
    page.requests()
    page.errors()
    page.add(picture)
    page.done()
    first = page.save()
    assert first.name == "photo_x4_seed0.png"
    difference = np.abs(pixels_of(first).astype(int) - enlarged(picture, "fp32"))
    assert difference.max() <= 1, f"max {difference.max()}, mean {difference.mean()}"
    # another version is the next seed
    page.find("next").click()
    page.wait("document.getElementById('seed').textContent === 'seed 1'")
    page.done()
    second = pixels_of(page.save())
    difference = np.abs(second.astype(int) - enlarged(picture, "fp32", seed=1))
    assert difference.max() <= 1
    assert np.any(second != pixels_of(first))
    # what is shown of it
    bundle = Bundle.open()
    assert re.fullmatch(
        rf"Model pocket, digest {bundle.digest} · WASM fp32, \d threads? · 110\u00d775 → 440\u00d7300 · \d+ ms",
        page.text("facts"),
    )
    # smaller tiles, in a second worker: the whole, and a part of it
    found = page.run("""
const { Client } = await import("./client.js");
const client = new Client(), bundle = new URL("bundle/", location.href).href;
await client.call("load", { bundle, request: { backend: "wasm", precision: "fp32", threads: 1, tile: 40 } });
const photo = new OffscreenCanvas(110, 75);
photo.getContext("2d").drawImage(document.getElementById("before"), 0, 0, 110, 75);
const blob = await photo.convertToBlob({ type: "image/png" });
const { png } = await client.call("render", { key: "a", blob, seed: 1n });
client.close();
return btoa(Array.from(new Uint8Array(await png.arrayBuffer()), (byte) => String.fromCharCode(byte)).join(""));
""")
    with Image.open(io.BytesIO(base64.b64decode(found))) as image:
        difference = np.abs(np.asarray(image).astype(int) - second)
    assert difference.max() <= 1
    assert not page.errors()
    assert {address.split("/")[2] for address in page.requests() if not address.startswith("blob:")} <= {
        page.url.split("/")[2]
    }


def test_temperature_is_pythons(page: Page, picture: Path) -> None:
    page.load("?backend=wasm&precision=fp32&temperature=1.7")
    page.add(picture)
    page.done()
    found = pixels_of(page.save()).astype(int)
    assert np.abs(found - enlarged(picture, "fp32", temperature=1.7)).max() <= 1
    assert np.abs(found - enlarged(picture, "fp32")).max() > 1
    page.load("?temperature=3", state="failed")
    assert "temperature: expected 0 to 2, got 3" in page.text("message")


def test_int8_is_close_to_python_and_repeats_its_bytes(page: Page, picture: Path) -> None:
    page.load("?backend=wasm&precision=int8&threads=1")
    assert "1 thread" in page.text("facts")
    page.add(picture)
    page.done()
    first = page.save()
    psnr = psnr_db(pixels_of(first), enlarged(picture, "int8"))
    assert psnr >= INT8_FLOOR_DB, f"{psnr:.1f} dB"
    page.load(INT8)
    assert "2 threads" in page.text("facts")
    page.add(picture)
    page.done()
    assert page.save().read_bytes() == first.read_bytes()


def test_vectors_that_all_runtimes_share(page: Page, root: Path) -> None:
    """examples/vectors: whole fields of noise, and the picture, which is of a sample that the page itself never asks for."""
    noise, case = (
        json.loads((root / "examples/vectors" / name).read_text()) for name in ("noise.json", "picture.json")
    )
    photo = io.BytesIO()
    Image.fromarray(to_pixels(case["image"])).save(photo, "PNG")
    page.driver.get(page.url + "style.css")
    found = page.run(f"""
const names = ["noise", "bundle", "choice", "picture", "rendering"];
const [{{ noiseField }}, {{ Bundle }}, {{ chooseEngine }}, {{ Photo }}, {{ Rendering }}] =
  await Promise.all(names.map((name) => import(`/${{name}}.js`)));
const digests = [], pictures = {{}};
for (const {{ seed, sample, height, width, channels, y0, x0 }} of {json.dumps(noise["fields"])}) {{
  const field = noiseField(BigInt(seed), sample, height, width, channels, y0, x0);
  const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", field));
  digests.push([...sum].map((byte) => byte.toString(16).padStart(2, "0")).join(""));
}}
const bundle = await Bundle.open(new URL("/bundle/", location.href).href);
const png = Uint8Array.from(atob("{base64.b64encode(photo.getvalue()).decode()}"), (character) => character.charCodeAt(0));
for (const precision of ["fp32", "int8"]) {{
  const {{ engine }} = await chooseEngine(bundle, {{ backend: "wasm", precision, threads: 1 }}, () => {{}});
  const rendering = new Rendering(await Photo.open(new Blob([png], {{ type: "image/png" }})), bundle.manifest, engine);
  pictures[precision] = [];
  for await (const {{ data }} of rendering.bands({case["seed"]}n, {{ sample: {case["sample"]} }})) pictures[precision].push(...data);
}}
return {{ digests, pictures }};
""")
    assert found["digests"] == [field["sha256"] for field in noise["fields"]]
    expected = to_pixels(case["fp32"])
    fp32, int8 = (
        np.array(found["pictures"][precision], np.uint8).reshape(*expected.shape[:2], 4)[..., :3]
        for precision in ("fp32", "int8")
    )
    off = np.abs(fp32.astype(int) - expected)
    assert off.max() <= case["most_levels"]
    assert np.count_nonzero(off) <= case["most_share"] * off.size
    psnr = psnr_db(int8, expected)
    assert psnr >= case["int8_floor_db"], f"{psnr:.1f} dB"


def test_a_large_result_is_shown_by_the_averages_of_its_squares(page: Page) -> None:
    page.driver.get(page.url + "style.css")
    found = page.run("""
const { Preview } = await import("/preview.js");
const preview = new Preview(131, 97, 3500); // to a half
for (let y0 = 0; y0 < 97; y0 += 10) {
  const height = Math.min(10, 97 - y0), data = new Uint8ClampedArray(4 * 131 * height);
  for (let i = 0; i < data.length; i += 4) {
    const y = y0 + Math.floor(i / 4 / 131), x = (i / 4) % 131;
    data.set([x + (x % 2) * 50, 2 * y, 128, 255], i);
  }
  preview.add({ data, height, width: 131 });
}
const bytes = new Uint8Array(await (await preview.finish()).arrayBuffer());
return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
""")
    with Image.open(io.BytesIO(base64.b64decode(found))) as image:
        assert (image.format, image.size) == ("JPEG", (65, 48))
        shown = np.asarray(image).astype(float)
    y, x = np.mgrid[:48, :65]
    expected = np.stack((2 * x + 25.5, 4 * y + 1, np.full((48, 65), 128)), axis=-1)
    assert np.abs(shown - expected).mean() < 1, np.abs(shown - expected).mean(axis=(0, 1))
