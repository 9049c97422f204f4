"""The critic and the two scores of the eye: what they like, what they do not, and clear errors."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from PIL import Image  # noqa: E402  (after importorskip)

from export.student.critic_stage import CriticSettings, CriticStage, build  # noqa: E402
from export.student.model.checkpoint import save_student  # noqa: E402
from export.student.model.network import Student, StudentConfig  # noqa: E402
from training.data.batches import batches  # noqa: E402
from training.data.flaws import FLAWS, spoil  # noqa: E402
from training.data.photos import CropParams, PairDataset, PhotoSet, find_images  # noqa: E402
from training.loop.budget import Budget  # noqa: E402
from training.loop.trainer import Trainer  # noqa: E402
from training.loop.validation import Validation  # noqa: E402
from training.metrics.critic import CONFIG_FILE, WEIGHTS_FILE, Critic, CriticConfig, load_critic, save_critic  # noqa: E402
from training.metrics.fidelity import MetricError  # noqa: E402
from training.metrics.likeness import band_energies, smoothness, texture_likeness  # noqa: E402
from training.metrics.registry import create_metrics  # noqa: E402
from training.stages.rewards import group_rewards  # noqa: E402

TINY = StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8)
SETTINGS = CriticSettings(batch=4, crop=48, width=8, lr=3e-3, warmup_steps=5, held_out=1, ema=0.9, grain=0.8)


@pytest.fixture(scope="module")
def photo() -> "torch.Tensor":
    """Half of it a soft ramp, half of it texture: (1, 3, 96, 96)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    ramp = 90 + 0.6 * x + 0.3 * y
    weave = 128 + 40 * np.sin(x / 1.7) * np.cos(y / 2.3) + rng.normal(0, 8, (96, 96))
    plane = np.where(x < 48, ramp, weave)
    levels = np.stack([plane, 0.9 * plane, 0.8 * plane + 20]).round().clip(0, 255)
    return torch.from_numpy(levels[None].astype(np.float32)) / 255


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student(TINY).eval()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four pictures with sharp edges and no grain."""
    folder = tmp_path_factory.mktemp("clean")
    y, x = np.mgrid[0:120, 0:160]
    for k in range(4):
        inside = np.sin(x / (5 + k)) * np.cos(y / (7 + k)) > 0.1 * k
        plane = np.where(inside, 190 - 0.4 * x, 60 + 0.5 * y)
        Image.fromarray(np.stack([plane, 0.9 * plane, plane], axis=2).astype(np.uint8)).save(
            folder / f"{k}.png"
        )
    return folder


@pytest.fixture(scope="module")
def trained(clean: Path, student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a critic, long enough that every seed of it learns the flaws: 140 steps were not, on some machines."""
    out = tmp_path_factory.mktemp("critic") / "run"
    stage = CriticStage(student, SETTINGS)
    validation = Validation(PhotoSet(find_images(clean)[:2]), out / "samples", size=96)
    pairs = PairDataset(PhotoSet(find_images(clean)), CropParams(64))
    Trainer(stage, SETTINGS, pairs, out, Budget(steps=300), validation=validation, workers=0).run()
    return out


def gray_noise(image: "torch.Tensor", levels: float, seed: int = 0) -> "torch.Tensor":
    noise = torch.randn(1, 1, *image.shape[2:], generator=torch.Generator().manual_seed(seed))
    return (image + levels / 255 * noise).clamp(0, 1)


def blurred(image: "torch.Tensor") -> "torch.Tensor":
    return torch.nn.functional.avg_pool2d(image, 5, 1, 2, count_include_pad=False)


# ----------------------------------------------------------------------------------------------------- the critic


@pytest.mark.slow
def test_critic_prefers_photos_to_photos_with_grain(trained: Path, clean: Path) -> None:
    critic = load_critic(trained)
    pairs = PairDataset(PhotoSet(find_images(clean)), CropParams(64), seed=9)
    hr = next(batches(pairs, None, 48, workers=0)).hr
    rng = np.random.default_rng(1)
    grainy = torch.stack([spoil(x, rng, "grain") for x in hr])
    wins = (critic.score(hr) > critic.score(grainy)).float().mean()
    assert wins >= 0.75, f"the photo wins in {wins:.0%}"


