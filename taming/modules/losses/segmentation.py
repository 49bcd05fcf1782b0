"""Losses of a first stage for segmentation maps, one channel of logits per label."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from taming.config_values import Weight
from taming.modules.losses.base import FirstStageLoss, Logged


class BCELoss(nn.Module):
    """Binary cross-entropy between logits and 0/1 maps of the same shape; logs nothing."""

    def forward(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Logged]:
        return F.binary_cross_entropy_with_logits(prediction, target), {}


class BCELossWithQuant(FirstStageLoss):
    """Binary cross-entropy of every label plus `codebook_weight` times the quantizer's loss."""

    generator_terms = ("total_loss", "bce_loss", "quant_loss")

    def __init__(self, codebook_weight: Weight = 1.0) -> None:
        super().__init__()
        self.codebook_weight = codebook_weight

    def generator_loss(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        codebook_loss: Tensor,
        global_step: int,
        *,
        last_layer: Tensor | None = None,
        cond: Tensor | None = None,
    ) -> tuple[Tensor, Logged]:
        """`inputs` are 0/1 maps [B, labels, H, W], `reconstructions` logits of that shape."""
        bce = F.binary_cross_entropy_with_logits(reconstructions, inputs)
        quant = codebook_loss.mean()
        loss = bce + self.codebook_weight * quant
        terms = {"total_loss": loss, "bce_loss": bce, "quant_loss": quant}
        return loss, {name: term.detach() for name, term in terms.items()}

    # The published way to call this loss; it has no optimizers and steps.
    def forward(  # type: ignore[override]
        self, qloss: Tensor, target: Tensor, prediction: Tensor, split: str
    ) -> tuple[Tensor, Logged]:
        """The loss, and its terms by `<split>/<term>`."""
        loss, terms = self.generator_loss(target, prediction, qloss, global_step=0)
        return loss, {f"{split}/{name}": term for name, term in terms.items()}
