"""`gdposr train sample`: a folder of pictures by a checkpoint that was never exported."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra `train`")
for package in ("diffusers", "peft", "transformers"):
    pytest.importorskip(package, reason="needs the extra `train`")

from make_miniature_sd21 import make_miniature, make_public_layout  # noqa: E402  (after importorskip)

from calibration.measure.onestep import restore  # noqa: E402
from export.student.sample import main  # noqa: E402
from runtime.upscale.color import color_fix  # noqa: E402
from training.model.loading import load_model  # noqa: E402
from training.model.saving import save_merged  # noqa: E402
from training.model.text import DEFAULT_PROMPT  # noqa: E402


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to read."""
    return make_miniature(tmp_path_factory.mktemp("models") / "sd21")


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to read."""
    return make_public_layout(tmp_path_factory.mktemp("models") / "gdpo")


@pytest.fixture
def lr(make_pixels: Callable[..., np.ndarray], tmp_path: Path) -> Path:
    """Two pictures, one with a caption: a.png 12x10, deep/b.png 8x8."""
    folder = tmp_path / "lr"
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(make_pixels(12, 10)).save(folder / "a.png")
    Image.fromarray(make_pixels(8, 8, seed=1)).save(folder / "deep" / "b.png")
    (folder / "deep" / "b.txt").write_text("a cat")
    return folder


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_samples_of_a_one_step_model_with_the_caption_of_each_photo(
    public: Path, text: Path, lr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--model", str(public), "--base", str(text), "--lr", str(lr), "--out", str(out), "--seed", "3"]
    assert main([*words, "--samples", "2"]) == 0
    assert "captions: 1 of 2 images have one (1 from .txt); 1 get the default" in capsys.readouterr().out
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert found == ["a_s0.png", "a_s1.png", "deep/b_s0.png", "deep/b_s1.png"]
    model = load_model(public, base=text)
    for name, prompt in (("a", DEFAULT_PROMPT), ("deep/b", "a cat")):
        for k in range(2):
            expected = restore(model, picture(lr / f"{name}.png"), 3, k, prompt)
            assert np.array_equal(picture(out / f"{name}_s{k}.png"), expected)
    assert not np.array_equal(picture(out / "a_s0.png"), picture(out / "a_s1.png"))
    plain = restore(model, picture(lr / "deep" / "b.png"), 3)
    assert not np.array_equal(picture(out / "deep" / "b_s0.png"), plain)


def test_one_sample_one_prompt_and_the_colours_of_the_input(text: Path, lr: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "--model",
        str(text),
        "--lr",
        str(lr),
        "--out",
        str(out),
        "--sample",
        "1",
        "--prompt",
        "the photo",
    ]
    assert main([*words, "--color-fix", "adain"]) == 0
    small = picture(lr / "deep" / "b.png")
    sr = restore(load_model(text), small, 0, 1, "the photo")
    fixed = color_fix(sr.astype(np.float32) / 255, small.astype(np.float32) / 255, "adain")
    assert np.abs(picture(out / "deep" / "b.png") - 255 * fixed.clip(0, 1)).max() <= 0.51
    assert not np.array_equal(picture(out / "deep" / "b.png"), sr)


def test_a_model_trained_with_one_prompt_gets_it_for_every_photo(
    text: Path, lr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_merged(load_model(text), tmp_path / "run", {"settings": {"prompt": "the photo"}})
    assert main(["--model", str(tmp_path / "run"), "--lr", str(lr), "--out", str(tmp_path / "out")]) == 0
    assert "the fixed prompt 'the photo' for all 2 images" in capsys.readouterr().out
    small = picture(lr / "deep" / "b.png")
    assert np.array_equal(
        picture(tmp_path / "out" / "deep" / "b.png"), restore(load_model(text), small, 0, 0, "the photo")
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--model", "bicubic", "--samples", "2"],
            "bicubic has no noise and makes one picture: leave --samples out",
        ),
        (["--model", "bicubic", "--prompt", "a cat"], "--prompt is for one-step models, got --model bicubic"),
        (["--model", "bicubic", "--samples", "0"], "--samples must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(
    words: list[str], says: str, lr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--lr", str(lr), "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bicubic_is_one_picture_of_each(lr: Path, tmp_path: Path) -> None:
    assert main(["--model", "bicubic", "--lr", str(lr), "--out", str(tmp_path / "out")]) == 0
    assert picture(tmp_path / "out" / "a.png").shape == (48, 40, 3)
