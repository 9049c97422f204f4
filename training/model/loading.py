"""Find and load one-step models. Weights are safetensors, everything else is JSON; pickles are never opened.

`load_model` reads four kinds of source:

- a diffusers folder: unet/ vae/ scheduler/ and, for a UNet with cross-attention, text_encoder/ tokenizer/
- the layout of the public GDPO-SR checkpoint: merged unet/ and vae/ only; `base` names the model with the other parts
- a training run, RUN or RUN/model: model.json, which names a base, and adapters, which are merged into it in float32
- a folder written by `saving.save_merged`: the diffusers layout with a model.json that stores the two timesteps

Each may be on the hub: "owner/name", or "owner/name/folder" for a model in a folder of its repository, as
Joypop/GDPO/ckp/GDPOSR."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.checkpoint import read_json
from training.model.adapters import load_adapter, merge
from training.model.one_step import OneStepModel
from training.model.schedule import NoiseSchedule
from training.model.text import TextConditioner, load_text

MODEL_FILE = "model.json"
# Version of model.json and what it describes.
FORMAT_VERSION = 1
# Kinds of model.json.
ADAPTERS, MERGED = "adapters", "merged"
UNET_ADAPTER, VAE_ADAPTER = "unet_adapter", "vae_adapter"
SCHEDULER_FILE = "scheduler/scheduler_config.json"
PART_CLASSES = {"unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL", "AutoencoderTiny")}
WEIGHTS = "diffusion_pytorch_model.safetensors"
LAYOUTS = (
    "expected a diffusers folder (unet/ vae/ scheduler/ and, for prompts, text_encoder/ tokenizer/), a folder with merged unet/ and "
    f"vae/, or a training run with model/{MODEL_FILE}"
)
# owner/name, then folders inside the repository. No part may begin with a dot.
HUB_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)((?:/\w[\w.-]*)*)")
# Files of a model that a download fetches: no pickles, and float32 weights only.
HUB_FILES = (
    "*/config.json",
    f"unet/{WEIGHTS}*",  # including the index of split weights
    "unet/*-of-*.safetensors",
    f"vae/{WEIGHTS}",
    "text_encoder/model.safetensors",
    "tokenizer/*.json",
    "tokenizer/*.txt",
    "scheduler/*.json",
    MODEL_FILE,
    "*_adapter/adapter_*",
)


def load_model(
    source: str | Path,
    *,
    base: str | Path | None = None,
    noise_timestep: int | None = None,
    denoise_timestep: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> OneStepModel:
    """Load a model, merged, frozen and in eval mode.

    source: a folder or hub name ("owner/name" or "owner/name/folder").
    base: source of text encoder and scheduler if source has none.
    noise_timestep, denoise_timestep: None for those in model.json, else 250 and 100.
    device, dtype: of the weights."""
    model = _load(find_model(source), base, seen=())
    model.set_timesteps(
        model.noise_timestep if noise_timestep is None else noise_timestep,
        model.denoise_timestep if denoise_timestep is None else denoise_timestep,
    )
    return model.freeze().to(device=device, dtype=dtype)


def find_model(source: str | Path) -> Path:
    """The local folder of a model: source itself, model/ in a training run, or the downloaded files of a hub name.

    source: a path, "owner/name", or "owner/name/folder" for a folder of the repository."""
    path = Path(source)
    old = Path(f"{path.absolute()}.old")  # left by an interrupted save
    for candidate in (path, old):
        if candidate.is_dir():
            return _inside_run(candidate)
    if path.exists():
        raise ValueError(f"{path} is a file; {LAYOUTS}")
    name = hub_name(source)
    if name is not None:
        return _download(name[1], name[2].removeprefix("/"))
    raise FileNotFoundError(
        f"no model at {path}; {LAYOUTS}, or a hub name such as owner/name or owner/name/folder. docs/training.md tells how to train one"
    )


def hub_name(source: str | Path) -> re.Match[str] | None:
    """The match of `HUB_NAME`, or None if `source` names no model of the hub.

    A name of three parts or more whose parent folder exists is a path, and is not looked up."""
    name = HUB_NAME.fullmatch(source.as_posix() if isinstance(source, Path) else source)
    return None if name is not None and name[2] and Path(source).parent.is_dir() else name


def _inside_run(folder: Path) -> Path:
    for name in ("model", "model.old"):
        if not (folder / MODEL_FILE).is_file() and (folder / name / MODEL_FILE).is_file():
            return folder / name
    return folder


def _download(name: str, folder: str) -> Path:
    """The model in a repository of the hub. folder: inside it; empty for its root."""
    from huggingface_hub import snapshot_download

    source, inside = f"{name}/{folder}".removesuffix("/"), f"{folder}/".removeprefix("/")
    try:
        place = Path(snapshot_download(name, allow_patterns=[inside + pattern for pattern in HUB_FILES]))
    except Exception as error:  # many kinds of network errors
        raise FileNotFoundError(
            f"there is no folder {source}, and it cannot be loaded as a hub name ({type(error).__name__}: {error}). Give the path of a "
            "folder, or check the name and the network"
        ) from error
    if not (place / folder).is_dir():
        raise FileNotFoundError(
            f"the repository {name} has no model in {folder}/: look for its unet/ and vae/ on the hub"
        )
    return _inside_run(place / folder)


def read_model_file(folder: str | Path) -> dict[str, Any]:
    """The model.json of a run's model or of a merged model: kind, timesteps, provenance and, for a run, the base."""
    path = Path(folder) / MODEL_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("kind") not in (ADAPTERS, MERGED):
        raise ValueError(f"{path} describes no model: kind must be {ADAPTERS} or {MERGED}")
    if document.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {document.get('format_version')!r}, this program reads {FORMAT_VERSION}: update the program"
        )
    wanted = ["noise_timestep", "denoise_timestep"] + ["base", "adapters"] * (document["kind"] == ADAPTERS)
    missing = [key for key in wanted if document.get(key) is None]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return document


