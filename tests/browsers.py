"""Headless Chromium for the tests of pages, and a page of `gdposr serve` in it."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage", "hide-scrollbars",
)  # fmt: skip


@contextmanager
def chromium(profile: Path, *flags: str, size: tuple[int, int] = (1280, 860)) -> Iterator[Any]:
    """A driver of headless Chromium, which takes seconds to start; skips the test where it is missing."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, *flags, f"window-size={size[0]},{size[1]}", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    opened.set_script_timeout(60)
    try:
        yield opened
    finally:
        opened.quit()


@contextmanager
def serving(files: dict[str, bytes], port: int = 0, **more: Any) -> Iterator[Any]:
    """A server of a page's files, in a thread. more: what `PageServer` takes."""
    from gdposr.web.server import PageServer

    with PageServer(files, port, **more) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Page:
    """The page of `gdposr serve` as a person sees it. saved: folder of its downloads."""

    def __init__(self, driver: Any, url: str, saved: Path) -> None:
        self.driver, self.url, self.saved = driver, url, saved

    def load(self, query: str = "", state: str = "ready", seconds: float = 60) -> None:
        self._to_folder()
        self.driver.get(self.url + query)
        self.wait(f"document.body.dataset.state === '{state}'", seconds)

    def reuse(self, query: str) -> None:
        """As `load`, or the page as an earlier test left it. Photos are added to those of that test."""
        self.load(query) if self.driver.current_url != self.url + query else self._to_folder()

    def find(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def text(self, name: str) -> str:
        return self.driver.execute_script(f"return document.getElementById('{name}').textContent")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Until a condition in JavaScript holds."""
        end = time.monotonic() + seconds
        while not self.driver.execute_script(f"return Boolean({condition})"):
            if time.monotonic() > end:
                shown = self.driver.execute_script("return document.body.innerText")
                raise AssertionError(f"waited {seconds} s for {condition}; the page says: {shown}")
            time.sleep(0.05)

    def add(self, *photos: Path) -> None:
        self.find("files").send_keys("\n".join(map(str, photos)))

    def settled(self) -> None:
        """Until nothing is under way."""
        self.wait(
            "![...document.querySelectorAll('#list button')].some((b) => /waiting|working/.test(b.ariaLabel))"
        )

    def labels(self) -> list[str]:
        """Name and state of each photo in the list."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll('#list button')].map((b) => b.ariaLabel)"
        )

    def pick(self, place: int) -> None:
        """Put a photo of the list on the stage."""
        self.driver.execute_script(f"[...document.querySelectorAll('#list button')].at({place}).click()")

    def done(self, seconds: float = 60) -> None:
        """Until the photo on the stage has its result."""
        self.wait(
            "!document.getElementById('png').disabled && document.getElementById('after').complete", seconds
        )

    def save(self, kind: str = "png") -> Path:
        """Save the version shown, and give the file, in a folder of its own."""
        self.driver.execute_script(f"document.getElementById('{kind}').click()")
        end = time.monotonic() + 30
        while time.monotonic() < end:
            found = [path for path in self.saved.glob("*") if path.is_file()] if self.saved.is_dir() else []
            if found and not any(path.suffix in (".crdownload", ".tmp") for path in found):
                (file,) = found
                folder = self.saved / str(len(list(self.saved.iterdir())))
                folder.mkdir()
                return file.rename(folder / file.name)
            time.sleep(0.05)
        raise AssertionError("nothing was saved")

    def run(self, code: str) -> Any:
        """The value of an async function's body."""
        wrapped = (
            "const done = arguments[0];"
            f"(async () => {{ {code} }})().then(done, (error) => done(`failed: ${{error.stack}}`));"
        )
        return self.driver.execute_async_script(wrapped)

    def requests(self) -> set[str]:
        """Addresses that the page has asked for since the last call, workers included."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.add(message["params"]["request"]["url"])
        return found

    def _to_folder(self) -> None:
        behavior = {"behavior": "allow", "downloadPath": str(self.saved)}
        self.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)

    def errors(self) -> list[str]:
        """What the browser's console complains of since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
