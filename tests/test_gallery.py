"""The gallery: a page with pictures of open photos, by the toy bundle in place of the real one."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gdposr.console import UsageError
from tools import gallery, gallery_pictures
from tools.demo import SCALE

TWO = ("--only", "print", "--only", "small-print")  # the test card, which needs no package


@pytest.fixture
def pages(toy_bundle: Path) -> Callable[..., int]:
    """pages(out, "--only", "print", ...) runs the command with the toy bundle."""

    def run(out: Path, *words: str) -> int:
        return gallery.main(["--out", str(out), "--bundle", str(toy_bundle), *words])

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_same_command_gives_the_same_bytes(tmp_path: Path, pages: Callable[..., int]) -> None:
    for name in ("first", "second"):
        assert pages(tmp_path / name, *TWO) == 0
    first = contents(tmp_path / "first")
    assert set(first) == {"gallery.md", "gallery/print.jpg", "gallery/small-print.jpg"}
    assert first == contents(tmp_path / "second")


def test_page_says_how_it_was_made_and_leaves_out_what_nobody_judged(
    tmp_path: Path, pages: Callable[..., int], capsys: pytest.CaptureFixture[str], toy_bundle: Path
) -> None:
    from gdposr import Bundle

    assert pages(tmp_path, *TWO) == 0
    text = (tmp_path / "gallery.md").read_text()
    assert Bundle.open(toy_bundle).digest in text
    assert "`python -m tools.gallery --bundle toy.gdposr --only print --only small-print`" in text
    assert str(tmp_path) not in text
    assert (
        len(re.findall(r"PSNR: bicubic \d+\.\d\d dB, gdposr seed 0 \d+\.\d\d dB, gdposr seed 1", text)) == 2
    )
    assert "Verdict:" not in text
    assert "The peer's pictures are left out" in text
    assert "realesr" not in text
    said = capsys.readouterr().err
    assert said.count("no peer") == 1
    assert gallery_pictures.JUDGED in said, "the person who runs it learns why there is no verdict"


def test_picture_shows_equal_cells_pixel_by_pixel(tmp_path: Path, pages: Callable[..., int]) -> None:
    assert pages(tmp_path, "--only", "print") == 0
    picture = np.asarray(Image.open(tmp_path / "gallery" / "print.jpg").convert("RGB")).astype(int)
    assert picture.shape[1] == 3 * gallery_pictures.CROP + 4 * 8
    original = gallery_pictures.draw_card()[: gallery_pictures.CROP].astype(int)
    # Five cells in rows of three, the original last: in the second row, second column.
    top, left = 8 + (26 + gallery_pictures.CROP + 8) + 26, 8 + gallery_pictures.CROP + 8
    cell = picture[top : top + gallery_pictures.CROP, left : left + gallery_pictures.CROP]
    assert np.abs(cell - original[..., None]).mean() < 3, "but for JPEG the original itself"


def test_photo_of_scikit_image_in_gray(tmp_path: Path, pages: Callable[..., int]) -> None:
    pytest.importorskip("skimage", reason="needs the extra `demo`")
    assert pages(tmp_path, "--only", "handwriting") == 0
    picture = np.asarray(Image.open(tmp_path / "gallery" / "handwriting.jpg").convert("RGB")).astype(int)
    inside = picture[40:190, 20:280]  # of the first cell
    assert np.ptp(inside, axis=2).max() <= 2, "gray stays gray"


def test_peer_is_shown_and_measured_where_there_is_one(tmp_path: Path, toy_bundle: Path) -> None:
    def peer(small: np.ndarray) -> np.ndarray:
        return small.repeat(SCALE, axis=0).repeat(SCALE, axis=1)

    chosen = gallery.chosen(["print"])
    gallery.write_gallery(tmp_path, chosen, toy_bundle, peer, gallery.load_metrics(None), "the command")
    text = (tmp_path / "gallery.md").read_text()
    assert re.search(r"bicubic \d+\.\d\d dB, realesr-general-x4v3 \d+\.\d\d dB, gdposr seed 0", text)
    assert "left out" not in text


def test_sqf_stands_beside_psnr(
    tmp_path: Path,
    pages: Callable[..., int],
    need: Callable[..., None],
    request: pytest.FixtureRequest,
) -> None:
    need("torch", "safetensors")
    assert pages(tmp_path, "--only", "print", "--sqf-weights", str(request.getfixturevalue("weights"))) == 0
    assert re.search(r"SQF: bicubic \d+\.\d{3}, gdposr seed 0", (tmp_path / "gallery.md").read_text())


def test_verdicts_and_failures_are_told_of_the_bundle_they_were_written_for() -> None:
    shown = gallery.chosen(["wall", "grass"])
    figures = {subject.name: {"PSNR": {"bicubic": 20.0}} for subject in shown}
    for judged in (True, False):
        text = gallery.page(shown, figures, "made", "command", judged=judged, with_peer=True)
        for name in ("wall", "grass"):
            assert (gallery_pictures.VERDICTS[name] in text) == judged
        assert text.index("### A brick wall") < text.index("## Where it fails") < text.index("### Grass")
        assert ("an earlier bundle failed" in text) != judged


def test_what_cannot_start_is_one_line_and_exit_code_2(
    tmp_path: Path, pages: Callable[..., int], need: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    need("ncnn", "onnx")
    for words, message in (
        (("--only", "rain"), "face, handwriting"),
        (("--sqf-weights", str(tmp_path / "none.safetensors")), "none.safetensors"),
        (("--peer-ncnn", str(tmp_path / "none.param")), "none"),
        (("--bundle", str(tmp_path / "none.gdposr")), "none.gdposr"),
    ):
        assert pages(tmp_path / "out", *words) == 2, words
        said = capsys.readouterr().err.splitlines()
        assert said[-1].startswith("gdposr: error: ")
        assert message in said[-1]
    assert not (tmp_path / "out" / "gallery.md").exists()


def test_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_pictures, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"scikit-learn.*pip install"):
        gallery_pictures.open_picture(gallery_pictures.CHINA)
    with pytest.raises(UsageError, match=r"scikit-image.*gdposr\[demo\]"):
        gallery_pictures.open_picture(gallery_pictures.ASTRONAUT)


def test_reduction_is_fourfold_and_keeps_the_channels(make_pixels: Callable[..., np.ndarray]) -> None:
    colour = make_pixels(64, 96)
    for picture, shape in ((colour, (16, 24, 3)), (colour[..., 0], (16, 24))):
        clean, packed = gallery.reduced(picture, None), gallery.reduced(picture, 90)
        assert clean.shape == packed.shape == shape
        assert 0 < np.abs(clean.astype(int) - packed).mean() < 10


def test_every_subject_lies_inside_its_picture(need: Callable[..., None]) -> None:
    need("skimage", "sklearn")
    for subject in gallery_pictures.SUBJECTS:
        height, width = gallery_pictures.open_picture(subject.source).shape[:2]
        assert subject.top + subject.height <= height, subject.name
        assert subject.left + subject.width <= width, subject.name
        edges = (subject.top, subject.left, subject.height, subject.width)
        assert not any(edge % SCALE for edge in edges), f"{subject.name}: whole LR pixels"
        assert 64 <= subject.width // SCALE <= 96, subject.name


def test_tables_name_the_same_subjects() -> None:
    names = [subject.name for subject in gallery_pictures.SUBJECTS]
    assert len(set(names)) == len(names)
    assert set(gallery_pictures.VERDICTS) == set(names)
    assert set(gallery_pictures.FAILURES) < set(names)
    assert all(subject.source.credit and subject.remark for subject in gallery_pictures.SUBJECTS)


def test_committed_page_has_every_subject_and_stays_small(root: Path) -> None:
    text = (root / "docs" / "gallery.md").read_text()
    named = set(re.findall(r"\(gallery/([a-z-]+\.jpg)\)", text))
    assert named == {f"{subject.name}.jpg" for subject in gallery_pictures.SUBJECTS}
    files = {file.name: file.stat().st_size for file in (root / "docs" / "gallery").iterdir()}
    assert set(files) == named
    assert sum(files.values()) < 2.5e6
