"""Convert a LoRA file of the public GDPO-SR code, which is a pickle, into a model folder in safetensors.

    gdposr train import FILE --base BASE --out FOLDER

Such a file holds "rank_unet", the names of the adapted layers, and "state_dict_unet" with every A and B and with
conv_in; one of NAOSD holds "rank_vae" and "state_dict_vae" too. Three adapters share the UNet's layers and two the
VAE's, so that no layer is in more than one: here they become one adapter each. The pickle is read with
`weights_only=True`: tensors, names and numbers are taken from it, and no code in it runs."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from runtime.text import print_error
from training.model.adapters import attach
from training.model.loading import load_model
from training.model.saving import save_run_model

# Strength is ALPHA / rank. The public code leaves lora_alpha at peft's default and does not store it.
ALPHA = 8
FACTOR = re.compile(r"(.+)\.lora_([AB])\.\w+\.weight")
WHOLE = re.compile(r"conv_in\.(?:base_layer\.)?(weight|bias)")
# Prefix of the names in peft's files.
PREFIX = "base_model.model."
# Relative RMS difference of conv_in from which a base counts as another one; half precision differs by 3e-4.
OTHER_BASE = 3e-3


@dataclass(frozen=True)
class Lora:
    """The adapter of one network, float32."""

    rank: int
    """Rank of the change."""
    factors: Mapping[str, tuple[Tensor, Tensor]]
    """A (r, in, ...) and B (out, r, ...) by the layer's name."""
    whole: Mapping[str, Tensor]
    """weight and bias of conv_in, to which its own A and B still have to be added; empty if the file has none."""


def import_lora(
    file: Path, out: Path, base: str | Path, *, text_base: str | Path | None = None, alpha: int = ALPHA
) -> list[str]:
    """Write the model folder; returns remarks for the user.

    file: of the public code.
    out: new or empty folder.
    base: the model it was trained on, as `load_model` reads it: Stable Diffusion for NAOSD, the merged NAOSD model for GDPO.
    text_base: source of text encoder and scheduler if base has none.
    alpha: strength is alpha / rank.

    Raises ValueError if the file holds anything else, or does not fit base."""
    # read: the file, and the model that it belongs on
    if alpha < 1:
        raise ValueError(f"lora_alpha must be at least 1, got {alpha}")
    document = _read(file)
    parts = {"unet": _lora(document, "unet", file)}
    if "state_dict_vae" in document:
        parts["vae"] = _lora(document, "vae", file)
    model = load_model(base, base=text_base)
    # compare: whether it was trained on that model
    remarks = []
    conv_in = parts["unet"].whole.get("weight")
    if "vae" not in parts and conv_in is not None:  # tuning does not change conv_in's own weights
        distance = _relative(conv_in, model.unet.conv_in.weight)
        if distance > OTHER_BASE:
            remarks.append(
                f"conv_in of {base} differs from that in {file.name} by {distance:.1%}: a LoRA of preference tuning belongs on the "
                "merged NAOSD model that it was trained on"
            )
    # attach: each part's factors, without layers that were never trained
    adapters: dict[str, Any] = {"unet": None, "vae": None}
    for part, lora in parts.items():
        idle = [name for name, (_, b) in lora.factors.items() if not b.any()]
        if idle:
            remarks.append(f"{part}: {len(idle)} layers were never trained (B is zero) and are left out")
        config, tensors = _adapter(lora, alpha)
        if tensors:
            adapters[part] = attach(getattr(model, part), config, tensors, file)
    # write
    save_run_model(
        out,
        base=base,
        text_base=text_base,
        noise_timestep=model.noise_timestep,
        denoise_timestep=model.denoise_timestep,
        noise_channels=model.noise_channels,
        unet_adapter=adapters["unet"],
        vae_adapter=adapters["vae"],
        provenance={
            "imported": file.name,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "lora_alpha": alpha,
            "base": str(base),
        },
    )
    return remarks


