"""The diffusion schedule: the paper's constants, diffusers' scheduler as the reference, round trips and refusals."""

import ast
import json
import math
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from training.model.schedule import NoiseSchedule  # noqa: E402  (after importorskip)


def latents(count: int = 3) -> tuple["torch.Tensor", "torch.Tensor"]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, 4, 5, 6, generator=draw), torch.randn(count, 4, 5, 6, generator=draw)


def test_constants_of_stable_diffusion() -> None:
    schedule = NoiseSchedule.scaled_linear()
    assert schedule.alpha_bar.shape == (1000,)
    assert schedule.alpha_bar.dtype == torch.float64
    assert float(schedule.alpha_bar[100]) == pytest.approx(0.894223, abs=5e-7)
    assert float(schedule.alpha_bar[250]) == pytest.approx(0.673793, abs=5e-7)
    one, nothing = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    assert float(schedule.add_noise(one, nothing, 250)) == pytest.approx(0.820849, abs=5e-7)
    assert float(schedule.add_noise(nothing, one, 250)) == pytest.approx(0.571146, abs=5e-7)
    assert float(schedule.denoise(one, nothing, 100)) == pytest.approx(1.057492, abs=5e-7)
    assert float(schedule.denoise(nothing, one, 100)) == pytest.approx(-0.343931, abs=5e-7)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("shape", ["scaled_linear", "linear"])
def test_agrees_with_diffusers(prediction: str, shape: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the extra `train`")
    schedule = NoiseSchedule(beta_schedule=shape, prediction=prediction)
    reference = diffusers.DDPMScheduler.from_config(schedule.to_config())
    assert not reference.config.clip_sample
    latent, output = latents(4)
    timesteps = torch.tensor([0, 100, 250, 999])
    noisy = schedule.add_noise(latent, output, timesteps)
    torch.testing.assert_close(noisy, reference.add_noise(latent, output, timesteps), atol=1e-5, rtol=1e-5)
    for index, timestep in enumerate(timesteps.tolist()):
        one = slice(index, index + 1)
        theirs = reference.step(output[one], timestep, noisy[one]).pred_original_sample
        torch.testing.assert_close(
            schedule.denoise(noisy[one], output[one], timestep), theirs, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_denoising_undoes_adding_noise(prediction: str) -> None:
    schedule = NoiseSchedule.scaled_linear(prediction=prediction)
    clean, noise = latents()
    timesteps = torch.tensor([3, 250, 700])
    noisy = schedule.add_noise(clean, noise, timesteps)
    output = noise
    if prediction == "v_prediction":  # v = sqrt(a) eps - sqrt(1 - a) z
        share = schedule.alpha_bar[timesteps][:, None, None, None].float()
        output = share.sqrt() * noise - (1 - share).sqrt() * clean
    torch.testing.assert_close(schedule.target(clean, noise, timesteps), output)
    torch.testing.assert_close(schedule.denoise(noisy, output, timesteps), clean, atol=1e-5, rtol=1e-4)


def test_a_batch_of_timesteps_is_one_timestep_each() -> None:
    schedule = NoiseSchedule.scaled_linear()
    latent, noise = latents()
    together = schedule.add_noise(latent, noise, torch.tensor([0, 250, 999]))
    for index, timestep in enumerate((0, 250, 999)):
        alone = schedule.add_noise(latent[index : index + 1], noise[index : index + 1], timestep)
        torch.testing.assert_close(together[index : index + 1], alone)
    torch.testing.assert_close(
        schedule.add_noise(latent, noise, torch.tensor(250)), schedule.add_noise(latent, noise, 250)
    )


@pytest.mark.parametrize("timestep", [250, "tensor"])
def test_dtype_of_the_latent_is_kept(timestep: int | str) -> None:
    latent, noise = (x.bfloat16() for x in latents())
    told = torch.tensor([250] * 3) if timestep == "tensor" else timestep
    noisy = NoiseSchedule.scaled_linear().add_noise(latent, noise, told)
    assert noisy.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("timestep", "says"),
    [
        (-1, r"0 \.\. 999, got -1"),
        (1000, r"0 \.\. 999, got 1000"),
        (2.5, "whole number"),
        (True, "whole number"),
        ([5, 1000, 7], "got 1000"),
        ([5, 6], "each of 3 images"),
        ([[5], [6], [7]], "each of 3 images"),
        ([0.5, 0.5, 0.5], "whole numbers"),
    ],
)
def test_wrong_timesteps_are_refused(timestep: object, says: str) -> None:
    latent, noise = latents()
    told = torch.tensor(timestep) if isinstance(timestep, list) else timestep
    with pytest.raises(ValueError, match=says):
        NoiseSchedule.scaled_linear().add_noise(latent, noise, told)


def test_config_goes_through_json() -> None:
    schedule = NoiseSchedule(steps=50, beta_start=0.001, beta_end=0.02, beta_schedule="linear")
    assert NoiseSchedule.from_config(json.loads(json.dumps(schedule.to_config()))) == schedule
    assert (
        NoiseSchedule.from_config({**schedule.to_config(), "prediction_type": None}).prediction == "epsilon"
    )
    assert math.isclose(float(schedule.alpha_bar[0]), 0.999)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"beta_schedule": "squaredcos_cap_v2"}, "scaled_linear or linear, got 'squaredcos_cap_v2'"),
        ({"prediction_type": "sample"}, "epsilon or v_prediction, got 'sample'"),
        ({"beta_end": None}, "lacks beta_end"),
        ({"beta_end": 0.0001}, "beta_start <= beta_end"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
)
def test_configs_it_cannot_follow_are_refused(change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        NoiseSchedule.from_config({**NoiseSchedule().to_config(), **change})


def test_needs_torch_only(root: Path) -> None:
    tree = ast.parse((root / "training" / "model" / "schedule.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= {"torch", *sys.stdlib_module_names}