@pytest.mark.slow
def test_the_run_says_what_the_critic_can_tell_apart(trained: Path) -> None:
    lines = (trained / "log.jsonl").read_text()
    for name in ("student", "bicubic", *FLAWS, "grain on the photo"):
        assert f'"photo wins/{name}": ' in lines


@pytest.mark.slow
def test_critic_is_a_metric_by_name(trained: Path, photo: "torch.Tensor") -> None:
    (metric,) = create_metrics(["critic"], "cpu", critic=trained / "model" / WEIGHTS_FILE)
    assert (metric.reference, metric.higher_is_better, metric.family) == (False, True, "detail")
    torch.testing.assert_close(metric(photo), load_critic(trained).score((photo * 255).round() / 255))
    with pytest.raises(MetricError, match="gdposr train critic"):
        create_metrics(["critic"], "cpu")
    with pytest.raises(ValueError, match="at least 16 pixels a side"):
        metric(photo[..., :12, :12])


def test_the_student_stays_and_the_critic_moves(photos: Path, student: Student) -> None:
    stage = CriticStage(student, SETTINGS)
    batch = next(batches(PairDataset(PhotoSet(find_images(photos)), CropParams(64)), None, 4, workers=0))
    loss = stage("critic", batch, {})[0]["loss"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(np.log(2), abs=0.05)
    assert all(p.grad is None for p in student.parameters())
    assert all(p.grad is not None for p in stage.critic.parameters())
    first, second = stage.versions(batch), stage.versions(batch)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(batch.hr, first[name]) for name in first)
    taught = replace(batch, target=torch.ones_like(batch.hr), items=tuple(range(4, 8)))
    plain = stage.versions(taught)["plain"]
    assert any(torch.equal(picture, torch.ones_like(picture)) for picture in plain)


def damaged(folder: Path, how: str) -> None:
    weights, config = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:200])
    elif how == "missing":
        weights.unlink()
    elif how == "other shape":
        config.write_text(config.read_text().replace('"width": 8', '"width": 9'))
    elif how == "other model":
        config.write_text(config.read_text().replace('"critic"', '"student"'))
    elif how == "mistyped":
        config.write_text(config.read_text().replace('"width"', '"wide"'))
    else:
        config.write_text("{")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", r"critic\.safetensors"),
        ("missing", r"critic\.safetensors is missing; make one with gdposr train critic"),
        ("other shape", "does not fit the shape"),
        ("other model", "expected a 'critic'"),
        ("mistyped", "does not fit the shape"),
        ("no json", r"critic\.json"),
    ],
)
def test_damaged_critic_is_named(how: str, message: str, tmp_path: Path) -> None:
    save_critic(Critic(CriticConfig(8)), tmp_path)
    damaged(tmp_path, how)
    with pytest.raises((ValueError, OSError), match=message):
        load_critic(tmp_path)
    with pytest.raises(MetricError, match="critic cannot be loaded"):
        create_metrics(["critic"], "cpu", critic=tmp_path)


