"""A small network trained to tell photos from reconstructions of them: a no-reference reward.

Its score is relative: of two versions of one picture, the more realistic one scores higher. Weights are in
critic.safetensors, their description in critic.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from training.checkpoint import read_json, read_tensors

WEIGHTS_FILE = "critic.safetensors"
CONFIG_FILE = "critic.json"
# Version of critic.json and what it describes.
FORMAT_VERSION = 1
# Smallest side of a picture in pixels.
MIN_SIDE = 16


@dataclass(frozen=True)
class CriticConfig:
    """Shape of the critic."""

    width: int = 32
    """Channels of the first layer; the last ones have three times as many."""

    def __post_init__(self) -> None:
        if not isinstance(self.width, int) or self.width < 1:
            raise ValueError(f"critic width must be a positive whole number, got {self.width!r}")


class Critic(nn.Module):
    """Image (n, 3, H, W) in [0, 1], H and W even -> logits (n, 1, H / 4, W / 4), higher for places that look real.

    Each logit sees 36x36 pixels, so it judges texture and edges, not content (PatchGAN, Isola et al. 2017). There is
    no batch normalisation."""

    def __init__(self, config: CriticConfig | None = None) -> None:
        super().__init__()
        self.config = config or CriticConfig()
        w = self.config.width
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(12, w, 3, padding=1),
                nn.Conv2d(w, 2 * w, 4, stride=2, padding=1),
                nn.Conv2d(2 * w, 3 * w, 3, padding=1),
                nn.Conv2d(3 * w, 3 * w, 3, padding=1),
            ]
        )
        self.last = nn.Conv2d(3 * w, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.pixel_unshuffle(image * 2 - 1, 2)  # a quarter of the places without losing a pixel
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return self.last(x)

    def score(self, image: Tensor) -> Tensor:
        """Mean of the logits: (n, 3, H, W) -> (n,)."""
        if image.ndim != 4 or min(image.shape[2:]) < MIN_SIDE:
            raise ValueError(
                f"critic needs (n, 3, H, W) of at least {MIN_SIDE} pixels a side, got {tuple(image.shape)}: use larger crops"
            )
        height, width = (side // 2 * 2 for side in image.shape[2:])
        return self(image[..., :height, :width]).float().mean((1, 2, 3))


def paired_loss(real: Tensor, fake: Tensor, penalty: float = 0.0) -> Tensor:
    """Logistic loss for ranking a photo above its reconstruction, place by place (RankNet, Burges et al. 2005). Scalar.

    Anything that both share, such as the content, cancels out. penalty: weight of the logits' mean square, which keeps
    the scale of the score from growing."""
    loss = F.softplus(fake - real).mean()
    return loss + penalty * (real.square().mean() + fake.square().mean()) / 2


def save_critic(critic: Critic, folder: str | Path, provenance: dict[str, Any] | None = None) -> None:
    """Write critic.safetensors and critic.json into folder."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    document = {
        "model": "critic",
        "format_version": FORMAT_VERSION,
        "config": asdict(critic.config),
        "provenance": provenance or {},
    }
    save_file(
        {name: value.detach().float().contiguous() for name, value in critic.state_dict().items()},
        target / WEIGHTS_FILE,
    )
    (target / CONFIG_FILE).write_text(json.dumps(document, indent=2) + "\n")


def load_critic(source: str | Path) -> Critic:
    """Load a critic written by `save_critic`, frozen. source: the folder, a finished run, or the weights file itself.

    Raises FileNotFoundError if a file is missing, and ValueError if it is damaged or belongs to another model."""
    path = Path(source)
    if path.is_file():
        path = path.parent
    if not (path / CONFIG_FILE).is_file() and (path / "model" / CONFIG_FILE).is_file():
        path = path / "model"
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"{source} is not a critic: {name} is missing; make one with gdposr train critic"
            )
    document = read_json(path / CONFIG_FILE)
    if document.get("model") != "critic" or document.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path / CONFIG_FILE} describes a {document.get('model')!r} of format {document.get('format_version')!r}, expected a "
            f"'critic' of format {FORMAT_VERSION}"
        )
    try:
        critic = Critic(CriticConfig(**document.get("config", {})))
        critic.load_state_dict(read_tensors(path / WEIGHTS_FILE))
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path / WEIGHTS_FILE} does not fit the shape in {CONFIG_FILE}: take both from one run"
        ) from error
    return critic.requires_grad_(False).eval()