def _read(file: Path) -> dict[str, Any]:
    """The dictionary in a pickle of tensors. Raises ValueError if it is damaged or holds other objects."""
    try:
        document = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # a damaged pickle can fail in any way; torch's own message advises to run its code
        raise ValueError(
            f"{file} cannot be read as tensors, names and numbers alone ({type(error).__name__}): it is damaged, or it holds objects "
            "whose code would run on loading, which never happens here. Expected a LoRA file as the public code saves it"
        ) from None
    if not isinstance(document, dict) or "state_dict_unet" not in document:
        found = (
            ", ".join(map(str, list(document)[:5])) if isinstance(document, dict) else type(document).__name__
        )
        raise ValueError(
            f"{file} is not a LoRA file of the public code: expected rank_unet and state_dict_unet, got {found or 'nothing'}. Merged "
            "weights are no LoRA: name their folder as --base of a stage"
        )
    return document


def _lora(document: Mapping[str, Any], part: str, file: Path) -> Lora:
    """One network's adapter. part: "unet" or "vae"."""
    rank, tensors = document.get(f"rank_{part}"), document[f"state_dict_{part}"]
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"{file}: rank_{part} must be a whole number above 0, got {rank!r}")
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{file}: state_dict_{part} must hold tensors alone, got something else")
    found: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, value in tensors.items():
        factor, own = FACTOR.fullmatch(str(name)), WHOLE.fullmatch(str(name))
        if factor is not None:
            side = found.setdefault(factor[1], {})
            if factor[2] in side:
                raise ValueError(f"{file}: {factor[1]} is in two adapters, expected each layer in one")
            side[factor[2]] = value.float()
        elif own is not None and part == "unet":
            whole[own[1]] = value.float()
        else:
            raise ValueError(f"{file}: state_dict_{part} has {name}, expected LoRA weights and conv_in alone")
    for layer, side in found.items():
        shapes = {key: tuple(value.shape) for key, value in sorted(side.items())}
        if set(side) != {"A", "B"} or side["A"].shape[0] != rank or side["B"].shape[1:2] != (rank,):
            raise ValueError(f"{file}: {layer} must have A and B of rank {rank}, got {shapes}")
        if not all(value.isfinite().all() for value in side.values()):
            raise ValueError(f"{file}: the LoRA of {layer} has values that are not finite: copy it again")
    return Lora(rank, {layer: (side["A"], side["B"]) for layer, side in found.items()}, whole)


def _adapter(lora: Lora, alpha: int) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The adapter as peft stores it, without layers whose B is zero.

    conv_in is both trained in full and adapted. peft can have only one of these, so its A and B are added to its weight."""
    factors = {name: pair for name, pair in lora.factors.items() if pair[1].any()}
    tensors: dict[str, Tensor] = {}
    if lora.whole:
        whole = dict(lora.whole)
        if "conv_in" in factors:
            a, b = factors.pop("conv_in")
            change = torch.einsum("or,rikl->oikl", b.flatten(1), a)
            whole["weight"] = whole["weight"] + alpha / lora.rank * change
        tensors |= {f"{PREFIX}conv_in.{name}": value for name, value in whole.items()}
    for name, (a, b) in factors.items():
        tensors |= {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        target_modules="|".join(re.escape(name) for name in factors) or "none",
        modules_to_save=["conv_in"] if lora.whole else None,
    )
    return config, tensors


def _relative(a: Tensor, b: Tensor) -> float:
    """RMS difference over RMS value; infinite for different shapes."""
    return float((a - b.float()).norm() / b.float().norm()) if a.shape == b.shape else float("inf")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 on success, 2 if the file cannot be read, does not fit the base, or the folder cannot be written."""
    parser = argparse.ArgumentParser(
        prog="gdposr train import",
        description="Convert a LoRA file of the public GDPO-SR code, a pickle, into a model folder in safetensors. No code in it runs.",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="as the public code saves it, such as model_501.pkl"
    )
    parser.add_argument(
        "--base",
        required=True,
        metavar="SOURCE",
        help="what it was trained on: folder, run or hub name (owner/name or owner/name/folder)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new or empty folder")
    parser.add_argument(
        "--text-base", metavar="SOURCE", help="source of text encoder and scheduler if --base has none"
    )
    parser.add_argument(
        "--lora-alpha",
        type=int,
        default=ALPHA,
        metavar="N",
        help=f"strength is N / rank (default {ALPHA}, as published)",
    )
    args = parser.parse_args(argv)
    try:
        remarks = import_lora(args.file, args.out, args.base, text_base=args.text_base, alpha=args.lora_alpha)
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    for remark in remarks:
        print(f"note: {remark}")
    print(f"model written to {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
