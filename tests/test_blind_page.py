"""The page of `gdposr blind`: it needs nothing from elsewhere, and in a browser it turns keys into a file of votes."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PAIRS = 5


@pytest.fixture
def study(gdposr: Any, make_photo: Any, tmp_path: Path) -> Path:
    """A study of five pairs of one photo, with its page beside it."""
    for folder, scale in (("a", 4), ("b", 4), ("lr", 1)):
        make_photo(f"{folder}/photo.png", 40 * scale, 50 * scale, seed=ord(folder[0]))
    words = [
        "--lr",
        tmp_path / "lr",
        "--out",
        tmp_path / "study",
        "--pairs",
        PAIRS,
        "--crop",
        32,
        "--seed",
        1,
    ]
    code, _, err = gdposr("blind", "make", tmp_path / "a", tmp_path / "b", *words)
    assert code == 0, err
    code, _, err = gdposr("blind", "page", tmp_path / "study")
    assert code == 0, err
    return tmp_path / "study"


def test_page_is_one_file_and_tells_nothing(study: Path) -> None:
    page = study.with_name("study.html").read_text()
    assert not re.findall(
        r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|https?:|fetch\(|import\(""", page
    )
    assert "default-src 'none'" in page
    data = json.loads(re.search(r'<script type="application/json" id="study">(.*?)</script>', page, re.S)[1])
    assert data["digest"] == json.loads((study / "study.json").read_text())["key_sha256"]
    assert len(data["pairs"]) == PAIRS
    for pair in data["pairs"]:
        assert set(pair) == {"input", "left", "right", "side"}
        assert pair["side"] == 128
        assert all(pair[part].startswith("data:image/png;base64,") for part in ("input", "left", "right"))
    for word in ("viewport", "prefers-color-scheme: dark", "Which would a person keep?"):
        assert word in page


def test_page_elsewhere_and_of_a_damaged_study(gdposr: Any, study: Path, tmp_path: Path) -> None:
    assert gdposr("blind", "page", study, "--out", tmp_path / "new" / "vote.html")[0] == 0
    assert (tmp_path / "new" / "vote.html").read_bytes() == study.with_name("study.html").read_bytes()
    (study / "pairs" / "003_left.png").unlink()
    code, _, err = gdposr("blind", "page", study)
    assert (code, "003_left.png: expected a picture of the study" in err) == (2, True)


# --- in a browser -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, need: Any) -> Iterator[Any]:
    """A driver of headless Chromium, which takes seconds to start."""
    need("selenium")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1000,900",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Callable[[Path], Any]:
    """open_page(file) -> the browser on that page, without earlier votes; what it saves goes to tmp_path / "saved"."""

    def show(page: Path) -> Any:
        behavior = {"behavior": "allow", "downloadPath": str(tmp_path / "saved")}
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
        browser.get(page.as_uri())
        browser.execute_script("localStorage.clear()")
        browser.refresh()
        return browser

    return show


def saved(folder: Path) -> Path:
    """The one file in a folder of downloads, once it is complete."""
    for _ in range(100):
        files = list(folder.glob("*")) if folder.is_dir() else []
        if files and not any(path.suffix in (".crdownload", ".tmp") for path in files):
            assert len(files) == 1
            return files[0]
        time.sleep(0.1)
    raise AssertionError(f"nothing was saved in {folder}")


def test_voting_with_the_keys(open_page: Any, study: Path, gdposr: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    driver = open_page(study.with_name("study.html"))

    def find(selector: str) -> Any:
        return driver.find_element("css selector", selector)

    def press(*keys: str) -> str:
        """What the page then says."""
        for key in keys:
            find("body").send_keys(key)
        return find("#status").text

    def width(selector: str) -> int:
        return int(find(selector).size["width"])

    assert press() == "Pair 1 of 5, 0 voted"
    assert find("#back").get_property("disabled")
    first = find("#left img").get_attribute("src")
    assert first != find("#right img").get_attribute("src")
    # the three are shown at one size, and the space bar doubles the two
    assert (width("#input img"), width("#left img"), width("#right img")) == (128, 128, 128)
    press(Keys.SPACE)
    assert (width("#input img"), width("#left img"), width("#right img")) == (128, 256, 256)
    assert find("#zoom").get_attribute("aria-pressed") == "true"
    press(Keys.SPACE)
    assert width("#left img") == 128
    # votes, and back twice to change one
    assert press(Keys.ARROW_LEFT, Keys.ARROW_RIGHT) == "Pair 3 of 5, 2 voted"
    assert find("#left img").get_attribute("src") != first
    assert press(Keys.ARROW_UP) == "Pair 2 of 5, 2 voted"
    assert find("#vote-right").get_attribute("aria-pressed") == "true"
    assert press(Keys.BACKSPACE) == "Pair 1 of 5, 2 voted"
    assert find("#left img").get_attribute("src") == first
    assert press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_LEFT) == "Pair 4 of 5, 3 voted"
    # a reload keeps all of it; on a busy processor Chromium's own process has it only a moment later
    for _ in range(5):
        driver.refresh()
        if press() == "Pair 4 of 5, 3 voted":
            break
    assert press() == "Pair 4 of 5, 3 voted"
    # buttons do the same as keys, and after a click the keys still work
    find("#vote-right").click()
    assert press(Keys.ARROW_LEFT) == "5 of 5 voted"
    assert find("#thanks").is_displayed()
    assert not find("#votes").is_displayed()
    find("#done .save").click()
    votes = saved(tmp_path / "saved")
    lines = votes.read_text().splitlines()
    assert votes.name == "votes.csv"
    assert [line for line in lines if not line.startswith("#")] == [
        "pair,vote", "001,tie", "002,right", "003,left", "004,right", "005,left",
    ]  # fmt: skip
    code, out, err = gdposr("blind", "score", study, votes)
    assert code == 0, err
    assert "votes: LEFT chosen 2 times, RIGHT 2 times" in out
    assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_saving_before_the_end_and_starting_anew(
    open_page: Any, study: Path, gdposr: Any, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    driver = open_page(study.with_name("study.html"))
    find = driver.find_element
    find("css selector", "body").send_keys(Keys.ARROW_LEFT)
    find("css selector", "footer .save").click()
    code, _, err = gdposr("blind", "score", study, saved(tmp_path / "saved"))
    assert (code, "missing 2, 3, 4, 5" in err) == (2, True)
    find("id", "restart").click()
    driver.switch_to.alert.accept()
    assert find("id", "status").text == "Pair 1 of 5, 0 voted"


def test_page_fits_a_phone(open_page: Any, study: Path) -> None:
    driver = open_page(study.with_name("study.html"))
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True},
    )
    for large in (False, True):
        if large:
            driver.find_element("id", "zoom").click()
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        assert all(
            button.size["height"] >= 40 for button in driver.find_elements("css selector", "#votes button")
        )
