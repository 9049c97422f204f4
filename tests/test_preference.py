"""Preference losses: hand-computed values, signs of gradients, and the two methods that are special cases of one another."""

import math
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from training.stages.preference import (  # noqa: E402  (after importorskip)
    anchor_distance,
    best_worst_advantage,
    error_change,
    gaussian_kl,
    gaussian_log_ratio,
    group_advantage,
    grpo_loss,
    preference_accuracy,
    preference_loss,
)


def uniform(*shape: int, seed: int = 0) -> "torch.Tensor":
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> "torch.Tensor":
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found: "torch.Tensor", wanted: "torch.Tensor", tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found.detach(), wanted.detach(), atol=tolerance, rtol=tolerance)


def test_advantage_of_known_groups() -> None:
    found = group_advantage(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]))
    assert found[0].tolist() == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)], abs=1e-6)
    assert found[1].tolist() == pytest.approx([-math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2)], abs=1e-6)


def test_advantage_has_zero_mean_and_unit_variance() -> None:
    found = group_advantage(uniform(5, 6))
    assert found.mean(1).abs().max() < 1e-6
    assert found.var(1, unbiased=False).tolist() == pytest.approx([1.0] * 5, abs=1e-5)


def test_a_pair_has_plus_and_minus_one() -> None:
    found = group_advantage(torch.tensor([[0.2, 0.9], [0.7, 0.1], [0.5, 0.50001]]))
    assert found.flatten().tolist() == pytest.approx([-1, 1, 1, -1, -1, 1], abs=1e-6)


def test_scale_and_shift_of_rewards_do_not_matter() -> None:
    rewards = uniform(4, 6)
    close(group_advantage(100 * rewards - 7), group_advantage(rewards), 1e-4)
    assert torch.equal(best_worst_advantage(100 * rewards - 7), best_worst_advantage(rewards))


@pytest.mark.parametrize("advantage", [group_advantage, best_worst_advantage])
def test_equal_rewards_give_no_advantage(advantage: Callable[..., "torch.Tensor"]) -> None:
    rewards = torch.tensor([[0.3, 0.3, 0.3], [0.5, 0.5 + 1e-7, 0.5]])
    assert advantage(rewards).tolist() == [[0.0] * 3] * 2
    with pytest.raises(ValueError, match=r"at least two samples in a group, got \(4, 1\)"):
        advantage(torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"got \(4,\)"):
        advantage(torch.zeros(4))
    with pytest.raises(ValueError, match="must be finite"):
        advantage(torch.tensor([[0.0, float("nan")]]))


def test_best_and_worst() -> None:
    rewards = torch.tensor([[0.1, 0.9, 0.5, 0.0], [1.0, 1.0, 0.0, 0.0]])
    assert best_worst_advantage(rewards).tolist() == [[0, 1, 0, -1], [1, 0, -1, 0]]


def test_the_change_of_an_error_is_a_mean_per_sample() -> None:
    prediction = torch.arange(12.0).view(1, 2, 1, 2, 3)
    target = torch.zeros_like(prediction)
    assert error_change(prediction, target, target).tolist()[0] == pytest.approx(
        [55 / 6, (6**2 + 7**2 + 8**2 + 9**2 + 10**2 + 11**2) / 6]
    )
    half = error_change(prediction.bfloat16(), target.bfloat16(), target)
    assert half.dtype == torch.float32
    with pytest.raises(ValueError, match=r"one shape \(B, G, C, h, w\)"):
        error_change(prediction, target[0], target)


def test_preference_loss_by_hand() -> None:
    """Inside the sigmoid: 1 * (0.1 - 0.2) - 1 * (0.4 - 0.1) = -0.4, and 0 in the second row."""
    policy = torch.tensor([[0.1, 0.4], [0.3, 0.3]])
    reference = torch.tensor([[0.2, 0.1], [0.3, 0.3]])
    advantage = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    wanted = (-math.log(1 / (1 + math.exp(-5 * 0.4))) + math.log(2)) / 2
    assert preference_loss(policy - reference, advantage, 5.0).item() == pytest.approx(wanted, rel=1e-6)
    assert preference_accuracy(policy - reference, advantage).item() == 0.5
    assert preference_accuracy(reference - policy, advantage).item() == 0.0


