"""Settings of the stages that train low-rank adapters."""

from __future__ import annotations

from dataclasses import dataclass

from training.loop.stage import RunSettings
from training.model.adapters import INITS, LoraSpec


@dataclass(frozen=True)
class LoraSettings(RunSettings):
    """Settings of the LoRA in addition to `RunSettings`. The preset sd21 has the published values."""

    rank: int = 4
    """Rank of the LoRA."""
    lora_init: str = "kaiming"
    """Distribution of the initial A: "kaiming", uniform within 1 / sqrt(fan_in), or "gaussian" with deviation 1 / rank as
    published. The same learning rate moves a wide layer much faster with "gaussian", see `training.model.adapters`."""
    lora_alpha: int = 0
    """The LoRA's strength is lora_alpha / rank; 0 for lora_alpha = rank, strength 1. Published: 8 with rank 4, strength 2."""
    lora_time_emb: bool = True
    """Whether the UNet's `time_emb_proj` layers get LoRA too. Published: no."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.lora_init not in INITS:
            raise ValueError(f"lora_init must be one of {', '.join(INITS)}, got {self.lora_init!r}")
        if self.lora_alpha < 0:
            raise ValueError(f"lora_alpha must be above 0, or 0 for the value of rank, got {self.lora_alpha}")

    def lora(self, part: str, *, train_conv_in: bool = False) -> LoraSpec:
        """The adapter of a part, see `LoraSpec`."""
        return LoraSpec(
            self.rank, self.lora_alpha or None, part, train_conv_in, self.lora_init, self.lora_time_emb
        )
