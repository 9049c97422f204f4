"""An adversary for the student's pictures: a discriminator that sees each beside what it was made from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.student.objectives import PatchDiscriminator, discriminator_loss, generator_loss


class Adversary(nn.Module):
    """Pictures and conditions are (n, 3, h, w) in [0, 1], h and w multiples of 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.discriminator = PatchDiscriminator(width, images=2)

    def push(
        self, pictures: Tensor, condition: Tensor, other: Tensor, part: slice | list[int] = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """The generator's loss of a part of the pictures, and the same in such a size that its gradient at the pictures is as large as
        that of `other`, a scalar that depends on them. The discriminator's own weights get no gradient. Two scalars."""
        self.discriminator.requires_grad_(False)
        loss = generator_loss(self.discriminator(pictures[part], condition[part]).float())
        pull = torch.autograd.grad(other, pictures, retain_graph=True)[0].norm()
        pushed = torch.autograd.grad(loss, pictures, retain_graph=True)[0].norm()
        self.discriminator.requires_grad_(True)
        return loss.detach(), (pull / pushed.clamp_min(1e-12)).detach() * loss

    def loss(self, real: Tensor, fake: Tensor, condition: Tensor) -> Tensor:
        """The discriminator's. Scalar."""
        return discriminator_loss(
            self.discriminator(real, condition).float(), self.discriminator(fake, condition).float()
        )
