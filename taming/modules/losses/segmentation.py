"""Losses of a first stage for segmentation maps, one channel of logits per label."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

Logged = dict[str, Tensor]


class BCELoss(nn.Module):
    """Binary cross-entropy between logits and 0/1 maps of the same shape; logs nothing."""

    def forward(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Logged]:
        return F.binary_cross_entropy_with_logits(prediction, target), {}


class BCELossWithQuant(nn.Module):
    """Binary cross-entropy plus `codebook_weight` times the quantizer's loss."""

    def __init__(self, codebook_weight: float = 1.0) -> None:
        super().__init__()
        self.codebook_weight = codebook_weight

    def forward(
        self, qloss: Tensor, target: Tensor, prediction: Tensor, split: str
    ) -> tuple[Tensor, Logged]:
        bce = F.binary_cross_entropy_with_logits(prediction, target)
        quant = qloss.mean()
        loss = bce + self.codebook_weight * quant
        terms = {"total_loss": loss, "bce_loss": bce, "quant_loss": quant}
        return loss, {f"{split}/{name}": term.detach() for name, term in terms.items()}
