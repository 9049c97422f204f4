"""Losses of the student's distillation, and how hard each pulls: at photos, at drawn pictures, with the adversary."""

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from distill_cases import TINY  # noqa: E402  (after importorskip)
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from export.distill.losses import (  # noqa: E402
    colour_loss,
    diversity_loss,
    samples_chroma_loss,
    samples_grid_loss,
    structure_loss,
)
from export.distill.recipe import DistillConfig  # noqa: E402
from export.distill.stage import StudentDistill  # noqa: E402
from export.student.adversary import PatchDiscriminator  # noqa: E402
from export.student.losses import chroma  # noqa: E402
from training.data.batches import Batch  # noqa: E402
from training.metrics import squeezenet as perceptual  # noqa: E402
from training.metrics.squeezenet import LAYERS, SqueezeFeatures  # noqa: E402


def test_features_have_unit_length_and_the_named_layers(weights: Path) -> None:
    maps = SqueezeFeatures(weights)(torch.rand(2, 3, 64, 96))
    assert len(maps) == len(LAYERS)
    assert [m.shape[1] for m in maps] == [64, 128, 256, 384, 512]
    for m in maps:
        torch.testing.assert_close(m.square().sum(1), torch.ones_like(m[:, 0]), atol=1e-4, rtol=0)


def test_wrong_weight_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--perceptual-weights"):
        SqueezeFeatures(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"not a SqueezeNet 1\.1"):
        SqueezeFeatures(tmp_path / "other.safetensors")


def test_squared_distance_by_inner_products_equals_the_definition() -> None:
    a, b = torch.rand(2, 7, 5, 5), torch.rand(2, 7, 5, 5)
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (a, b)]
    torch.testing.assert_close(
        perceptual.squared_distances(a, b), (unit[0] - unit[1]).square().sum(1), atol=1e-5, rtol=1e-4
    )
    assert float(perceptual.squared_distances(a, a).max()) < 1e-5
    assert torch.isfinite(
        perceptual.squared_distances(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))
    ).all()


def test_diversity_asks_for_texture_only_where_the_photo_has_it() -> None:
    draw = torch.Generator().manual_seed(0)
    photo = torch.full((1, 3, 64, 64), 0.5)
    photo[..., 32:] += 0.2 * torch.randn(1, 3, 64, 32, generator=draw)
    samples = torch.full((2, 3, 64, 64), 0.5, requires_grad=True)
    loss = diversity_loss(samples + torch.tensor([1e-3, -1e-3])[:, None, None, None] * photo, photo, 0.7)
    (gradient,) = torch.autograd.grad(loss, samples)
    assert float(loss) > 0.01
    assert float(gradient[..., 44:].abs().mean()) > 0
    assert float(gradient[..., :10].abs().max()) == 0
    apart = torch.stack([photo[0], photo[0].flip(1)])  # textures that differ fully
    assert float(diversity_loss(apart, photo, 0.7)) == pytest.approx(0.0, abs=1e-3)


def test_structure_loss_sees_low_frequencies_only() -> None:
    photo = torch.rand(2, 3, 32, 32)
    pattern = 0.1 * torch.tensor([1.0, -1.0]).repeat(16)  # period 2
    samples = torch.cat([photo + pattern, photo - pattern])
    assert float(structure_loss(samples, photo)) < 1e-6
    assert float(structure_loss(torch.cat([photo, photo + 0.1]), photo)) == pytest.approx(0.15, rel=1e-3)


def test_chroma_loss_sees_fringes_of_colour_and_no_brightness() -> None:
    photo = torch.rand(2, 3, 32, 32)
    brighter = photo + 0.1 * torch.tensor([1.0, -1.0]).repeat(16)
    fringe = (
        photo + 0.1 * torch.tensor([1.0, -1.0]).repeat(16) * torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    )
    assert float(chroma(photo.mean(1, keepdim=True).repeat(1, 3, 1, 1)).abs().max()) < 1e-6
    assert float(samples_chroma_loss(torch.cat([brighter, photo]), photo)) < 1e-6
    assert float(samples_chroma_loss(torch.cat([fringe, photo]), photo)) == pytest.approx(0.1 / 3, rel=1e-3)


def test_colour_loss_sees_a_tint_and_no_texture() -> None:
    photo = torch.rand(2, 3, 32, 32)
    texture = 0.1 * torch.tensor([1.0, -1.0]).repeat(16)
    tint = torch.tensor([0.02, 0.0, -0.04])[:, None, None]
    assert float(colour_loss(torch.cat([photo + texture, photo]), photo)) < 1e-6
    assert float(colour_loss(torch.cat([photo + tint, photo]), photo)) == pytest.approx(0.01, rel=1e-3)


