"""`make bench-fleet`: a short run of it, and that it finds what it looks for."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tools.fleet_bench import differing, make_photos, peak


def test_photos_have_the_sizes_asked_for(tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 3, 24, 0.5)
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "in").iterdir()}
    large = sizes.pop("00001_large.jpg")
    assert set(sizes.values()) == {(24, 24)}
    assert len(sizes) == 3
    assert large[0] * large[1] == pytest.approx(500_000, rel=0.01)


def test_pictures_that_differ_or_lack_are_found(tmp_path: Path) -> None:
    for folder, names in (("one", "abc"), ("other", "bcd")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.png").write_bytes(name.encode())
    (tmp_path / "one/c.png").write_bytes(b"x")
    assert differing(tmp_path / "one", tmp_path / "other") == ["a.png", "c.png", "d.png"]


def test_a_process_that_is_gone_has_no_peak() -> None:
    assert peak(2**31 - 1) == 0


@pytest.mark.slow
def test_a_short_run_has_no_faults(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="needs the extra ray: pip install 'gdposr[ray]'")
    from tools.fleet_bench import main

    words = ["--photos", "8", "--side", "16", "--rounds", "1", "--large", "0.2", "--processors", "1"]
    code = main(["--bundle", str(toy_bundle), *words])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert re.search(r"^ray/plain, photos a second: \d+\.\d\d$", printed, flags=re.MULTILINE)
    assert "among 20, most memory of a process: plain" in printed
    assert printed.endswith("0 faults\n")