def test_no_advantage_gives_log_two_and_no_gradient() -> None:
    policy = uniform(3, 4).requires_grad_()
    loss = preference_loss(policy - uniform(3, 4, seed=1), torch.zeros(3, 4), 2500.0)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert policy.grad.abs().max() == 0


def test_descent_lowers_the_error_of_good_samples_and_raises_that_of_bad_ones() -> None:
    advantage = group_advantage(uniform(3, 6))
    policy = uniform(3, 6, seed=1).requires_grad_()
    preference_loss(policy - policy.detach(), advantage, 10.0).backward()
    # Where the policy still is the reference the sigmoid is 1/2 and the gradient weight * A / 2 / B.
    close(policy.grad, 10.0 * advantage / 2 / 3)
    moved = policy.detach() - 0.01 * policy.grad
    assert preference_accuracy(moved - policy.detach(), advantage).item() == 1.0


def diffusion_dpo(win_change: "torch.Tensor", lose_change: "torch.Tensor", beta: float) -> "torch.Tensor":
    """Diffusion-DPO for pairs (Wallace et al. 2023, Eq. 14), mean over B. The changes e - e_ref of the preferred and of the
    other sample, (B,) each; beta: their beta * T * omega(lambda_t)."""
    return torch.nn.functional.softplus(beta * (win_change - lose_change)).mean()


def test_a_pair_is_diffusion_dpo() -> None:
    rewards, reference = uniform(5, 2), uniform(5, 2, seed=1)
    policy = uniform(5, 2, seed=2).requires_grad_()
    twin = policy.detach().clone().requires_grad_()
    win = rewards.argmax(1, keepdim=True)
    lose = 1 - win
    twin_change = twin - reference
    dpo = diffusion_dpo(twin_change.gather(1, win)[:, 0], twin_change.gather(1, lose)[:, 0], beta=7.0)
    dpo.backward()
    for advantage in (group_advantage(rewards), best_worst_advantage(rewards)):
        policy.grad = None
        loss = preference_loss(policy - reference, advantage, 7.0)
        loss.backward()
        close(loss, dpo)
        close(policy.grad, twin.grad)


def test_only_the_anchor_pulls_back() -> None:
    """With one noise for the group the preference's gradient is the same at .1 and 100 times the displacement."""
    samples, reference = normal(2, 6, 4, 3, 3), normal(2, 1, 4, 3, 3, seed=1)
    advantage, direction = group_advantage(uniform(2, 6)), normal(2, 1, 4, 3, 3, seed=2)
    variance = torch.tensor([0.5, 2.0])

    def gradients(displacement: float) -> "tuple[torch.Tensor, torch.Tensor]":
        policy = (reference + displacement * direction).requires_grad_()
        movement = (advantage * error_change(policy, reference, samples)).sum()
        anchor = anchor_distance(policy, reference, variance)
        return torch.autograd.grad(movement, policy)[0], torch.autograd.grad(anchor, policy)[0]

    (near, near_pull), (far, far_pull) = gradients(0.1), gradients(100.0)
    close(near, far, 1e-4)
    assert float(near.abs().max()) > 1e-3
    close(1000 * near_pull, far_pull, 1e-3)
    assert float((far_pull * direction).sum()) > 0  # a descent step leads back
    distance = anchor_distance(reference + direction, reference, variance)
    close(distance, (direction.square().mean((1, 2, 3, 4)) / variance).mean())


def test_extreme_errors_stay_finite() -> None:
    advantage = torch.tensor([[1.0, -1.0]])
    for first, second in [(1e6, 0.0), (0.0, 1e6)]:
        policy = torch.tensor([[first, second]], requires_grad=True)
        loss = preference_loss(policy, advantage, 2500.0)
        loss.backward()
        assert loss.isfinite()
        assert policy.grad.isfinite().all()
    assert loss.item() == 0.0


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"one shape \(B, G\), got \(2, 3\), \(2, 2\)"):
        preference_loss(torch.zeros(2, 3), torch.zeros(2, 2), 1.0)
    with pytest.raises(ValueError, match=r"got \(3,\), \(3,\)"):
        grpo_loss(torch.zeros(3), torch.zeros(3))


