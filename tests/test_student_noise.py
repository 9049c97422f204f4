"""The student's noise stage: what learns, what its losses hold, and where its samples may differ."""

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from student_cases import SHAPE, a_batch, a_student  # noqa: E402  (after importorskip)

from export.student.adversary import Adversary  # noqa: E402
from export.student.core import silence  # noqa: E402
from export.student.model.growing import with_noise  # noqa: E402
from export.student.model.network import NOISE_PATH, Student  # noqa: E402
from export.student.noise import NoiseSettings, StudentNoise  # noqa: E402
from training.data.batches import Batch  # noqa: E402


def noise_stage(**settings: object) -> StudentNoise:
    student = a_student()
    with torch.no_grad():
        student.generator.noise.weight.zero_()
    return StudentNoise(student, NoiseSettings(batch=2, crop=64, **settings))  # type: ignore[arg-type]


def test_noise_trains_the_generator_alone_and_spreads_samples(pictures: Path) -> None:
    stage = noise_stage(noise_only=False)
    batch = a_batch(pictures, 4)
    encoder = [p.clone() for p in stage.student.encoder.parameters()]
    optimizer = torch.optim.Adam(stage.groups()["noise"][0], 3e-3)
    seen = []
    for step in range(80):
        batch = Batch(tuple(range(4 * step, 4 * step + 4)), batch.lr, batch.hr, batch.prompts, batch.names)
        losses, _ = stage("noise", batch, {})
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        seen.append({name: float(value.detach()) for name, value in losses.items()})
    assert all(torch.equal(a, b) for a, b in zip(encoder, stage.student.encoder.parameters(), strict=True))
    early, late = ({k: sum(s[k] for s in part) / 10 for k in seen[0]} for part in (seen[:10], seen[-10:]))
    assert late["score"] < early["score"]
    assert late["structure"] < 0.02
    first, second = (stage.sample(batch.lr, batch.hr, k) for k in range(2))
    assert not torch.equal(first, second)


def test_the_picture_without_noise_stays_if_only_the_noise_learns(pictures: Path) -> None:
    stage = noise_stage()
    batch = a_batch(pictures, 2)

    def silent() -> torch.Tensor:
        with torch.no_grad():
            features, base = stage.student.encode(batch.lr)
            return stage.student.generator(features, base, silence(stage.student, features))

    before, sample = silent(), stage.sample(batch.lr, batch.hr, 0)
    parameters = stage.groups()["noise"][0]
    assert len(parameters) == len(NOISE_PATH)
    optimizer = torch.optim.Adam(parameters, 3e-3)
    for _ in range(3):
        losses, _ = stage("noise", batch, {})
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert torch.equal(silent(), before)
    assert not torch.equal(stage.sample(batch.lr, batch.hr, 0), sample)


def test_the_gate_stays_where_it_would_scale_a_bias() -> None:
    student = noise_stage().student  # a gated one
    with torch.no_grad():
        student.generator.noise.bias.fill_(0.1)
    tuned = StudentNoise(student, noise_stage().settings)
    assert [id(p) for p in tuned.learning()] == [id(student.generator.noise.weight)]


def test_an_adversary_joins_the_noise_late_and_pushes_the_generator_alone(pictures: Path) -> None:
    stage = noise_stage(adversary=0.5, adversary_from=0.3, discriminator_width=8)
    batch = a_batch(pictures, 2)
    assert stage.phases(0.2) == ("noise",)
    without, _ = stage("noise", batch, {})
    assert stage.phases(0.3) == ("noise", "adversary")
    losses, carry = stage("noise", batch, {})
    assert "push" not in without
    assert float(losses["loss"].detach()) != float(without["loss"].detach())
    losses["loss"].backward()
    assert all(p.grad is None for p in stage.adversary.parameters())
    assert any(p.grad is not None and p.grad.any() for p in stage.student.generator.parameters())
    told, _ = stage("adversary", batch, carry)
    told["loss"].backward()
    assert all(p.grad is not None for p in stage.adversary.parameters())
    assert stage.averaged() == ("noise",)


def test_samples_of_a_card_are_bound_to_the_card(pictures: Path) -> None:
    """And the adversary, which makes letters crisp before they are right, judges photos alone."""
    stage = noise_stage(adversary=0.5, adversary_from=0.0, discriminator_width=8)
    stage.phases(1.0)
    batch = replace(a_batch(pictures, 2), drawn=torch.tensor([True, False]))
    losses, shown = stage("noise", batch, {})
    assert "push" in losses
    for name in ("core", "truth"):
        torch.testing.assert_close(shown[name][0], batch.hr[0])
        assert float((shown[name][1] - batch.hr[1]).abs().max()) > 0.01
    losses, _ = stage("noise", replace(batch, drawn=torch.tensor([True, True])), {})
    assert "push" not in losses


