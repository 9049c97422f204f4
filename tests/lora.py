"""New adapters as the tests need them; the stages take theirs from `training.stages.lora`."""

from peft import PeftModel
from torch import nn

from training.model.adapters import LoraSpec, add_lora


def unet_lora(
    unet: nn.Module, rank: int = 4, *, alpha: int | None = None, train_conv_in: bool = True, seed: int = 0
) -> PeftModel:
    """LoRA on a UNet, which is changed in place and frozen; see `LoraSpec`."""
    return add_lora(unet, LoraSpec(rank, alpha, "unet", train_conv_in), seed)


def vae_encoder_lora(vae: nn.Module, rank: int = 4, *, alpha: int | None = None, seed: int = 0) -> PeftModel:
    """LoRA on a VAE's encoder; the VAE is changed in place and frozen."""
    return add_lora(vae, LoraSpec(rank, alpha, "vae_encoder", False), seed)