def test_grid_loss_sees_a_pattern_of_the_pixel_shuffle_and_not_texture() -> None:
    draw = torch.Generator().manual_seed(0)
    photo = torch.rand(2, 3, 96, 96, generator=draw)
    texture = 0.05 * torch.randn(4, 3, 96, 96, generator=draw)
    mesh = 0.05 * torch.randn(8, 8, generator=draw).repeat(12, 12)
    both = photo.repeat(2, 1, 1, 1)
    assert float(samples_grid_loss(both, photo)) == 0.0
    seen, passed = (float(samples_grid_loss(both + x, photo)) for x in (mesh, texture))
    assert seen > 4 * passed


def test_discriminator_has_one_logit_per_eight_pixels() -> None:
    assert PatchDiscriminator(8)(torch.rand(2, 3, 64, 48)).shape == (2, 1, 8, 6)


def test_adversary_pulls_with_its_share_of_the_pixel_gradient(weights: Path) -> None:
    config = replace(
        TINY, adversary=0.5, adversary_from=0.0, feature=0.0, diversity=0.0, grid=0.0, chroma=0.0
    )
    draw = torch.Generator().manual_seed(0)
    samples, hr = (torch.rand(n, 3, 64, 64, generator=draw) for n in (4, 2))
    photos = torch.tensor([True, True])
    stage = joined(config, weights)
    _, pull, _, _ = stage._pull(samples.requires_grad_(True), hr, photos, UNSHIFTED)
    stage.adversary_on = False
    _, anchor, _, _ = stage._pull(samples, hr, photos, UNSHIFTED)
    assert float((pull - anchor).norm() / anchor.norm()) == pytest.approx(0.5, rel=1e-3)


def test_a_drawn_picture_is_asked_for_its_truth_alone(weights: Path) -> None:
    """Terms that invent have no pull at it, features a share of theirs, and the discriminator does not see it."""
    draw = torch.Generator().manual_seed(0)
    samples, hr = (torch.rand(n, 3, 64, 64, generator=draw) for n in (4, 2))
    samples.requires_grad_(True)

    def pulls(drawn: bool, **terms: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of both pictures' first samples, and what the discriminator gets; drawn: the second picture."""
        alone = dict.fromkeys(
            ("pixel", "structure", "colour", "chroma", "grid", "feature", "diversity", "adversary"), 0.0
        )
        config = replace(
            TINY,
            adversary_from=0.0,
            drawn_feature=0.25,
            texture_share=3.0,
            **(alone | terms),
        )
        photos = torch.tensor([True, not drawn])
        _, pull, real, _ = joined(config, weights)._pull(samples, hr, photos, UNSHIFTED)
        return pull[0], pull[1], real

    for terms, share in (
        ({"pixel": 1.0}, 1.0),
        ({"chroma": 1.0}, 1.0),
        ({"diversity": 1.0}, 0.0),
        ({"feature": 1.0}, 0.25),
    ):
        photo, second, real = pulls(False, **terms)
        beside, card, seen = pulls(True, **terms)
        assert torch.equal(photo, beside), terms
        assert second.abs().max() > 0, terms
        assert torch.allclose(card, share * second), terms
        assert (len(real), len(seen)) == (2, 1)
    photo, card, _ = pulls(True, pixel=1.0)
    pushed, alike, _ = pulls(True, pixel=1.0, adversary=0.5)
    assert not torch.equal(photo, pushed)
    assert torch.equal(card, alike)


def test_a_batch_of_drawn_pictures_alone_leaves_the_discriminator(weights: Path) -> None:
    stage = joined(replace(TINY, adversary_from=0.0), weights)
    before = {name: value.clone() for name, value in stage.discriminator.state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    lr, hr = (torch.rand(2, 3, side, side, generator=draw) for side in (16, 64))
    batch = Batch((0, 1), lr, hr, ("", ""), ("", ""), torch.tensor([True, True]))
    losses, carry = stage("student", batch, {})
    assert float(losses["adversary"]) == 0
    found, _ = stage("discriminator", batch, carry)
    assert float(found["loss"]) == 0
    found["loss"].backward()
    assert all(not p.grad.any() for p in stage.discriminator.parameters())
    after = stage.discriminator.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


UNSHIFTED = [(0, 0), (0, 0)]


def joined(config: DistillConfig, weights: Path) -> StudentDistill:
    """The stage in the middle of its run."""
    stage = StudentDistill(config, SqueezeFeatures(weights))
    stage.phases(0.5)
    return stage
