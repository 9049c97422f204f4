"""An adversarial loss for the student: a discriminator that sees each picture next to its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss (Lim & Ye 2017) on the logits of real and generated patches, of any shape. Scalar."""
    return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """The generator's side of the hinge loss: minus the mean logit of its pictures."""
    return -fake.mean()


class PatchDiscriminator(nn.Module):
    """Logits for overlapping patches of a picture, or of several pictures stacked by channel.

    Takes `images` tensors (n, 3, h, w) in [0, 1]; h and w are multiples of 8. Returns (n, 1, h/8, w/8). Spectrally
    normalised (Miyato et al. 2018)."""

    def __init__(self, width: int = 32, images: int = 1) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int) -> nn.Module:
            return spectral_norm(nn.Conv2d(inputs, outputs, 4 if stride == 2 else 3, stride, 1))

        self.layers = nn.ModuleList(
            [
                conv(12 * images, width, 1),
                conv(width, 2 * width, 2),
                conv(2 * width, 2 * width, 1),
                conv(2 * width, 4 * width, 2),
                conv(4 * width, 4 * width, 1),
            ]
        )
        self.logits = spectral_norm(nn.Conv2d(4 * width, 1, 3, 1, 1))

    def train(self, mode: bool = True) -> PatchDiscriminator:
        """Stay in training mode: in eval mode the spectral norms would not follow the weights."""
        return super().train(True)

    def forward(self, *images: Tensor) -> Tensor:
        x = F.pixel_unshuffle(torch.cat(images, dim=1) * 2 - 1, 2)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return self.logits(x)


class Adversary(nn.Module):
    """A conditional patch discriminator and both sides of its loss.

    Pictures and conditions are (n, 3, h, w) in [0, 1]; h and w are multiples of 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.discriminator = PatchDiscriminator(width, images=2)

    def push(
        self, pictures: Tensor, condition: Tensor, other: Tensor, part: slice | list[int] = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """The generator's adversarial loss, raw and rescaled to match another loss.

        pictures: (n, 3, h, w), the generator's output, with gradient.
        condition: (n, 3, h, w), shown to the discriminator beside each picture.
        other: scalar loss that depends on `pictures`. The rescaled loss has a gradient of the same norm at the judged
            pictures. Only these enter the norm; otherwise one drawn card could outweigh all photos.
        part: which of the pictures are judged; all by default.

        Returns two scalars: the raw loss without gradient, and the rescaled loss. The discriminator's weights get no gradient."""
        self.discriminator.requires_grad_(False)
        loss = generator_loss(self.discriminator(pictures[part], condition[part]).float())
        pull = torch.autograd.grad(other, pictures, retain_graph=True)[0][part].norm()
        pushed = torch.autograd.grad(loss, pictures, retain_graph=True)[0].norm()
        self.discriminator.requires_grad_(True)
        return loss.detach(), (pull / pushed.clamp_min(1e-12)).detach() * loss

    def loss(self, real: Tensor, fake: Tensor, condition: Tensor) -> Tensor:
        """The discriminator's loss, a scalar."""
        return discriminator_loss(
            self.discriminator(real, condition).float(), self.discriminator(fake, condition).float()
        )