def _load(folder: Path, base: str | Path | None, seen: tuple[Path, ...]) -> OneStepModel:
    if folder.resolve() in seen:
        raise ValueError(f"{folder / MODEL_FILE} leads back to itself as its base")
    if not (folder / MODEL_FILE).is_file():
        return _load_parts(folder, base)
    document = read_model_file(folder)
    if document["kind"] == MERGED:
        model = _load_parts(folder, base)
    else:
        model = _load_run(folder, document, base, (*seen, folder.resolve()))
    model.set_timesteps(document["noise_timestep"], document["denoise_timestep"])
    if "noise_channels" in document:  # otherwise those of its base, or as many as the latent has
        model.set_noise_channels(document["noise_channels"])
    model.prompt = _own_prompt(document.get("provenance", {})) or model.prompt  # or that of its base
    return model


def _own_prompt(provenance: Mapping[str, Any]) -> str | None:
    """The prompt that a stage was given for all photos (`--set prompt=`), also of a merged run; None if it was given none."""
    for stage in (provenance, *provenance.get("stages", ())):
        if prompt := stage.get("settings", {}).get("prompt"):
            return str(prompt)
    return None


def _load_run(
    folder: Path, document: Mapping[str, Any], base: str | Path | None, seen: tuple[Path, ...]
) -> OneStepModel:
    """A model of adapters, merged into the model that they were trained on.

    folder: of the adapters.
    document: its model.json.
    base: text encoder and scheduler, if the model below has none.
    seen: folders that are being loaded, to find a circle."""
    try:
        below = find_model(_resolve(document["base"], folder))
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"the base of {folder}, {document['base']!r}, cannot be loaded: {error}") from error
    text_base = document.get("text_base")
    model = _load(below, base if text_base is None else _resolve(text_base, folder), seen)
    for name in document["adapters"]:
        if name == VAE_ADAPTER:
            model.vae = merge(load_adapter(model.vae, folder / name))
        elif name == UNET_ADAPTER:
            model.unet = merge(load_adapter(model.unet, folder / name))
        else:
            raise ValueError(
                f"{folder / MODEL_FILE} names an adapter {name!r}; known: {VAE_ADAPTER}, {UNET_ADAPTER}"
            )
    return model


def _load_parts(folder: Path, base: str | Path | None) -> OneStepModel:
    vae, unet = _load_part(folder, "vae"), _load_part(folder, "unet")
    rest = [folder] if base is None else [folder, find_model(base)]
    scheduler = next((place for place in rest if (place / SCHEDULER_FILE).is_file()), None)
    if scheduler is None:
        raise ValueError(
            f"{' and '.join(map(str, rest))} have no {SCHEDULER_FILE}: with base=, name the model that {folder} was trained from "
            "(a folder or a hub name)"
        )
    schedule = NoiseSchedule.from_config(read_json(scheduler / SCHEDULER_FILE))
    texts = next((place for place in rest if (place / "text_encoder").is_dir()), None)
    text: TextConditioner | None = None if texts is None else load_text(texts)
    model = OneStepModel(vae, unet, text, schedule)
    if model.has_cross_attention and text is None:
        raise ValueError(
            f"the UNet in {folder} has cross-attention, but there is no text_encoder/ and tokenizer/: with base=, name the model that "
            "it was trained from (a folder or a hub name)"
        )
    return model


def _load_part(folder: Path, part: str) -> nn.Module:
    """unet/ or vae/ of a diffusers folder in float32. Weights and config must match exactly."""
    import diffusers

    # check: a config of a known class, weights in safetensors
    path = folder / part
    if not (path / "config.json").is_file():
        below = sorted({file.parents[1] for file in folder.glob(f"*/**/{part}/config.json")})
        raise FileNotFoundError(
            f"{folder} is not a model: {part}/config.json is missing; {LAYOUTS}"
            + (
                f". Name the folder itself: {', '.join(p.relative_to(folder).as_posix() for p in below)}"
                if below
                else ""
            )
        )
    name = read_json(path / "config.json").get("_class_name")
    if name not in PART_CLASSES[part]:
        raise ValueError(f"{path} holds a {name}, expected {' or '.join(PART_CLASSES[part])}")
    if not (path / WEIGHTS).is_file() and not (path / f"{WEIGHTS}.index.json").is_file():
        there = ", ".join(
            sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".safetensors"))
        )
        raise FileNotFoundError(
            f"{path / WEIGHTS} is missing (weights found: {there or 'none'}). Pickles and half-precision variants are not read: save "
            "the model once with save_pretrained, in float32 and safetensors"
        )
    # load
    try:
        module, report = getattr(diffusers, name).from_pretrained(
            str(path),
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: the weights do not fit the config: {error}") from error
    # compare: every weight has its place
    for kind in ("missing", "unexpected"):
        keys = sorted(report[f"{kind}_keys"])
        if keys:
            raise ValueError(
                f"{path}: {len(keys)} {kind} weights, such as {keys[0]}: config and weights are not of the same model"
            )
    return module


def _resolve(stored: str, folder: Path) -> str | Path:
    """A source as stored in model.json: a path relative to its folder, starting with a dot, or a hub name."""
    return folder.resolve() / stored if stored.startswith(".") else stored
