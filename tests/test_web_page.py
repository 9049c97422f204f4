"""The page of `gdposr serve` in headless Chromium: its pictures are Python's, and nothing leaves the machine."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import Page, chromium, serving
from PIL import Image

from gdposr.web.site import site_files
from runtime.bundle.reader import Bundle
from runtime.upscale.probe import psnr_db
from runtime.upscale.upscaler import Upscaler
from tools.arm.checks import to_pixels

# The page's INT8 sums in another order than Python's.
INT8_FLOOR_DB = 45.0
INT8 = "?backend=wasm&precision=int8&threads=2"
# Without them headless Chromium has no WebGPU where there is no graphics card.
WEBGPU = ("enable-unsafe-webgpu", "use-webgpu-adapter=swiftshader", "enable-features=Vulkan,WebGPU")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, need: Any) -> Iterator[Any]:
    need("selenium")
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return site_files(Bundle.open())


@pytest.fixture(scope="module")
def server(files: dict[str, bytes]) -> Iterator[Any]:
    with serving(files) as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Any, tmp_path: Path) -> Page:
    return Page(browser, server.url, tmp_path / "saved")


@pytest.fixture
def picture(tmp_path: Path, make_pixels: Any) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(make_pixels(75, 110)).save(path)
    return path


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


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


def test_a_list_with_bad_files_a_turned_photo_and_stop(page: Page, tmp_path: Path, make_pixels: Any) -> None:
    turned, text, empty, large = (
        tmp_path / name for name in ("turned.jpg", "notes.jpg", "empty.png", "large.png")
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = (250, 20, 20)  # the left half, which ends up above
    Image.fromarray(pixels).save(turned, quality=95, exif=exif)
    text.write_text("no photo")
    empty.write_bytes(b"")
    Image.fromarray(make_pixels(500, 700)).save(large)
    page.reuse(INT8)
    page.add(turned, text, empty)
    page.settled()
    page.done()
    upright = pixels_of(page.save())
    assert upright.shape == (240, 160, 3)
    assert upright[30, 80, 0] > 200 > 60 > upright[210, 80, 0]
    with Image.open(page.save("jpeg")) as jpeg:
        assert (jpeg.format, jpeg.size, jpeg.getexif().get(0x0112)) == ("JPEG", (160, 240), None)
        assert psnr_db(np.asarray(jpeg), upright) > 40
    assert page.labels()[-3:] == ["turned.jpg, done", "notes.jpg, failed", "empty.png, failed"]
    for place, sentence in (
        (-2, "notes.jpg: expected a photo that this browser can read"),
        (-1, "empty.png: expected a photo, got an empty file"),
    ):
        page.pick(place)
        assert sentence in page.text("message")
        assert not page.find("stage").is_displayed()
        assert not page.find("tools").is_displayed()
    # a result is saved without waiting for the photo that is under way
    page.add(large)
    page.wait("document.getElementById('progress').value > 0")
    page.pick(-4)
    assert page.save("jpeg").name == "turned_x4_seed0.jpeg"
    assert page.labels()[-1] == "large.png, working"
    # stop: the page answers at once, and goes on when it is asked to
    page.pick(-1)
    page.find("cancel").click()
    page.wait("/stopped/.test([...document.querySelectorAll('#list button')].at(-1).ariaLabel)", 10)
    assert page.find("png").get_property("disabled")
    assert not page.find("progress").is_displayed()
    assert (page.text("step"), page.text("cancel")) == ("stopped", "Go on")
    page.find("cancel").click()
    page.wait("document.getElementById('progress').value > 0")
    assert page.text("cancel") == "Stop"
    page.pick(-4)  # another photo comes first
    page.done()
    assert page.text("message") == ""
    assert page.labels()[-1] in ("large.png, waiting", "large.png, working")
    page.pick(-1)
    page.find("cancel").click()
    page.settled()


def test_four_versions_keys_and_divider(page: Page, picture: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    page.reuse(INT8)
    page.add(picture)
    page.done()
    divider, stage = page.find("divider"), page.find("stage")
    assert divider.get_attribute("aria-valuenow") == "50"
    divider.send_keys(Keys.ARROW_LEFT)
    assert divider.get_attribute("aria-valuenow") == "48"
    divider.send_keys(Keys.END)
    assert divider.get_attribute("aria-valuenow") == "100"
    width = page.find("after").size["width"]
    stage.send_keys("+")
    assert page.find("after").size["width"] == pytest.approx(width * 1.25, abs=2)
    left = page.find("after").rect["x"]
    stage.send_keys(Keys.ARROW_LEFT)
    assert page.find("after").rect["x"] >= left
    stage.send_keys("0")
    assert page.find("after").size["width"] == width
    page.find("four").click()
    page.wait("document.querySelectorAll('#grid canvas[data-ready]').length === 4")
    texts = page.driver.execute_script(
        "return [...document.querySelectorAll('#grid button')].map((b) => b.textContent)"
    )
    assert texts == ["seed 0", "seed 1", "seed 2", "seed 3"]
    shown = page.driver.execute_script(
        "return [...document.querySelectorAll('#grid canvas')].map((c) => c.toDataURL())"
    )
    assert len(set(shown)) == 4
    page.driver.execute_script("document.querySelectorAll('#grid button')[2].click()")
    page.wait("document.getElementById('seed').textContent === 'seed 2'")
    page.done()
    assert page.save().name == "photo_x4_seed2.png"
    unnamed = page.driver.execute_script(
        "return [...document.querySelectorAll('button, input, [role]')].filter((e) => !e.ariaLabel && !e.textContent.trim()"
        " && !e.labels?.length && !e.getAttribute('aria-labelledby') && e.checkVisibility()).map((e) => e.id)"
    )
    assert unnamed == []


def test_fits_a_phone(page: Page, picture: Path) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.reuse(INT8)
        wide = "return document.documentElement.scrollWidth"
        assert page.driver.execute_script(wide) <= 390
        page.add(picture)
        page.done()
        assert page.driver.execute_script(wide) <= 390
        heights = page.driver.execute_script(
            "return [...document.querySelectorAll('#tools button')].map((b) => b.getBoundingClientRect().height)"
        )
        assert min(heights) >= 44
        assert len(page.driver.get_screenshot_as_png()) > 10_000
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_damaged_bundle_is_refused_with_a_sentence(page: Page, files: dict[str, bytes]) -> None:
    name = "bundle/generator.int8.onnx"
    altered = bytearray(files[name])
    altered[1000] ^= 1
    size = len(altered)
    for broken, sentence in (
        ({name: bytes(altered)}, "generator.int8.onnx: expected sha256"),
        ({name: files[name][:-1]}, f"generator.int8.onnx: expected {size} bytes, got {size - 1}"),
        ({"bundle/manifest.json": b"<html>"}, "manifest.json: expected JSON"),
        ({"bundle/manifest.json": b'{"format_version": 9}'}, "format_version: expected at most 1, got 9"),
    ):
        with serving({**files, **broken}) as other:
            damaged = Page(page.driver, other.url, page.saved)
            damaged.load("?backend=wasm&precision=int8&threads=1", state="failed")
            assert sentence in damaged.text("message")


@pytest.mark.slow
def test_works_offline_after_the_first_visit(page: Page, files: dict[str, bytes], picture: Path) -> None:
    with serving(files) as first:
        offline = Page(page.driver, first.url, page.saved)
        offline.load("?backend=wasm&precision=int8&threads=1")
        offline.wait("navigator.serviceWorker.controller")
    offline.load("?backend=wasm&precision=int8")
    assert offline.driver.execute_script("return crossOriginIsolated")
    offline.add(picture)
    offline.done()
    assert pixels_of(offline.save()).shape == (300, 440, 3)


@pytest.mark.slow
def test_static_host_without_headers_is_isolated_by_the_service_worker(
    page: Page, files: dict[str, bytes]
) -> None:
    with serving(files, headers={}) as plain:
        bare = Page(page.driver, plain.url, page.saved)
        bare.load("?backend=wasm&precision=int8")
        assert not bare.driver.execute_script("return crossOriginIsolated")
        assert "1 thread" in bare.text("facts")
        bare.wait("navigator.serviceWorker.controller")
        bare.load("?backend=wasm&precision=int8")
        assert bare.driver.execute_script("return crossOriginIsolated")
