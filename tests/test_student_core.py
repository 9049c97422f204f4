"""The student's core: how it grows from another student, what its target is, and when the adversary joins."""

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from student_cases import SHAPE, a_batch, a_student  # noqa: E402  (after importorskip)

from export.student.core import CoreSettings, StudentCore, stages_before  # noqa: E402
from export.student.losses import (  # noqa: E402
    fine_part,
    gradient_loss,
    local_range,
    low_pass_loss,
    told_by,
    with_colours_of,
)
from export.student.model.checkpoint import save_student  # noqa: E402
from export.student.model.growing import deepened, started  # noqa: E402
from export.student.model.network import StudentConfig  # noqa: E402
from training.metrics.squeezenet import SqueezeFeatures  # noqa: E402

# ------------------------------------------------------------------------------------------------ shape


@pytest.mark.parametrize(
    "shape",
    [
        StudentConfig(width=12, encoder_blocks=3, generator_blocks=2, detail=8),
        StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8, far_blocks=2),
    ],
    ids=["deeper and wider", "far blocks"],
)
def test_deepened_student_gives_the_same_pictures(shape: StudentConfig) -> None:
    student = a_student()
    deeper = deepened(student, shape)
    image, noise = torch.rand(1, 3, 16, 16), torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(deeper(image, noise), student(image, noise), atol=1e-5, rtol=1e-4)
    assert deeper.parameters_total > student.parameters_total
    with pytest.raises(ValueError, match="it has more blocks"):
        deepened(deeper, SHAPE)


def test_blocks_do_not_move_the_far_blocks_behind_them() -> None:
    far = deepened(a_student(), replace(SHAPE, far_blocks=1))
    with pytest.raises(ValueError, match="leave encoder_blocks at 1"):
        deepened(far, replace(far.config, encoder_blocks=2))


