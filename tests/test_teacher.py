"""The teacher of a distillation: one noise for it and its student, its digest, and what is said when it is broken."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from teachers import TINY, cache_of, first_batch, stage_of, tiny_model  # noqa: E402  (after importorskip)

from calibration.measure.onestep import restore  # noqa: E402
from export.distill import fidelity  # noqa: E402
from export.distill.stage import StudentDistill  # noqa: E402
from export.distill.teacher import Teacher, by_sample, fitted, item_noise, model_digest  # noqa: E402
from export.student.model.checkpoint import save_student  # noqa: E402
from export.student.model.network import Student, StudentConfig  # noqa: E402
from runtime.noise import noise_field  # noqa: E402
from training.metrics.squeezenet import SqueezeFeatures  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.pixels import from_bytes, to_bytes  # noqa: E402


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Under "teacher" the noise that the teacher was last given."""
    noises: dict[str, torch.Tensor] = {}
    start = OneStepModel.start

    def watch(self: OneStepModel, latent: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        noises["teacher"] = noise
        return start(self, latent, noise)

    monkeypatch.setattr(OneStepModel, "start", watch)
    return noises


def test_teacher_and_student_get_the_same_noise(
    teacher: Teacher, photos: Path, weights: Path, seen: dict[str, torch.Tensor]
) -> None:
    batch = first_batch(photos, weights, teacher)
    stage = stage_of(weights, teacher)
    stage.student.generator.noise.register_forward_pre_hook(
        lambda module, inputs: seen.update(student=inputs[0])
    )
    losses, _ = stage("student", batch, {})
    assert torch.equal(seen["teacher"], seen["student"])
    assert seen["student"].shape == (2 * TINY.batch, 4, 8, 8)
    for place in range(2 * TINY.batch):  # first samples of all items, then the second ones
        item, which = place % TINY.batch, place // TINY.batch
        field = noise_field(TINY.seed, 2 * item + which, 8, 8, channels=4)
        assert np.array_equal(seen["student"][place].numpy(), field)
    assert {"teacher", "teacher_feature", "teacher_difference", "diversity", "pixel"} <= losses.keys()


def test_teacher_encodes_a_picture_once_and_agrees_with_the_model(teacher: Teacher) -> None:
    lr = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.cat([item_noise(5, k, (4, 8, 8)) for k in range(2)])
    got = teacher(lr, noise)
    with torch.no_grad():
        expected = teacher.model(lr.repeat(2, 1, 1, 1), noise).clamp(0, 1)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="each sample of 2 pictures, got 3"):
        teacher(lr, noise[:3])


def test_student_takes_the_shape_of_the_noise_from_the_teacher_unless_told_otherwise() -> None:
    wide = Teacher(tiny_model(channels=16), "wide")
    assert fitted(StudentConfig(), wide, []) == {"noise_channels": 16}
    assert fitted(StudentConfig(), wide, ["student.noise_channels"]) == {}
    with pytest.raises(ValueError, match=r"--set student\.noise_channels=16"):
        wide.check(StudentConfig(noise_channels=17), 48)
    with pytest.raises(ValueError, match="multiple of 16"):
        wide.check(StudentConfig(noise_channels=16), 18)


def test_a_teacher_of_few_noise_channels_gives_its_student_all_of_them(photos: Path, weights: Path) -> None:
    model = tiny_model(channels=16)
    wide = model_digest(model)
    model.set_noise_channels(4)
    teacher = Teacher(model, "few")
    assert teacher.digest != wide
    assert teacher.noise_channels == 4
    assert fitted(TINY.student, teacher, []) == {}
    batch = first_batch(photos, weights, teacher)
    spread = by_sample(batch.noise).repeat(1, 4, 1, 1)
    model.set_noise_channels(16)
    expected = from_bytes(to_bytes(teacher(batch.lr, spread)))
    torch.testing.assert_close(from_bytes(by_sample(batch.target)), expected, atol=1.01 / 255, rtol=0)


def test_student_with_fewer_noise_channels_gets_the_first_of_the_teachers(
    photos: Path, weights: Path
) -> None:
    wide = Teacher(tiny_model(channels=16), "wide")
    wide.check(TINY.student, 16)
    batch = first_batch(photos, weights, wide, channels=16)
    whole = torch.stack([item_noise(TINY.seed, item, (16, 8, 8)) for item in range(TINY.batch)])
    assert batch.target is not None
    assert torch.equal(stage_of(weights, wide)._noise(batch), by_sample(whole[:, :, :4]))
    expected = wide.samples(batch.lr, by_sample(whole), range(TINY.batch))
    assert torch.equal(by_sample(batch.target), expected)


def test_digest_is_of_everything_a_sample_depends_on(teacher_run: Path, teacher: Teacher) -> None:
    assert Teacher.load(teacher_run / "model").digest == teacher.digest
    assert Teacher(tiny_model(seed=1), "other").digest != teacher.digest
    later = tiny_model()
    later.set_timesteps(300, 100)
    assert Teacher(later, "later").digest != teacher.digest


def test_broken_teacher_is_named_with_its_item(photos: Path, weights: Path, tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        next(model.unet.parameters()).fill_(math.nan)
    broken = Teacher(model, "broken")
    with pytest.raises(FloatingPointError, match=r"teacher broken .* not finite for item 0, 1 of"):
        first_batch(photos, weights, broken)
    with pytest.raises(FloatingPointError, match="item 0, 1, 2, 3 of"):
        cache_of(tmp_path / "cache", 4, broken, photos)


def test_student_sample_and_teacher_sample_of_a_seed_share_the_runtimes_noise(
    teacher: Teacher, seen: dict[str, torch.Tensor]
) -> None:
    student = Student(TINY.student).eval()
    student.generator.noise.register_forward_pre_hook(lambda module, inputs: seen.update(student=inputs[0]))
    lr = np.random.default_rng(0).integers(0, 256, (13, 18, 3)).astype(np.uint8)
    assert fidelity.sample(student, lr, 7).shape == restore(teacher.model, lr, 7).shape == (52, 72, 3)
    rows, columns = seen["student"].shape[-2:]
    assert (rows, columns) == (7, 9)
    assert torch.equal(seen["student"], seen["teacher"][..., :rows, :columns])


def test_init_with_other_noise_channels_keeps_all_but_the_noise_convolution(
    weights: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    earlier = Student(TINY.student)
    save_student(earlier, tmp_path)
    config = replace(TINY, student=replace(TINY.student, noise_channels=16))
    stage = StudentDistill(config, SqueezeFeatures(weights), init=tmp_path)
    state, before = stage.student.state_dict(), earlier.state_dict()
    assert state["generator.noise.weight"].shape[1] == 16
    for name, value in before.items():
        assert name == "generator.noise.weight" or torch.equal(state[name], value), name
