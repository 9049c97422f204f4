"""The diffusion schedule and its closed forms: add noise, remove it in one step, find the noise between two latents.

a(t) is the remaining share of the signal's variance at timestep t, alpha-bar in Ho et al. 2020, Eq. 4. No function
here draws random numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

BETA_SCHEDULES = ("scaled_linear", "linear")
PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class NoiseSchedule:
    """A discrete schedule. Timestep 0 is the cleanest. The defaults are those of Stable Diffusion 2.1-base."""

    steps: int = 1000
    """Number of timesteps."""
    beta_start: float = 0.00085
    """Variance added at the first timestep."""
    beta_end: float = 0.012
    """Variance added at the last timestep."""
    beta_schedule: str = "scaled_linear"
    """How beta grows: "linear" in beta, or "scaled_linear" in sqrt(beta)."""
    prediction: str = "epsilon"
    """The network's output: "epsilon" (the noise) or "v_prediction" (Salimans & Ho 2022, Appendix D)."""
    alpha_bar: Tensor = field(init=False, repr=False, compare=False)
    """(steps,) float64, falling from nearly 1. Computed from the other fields."""

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"num_train_timesteps must be a positive whole number, got {self.steps!r}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"expected 0 < beta_start <= beta_end < 1, got {self.beta_start!r} and {self.beta_end!r}"
            )
        _one_of("beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        _one_of("prediction_type", self.prediction, PREDICTIONS)
        power = 2 if self.beta_schedule == "scaled_linear" else 1
        start, end = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        betas = torch.linspace(start, end, self.steps, dtype=torch.float64) ** power
        object.__setattr__(self, "alpha_bar", torch.cumprod(1 - betas, dim=0))

    @classmethod
    def scaled_linear(
        cls,
        steps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        prediction: str = "epsilon",
    ) -> NoiseSchedule:
        """The schedule of latent diffusion (Rombach et al. 2022): betas linear in their square roots.

        steps: number of timesteps.
        beta_start, beta_end: variance added at the first and last timestep.
        prediction: the network's output."""
        return cls(steps, beta_start, beta_end, "scaled_linear", prediction)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Read diffusers' scheduler_config.json. Keys about sampling are ignored; prediction_type defaults to
        "epsilon", as in diffusers."""
        names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
        missing = [name for name in names if config.get(name) is None]
        if missing:
            raise ValueError(f"scheduler_config.json lacks {', '.join(missing)}")
        if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
            raise ValueError(
                "scheduler_config.json has trained_betas or rescale_betas_zero_snr; a schedule here is given by beta_start, "
                "beta_end and beta_schedule alone"
            )
        steps, start, end, shape = (config[name] for name in names)
        return cls(steps, start, end, shape, config.get("prediction_type") or "epsilon")

    def to_config(self) -> dict[str, Any]:
        """The schedule as a scheduler_config.json, which diffusers can read too. Inverse of `from_config`."""
        return {
            "_class_name": "DDPMScheduler",
            "num_train_timesteps": self.steps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": self.beta_schedule,
            "prediction_type": self.prediction,
            "clip_sample": False,
            "trained_betas": None,
        }

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: int | Tensor) -> Tensor:
        """z_t = sqrt(a) z + sqrt(1 - a) eps (Ho et al. 2020, Eq. 4). latent, noise: (B, ...); timestep: int or (B,)."""
        signal, sigma = self._coefficients(timestep, latent)
        return signal * latent + sigma * noise

    def denoise(self, noisy: Tensor, output: Tensor, timestep: int | Tensor) -> Tensor:
        """The clean latent z_0 that corresponds to the network's output.

        noisy, output: (B, ...).
        timestep: an int or (B,).

        epsilon: z_0 = (z_t - sqrt(1 - a) output) / sqrt(a);  v: z_0 = sqrt(a) z_t - sqrt(1 - a) output."""
        signal, sigma = self._coefficients(timestep, noisy)
        if self.prediction == "v_prediction":
            return signal * noisy - sigma * output
        return (noisy - sigma * output) / signal

    def target(self, latent: Tensor, noise: Tensor, timestep: int | Tensor) -> Tensor:
        """The network's target for `add_noise(latent, noise, timestep)`: the noise, or v = sqrt(a) eps - sqrt(1 - a) z."""
        signal, sigma = self._coefficients(timestep, latent)
        return signal * noise - sigma * latent if self.prediction == "v_prediction" else noise

    def check_timestep(self, timestep: int | Tensor, batch: int | None = None) -> None:
        """Raise ValueError for a timestep outside 0 .. steps - 1, a non-integer, or a tensor that is not (batch,)."""
        if isinstance(timestep, Tensor):
            if timestep.is_floating_point() or timestep.dtype == torch.bool:
                raise ValueError(f"timesteps must be whole numbers, got a tensor of {timestep.dtype}")
            if timestep.dim() > 1 or (timestep.dim() == 1 and batch is not None and len(timestep) != batch):
                raise ValueError(
                    f"expected one timestep or one for each of {batch} images, got shape {tuple(timestep.shape)}"
                )
            low, high = (int(timestep.min()), int(timestep.max())) if timestep.numel() else (0, 0)
        elif isinstance(timestep, int) and not isinstance(timestep, bool):
            low = high = timestep
        else:
            raise ValueError(f"a timestep must be a whole number or a tensor of them, got {timestep!r}")
        if low < 0 or high >= self.steps:
            raise ValueError(f"timestep must lie in 0 .. {self.steps - 1}, got {low if low < 0 else high}")

    def _coefficients(self, timestep: int | Tensor, like: Tensor) -> tuple[Any, Any]:
        """sqrt(a) and sqrt(1 - a), computed in float64: numbers for one timestep, tensors (B, 1, ...) in like's dtype for (B,)."""
        self.check_timestep(timestep, len(like))
        if not isinstance(timestep, Tensor):
            share = float(self.alpha_bar[timestep])
            return math.sqrt(share), math.sqrt(1 - share)
        shares = self.alpha_bar[timestep.cpu().long()].reshape(-1, *[1] * (like.dim() - 1))
        return shares.sqrt().to(like), (1 - shares).sqrt().to(like)


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be {' or '.join(known)}, got {value!r}")
