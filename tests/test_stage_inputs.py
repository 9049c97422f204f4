"""What the diffusion model's stages are given: captions, LR pictures made by the loader or on the device, crops."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from stage_runs import SD_GDPO, SD_NAOSD, two_steps  # noqa: E402  (after importorskip)

from training.data.batches import Batch  # noqa: E402
from training.data.device.degradation import degrade_batch  # noqa: E402
from training.data.device.parameters import Mixture  # noqa: E402
from training.data.photos import PhotoSet, find_images  # noqa: E402
from training.loop.stage import RunSettings  # noqa: E402
from training.loop.validation import Validation  # noqa: E402
from training.main import build_stage  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.model.text import DEFAULT_PROMPT, PromptSource  # noqa: E402
from training.stages.gdpo import Gdpo  # noqa: E402
from training.stages.naosd import Naosd  # noqa: E402
from training.stages.presets import PRETRAIN  # noqa: E402
from training.stages.pretrain import Pretrain  # noqa: E402


@pytest.mark.parametrize("stage", ["naosd", "gdpo"])
def test_validation_gives_each_photo_its_caption(
    stage: str, miniature: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side-cars first, then the function, then the default, in the samples, the comparison and the pictures alike."""
    paths = find_images(photos)[:3]
    images = [Path(shutil.copy(path, tmp_path)) for path in paths]
    images[0].with_suffix(".txt").write_text("a cat")
    source = PromptSource(tmp_path, caption=lambda path: "the photo" if path == images[1] else "")
    validation = Validation(PhotoSet(images), tmp_path / "samples", size=64, batch=2, prompts=source)
    wanted = ("a cat", "the photo", DEFAULT_PROMPT)
    assert validation.prompts == wanted
    settings = replace(SD_NAOSD, vsd=0.0, perceptual=0.0) if stage == "naosd" else SD_GDPO
    built, seen = build_stage(settings, base=str(miniature)), []
    condition: Callable[..., Any] = OneStepModel.condition

    def noted(self: OneStepModel, prompts: Any, batch: int) -> Any:
        seen.append(tuple(prompts))
        return condition(self, prompts, batch)

    monkeypatch.setattr(OneStepModel, "condition", noted)
    validation(built.sample, 0)
    assert seen == [wanted[:2], wanted[2:]] * 2
    seen.clear()
    built.measure(validation)
    built.pictures(validation)
    assert seen == ([] if stage == "naosd" else [wanted[:2], wanted[2:], wanted[:2]])


def test_captions_of_a_run_reach_its_batches_and_its_validation(
    miniature: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = set()

    def caption(path: Path) -> str:
        asked.add(path.name)
        return f"the photo {path.stem}"

    caplog.set_level("INFO", logger="train")
    settings = replace(SD_NAOSD, vsd=0.0, perceptual=0.0)
    two_steps("naosd", settings, photos, tmp_path, steps=1, base=str(miniature), caption=caption)
    count = len(find_images(photos))
    assert f"captions: {count} of {count} images have one ({count} from a function)" in caplog.text
    assert asked == {path.name for path in find_images(photos)}


@pytest.mark.parametrize(
    ("stage", "where"), [("naosd", "loader"), ("naosd", "device"), ("gdpo", "device"), ("pretrain", "loader")]
)
def test_lr_pictures_are_made_where_the_setting_says(
    stage: str, where: str, miniature: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the mixture of the settings; pretraining looks at none, so none are made."""
    mixture = {"mild_share": 0.4, "plain_share": 0.3, "degrade": where}
    settings: RunSettings = {
        "naosd": replace(SD_NAOSD, vsd=0.0, perceptual=0.0, **mixture),
        "gdpo": replace(SD_GDPO, metrics=("psnr", "ssim"), **mixture),
        "pretrain": replace(PRETRAIN["tiny"], perceptual=0.0, **mixture),
    }[stage]  # type: ignore[arg-type]
    seen: list[Batch] = []
    kind = {"naosd": Naosd, "gdpo": Gdpo, "pretrain": Pretrain}[stage]
    forward: Callable[..., Any] = kind.forward

    def noted(self: Any, phase: str, batch: Batch, carry: Any) -> Any:
        seen.append(batch)
        return forward(self, phase, batch, carry)

    monkeypatch.setattr(kind, "forward", noted)
    two_steps(
        stage,
        settings,
        photos,
        tmp_path,
        base=None if stage == "pretrain" else str(miniature),
        validate=False,
    )
    for batch in (seen[0], seen[-1]):
        if stage == "pretrain":
            assert not batch.lr.any()
            continue
        in_batches = degrade_batch(batch.hr, settings.seed, batch.items, Mixture(0.4, 0.3))
        assert torch.equal(batch.lr, in_batches) == (where == "device")
        assert float((batch.lr - torch.nn.functional.avg_pool2d(batch.hr, 4)).abs().mean()) < 0.2
    assert [batch.items for batch in seen][:: len(seen) - 1] == [(0, 1), (2, 3)]


@pytest.mark.parametrize(("crop", "far"), [(32, True), (64, False), (96, False), (128, True)])
def test_a_crop_far_from_the_bases_is_said(
    crop: int, far: bool, miniature: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The miniature's UNet says sample_size 8, as Stable Diffusion 2.1's says 64."""
    caplog.set_level("WARNING", logger="train")
    build_stage(replace(SD_NAOSD, crop=crop, vsd=0.0, perceptual=0.0), base=str(miniature))
    assert (f"crop={crop} gives latents of {crop // 8}x{crop // 8}" in caplog.text) == far
    assert ("trained on 8x8, where it is best: --set crop=64" in caplog.text) == far


def test_photos_smaller_than_the_crop_are_mirrored(miniature: Path, photos: Path, tmp_path: Path) -> None:
    settings = replace(SD_NAOSD, crop=192, vsd=0.0, perceptual=0.0, batch=1)
    seen = two_steps("naosd", settings, photos, tmp_path / "run", steps=1, base=str(miniature))
    assert seen[0]["generator/loss"] > 0
