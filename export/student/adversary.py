"""An adversarial loss for the student: a discriminator that sees each picture next to its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.student.objectives import PatchDiscriminator, discriminator_loss, generator_loss


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
        condition: (n, 3, h, w), what the discriminator sees beside each picture.
        other: scalar loss that depends on `pictures`. The rescaled loss has a gradient of the same norm at the judged
            pictures. The rest do not count: one drawn card can weigh as much as all photos of a batch together.
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
