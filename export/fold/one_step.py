"""Fold a one-step diffusion model into two graphs: adapters are merged, prompt and timestep become constants.

The encoder enlarges and encodes a photo once. The generator adds noise, denoises in one step and decodes (GDPO-SR,
Sec. 3.2). Text encoder, time embedding and the prompt's projections are no longer needed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.fold.layers import FoldError, require
from export.fold.unet import FoldedUnet, KlDecoder, KlEncoder, TinyDecoder, TinyEncoder
from export.source import FEATURES, IMAGE, NOISE, SR, Source, psnr
from export.student.model.kernels import bicubic_weight
from runtime.bundle.manifest import GraphSpec, NoiseSpec, SizeRule, TensorSpec
from runtime.files import sha256_of
from training.model.loading import MODEL_FILE, find_model, load_model, read_model_file
from training.model.one_step import OneStepModel, base_module

KIND = "gdposr one-step model"
# Colour fix of a bundle, for the VAE's colours. AdaIN, the public code's, measured 0.1 to 0.2 dB lower (training/EXPERIMENTS.md).
COLOR_FIX = "wavelet"
# PSNR of the folded graphs against the model they were folded from, float32.
FOLD_FLOOR_DB = 80.0
# Side of a tile in LR pixels. The cost of a UNet's attention grows with its fourth power.
TILE = 128
# Overlap of tiles in LR pixels. Normalisation makes neighbouring tiles slightly different, so they are blended.
BLEND = 16
VAES = {"AutoencoderKL": (KlEncoder, KlDecoder), "AutoencoderTiny": (TinyEncoder, TinyDecoder)}


class Enlarge(nn.Module):
    """Bicubic upscale as one convolution and a pixel shuffle: (n, 3, h, w) in [0, 1] -> (n, 3, scale h, scale w) in [0, 1].

    Same result as `training.model.one_step.enlarge`. At the border, the taps inside the image are rescaled to a sum
    of 1: the convolution with zero padding is divided by the same convolution of an image of ones."""

    weight: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("weight", bicubic_weight(scale))

    def forward(self, image: Tensor) -> Tensor:
        picture = F.pixel_shuffle(F.conv2d(image, self.weight, padding=2, groups=3), self.scale)
        ones = torch.ones_like(image[:, :1])
        # share of the kernel inside the image
        share = F.conv2d(ones, self.weight[: self.scale**2], padding=2)
        return (picture / F.pixel_shuffle(share, self.scale)).clamp(0.0, 1.0)


class TeacherEncoder(nn.Module):
    """image (n, 3, h, w) in [0, 1] -> the latent (n, C, scale h / f, scale w / f) of the upscaled image."""

    def __init__(self, scale: int, vae: nn.Module) -> None:
        super().__init__()
        self.enlarge = Enlarge(scale)
        self.vae = vae

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.vae(self.enlarge(image))
        return out


class TeacherGenerator(nn.Module):
    """features (n, C, H, W) and noise (n, C / repeats, H, W) -> sr (n, 3, f H, f W) in [0, 1].

    z_n = sqrt(a_n) z + sqrt(1 - a_n) eps and z_0 = keep z_n + unet(z_n). The factors of the closed form are in `keep`
    and in the last convolution of the UNet."""

    def __init__(
        self, signal: float, sigma: float, keep: float, repeats: int, unet: nn.Module, decoder: nn.Module
    ) -> None:
        """signal, sigma: sqrt(a_n) and sqrt(1 - a_n).
        keep: factor on z_n.
        repeats: how often the noise's channels are repeated to fill the latent's.
        unet, decoder: the folded networks."""
        super().__init__()
        self.signal, self.sigma, self.keep, self.repeats = signal, sigma, keep, repeats
        self.unet = unet
        self.decoder = decoder

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        spread = torch.cat([noise] * self.repeats, dim=1) if self.repeats > 1 else noise
        noisy = self.signal * features + self.sigma * spread
        restored = self.keep * noisy + self.unet(noisy)
        out: Tensor = self.decoder(restored)
        return out.clamp(0.0, 1.0)


@torch.no_grad()
def fold(model: OneStepModel, prompt: str | None = None) -> tuple[TeacherEncoder, TeacherGenerator]:
    """Encoder and generator of a merged model, float32, for one prompt (None: the default one).

    Unmodified float32 weights are shared with the model, so do not train it afterwards."""
    for name, part in (("vae", model.vae), ("unet", model.unet)):
        if base_module(part) is not part:
            raise FoldError(
                f"the {name} still carries an adapter: merge it first (training.model.adapters.merge)"
            )
    if model.device.type != "cpu":
        raise FoldError(f"expected the model on the CPU, it is on {model.device}: load it with device='cpu'")
    require(type(model.vae).__name__ in VAES, "vae", " or ".join(VAES), type(model.vae).__name__)
    condition = model.condition(None if prompt is None else [prompt], 1)
    vae = model.vae
    encoder, decoder = VAES[type(vae).__name__]
    share_n, share_d = (
        float(model.schedule.alpha_bar[t]) for t in (model.noise_timestep, model.denoise_timestep)
    )
    keep, factor = _closed_form(share_d, model.schedule.prediction)
    unet = FoldedUnet(model.unet, model.denoise_timestep, condition, factor)
    repeats = model.latent_channels // model.noise_channels
    generator = TeacherGenerator(
        math.sqrt(share_n), math.sqrt(1 - share_n), keep, repeats, unet, decoder(vae)
    )
    return TeacherEncoder(model.scale, encoder(vae)).eval(), generator.eval()


def _closed_form(share: float, prediction: str) -> tuple[float, float]:
    """(keep, factor) such that z_0 = keep z_n + factor output. share: alpha-bar at the timestep that the network is given."""
    if prediction == "v_prediction":
        return math.sqrt(share), -math.sqrt(1 - share)
    return 1 / math.sqrt(share), -math.sqrt((1 - share) / share)


def one_step_source(
    model: OneStepModel,
    training: Mapping[str, Any],
    checkpoint_sha256: str,
    prompt: str | None = None,
) -> Source:
    """A one-step model as a source with two graphs.

    model: merged, on the CPU.
    training: its provenance.
    checkpoint_sha256: hash of its weights.
    prompt: to fold in; None for the default."""
    encoder, generator = fold(model, prompt)
    multiple = model.size_multiple
    cell = model.vae_factor / model.scale  # LR pixels per latent pixel
    if cell != int(cell):
        raise FoldError(
            f"the VAE shrinks an image {model.vae_factor} times and the model enlarges it {model.scale} times: "
            "a noise cell would not be a whole number of LR pixels"
        )
    image = TensorSpec(IMAGE, 3, 1.0, (0.0, 1.0))
    features = TensorSpec(FEATURES, model.latent_channels, 1 / cell)
    noise = TensorSpec(NOISE, model.noise_channels, 1 / cell)
    sr = TensorSpec(SR, 3, float(model.scale), (0.0, 1.0))
    blend = _rounded(BLEND, multiple)
    return Source(
        kind=KIND,
        modules={"encoder": encoder, "generator": generator},
        specs={
            "encoder": GraphSpec((image,), (features,)),
            "generator": GraphSpec((features, noise), (sr,)),
        },
        scale=model.scale,
        size=SizeRule(
            multiple_of=multiple,
            minimum=_rounded(16, multiple),
            tile=_rounded(TILE, multiple),
            context=blend,
            overlap=blend,
        ),
        noise=NoiseSpec(1, model.noise_channels, int(cell)),
        parameters=sum(p.numel() for module in (encoder, generator) for p in module.parameters()),
        checkpoint_sha256=checkpoint_sha256,
        training=training,
        t_n=model.noise_timestep,
        t_d=model.denoise_timestep,
        prompt=(model.default_prompt if prompt is None else prompt) if model.has_cross_attention else None,
        color_fix=COLOR_FIX,
    )


def _rounded(pixels: int, multiple: int) -> int:
    """pixels, rounded up to a multiple."""
    return -(-pixels // multiple) * multiple


def load_one_step(checkpoint: Path, base: str | Path | None, prompt: str | None) -> Source:
    """Load a model of `training.model.loading.load_model` as a source, with adapters merged.

    checkpoint: folder or run of the model.
    base: source of the parts that it lacks.
    prompt: to fold in; None for the default."""
    model = load_model(checkpoint, base=base)
    folder = find_model(checkpoint)
    training: Mapping[str, Any] = {}
    if (folder / MODEL_FILE).is_file():
        training = read_model_file(folder).get("provenance", {})
    source = one_step_source(model, training, weights_sha256(checkpoint_folders(folder, base)), prompt)
    return replace(source, folded_db=round(check_folded(source, model), 1))


@torch.no_grad()
def check_folded(source: Source, model: OneStepModel) -> float:
    """PSNR in dB (peak 1) of the folded graphs against the original model, on a random image. Raises FoldError below the floor."""
    side = _rounded(32, source.size.multiple_of)
    (image,) = source.examples("encoder", side, side)
    noise = source.examples("generator", side, side)[-1]
    prompts = None if source.prompt is None else [source.prompt]
    expected = model(image, noise, prompts).float().clamp(0, 1)
    came = psnr(source(image, noise).numpy(), expected.numpy())
    if came < FOLD_FLOOR_DB:
        raise FoldError(
            f"expected the folded graphs within {FOLD_FLOOR_DB:g} dB of the model, got {came:.1f} dB: this kind of UNet or VAE is "
            "folded incorrectly, please report it with its config.json files"
        )
    return came


def checkpoint_folders(folder: Path, base: str | Path | None) -> tuple[Path, ...]:
    """The folders whose weights make up a model: its own, and those that its adapters or missing parts refer to."""
    folders = [folder]
    if (folder / MODEL_FILE).is_file():
        document = read_model_file(folder)
        for stored in (document.get("base"), document.get("text_base")):
            if stored is not None:  # with a dot at the start relative to the folder, else a hub name
                below = find_model(folder.resolve() / stored if stored.startswith(".") else stored)
                folders += checkpoint_folders(below, None)
    if base is not None:
        folders.append(find_model(base))
    return tuple(folders)


def weights_sha256(folders: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of all weights and configs in these folders, sorted by name within each."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json")):
            digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()
