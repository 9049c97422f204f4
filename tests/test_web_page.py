"""The page of `gdposr serve` in headless Chromium, in use: lists, keys, a phone, a damaged bundle, no network, no headers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import web_page_cases
from browsers import Page, serving
from PIL import Image
from web_page_cases import INT8, pixels_of

from runtime.upscale.probe import psnr_db

browser, files, server = web_page_cases.browser, web_page_cases.files, web_page_cases.server  # fixtures
page, picture = web_page_cases.page, web_page_cases.picture


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
