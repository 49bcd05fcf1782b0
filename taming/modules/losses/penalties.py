"""What keeps a discriminator from becoming too good too fast: LeCAM, R1 and gradient penalties."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor, nn

from taming.config_values import Count, FractionBelowOne, Weight
from taming.distributed import mean_over_ranks


class PenaltyOptions(TypedDict, total=False):
    """Weights of the penalties, all 0 by default, and how they are computed.

    See `Penalties`; they are parameters of the loss.
    """

    lecam_weight: Weight
    lecam_decay: FractionBelowOne
    lecam_one_sided: bool
    r1_weight: Weight
    r1_every: Count
    gradient_penalty_weight: Weight


class Penalties(nn.Module):
    """Terms of the discriminator's loss, for discriminator D, images x and reconstructions y.

    - `lecam_weight`: E|D(x) - a_y|^2 + E|D(y) - a_x|^2, where a_x and a_y are moving averages of
      the mean logits, of `lecam_decay` and from 0 on (LeCAM, arXiv 2104.03310, equation 4);
      `lecam_one_sided` counts D(x) above a_y and D(y) below a_x alone, as its code does
    - `r1_weight`: E|grad D(x)|^2 / 2 (arXiv 1801.04406, equation 9), in every `r1_every`th step and
      weighed as much more (arXiv 1912.04958, appendix B)
    - `gradient_penalty_weight`: E(|grad D(z)| - 1)^2 at random points z between x and y (WGAN-GP,
      arXiv 1704.00028, equation 3). Batch normalization makes the gradient of an image depend on
      the others: that paper leaves it out

    The logit of an image is the sum of its patches' where a gradient is taken.
    """

    lecam_means: Tensor  # (2,): of images and of reconstructions

    def __init__(
        self,
        lecam_weight: float = 0.0,
        lecam_decay: float = 0.99,
        r1_weight: float = 0.0,
        r1_every: int = 1,
        gradient_penalty_weight: float = 0.0,
        lecam_one_sided: bool = False,
    ) -> None:
        super().__init__()
        self.lecam_weight, self.lecam_decay = lecam_weight, lecam_decay
        self.lecam_one_sided = lecam_one_sided
        self.r1_weight, self.r1_every = r1_weight, r1_every
        self.gradient_penalty_weight = gradient_penalty_weight
        if lecam_weight:
            self.register_buffer("lecam_means", torch.zeros(2))

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of those that are on."""
        weights = {"lecam_loss": self.lecam_weight, "r1_loss": self.r1_weight}
        weights["gradient_penalty"] = self.gradient_penalty_weight
        return tuple(name for name, weight in weights.items() if weight)

    @property
    def of_gradients(self) -> bool:
        """Whether the discriminator is differentiated twice."""
        return bool(self.r1_weight or self.gradient_penalty_weight)

    def takes_r1(self, global_step: int) -> bool:
        """Whether this step needs a graph from images to logits."""
        return self.r1_weight > 0 and global_step % self.r1_every == 0

    def forward(
        self,
        discriminate: Callable[[Tensor], Tensor],
        images: tuple[Tensor, Tensor],
        logits: tuple[Tensor, Tensor],
    ) -> dict[str, Tensor]:
        """Those of this step by name, of images and reconstructions [B, C, H, W] and their logits.

        R1 is taken where images have a graph that leads to their logits.
        """
        terms = {}
        if self.lecam_weight:
            terms["lecam_loss"] = self.lecam(*logits)
        if images[0].requires_grad:
            terms["r1_loss"] = self.r1(images[0], logits[0])
        if self.gradient_penalty_weight:
            terms["gradient_penalty"] = self.between(discriminate, *images)
        return terms

    def lecam(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        """Follow the logits, and weigh how far they are from the others' average."""
        means = torch.stack([logits_real.detach().mean(), logits_fake.detach().mean()])
        self.lecam_means.lerp_(mean_over_ranks(means).to(self.lecam_means), 1 - self.lecam_decay)
        real, fake = self.lecam_means.clone()
        above, below = logits_real - fake, real - logits_fake
        if self.lecam_one_sided:
            above, below = above.relu(), below.relu()
        penalty: Tensor = above.square().mean() + below.square().mean()
        return self.lecam_weight * penalty

    def r1(self, images: Tensor, logits: Tensor) -> Tensor:
        """Of logits whose graph begins at `images`."""
        squares = _gradient(logits, images).square().sum(dim=(1, 2, 3))  # (B,)
        penalty: Tensor = squares.mean() / 2
        return self.r1_every * self.r1_weight * penalty

    def between(
        self, discriminate: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor
    ) -> Tensor:
        """The penalty at points between images and reconstructions [B, C, H, W]."""
        share = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
        points = torch.lerp(fake.detach(), real.detach(), share).requires_grad_()
        squares = _gradient(discriminate(points), points).square().sum(dim=(1, 2, 3))
        # The derivative of a root at 0 is infinite.
        lengths = (squares + 1e-12).sqrt()
        penalty: Tensor = (lengths - 1).square().mean()
        return self.gradient_penalty_weight * penalty


def _gradient(logits: Tensor, images: Tensor) -> Tensor:
    """[B, C, H, W], and itself part of a graph."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient
