"""Degradations that users have."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from training.data.everyday import KINDS, RAW_RANGE, degrade_everyday, raw_noise, sensor_noise  # noqa: E402  (after importorskip)


def picture() -> torch.Tensor:
    """(3, 128, 160): smooth waves in three colours."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(160.0), indexing="ij")
    return torch.stack(
        [0.5 + 0.3 * torch.sin(x / 9), 0.5 + 0.3 * torch.cos(y / 7), 0.5 + 0.2 * torch.sin((x + y) / 13)]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_a_smaller_picture_in_whole_levels(kind: str) -> None:
    lr = degrade_everyday(picture(), np.random.default_rng(0), kind)
    assert lr.shape == (3, 32, 40)
    assert 0 <= lr.min() <= lr.max() <= 1
    assert torch.allclose(lr * 255, (lr * 255).round(), atol=1e-3)
    assert (lr.mean((1, 2)) - picture().mean((1, 2))).abs().max() < 0.05
    again = degrade_everyday(picture(), np.random.default_rng(0), kind)
    assert torch.equal(lr, again)


def test_kinds_come_in_equal_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    drawn = [KINDS[int(rng.integers(len(KINDS)))] for _ in range(1400)]  # the first draw of each picture
    assert min(drawn.count(kind) for kind in KINDS) > 150
    first = degrade_everyday(picture(), np.random.default_rng(5))
    kind = KINDS[int(np.random.default_rng(5).integers(len(KINDS)))]
    rng = np.random.default_rng(5)
    rng.integers(len(KINDS))
    assert torch.equal(first, degrade_everyday(picture(), rng, kind))


def test_clean_is_clean_and_the_others_are_not() -> None:
    def error(kind: str) -> float:
        plain = torch.nn.functional.avg_pool2d(picture()[None], 4)[0]
        draws = [degrade_everyday(picture(), np.random.default_rng(k), kind) for k in range(8)]
        return float(torch.stack([(d - plain).square().mean() for d in draws]).mean().sqrt()) * 255

    clean = error("clean")
    assert clean < 1.5
    assert error("jpeg") > 1.5 * clean
    assert error("heavy") > error("jpeg")


def test_raw_noise_is_white_and_as_strong_in_every_channel() -> None:
    flat = torch.full((3, 96, 96), 0.5)
    for k in range(6):
        noise = (raw_noise(flat, np.random.default_rng(k)) - flat) * 255
        deviations = noise.flatten(1).std(1)
        low, high = RAW_RANGE
        assert 0.9 * low < deviations.min()
        assert deviations.max() < 1.1 * high
        assert deviations.max() < 1.05 * deviations.min()
        neighbours = torch.corrcoef(
            torch.stack([noise[0, :, 1:].flatten(), noise[0, :, :-1].flatten(), noise[1, :, 1:].flatten()])
        )
        assert (neighbours - torch.eye(3)).abs().max() < 0.05


def test_sensor_noise_is_weaker_in_colour_than_in_brightness() -> None:
    flat = torch.full((3, 64, 64), 0.5)
    noise = torch.stack([sensor_noise(flat, np.random.default_rng(k)) - flat for k in range(12)])
    gray = noise.mean(1)
    colour = noise - gray[:, None]
    assert gray.std() > colour.std()
    assert 0.002 < noise.std() < 0.1


@pytest.mark.parametrize(
    ("size", "kind", "message"), [((3, 30, 32), None, "multiple of 4"), ((3, 32, 32), "fog", "kind must be")]
)
def test_wrong_requests_are_named(size: tuple[int, int, int], kind: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        degrade_everyday(torch.zeros(size), np.random.default_rng(0), kind)