def test_what_is_new_in_a_student_is_a_function_of_the_seed(tmp_path: Path) -> None:
    save_student(
        a_student(), tmp_path / "student", {"stage": "student-core", "history": [{"stage": "first"}]}
    )
    wider = replace(SHAPE, width=12)
    found = []
    for earlier in (1, 2):  # what was drawn before in this process
        torch.manual_seed(earlier)
        student, origin = started(wider, tmp_path / "student", seed=5)
        found.append(student.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert stages_before(origin) == [{"stage": "first"}, {"stage": "student-core"}]
    assert stages_before({}) == []


# ------------------------------------------------------------------------------------------------ the core


def core(**settings: object) -> StudentCore:
    return StudentCore(
        a_student(), CoreSettings(student=SHAPE, batch=2, crop=64, discriminator_width=8, **settings)
    )  # type: ignore[arg-type]


def test_core_learns_the_prior_and_no_noise(pictures: Path) -> None:
    stage = core(feature=0.0, adversary=0.0, lr=2e-3)
    batch = a_batch(pictures, 4)
    assert stage.phases(0.5) == ("student",)
    optimizer = torch.optim.Adam(stage.groups()["student"][0], 2e-3)
    seen = []
    for _ in range(80):
        losses, _ = stage("student", batch, {})
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        seen.append(float(losses["pixel"]))
    assert seen[-1] < 0.7 * seen[0]
    assert not stage.student.generator.noise.weight.any()
    first, second = (stage.sample(batch.lr, batch.hr, k) for k in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(
        stage.student(batch.lr, torch.randn(4, 4, 8, 8)).clamp(0, 1), first.clamp(0, 1)
    )


def test_crispness_moves_the_target_away_from_the_enlargement(pictures: Path) -> None:
    batch = a_batch(pictures, 2)
    enlarged = torch.full_like(batch.hr, 0.5)
    texture = 0.5 + 0.2 * (torch.rand(batch.hr.shape, generator=torch.Generator().manual_seed(0)) - 0.5)
    batch = replace(batch, lr=torch.nn.functional.avg_pool2d(texture, 4), hr=texture, target=texture)
    own, crisp, soft = (
        core(adversary=0.0, crispness=c, truth=0.0)._target(batch, enlarged) for c in (1.0, 1.5, 0.5)
    )
    torch.testing.assert_close(own, texture, atol=5e-3, rtol=0)
    torch.testing.assert_close(fine_part(soft), fine_part(texture) / 2, atol=5e-3, rtol=0)
    within = (texture - 0.5).abs() < 0.05  # what lies further out meets the limit
    torch.testing.assert_close(fine_part(crisp)[within], 1.5 * fine_part(texture)[within], atol=2e-2, rtol=0)


def test_what_is_coarse_in_the_target_is_the_photos(pictures: Path) -> None:
    batch = a_batch(pictures, 2)
    enlarged = torch.full_like(batch.hr, 0.5)
    dark = replace(batch, target=batch.target * 0.5)
    without, target = (
        core(adversary=0.0, truth=t, truth_error=1e4)._target(dark, enlarged) for t in (0.0, 1.0)
    )
    assert low_pass_loss(target, batch.hr, 4) < 0.3 * low_pass_loss(without, batch.hr, 4)
    assert gradient_loss(fine_part(target), fine_part(without)) < 0.5 * gradient_loss(batch.hr, without)


def test_an_input_that_tells_less_of_the_photo_leaves_more_to_the_prior(pictures: Path) -> None:
    batch = a_batch(pictures, 2)
    clean = torch.nn.functional.avg_pool2d(batch.hr, 4)
    level = torch.full((2, 1, 1, 1), 5 / 255)
    told = [told_by(clean + k * level, batch.hr, 5 / 255).flatten().tolist() for k in (0, 1, 3)]
    assert told == [pytest.approx([share] * 2, abs=1e-4) for share in (1.0, 0.5, 0.1)]
    enlarged = torch.full_like(batch.hr, 0.5)
    dark = replace(batch, target=batch.target * 0.5)
    known, vague = (
        core(adversary=0.0)._target(replace(dark, lr=clean + shift), enlarged) for shift in (0.0, 0.1)
    )
    assert low_pass_loss(known, batch.hr, 4) < 0.5 * low_pass_loss(vague, batch.hr, 4)


def test_a_degraded_input_has_a_sharper_target_than_a_clean_one(pictures: Path) -> None:
    batch = a_batch(pictures, 2)
    clean = torch.nn.functional.avg_pool2d(batch.hr, 4)
    enlarged = torch.full_like(batch.hr, 0.5)

    def gain(lr: "torch.Tensor", **settings: float) -> float:
        """Contrast of neighbouring pixels, of the target beside one that is not sharpened."""
        plain, sharp = (
            core(adversary=0.0, truth=0.0, crispness=1.0, **more)._target(replace(batch, lr=lr), enlarged)
            for more in ({}, settings)
        )
        return float(sharp.diff().abs().mean() / plain.diff().abs().mean())

    assert gain(clean, sharpness_degraded=1.0) == pytest.approx(1.0, abs=0.01)
    assert 1.02 < gain(clean, sharpness=1.0) < gain(clean, sharpness=2.0)
    strongly = gain(clean + 0.3, sharpness_degraded=1.0)  # tells nothing of the photo
    assert strongly == pytest.approx(gain(clean + 0.3, sharpness=1.0), rel=0.02)
    assert 1.01 < gain(clean + 5 / 255, sharpness_degraded=1.0) < strongly


def test_where_an_input_is_degraded_the_start_s_own_picture_is_sharpened(pictures: Path) -> None:
    """Where it is clean the target is that picture itself, and what the student learns does not move it."""
    batch, stage = a_batch(pictures, 2), core(adversary=0.0, own=2.0)
    clean = torch.nn.functional.avg_pool2d(batch.hr, 4)
    noise = 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    for lr, least, most in ((clean, 0.99, 1.01), ((clean + noise).clamp(0, 1), 1.05, 3.0)):
        shown = replace(batch, lr=lr)
        own = stage.sample(lr, batch.hr, 0)
        target = stage._target(shown, own)
        assert least < float(target.diff().abs().mean() / own.diff().abs().mean()) < most
        low, high = local_range(own)
        assert torch.maximum(target - high, low - target).max() < stage.settings.overshoot / 255 + 1e-4
    with torch.no_grad():
        stage.student.generator.last.weight.mul_(2.0)
    assert torch.equal(stage._target(shown, own), target)
    card = replace(shown, drawn=torch.tensor([True, False]))
    assert torch.equal(stage._target(card, own)[0], batch.hr[0])


@pytest.mark.parametrize("shift", [0.0, 0.3], ids=["clean", "degraded"])
def test_sharpening_steepens_an_edge_and_gives_it_no_halo(pictures: Path, shift: float) -> None:
    batch = a_batch(pictures, 2)
    # a soft edge, from .3 to .7 in 9 pixels
    edge = torch.linspace(-3, 4, batch.hr.shape[-1]).clamp(0, 1).mul(0.4).add(0.3).expand_as(batch.hr)
    lr = torch.nn.functional.avg_pool2d(edge, 4) + shift
    shown = replace(batch, lr=lr, hr=edge, target=edge)
    settings = {"adversary": 0.0, "sharpness": 4.0, "truth": 0.0, "crispness": 1.0}
    limited, sharper = (core(**settings, overshoot=level)._target(shown, edge) for level in (1.0, 30.0))
    low, high = local_range(with_colours_of(edge, lr))
    little, more = (float(torch.maximum(t - high, low - t).max()) * 255 for t in (limited, sharper))
    assert little < 1.2 < 2.4 < more
    assert limited.diff().max() > 1.3 * edge.diff().max()


def test_one_level_of_brightness_costs_more_than_as_much_grain() -> None:
    stage = core(adversary=0.0, feature=0.0)
    target = torch.full((1, 3, 64, 64), 0.5)
    grain = torch.randn(target.shape, generator=torch.Generator().manual_seed(0)).sign() / 255
    brighter, grainy = (stage._losses(target + error, target, target, []) for error in (1 / 255, grain))
    torch.testing.assert_close(brighter["level"], torch.tensor(1 / 255))
    assert grainy["level"] < 0.05 * brighter["level"]
    assert brighter["pixel"].isclose(grainy["pixel"])


def test_plain_places_of_the_prior_are_smoothed_and_busy_ones_sharpened(pictures: Path) -> None:
    batch = a_batch(pictures, 2)
    grain = torch.randn(batch.hr.shape, generator=torch.Generator().manual_seed(0))
    for strength, least, most in ((0.4 / 255, 0.0, 0.7), (0.2, 1.05, 2.0)):
        prior = 0.5 + strength * grain.clamp(-2, 2)
        shown = replace(batch, lr=torch.nn.functional.avg_pool2d(prior, 4), hr=prior, target=prior)
        made = core(adversary=0.0, sharpness=1.0, truth=0.0, crispness=1.0)._target(shown, prior)
        assert least < float(made.std() / prior.std()) < most


def test_a_drawn_card_is_its_own_target(pictures: Path) -> None:
    batch = replace(a_batch(pictures, 2), drawn=torch.tensor([True, False]))
    target = core(adversary=0.0)._target(batch, torch.full_like(batch.hr, 0.5))
    assert torch.equal(target[0], batch.hr[0])
    assert not torch.equal(target[1], batch.hr[1])


def test_beside_a_feature_loss_a_mesh_costs(pictures: Path, weights: Path) -> None:
    def losses(mesh: float, **settings: float) -> "dict[str, torch.Tensor]":
        stage = core(adversary=0.0, **settings)
        stage.features = SqueezeFeatures(weights)
        target = torch.full((1, 3, 64, 64), 0.5)
        picture = target.clone()
        picture[..., ::4, ::4] += mesh
        picture[..., 32::4, ::4] -= 2 * mesh  # of the other sign there
        return stage._losses(picture, target, target, [0])

    assert float(losses(0.0)["grid"]) == 0
    with_it, without = losses(0.04, grid=2.0), losses(0.04, grid=0.0)
    assert float(with_it["grid"]) > 0.002
    torch.testing.assert_close(with_it["loss"], without["loss"] + 2 * with_it["grid"])
    assert "grid" not in losses(0.04, feature=0.0)


def test_adversary_joins_late_pulls_by_its_share_and_learns_to_tell(pictures: Path, weights: Path) -> None:
    stage = StudentCore(
        a_student(),
        CoreSettings(
            student=SHAPE, batch=2, crop=64, discriminator_width=8, adversary=0.5, adversary_from=0.3
        ),
        SqueezeFeatures(weights),
    ).eval()
    batch = a_batch(pictures, 4)
    assert stage.phases(0.29) == ("student",)
    losses, carry = stage("student", batch, {})
    assert "push" not in losses
    assert stage.phases(0.3) == ("student", "adversary")
    losses, carry = stage("student", batch, {})
    losses["loss"].backward()
    assert all(p.grad is None for p in stage.adversary.parameters())  # a phase moves its own alone
    assert any(p.grad is not None and p.grad.any() for p in stage.student.parameters())
    optimizer = torch.optim.Adam(stage.groups()["adversary"][0], 1e-2)
    told = []
    for _ in range(40):
        judged, _ = stage("adversary", batch, carry)
        optimizer.zero_grad()
        judged["loss"].backward()
        optimizer.step()
        told.append(float(judged["loss"].detach()))
    assert told[-1] < 0.8 * told[0]
