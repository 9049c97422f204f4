"""A consistent student: its output, reduced again, is the input wherever the input can be trusted."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from student_cases import a_batch  # noqa: E402  (after importorskip)

from export.student.core import CoreSettings, StudentCore  # noqa: E402
from export.student.interpolate import interpolate  # noqa: E402
from export.student.losses import trusted  # noqa: E402
from export.student.model.checkpoint import load_student, save_student  # noqa: E402
from export.student.model.growing import started  # noqa: E402
from export.student.model.kernels import bicubic_weight, spreading_weight  # noqa: E402
from export.student.model.network import TRUST_SCALE, Student, StudentConfig  # noqa: E402
from training.data.degradation import sharpen  # noqa: E402
from training.data.everyday import degrade_everyday  # noqa: E402
from training.randomness import generator  # noqa: E402

PLAIN = StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8, fold=1)
SHAPE = replace(PLAIN, consistent=True)


def a_student(config: StudentConfig = SHAPE) -> Student:
    """A student whose residual is far from nothing; fixed weights."""
    torch.manual_seed(0)
    student = Student(config).eval()
    with torch.no_grad():
        student.generator.last.weight.mul_(10)
    return student


def reduced(picture: "torch.Tensor") -> "torch.Tensor":
    return torch.nn.functional.avg_pool2d(picture, 4)


@torch.no_grad()
def drawn(student: Student, image: "torch.Tensor", trust: float) -> "torch.Tensor":
    noise = torch.randn(len(image), 4, *image.shape[2:], generator=torch.Generator().manual_seed(2))
    everywhere = torch.full_like(image[:, :1], trust)
    return student.generator.picture(*student.encode(image), noise, everywhere)


def test_trust_takes_back_what_the_picture_lacks_of_its_input() -> None:
    student = a_student()
    image = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(1))
    without, half, full = (
        float((reduced(drawn(student, image, trust)) - image).square().mean().sqrt()) for trust in (0, 0.5, 1)
    )
    assert without > 0.05
    assert full < 0.25 * without  # noise is the hardest to keep: photos have less of the finest detail
    assert full < half < without


def test_a_student_without_trust_is_the_plain_one() -> None:
    student, plain = a_student(), Student(PLAIN).eval()
    plain.load_state_dict({k: v for k, v in student.state_dict().items() if "trust" not in k})
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn(student, image, 0.0), drawn(plain, image, 0.0))


def test_the_trust_follows_the_features_and_is_kept_by_a_checkpoint(tmp_path: Path) -> None:
    student = a_student()
    with torch.no_grad():
        student.generator.trust.weight.fill_(1.0)
    save_student(student, tmp_path / "run")
    loaded, _ = load_student(tmp_path / "run")
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    noise = torch.zeros(1, 4, 16, 16)
    with torch.no_grad():
        features, base = student.encode(image)
        assert base.shape == (1, SHAPE.base_channels, 16, 16) == (1, 51, 16, 16)
        trust = torch.sigmoid(student.generator.trust_logit(features))
        assert float(trust.amax() - trust.amin()) > 0.01
        expected = student.generator.picture(features, base, noise, trust).clamp(0, 1)
        assert torch.equal(loaded(image, noise), expected)


def test_a_consistent_student_works_at_lr_resolution() -> None:
    with pytest.raises(ValueError, match="expected fold 1, got 2"):
        replace(SHAPE, fold=2)
    with pytest.raises(ValueError, match="consistent must be true or false"):
        StudentConfig.from_dict({"fold": 1, "consistent": 1})


@pytest.mark.parametrize(("angle", "kept"), [(0.0, 1.0), (math.pi / 2, 0.98), (math.pi, 0.87)])
def test_an_upscale_by_the_spreading_kernel_has_its_input_for_means(angle: float, kept: float) -> None:
    wave = torch.cos(angle * torch.arange(24.0)).expand(1, 3, 24, 24)

    def left(weight: "torch.Tensor") -> float:
        large = torch.pixel_shuffle(torch.nn.functional.conv2d(wave, weight, padding=2, groups=3), 4)
        inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
        return float((reduced(large) * wave)[inner].sum() / wave[inner].square().sum())

    assert left(spreading_weight(4)) == pytest.approx(kept, abs=0.015)
    assert left(bicubic_weight(4)) <= left(spreading_weight(4)) + 1e-5


# ------------------------------------------------------------------------------------------------ training


def test_an_input_is_trusted_as_its_degradation_allows() -> None:
    draw = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 40, 40, generator=draw)
    photo = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic").clamp(0, 1)
    means = reduced(photo)
    assert torch.equal(trusted(means, photo, 0.1), torch.ones_like(means[:, :1]))
    kinds = {
        kind: trusted(degrade_everyday(photo[0], generator(1, 2, kind), kind)[None], photo, 0.1)
        for kind in ("clean", "blur", "heavy")
    }
    assert kinds["clean"].shape == (1, 1, 80, 80)
    assert float(kinds["clean"].min()) > 0.8
    assert float(kinds["blur"].mean()) < 0.5
    assert float(kinds["heavy"].max()) < 0.5


def test_the_same_noise_is_trusted_more_where_texture_hides_it() -> None:
    draw = torch.Generator().manual_seed(3)
    photo = torch.full((1, 3, 320, 160), 0.5)
    texture = torch.nn.functional.interpolate(torch.rand(1, 3, 40, 40, generator=draw), scale_factor=4)
    photo[..., :160, :] = texture
    lr = reduced(photo) + 0.02 * torch.randn(1, 3, 80, 40, generator=draw)
    found = trusted(lr, photo, 0.1)
    assert float(found[..., 9:31, :].min()) > 0.9
    assert float(found[..., 49:, :].max()) < 0.05


def test_sharpening_strengthens_by_wavelength() -> None:
    for period, gain in ((4, 1 + 0.8 * (1 - math.exp(-0.72 * (math.pi / 2) ** 2))), (1e9, 1.0)):
        wave = torch.cos(2 * math.pi / period * torch.arange(40.0)).expand(3, 40, 40)
        torch.testing.assert_close(
            sharpen(wave, 1.2, 0.8)[..., 8:-8], gain * wave[..., 8:-8], atol=2e-3, rtol=0
        )


def test_the_trust_learns_from_the_photo_and_not_from_the_pictures_losses(pictures: Path) -> None:
    batch = a_batch(pictures)

    def gradient(weight: float) -> "torch.Tensor":
        settings = CoreSettings(student=SHAPE, batch=2, crop=64, adversary=0, sharpness=0.5, trust=weight)
        stage = StudentCore(a_student(), settings)
        losses, _ = stage("student", batch, {})
        losses["loss"].backward()
        found = stage.student.generator.trust.bias.grad
        return torch.zeros(1) if found is None else found

    assert float(gradient(0.0)) == 0.0
    logit = torch.full_like(batch.lr[:, :1], -4.0)
    wanted = trusted(batch.lr, batch.hr, CoreSettings().trust_ratio)
    slope = TRUST_SCALE * (torch.sigmoid(logit) - wanted).mean()  # of the cross-entropy, by the bias
    torch.testing.assert_close(gradient(2.0)[0], 2 * slope, atol=1e-3, rtol=1e-4)


def test_a_plain_student_becomes_a_consistent_one(tmp_path: Path) -> None:
    save_student(a_student(PLAIN), tmp_path / "plain")
    student, _ = started(SHAPE, tmp_path / "plain", seed=0)
    image, noise = torch.rand(1, 3, 16, 16), torch.zeros(1, 4, 16, 16)
    with torch.no_grad():
        apart = student.eval()(image, noise) - a_student(PLAIN)(image, noise)
    assert 0 < float(apart.abs().max()) < 0.02  # the trust begins at 1.8 %
    save_student(student, tmp_path / "consistent")
    with pytest.raises(ValueError, match="cannot become one of"):
        started(PLAIN, tmp_path / "consistent", seed=0)


def test_a_consistent_core_takes_over_the_noise_of_a_plain_student() -> None:
    core, other = a_student(), a_student(replace(PLAIN, noise_gate=True))
    mixed = interpolate(core, other, share=0.0)
    assert mixed.config == replace(SHAPE, noise_gate=True)
    assert torch.equal(mixed.generator.noise.weight, other.generator.noise.weight)
    image, silence = torch.rand(1, 3, 16, 16), torch.zeros(1, 4, 16, 16)
    with torch.no_grad():
        core.generator.trust.bias.fill_(0.1)
        trusting = interpolate(core, other, share=0.0)
        assert float((trusting(image, silence) - mixed(image, silence)).abs().max()) > 0.01
    with pytest.raises(ValueError, match="students of one shape"):
        interpolate(a_student(PLAIN), a_student(), share=0.0)


def test_the_trust_does_not_see_a_bias_that_moves_into_its_features() -> None:
    """A core's convolution of the noise has a bias; with a gate behind it, the features carry that bias."""
    core, other = a_student(), a_student(replace(PLAIN, noise_gate=True))
    with torch.no_grad():
        core.generator.noise.weight.zero_()
        core.generator.noise.bias.uniform_(-1, 1)
        core.generator.trust.weight.uniform_(-0.1, 0.1)
        mixed = interpolate(core, other, share=0.0)
        image, silence = torch.rand(1, 3, 16, 16), torch.zeros(1, 4, 16, 16)
        before, after = (s.generator.trust_logit(s.encode(image)[0]) for s in (core, mixed))
        torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
        torch.testing.assert_close(mixed(image, silence), core(image, silence), atol=1e-5, rtol=0)


def test_later_stages_leave_the_trust_alone() -> None:
    settings = CoreSettings(student=SHAPE, adversary=0)
    for noise_only in (False, True):
        stage = StudentCore(a_student(), settings)
        stage.free_generator(noise_only)
        learning = {name for name, p in stage.student.named_parameters() if p.requires_grad}
        assert not any("trust" in name for name in learning)
        assert ("generator.last.weight" in learning) is not noise_only
