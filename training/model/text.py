"""Prompts: finds the captions of images, and encodes prompts with a frozen CLIP text encoder."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

DEFAULT_PROMPT = "a sharp photograph, true colours, crisp edges, rich natural texture"
NEGATIVE_PROMPT = "out of focus, smeared, grainy, blocky compression, ringing, plastic skin, drawing, render"
METADATA_FILE = "metadata.jsonl"
SIDE_CAR = ".txt"
FUNCTION = "a function"


@dataclass(frozen=True)
class PromptSource:
    """Finds the caption of an image. The first of these counts:

    1. `fixed`, the same for every image
    2. metadata.jsonl in `root`, then in the image's own folder: lines {"file_name": path relative to that file,
    "text": caption}, as in Hugging Face's imagefolder
    3. a text file beside the image: photo.png -> photo.txt
    4. `caption`, a function of the path, such as a tagging network
    5. `default`

    Empty captions are ignored. `describe` counts each kind, so that a misplaced file is noticed."""

    root: Path
    """Folder of the photos."""
    fixed: str | None = None
    """Prompt for all images; None to look for captions."""
    default: str = DEFAULT_PROMPT
    """Prompt for images without a caption."""
    caption: Callable[[Path], str] | None = None
    """Gives the caption of an image that has none in a file; "" for none. Each image is asked for once in a process."""
    _made: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Results of `caption` by image path."""
    _tables: dict[str, dict[str, str]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Captions by folder and image path, filled as needed."""

    def prompt_for(self, path: str | Path) -> str:
        """The prompt of the image at path."""
        return self._find(Path(os.path.abspath(path)))[0]

    def prompts_for(
        self, paths: Sequence[str | Path], drawn: Sequence[bool] | None = None
    ) -> tuple[str, ...]:
        """The prompts of several images. drawn: True for a drawn card, which replaces the photo and has no caption."""
        general = self.default if self.fixed is None else self.fixed
        cards = drawn or [False] * len(paths)
        return tuple(
            general if card else self.prompt_for(path) for path, card in zip(paths, cards, strict=True)
        )

    def digest(self, paths: Sequence[str | Path]) -> str | None:
        """SHA-256 of the prompts of these images, in order; None if all have the general default prompt."""
        found = [self.default, *self.prompts_for(paths)]
        if set(found) == {DEFAULT_PROMPT}:
            return None
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    def describe(self, paths: Iterable[str | Path]) -> str:
        """One line for the log: how many of these images have a caption, from where, and the prompt of the others."""
        images = [Path(os.path.abspath(path)) for path in paths]
        if self.fixed is not None:
            return f"captions: the fixed prompt {self.fixed!r} for all {len(images)} images"
        kinds = [self._find(image)[1] for image in images]
        found = {kind: kinds.count(kind) for kind in (METADATA_FILE, SIDE_CAR, FUNCTION)}
        line = f"captions: {sum(found.values())} of {len(images)} images have one"
        if any(found.values()):
            line += f" ({', '.join(f'{count} from {kind}' for kind, count in found.items() if count)})"
        if "default" in kinds:
            line += f"; {kinds.count('default')} get the default {self.default!r}"
        known = {str(image) for image in images}
        strangers = sum(key not in known for table in self._tables.values() for key in table)
        if strangers:
            line += f"; {strangers} captions in {METADATA_FILE} name none of these images"
        return line

    def _find(self, image: Path) -> tuple[str, str]:
        if self.fixed is not None:
            return self.fixed, "fixed"
        for folder in (os.path.abspath(self.root), str(image.parent)):
            caption = self._table(folder).get(str(image), "")
            if caption:
                return caption, METADATA_FILE
        side_car = image.with_suffix(SIDE_CAR)
        if side_car != image and side_car.is_file():
            caption = side_car.read_text(encoding="utf-8").strip()
            if caption:
                return caption, SIDE_CAR
        if self.caption is not None:
            if str(image) not in self._made:
                self._made[str(image)] = self.caption(image).strip()
            if self._made[str(image)]:
                return self._made[str(image)], FUNCTION
        return self.default, "default"

    def _table(self, folder: str) -> dict[str, str]:
        """Captions in a folder's metadata.jsonl by absolute path; empty if there is none. Each file is read once."""
        if folder not in self._tables:
            file = Path(folder, METADATA_FILE)
            self._tables[folder] = _read_metadata(file) if file.is_file() else {}
        return self._tables[folder]


def _read_metadata(file: Path) -> dict[str, str]:
    captions: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: not JSON ({error})") from None
        for key in ("file_name", "text"):
            if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
                raise ValueError(
                    f'{file}, line {number}: expected {{"file_name": "...", "text": "..."}}, {key} is missing or no text'
                )
        image = os.path.abspath(file.parent / entry["file_name"].replace("\\", "/"))
        if image in captions:
            raise ValueError(f"{file}, line {number}: a second caption for {entry['file_name']}")
        captions[image] = entry["text"].strip()
    return captions


class TextConditioner(nn.Module):
    """Frozen CLIP text encoder: B prompts -> (B, L, D), L tokens of width D, in the encoder's dtype and on its device.

    Each text is encoded by itself, so its embedding does not depend on the other prompts. The last `cache_size`
    embeddings are cached."""

    def __init__(self, tokenizer: Any, encoder: nn.Module, cache_size: int = 256) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.cache_size = cache_size
        self._cache: OrderedDict[tuple[str, torch.device, torch.dtype], Tensor] = OrderedDict()
        self.requires_grad_(False).eval()

    @property
    def length(self) -> int:
        """Tokens per prompt, padding included."""
        return min(int(self.tokenizer.model_max_length), int(self.encoder.config.max_position_embeddings))

    @property
    def width(self) -> int:
        """Channels of an embedding."""
        return int(self.encoder.config.hidden_size)

    def train(self, mode: bool = True) -> TextConditioner:
        """Stay in eval mode, since the encoder is never trained."""
        return super().train(False)

    def forward(self, prompts: Sequence[str]) -> Tensor:
        if isinstance(prompts, str):
            raise ValueError(f"expected a list with one prompt for each image, got the text {prompts!r}")
        if not prompts:
            raise ValueError("expected at least one prompt, got an empty list")
        weight = next(self.encoder.parameters())
        embeddings = [self._encode(text, weight.device, weight.dtype) for text in prompts]
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return torch.stack(embeddings)  # (B, L, D)

    def _encode(self, text: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        key = (text, device, dtype)
        if key not in self._cache:
            tokens = self.tokenizer(
                [text], padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
            )
            with torch.no_grad():
                # last hidden state, (L, D)
                self._cache[key] = self.encoder(tokens.input_ids.to(device))[0][0]
        self._cache.move_to_end(key)
        return self._cache[key]

    def save(self, folder: Path) -> None:
        """Write tokenizer/ and text_encoder/ below folder, as `load_text` and diffusers read them."""
        self.tokenizer.save_pretrained(folder / "tokenizer")
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:  # vocab.json and merges.txt, for readers that do not support tokenizer.json
            backend.model.save(str(folder / "tokenizer"))
        target = folder / "text_encoder"
        self.encoder.config.save_pretrained(target)
        # transformers 5 dropped the prefix "text_model." from its own names; checkpoints and older readers have it
        weights = {
            f"text_model.{key.removeprefix('text_model.')}": value.detach().cpu().contiguous()
            for key, value in self.encoder.state_dict().items()
        }
        save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def load_text(folder: str | Path) -> TextConditioner:
    """The text encoder of a diffusers folder, float32: text_encoder/ (safetensors) and tokenizer/."""
    from transformers import CLIPTextModel, CLIPTokenizer

    source = Path(folder)
    for name in ("text_encoder/config.json", "tokenizer/tokenizer_config.json"):
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source} has no text encoder: {name} is missing")
    tokenizer = CLIPTokenizer.from_pretrained(source / "tokenizer", local_files_only=True)
    try:
        encoder, report = CLIPTextModel.from_pretrained(
            source / "text_encoder", local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except SafetensorError as error:
        raise ValueError(
            f"{source / 'text_encoder'} is damaged or cut off ({error}): copy it again"
        ) from error
    if report["missing_keys"]:
        raise ValueError(
            f"{source / 'text_encoder'} is not a complete CLIP text model: {', '.join(sorted(report['missing_keys'])[:3])} "
            "missing"
        )
    return TextConditioner(tokenizer, encoder.float())
