"""What the tests of the page of `gdposr serve` share: the page in headless Chromium, a photo, and the pixels of what is saved."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import Page, chromium, serving
from PIL import Image

from gdposr.web.site import site_files
from runtime.bundle.reader import Bundle

INT8 = "?backend=wasm&precision=int8&threads=2"


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
