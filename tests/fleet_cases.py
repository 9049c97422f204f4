"""What the tests of archives on Ray share: the settings of a plain run, and a folder of photos."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gdposr.batch.task import Options


@pytest.fixture
def options(toy_bundle: Path) -> Options:
    from runtime.bundle.reader import Bundle

    return Options(0, 1, "all", 4.0, 95, Bundle.open(toy_bundle).digest)


@pytest.fixture
def archive(make_photo: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder of five photos, one broken file, and what is left out."""
    for index, name in enumerate(("a.png", "b.jpg", "b.png", "day 1/c.png", "day 1/ä.png")):
        make_photo(f"in/{name}", seed=index)
    make_photo("in/.hidden/d.png")
    (tmp_path / "in/broken.jpg").write_bytes(b"no picture")
    (tmp_path / "in/notes.txt").write_text("no photo")
    return tmp_path / "in"
