"""Codebook indices: their grid, and how much of a codebook they use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from taming.errors import UserError


def as_grid(indices: Tensor) -> Tensor:
    """[B, h, w] unchanged, [B, h*w] of a square grid -> [B, h, w]."""
    if indices.dim() == 3:
        return indices
    side = math.isqrt(indices.shape[-1])
    if indices.dim() != 2 or side * side != indices.shape[-1]:
        raise UserError(
            f"indices of shape {list(indices.shape)} are no square grid; pass them as [B, h, w]"
        )
    return indices.reshape(-1, side, side)


class CodeHistogram:
    """Counts how often each of `n_codes` is used, over batches and, in `summary`, over ranks."""

    def __init__(self, n_codes: int) -> None:
        self.n_codes = n_codes
        self.counts: Tensor | None = None

    def add(self, indices: Tensor) -> None:
        counts = torch.bincount(indices.reshape(-1), minlength=self.n_codes)
        self.counts = counts if self.counts is None else self.counts + counts

    def summary(self) -> tuple[float, float]:
        """(share of the codebook in use, perplexity of the code distribution); starts anew."""
        counts = torch.zeros(self.n_codes) if self.counts is None else self.counts
        self.counts = None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
        counts = counts.cpu()
        share = counts.double() / counts.sum().clamp_min(1)
        entropy = -torch.xlogy(share, share).sum()
        return float((counts > 0).double().mean()), float(entropy.exp())
