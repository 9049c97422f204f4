"""Losses of the student's stages."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from export.student.adversary import PatchDiscriminator  # noqa: E402  (after importorskip)
from export.student.losses import (  # noqa: E402
    chroma_loss,
    cosine_bands,
    energy_score,
    fine_part,
    gradient_loss,
    grid_loss,
    limited,
    local_range,
    low_pass,
    low_pass_loss,
    plain,
    plain_loss,
    texture_weight,
    with_coarse_part_of,
    with_colours_of,
    without_grain,
)


def grain(sigma: float, count: int, seed: int) -> torch.Tensor:
    """(count, 3, 64, 64) gray with white noise."""
    return 0.5 + sigma * torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_energy_score_is_smallest_at_the_spread_of_the_truth() -> None:
    truth = grain(0.1, 16, 0)
    score = {
        sigma: float(energy_score(torch.stack([grain(sigma, 16, 1), grain(sigma, 16, 2)]), truth))
        for sigma in (0.0, 0.05, 0.08, 0.1, 0.12, 0.2)
    }
    assert min(score, key=score.__getitem__) == 0.1
    assert score[0.0] > score[0.05] > score[0.1] < score[0.2]


def test_energy_score_sees_what_grain_looks_like() -> None:
    truth = grain(0.1, 16, 0)

    def soft(seed: int) -> torch.Tensor:
        """As strong in its fine part, but smoother."""
        x = torch.nn.functional.avg_pool2d(grain(0.1, 16, seed), 3, 1, 1, count_include_pad=False) - 0.5
        return 0.5 + x * (fine_part(grain(0.1, 16, seed)).std() / fine_part(x).std())

    white = energy_score(torch.stack([grain(0.1, 16, 1), grain(0.1, 16, 2)]), truth)
    assert white < energy_score(torch.stack([soft(1), soft(2)]), truth)


def test_energy_score_prefers_grain_to_a_weave_of_the_same_strength() -> None:
    """Seen on a run scored in Haar's octaves: a diagonal pattern of five pixels, as strong as the truth's grain."""
    truth = grain(0.05, 16, 0)
    wave = torch.sin(2 * torch.pi / 5 * (torch.arange(64) + torch.arange(64)[:, None])) * 0.05 * 2**0.5

    def woven(seed: int) -> torch.Tensor:
        sign = torch.randn(16, 1, 1, 1, generator=torch.Generator().manual_seed(seed)).sign()
        return 0.5 + sign * wave.expand(16, 3, 64, 64)

    likely = energy_score(torch.stack([grain(0.05, 16, 1), grain(0.05, 16, 2)]), truth)
    assert likely < 0.8 * energy_score(torch.stack([woven(1), woven(2)]), truth)


def test_cosine_bands_of_white_noise_are_as_strong_as_it() -> None:
    strength = cosine_bands(grain(0.1, 16, 0)[:, :1]).square().mean((0, 2, 3)).sqrt()
    assert strength.shape == (63,)
    torch.testing.assert_close(strength, torch.full_like(strength, 0.1), atol=0.01, rtol=0)
    flat = cosine_bands(torch.full((1, 1, 16, 16), 0.7))
    torch.testing.assert_close(flat, torch.zeros_like(flat), atol=1e-6, rtol=0)


def test_without_grain_keeps_texture_and_takes_the_cores_flats() -> None:
    photo, core = torch.cat([grain(0.1, 1, 0), grain(0.002, 1, 1)], dim=3), torch.full((1, 3, 64, 128), 0.4)
    truth = without_grain(photo, core)
    assert (truth - photo)[..., :40].abs().max() < 0.02
    assert (truth - core)[..., 88:].abs().max() < 0.02


def test_grid_loss_sees_a_mesh_and_no_grain() -> None:
    core = torch.full((1, 3, 96, 96), 0.5)
    mesh = core.clone()
    mesh[..., ::8, :] += 0.02
    rough = core + 0.02 * torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert grid_loss(mesh, core) > 2 * grid_loss(rough, core)


def test_energy_score_of_samples_that_agree_is_the_distance_to_the_truth() -> None:
    truth, guess = grain(0.1, 4, 0), grain(0.05, 4, 3)
    same = energy_score(torch.stack([guess, guess]), truth)
    three = energy_score(torch.stack([guess] * 3), truth)
    torch.testing.assert_close(same, three)
    apart = energy_score(torch.stack([guess, grain(0.05, 4, 4)]), truth)
    assert apart < same


def test_energy_score_looks_only_where_it_counts_and_only_at_what_is_fine() -> None:
    truth = grain(0.1, 2, 0)
    samples = torch.stack([grain(0.1, 2, 1), grain(0.1, 2, 2)])
    weight = torch.zeros(2, 1, 64, 64)
    assert energy_score(samples, truth, weight) == 0
    lighter = energy_score(samples + 0.2, truth)
    torch.testing.assert_close(lighter, energy_score(samples, truth), atol=1e-5, rtol=1e-3)


def test_energy_score_wants_two_samples() -> None:
    with pytest.raises(ValueError, match="two or more samples"):
        energy_score(grain(0.1, 2, 0)[None], grain(0.1, 2, 1))


def test_energy_score_pulls_agreeing_samples_apart() -> None:
    truth = grain(0.1, 8, 0)
    field = torch.randn(2, 8, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    amount = torch.tensor(0.02, requires_grad=True)
    energy_score(0.5 + amount * field, truth).backward()
    assert amount.grad is not None
    assert amount.grad < 0


def test_fine_part_has_no_means() -> None:
    fine = fine_part(grain(0.1, 1, 0))
    assert (
        low_pass_loss(fine, torch.zeros_like(fine), 16)
        < 0.2 * low_pass_loss(grain(0.1, 1, 0), torch.full_like(fine, 0.5), 16) + 1e-3
    )


def test_texture_weight_is_low_around_edges_alone() -> None:
    picture = torch.zeros(1, 3, 32, 32)
    picture[..., 16:] = 1.0
    weight = texture_weight(picture)[0, 0]
    assert weight[:, 12:20].max() < 0.05
    assert weight[:, :10].min() == 1
    assert weight[:, 22:].min() == 1


def test_gradient_loss_sees_softness_and_no_offset() -> None:
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 1.0
    soft = torch.nn.functional.avg_pool2d(edge, 3, 1, 1, count_include_pad=False)
    assert gradient_loss(soft, edge) > 0.01
    assert gradient_loss(edge * 1.0 + 0.1, edge) < 1e-6


def test_with_coarse_part_of_keeps_the_detail_and_takes_what_cells_say() -> None:
    picture, photo = grain(0.05, 2, 0), 0.1 + grain(0.05, 2, 1)
    both = with_coarse_part_of(picture, photo)
    torch.testing.assert_close(fine_part(both), fine_part(picture), atol=0.02, rtol=0)
    assert (low_pass(both, 4) - low_pass(photo, 4)).abs().mean() < 0.3 * (
        low_pass(picture - photo, 4)
    ).abs().mean()
    torch.testing.assert_close(with_coarse_part_of(picture, photo, 0.0), picture.clamp(0, 1))
    torch.testing.assert_close(with_coarse_part_of(photo, photo), photo.clamp(0, 1))


def test_limited_keeps_what_lies_within_and_lets_little_beyond() -> None:
    image = torch.rand(1, 3, 12, 12)
    low, high = local_range(image, side=3)
    assert torch.equal(limited(image, low, high, 0.1), image)
    assert low[0, 1, 5, 7] == image[0, 1, 4:7, 6:9].min()
    assert high[0, 2, 0, 11] == image[0, 2, :2, 10:].max()  # at a corner, of what lies inside
    above = limited(high + 0.5, low, high, 0.1) - high
    slightly = limited(low - 0.01, low, high, 0.1) - low
    torch.testing.assert_close(above, torch.full_like(above, 0.1), atol=1e-3, rtol=0)
    torch.testing.assert_close(slightly, torch.full_like(slightly, -0.01), atol=1e-4, rtol=0)


def test_plain_loss_sees_a_faint_mesh_on_a_wall_and_not_in_texture() -> None:
    wall, texture = torch.full((1, 3, 32, 32), 0.5), torch.rand(1, 3, 32, 32)
    mesh = torch.zeros(32, 32)
    mesh[::4] = 3 / 255
    assert plain(*local_range(wall)).min() == 1
    assert plain(*local_range(texture)).max() < 0.01
    seen, hidden = (float(plain_loss(target + mesh, target)) for target in (wall, texture))
    assert seen > 100 * hidden
    assert seen == pytest.approx(
        3 / 255 / 4 + (2 + 2 + 0) * 3 / 255 / 4 / 3, rel=0.05
    )  # pixels, and steps of 1, 2 and 4


def test_with_colours_of_takes_a_tint_away_and_leaves_the_detail() -> None:
    torch.manual_seed(0)
    picture = 0.3 + 0.4 * torch.rand(2, 3, 64, 64)
    lr = low_pass(picture, 4)
    torch.testing.assert_close(with_colours_of(picture, lr), picture)
    tint = torch.tensor([0.02, -0.03, 0.01])[:, None, None]
    torch.testing.assert_close(with_colours_of(picture + tint, lr), picture)


def test_chroma_loss_sees_colour_alone() -> None:
    gray = grain(0.1, 1, 0).mean(1, keepdim=True).repeat(1, 3, 1, 1)
    assert chroma_loss(gray, torch.full_like(gray, 0.5)) < 1e-6
    tinted = gray.clone()
    tinted[:, 0] += 0.1
    torch.testing.assert_close(chroma_loss(tinted, gray), torch.tensor(0.4 / 9), atol=1e-6, rtol=1e-5)


def test_discriminator_judges_patches() -> None:
    judge = PatchDiscriminator(8, images=2)
    assert judge(grain(0.1, 2, 0), grain(0.1, 2, 1)).shape == (2, 1, 8, 8)
