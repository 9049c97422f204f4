"""Writes a miniature Stable Diffusion 2.1-base: every file and key where the real checkpoint has it, random weights, 1.3 MB.

Run from the repository root: `python tests/make_miniature_sd21.py FOLDER`. The tests call `make_miniature`. The same seed gives
the same bytes.

    vae         AutoencoderKL, factor 8, 4 latent channels, scaling factor 0.18215
    unet        two levels (the real one: four), cross-attention in the first and in the middle, linear projections
    text        CLIP with 2 layers of width 32, 16 tokens (77), single bytes and a handful of merges for a vocabulary

An LR image must be a multiple of 4 pixels: 4 LR pixels are 16 image pixels, 2 latent pixels, 1 on the UNet's second level.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel

TOKENS, WIDTH = 16, 32
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = ("t h", "th e</w>", "p h", "ph o", "pho t", "phot o</w>", "s h", "sh a")
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def make_miniature(folder: str | Path, seed: int = 0) -> Path:
    """The whole checkpoint: model_index.json, unet/ vae/ text_encoder/ tokenizer/ scheduler/. Returns the folder."""
    target = Path(folder)
    make_public_layout(target, seed)
    vocabulary = _vocabulary()
    _write_tokenizer(target / "tokenizer", vocabulary)
    with _seeded(seed):
        _write_text_encoder(target / "text_encoder", vocabulary)
    _write_json(target / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(
        target / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    return target


def make_public_layout(folder: str | Path, seed: int = 1) -> Path:
    """As the public GDPO-SR checkpoint: merged unet/ and vae/, nothing else. Returns the folder."""
    target = Path(folder)
    with _seeded(seed):
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=(2, 4),  # heads per level, by a misnomer that diffusers keeps
            cross_attention_dim=WIDTH,
            use_linear_projection=True,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 16, 16, 16),
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=64,
            scaling_factor=0.18215,
        )
    unet.save_pretrained(str(target / "unet"))
    vae.save_pretrained(str(target / "vae"))
    return target


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's global generator seeded inside, as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _vocabulary() -> dict[str, int]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # one printable letter for each byte
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(pair.replace(" ", "") for pair in MERGES)]
    return {word: index for index, word in enumerate([*words, START, END])}


def _write_tokenizer(folder: Path, vocabulary: dict[str, int]) -> None:
    special = {"bos_token": START, "eos_token": END, "pad_token": "!", "unk_token": END}
    _write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n", encoding="utf-8")
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "do_lower_case": True, **special},
    )


def _write_text_encoder(folder: Path, vocabulary: dict[str, int]) -> None:
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        hidden_act="gelu",
        bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary["!"],
        architectures=["CLIPTextModel"],
    )
    encoder = CLIPTextModel(config)
    with torch.no_grad():  # transformers starts with small weights: make prompts differ visibly
        for parameter in encoder.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    config.save_pretrained(str(folder))
    # the published file has the names of transformers 4: a prefix, and the positions as a tensor
    weights = {
        f"text_model.{key.removeprefix('text_model.')}": value for key, value in encoder.state_dict().items()
    }
    weights["text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
    save_file(
        {key: value.contiguous() for key, value in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    arguments = parser.parse_args(argv)
    folder = make_miniature(arguments.folder, arguments.seed)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
