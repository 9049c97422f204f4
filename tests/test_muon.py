"""Muon: what it makes of a gradient, and which weights of a stage get it."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from torch import nn  # noqa: E402

from export.student.core import CoreSettings, StudentCore  # noqa: E402  (after importorskip)
from export.student.model.network import Student, StudentConfig  # noqa: E402
from training.loop.optimizers import UPDATE_RMS, Muon, Optimizers, orthogonalised  # noqa: E402

SHAPE = StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8, fold=1)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12)])
def test_an_update_has_singular_values_near_one_and_the_directions_of_the_gradient(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = left * torch.logspace(0, -1.5, min(shape)) @ right
    update = orthogonalised(matrix)
    assert update.shape == matrix.shape
    values = torch.diagonal(left.T @ update @ right.T)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    assert torch.allclose(update, left * values @ right, atol=1e-4)  # no other direction


def test_no_gradient_no_update() -> None:
    weight = nn.Parameter(torch.ones(4, 3, 3, 3))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=1.0).step()
    assert torch.equal(weight, torch.ones_like(weight))


def test_an_update_is_as_large_as_the_learning_rate_says_whatever_the_gradient() -> None:
    torch.manual_seed(1)
    steps = []
    for scale in (1e-4, 1.0):
        weight = nn.Parameter(torch.zeros(16, 8, 3, 3, requires_grad=True).contiguous())
        weight.grad = scale * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
        Muon([weight], lr=0.01).step()
        steps.append(weight.detach().clone())
    assert torch.allclose(*steps, atol=1e-5)
    assert float(steps[0].square().mean().sqrt()) == pytest.approx(0.01 * UPDATE_RMS, rel=0.3)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_core_trains_every_weight_once_and_its_kernels_as_the_setting_says(optimizer: str) -> None:
    settings = CoreSettings(student=SHAPE, optimizer=optimizer)
    stage = StudentCore(Student(SHAPE), settings)
    made = Optimizers(stage, settings)
    found = {
        name: [id(p) for group in each.param_groups for p in group["params"]]
        for name, each in made.raw.items()
    }
    trained = [identity for identities in found.values() for identity in identities]
    assert sorted(trained) == sorted(id(p) for parameters, _ in stage.groups().values() for p in parameters)
    kernels = {id(p) for p in stage.student.parameters() if p.ndim == 4}
    assert set(found.get("student.kernels", [])) == (kernels if optimizer == "muon" else set())
    assert isinstance(made.raw["adversary"], torch.optim.AdamW)
    assert "adversary.kernels" not in found


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="muon or adamw, got 'sgd'"):
        CoreSettings(optimizer="sgd")