def test_log_ratio_and_divergence_are_those_of_normal_distributions() -> None:
    x, old, new = (normal(2, 3, 4, 5, 6, seed=seed) for seed in range(3))
    sigma = 0.3
    before, after = torch.distributions.Normal(old, sigma), torch.distributions.Normal(new, sigma)
    wanted = (after.log_prob(x) - before.log_prob(x)).mean((2, 3, 4))
    close(gaussian_log_ratio(x, old, new, sigma), wanted, 1e-4)
    divergence = torch.distributions.kl_divergence(after, before).mean((2, 3, 4))
    close(gaussian_kl(new, old, sigma), divergence, 1e-4)
    shared = old[:, :1]
    close(gaussian_log_ratio(x, shared, new, sigma), gaussian_log_ratio(x, shared.expand_as(x), new, sigma))
    assert gaussian_log_ratio(x, old, old, sigma).abs().max() == 0
    assert gaussian_kl(x.bfloat16(), x.bfloat16(), sigma).dtype == torch.float32
    with pytest.raises(ValueError, match="sigma must be above 0"):
        gaussian_log_ratio(x, old, new, 0.0)


def test_grpo_by_hand() -> None:
    log_ratio = torch.tensor([[math.log(1.1), math.log(2.0), math.log(2.0), math.log(0.5)]])
    advantage = torch.tensor([[1.0, 1.0, -1.0, 2.0]])
    wanted = -(1.1 + 1.2 - 2.0 + 1.0) / 4
    assert grpo_loss(log_ratio, advantage).item() == pytest.approx(wanted, rel=1e-6)
    kl = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert grpo_loss(log_ratio, advantage, kl=kl, kl_weight=0.1).item() == pytest.approx(
        wanted + 0.25, rel=1e-6
    )
    with pytest.raises(ValueError, match="needs kl"):
        grpo_loss(log_ratio, advantage, kl_weight=0.1)
    with pytest.raises(ValueError, match="clip must be above 0"):
        grpo_loss(log_ratio, advantage, clip=0.0)


def test_the_first_step_of_grpo_is_the_policy_gradient() -> None:
    """At ratio 1 the gradient by the log ratio is -A / (B G), and descent moves the mean towards the good candidates."""
    advantage = group_advantage(uniform(2, 3))
    log_ratio = torch.zeros(2, 3, requires_grad=True)
    grpo_loss(log_ratio, advantage).backward()
    close(log_ratio.grad, -advantage / 6)

    candidate, old = normal(1, 2, 1, 2, 2), torch.zeros(1, 2, 1, 2, 2)
    new = old.clone().requires_grad_()
    grpo_loss(gaussian_log_ratio(candidate, old, new, 0.5), torch.tensor([[1.0, -1.0]])).backward()
    assert torch.equal(new.grad[0, 0].sign(), -candidate[0, 0].sign())
    assert torch.equal(new.grad[0, 1].sign(), candidate[0, 1].sign())


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.5, 1.0, False), (0.5, -1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (1.1, 1.0, True)],
)
def test_clipping_stops_only_what_has_gone_far_enough(ratio: float, advantage: float, moves: bool) -> None:
    log_ratio = torch.tensor([[math.log(ratio)]], requires_grad=True)
    grpo_loss(log_ratio, torch.tensor([[advantage]])).backward()
    assert log_ratio.grad.item() == pytest.approx(-ratio * advantage if moves else 0.0)


def test_extreme_log_ratios_stay_finite() -> None:
    for advantage in (1.0, 0.0, -1.0):
        log_ratio = torch.tensor([[1e4, -1e4]], requires_grad=True)
        loss = grpo_loss(log_ratio, torch.full((1, 2), advantage))
        loss.backward()
        assert loss.isfinite()
        assert log_ratio.grad.isfinite().all()