def test_a_critic_needs_a_student(student: Student, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --init STUDENT"):
        build(SETTINGS, None)
    save_student(student, tmp_path / "student")
    assert build(SETTINGS, tmp_path / "student").student.config == TINY


# -------------------------------------------------------------------------------------------------------- flaws


@pytest.mark.parametrize("flaw", FLAWS)
def test_flaws_are_drawn_from_the_generator(flaw: str, photo: "torch.Tensor") -> None:
    first, second = (spoil(photo[0], np.random.default_rng(3), flaw) for _ in range(2))
    assert torch.equal(first, second)
    distance = 255 * float((first - photo[0]).square().mean().sqrt())
    assert 0.5 < distance < 60
    assert float(first.min()) >= 0.0
    assert float(first.max()) <= 1.0


def test_ripples_leave_the_brightness(photo: "torch.Tensor") -> None:
    pale = 0.25 + 0.5 * photo[0]
    apart = spoil(pale, np.random.default_rng(0), "ripples") - pale
    luma = (apart * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    assert float(luma.abs().max()) < 0.002
    assert float(apart.abs().max()) > 0.005


def test_unknown_flaw_is_named(photo: "torch.Tensor") -> None:
    with pytest.raises(ValueError, match="flaw must be one of grain, mesh"):
        spoil(photo[0], np.random.default_rng(0), "dust")


# ------------------------------------------------------------------------------------------------ what the eye asks


@pytest.mark.parametrize("score", [smoothness, texture_likeness])
def test_equal_pictures_are_best(score: Callable[..., "torch.Tensor"], photo: "torch.Tensor") -> None:
    assert score(photo, photo).tolist() == [0.0]
    for other in (gray_noise(photo, 4), blurred(photo)):
        assert float(score(other, photo)) < 0.0
    with pytest.raises(ValueError, match="at least 16 pixels a side"):
        score(photo[..., :12, :12], photo[..., :12, :12])


def test_smooth_parts_punish_grain_mesh_and_colour(photo: "torch.Tensor") -> None:
    """And see nothing of what happens in the texture."""
    smooth, textured = photo.clone(), photo.clone()
    smooth[..., :40] = gray_noise(photo, 3)[..., :40]
    textured[..., 60:] = gray_noise(photo, 30)[..., 60:]
    assert float(smoothness(smooth, photo)) < -1.0
    assert float(smoothness(textured, photo)) == 0.0
    tinted = photo + torch.tensor([4.0, 0.0, -4.0])[:, None, None] / 255
    assert float(smoothness(tinted, photo)) < -2.0
    for flaw in ("grain", "mesh", "ripples"):
        spoilt = [spoil(photo[0], np.random.default_rng(k), flaw) for k in range(6)]
        assert float(smoothness(torch.stack(spoilt), photo.expand(6, -1, -1, -1)).min()) < -1.0, flaw


def test_texture_is_judged_by_its_energy(photo: "torch.Tensor") -> None:
    """The same weave elsewhere is nearly right, though its PSNR is bad; blur and grain are not; flats have no say."""
    moved = photo.clone()
    moved[..., 48:] = photo[..., 48:].flip(2)
    soft, grainy = blurred(photo), gray_noise(photo, 40)
    flat = photo.clone()
    flat[..., :32] = gray_noise(photo, 10)[..., :32]
    likeness = {
        name: float(texture_likeness(sr, photo))
        for name, sr in (("moved", moved), ("soft", soft), ("grainy", grainy), ("flat", flat))
    }
    assert likeness["moved"] > -0.5
    assert likeness["soft"] < 2 * likeness["moved"]
    assert likeness["grainy"] < 2 * likeness["moved"]
    assert likeness["flat"] == 0.0
    psnr = create_metrics(["psnr"], "cpu")[0]
    assert float(psnr(moved, photo)) < float(psnr(soft, photo))


def test_white_noise_has_one_energy_in_every_band() -> None:
    noise = torch.randn(4, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    energies = band_energies(noise).mean((0, 2, 3))
    np.testing.assert_allclose(energies, torch.ones(9), rtol=0.05)


def test_texture_counts_with_the_detail(photo: "torch.Tensor") -> None:
    """Both compare with the HR picture, yet in a smooth photo only `smooth` speaks, in a textured one only `texture`."""
    smooth, texture = create_metrics(["smooth", "texture"], "cpu")
    assert (smooth.family, texture.family) == ("smooth", "detail")
    hr = photo[..., :32].contiguous()
    sr = torch.stack([hr, gray_noise(hr, 5)], dim=1)
    report = group_rewards(sr, hr, [smooth, texture])
    assert report.detail.tolist() == [0.0]
    assert report.rewards.tolist() == [[1.0, 0.0]]