def test_noise_of_other_channels_begins_anew_and_the_core_stays() -> None:
    student = a_student()
    with torch.no_grad():
        student.generator.noise.weight.zero_()
    stage = StudentNoise(student, NoiseSettings(noise_channels=6))
    assert stage.student.config.noise_channels == 6
    image = torch.rand(1, 3, 16, 16)
    silent = stage.student(image, torch.zeros(1, 6, 8, 8))
    torch.testing.assert_close(silent, student(image, torch.zeros(1, 4, 8, 8)))
    assert stage.student.generator.noise.weight.any()


def test_the_gate_begins_open_at_some_places() -> None:
    """At which ones differs from channel to channel; features of a core are about as small as these."""
    first, again = (with_noise(Student(SHAPE), 4, seed=3).generator.gate for _ in range(2))
    assert first is not None
    assert again is not None
    assert torch.equal(first.weight, again.weight)
    features = 0.1 * torch.randn(1, SHAPE.width, 24, 24, generator=torch.Generator().manual_seed(0))
    opened = (first(features) > 0).float().mean((2, 3))
    assert float(opened.min()) > 0.3
    assert float(opened.max()) < 0.98


def test_a_dirty_input_asks_for_less_texture(pictures: Path) -> None:
    batch = a_batch(pictures, 2)
    clean = torch.nn.functional.avg_pool2d(batch.hr, 4)
    core = torch.full_like(batch.hr, 0.5)
    near, far = (
        float((noise_stage()._truth(replace(batch, lr=lr), core) - core).abs().mean())
        for lr in (clean, clean + 24 / 255)
    )
    assert far == pytest.approx(near / 10, rel=0.01)


def test_a_closed_gate_silences_the_noise() -> None:
    generator = noise_stage().student.generator
    torch.manual_seed(0)
    features, base = torch.randn(1, SHAPE.width, 8, 8), torch.rand(1, 48, 16, 16)
    one, two = (torch.randn(1, 4, 8, 8) for _ in range(2))
    assert not torch.equal(generator(features, base, one), generator(features, base, two))
    with torch.no_grad():
        generator.gate.weight.zero_()
        generator.gate.bias.fill_(-1.0)
    torch.testing.assert_close(generator(features, base, one), generator(features, base, two))


def test_noise_on_flat_parts_costs_its_mean_square(pictures: Path) -> None:
    batch = a_batch(pictures, 2)
    flat = Batch(batch.items, batch.lr, torch.full_like(batch.hr, 0.5), batch.prompts, batch.names)
    stage = noise_stage()
    losses, _ = stage("noise", flat, {})
    assert losses["flat"] > 0
    rough = torch.rand(batch.hr.shape, generator=torch.Generator().manual_seed(0))
    busy = Batch(batch.items, batch.lr, rough, batch.prompts, batch.names)
    assert stage("noise", busy, {})[0]["flat"] == 0
    paper = replace(flat, drawn=torch.tensor([True, True]))
    assert stage("noise", paper, {})[0]["flat"] == 0


def test_a_card_does_not_make_the_adversary_stronger() -> None:
    """The push matches the other loss at the judged photo, whatever that loss is elsewhere."""
    adversary = Adversary(8)
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    condition = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def push(weight_of_the_card: float) -> torch.Tensor:
        other = weight_of_the_card * pictures[0].square().sum() + pictures[1].square().sum()
        _, push = adversary.push(pictures, condition, other, [1])
        return torch.autograd.grad(push, pictures)[0]

    small, large = push(0.0), push(100.0)
    torch.testing.assert_close(small, large)
    torch.testing.assert_close(small.norm(), 2 * pictures[1].detach().norm(), atol=1e-4, rtol=1e-4)


def test_noise_begins_with_samples_that_differ_a_little() -> None:
    stage = noise_stage()
    lr = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        core, apart = (stage.sample(lr, lr, k) for k in range(2))
        assert 0 < (core - apart).square().mean().sqrt() * 255 < 8


def test_bfloat16_does_not_round_the_picture_to_levels() -> None:
    """Only what is added to the bicubic base is computed in bfloat16."""
    stage, lr = noise_stage(), torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = stage.sample(lr, lr, 0)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = stage.sample(lr, lr, 0)
    assert rounded.dtype == torch.float32
    assert 0 < 255 * (full - rounded).abs().max() < 0.25
