"""Gradients that the adaptive weight compares and the generator trains by (equation 7), taken once.

See `VQLPIPSWithDiscriminator._generator_terms` for how they go together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from taming.distributed import mean_over_ranks, world_size
from taming.errors import UserError
from taming.modules.losses.base import FirstStageLoss


class Differentiated(torch.autograd.Function):
    """A loss whose `value` (scalar) and `gradient` at `images` [B, C, H, W] are known already.

    Backward hands the gradient on, times the factor by which later operations scaled the loss: the
    backward pass that the adaptive weight needs is thus also the one that trains the generator.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = images.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (grad_outputs[0] * gradient).to(ctx.dtype), None, None


def gradient_at(loss: Tensor, images: Tensor) -> Tensor:
    """Of a loss at `images`, whose graph ends there and is freed; 0 if they ask for none."""
    if not images.requires_grad:
        return torch.zeros_like(images)
    (gradient,) = torch.autograd.grad(loss, images)  # frees the graph behind `images`
    return gradient


def norm_at(last_layer: Tensor, reconstructions: Tensor, gradient: Tensor) -> Tensor:
    """L2 norm of a loss's gradient at `last_layer`, from its `gradient` at `reconstructions`.

    By the chain rule this is the gradient through one convolution; LPIPS and the discriminator are
    not passed again. The graph is kept for the other norm and for training. Of several processes
    it is the gradient of the mean loss, as if one had the batches of all.
    """
    length: Tensor = gradient.norm()
    # Of unit length, it neither underflows nor overflows if the layer ran in half precision.
    direction = (gradient / length.clamp_min(1e-30)).to(reconstructions.dtype)
    (at_layer,) = torch.autograd.grad(reconstructions, last_layer, direction, retain_graph=True)
    return length_over_ranks(at_layer.float(), length)


def length_over_ranks(gradient: Tensor, factor: Tensor | float = 1.0) -> Tensor:
    """L2 norm of `factor * gradient`, averaged over processes before it is taken."""
    if world_size() == 1:
        norm: Tensor = factor * gradient.norm()
    else:
        norm = mean_over_ranks(factor * gradient).norm()
    return norm


class AdaptiveWeight(FirstStageLoss):
    """The weight of a generator's adversarial term: as hard a pull as that of all others.

    Subclasses set `discriminator_weight`, by which it is multiplied.
    """

    discriminator_weight: float

    def calculate_adaptive_weight(
        self, nll_loss: Tensor, g_loss: Tensor, last_layer: Tensor | None = None
    ) -> Tensor:
        """Equation 7 from losses whose graphs reach `last_layer`.

        For outside code, and for subclasses, whose own is used in training; `_adaptive_weight` is
        the same with fewer backward passes.
        """
        if last_layer is None:
            raise UserError("the generator's loss needs `last_layer` in training")
        norms = [
            length_over_ranks(torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float())
            for loss in (nll_loss, g_loss)
        ]
        return self._ratio(*norms)

    def _ratio(self, nll_norm: Tensor, g_norm: Tensor) -> Tensor:
        return (nll_norm / (g_norm + 1e-4)).clamp(0.0, 1e4) * self.discriminator_weight

    def _adaptive_weight(
        self, nll_grad: Tensor, g_grad: Tensor, x_rec: Tensor, last_layer: Tensor | None
    ) -> Tensor:
        """Equation 7: the weight at which both losses pull equally hard at the last layer."""
        if last_layer is None:
            raise UserError("the generator's loss needs `last_layer` in training")
        nll_norm, g_norm = (norm_at(last_layer, x_rec, grad) for grad in (nll_grad, g_grad))
        return self._ratio(nll_norm, g_norm)

    def _has_own_weight(self) -> bool:
        """Whether a subclass has another `calculate_adaptive_weight`."""
        own = type(self).calculate_adaptive_weight
        return own is not AdaptiveWeight.calculate_adaptive_weight
