"""Codes without a table: each channel rounded to a few levels (FSQ, arXiv 2309.15505)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from taming.config_values import Count, FilePath, Length
from taming.devices import without_autocast
from taming.errors import UserError
from taming.modules.vqvae import codebook
from taming.modules.vqvae.codebook import Codebook, Quantized, UnknownIndex
from taming.modules.vqvae.lfq import MOST_BITS

MARGIN = 1e-3  # by which the outermost levels are reached, as published


class FSQ(Codebook):
    """Channel d is bounded by tanh and rounded to `levels[d]` numbers from -1 to 1.

    There are as many codes as the product of the levels, and none is trained; the loss is 0. The
    gradient is that of the bound, as if nothing was rounded. Of the index, the first channel is the
    fastest digit:

        levels [3, 5]     numbers (-1, 0, 1) and (-1, -0.5, 0, 0.5, 1); (1, -0.5) is 2 + 3 * 1 = 5

    An even number of levels has 0 among them and leaves out 1 (section 3.1); with `symmetric` they
    are evenly spaced from -1 to 1 (arXiv 2411.19842, section 3.2), which two levels need. Indices
    are [B, h, w].

    Raises:
        UserError: for fewer than two levels, two without `symmetric`, and too many codes.
    """

    unit: Tensor  # 1, of the codes' dtype and device
    steps: Tensor  # the levels [D], as integers
    basis: Tensor  # what a step of each channel counts in the index, [D]

    def __init__(
        self,
        levels: Annotated[Sequence[Count], Length(1, 64)],
        symmetric: bool = False,
        remap: FilePath | None = None,
        unknown_index: UnknownIndex = "random",
    ) -> None:
        self.levels, self.symmetric = tuple(levels), symmetric
        _check_levels(self.levels, symmetric)
        super().__init__(math.prod(self.levels), len(self.levels), remap, unknown_index)
        self.register_buffer("unit", torch.ones(()), persistent=False)
        basis = [math.prod(self.levels[:d]) for d in range(len(self.levels))]
        for name, numbers in (("steps", self.levels), ("basis", basis)):
            self.register_buffer(name, torch.tensor(numbers), persistent=False)

    @property
    def codes(self) -> Tensor:
        return self.look_up(torch.arange(self.n_e, device=self.unit.device))

    def look_up(self, indices: Tensor) -> Tensor:
        levels = self.steps
        digits = indices[..., None] // self.basis % levels  # (..., D)
        if self.symmetric:
            return (2 * digits / (levels - 1) - 1).to(self.unit.dtype)
        half = levels // 2
        return ((digits - half) / half).to(self.unit.dtype)

    def _bounded(self, rows: Tensor) -> Tensor:
        """Latents [N, D], each channel between the outermost of its integers."""
        levels = self.steps.to(rows.dtype)
        if self.symmetric:
            return (levels - 1) * (rows.tanh() + 1) / 2  # 0 to L - 1
        half = (levels - 1) * (1 + MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return (rows + (offset / half).atanh()).tanh() * half - offset  # about -L / 2 to L / 2

    def forward(self, z: Tensor) -> Quantized:
        """Latents [B, len(levels), h, w] -> `Quantized`."""
        with without_autocast(z.device):
            rows = codebook.channels_last(z)  # (N, D)
            levels, bounded = self.steps, self._bounded(rows)
            # Half up, as published, or to even.
            whole = (bounded + 0.5).floor() if self.symmetric else bounded.round()
            half = levels // 2
            lowest = torch.zeros_like(half) if self.symmetric else -half
            # Of about a thousand levels and more, the margin is more than half a step.
            whole = whole.clamp(lowest, lowest + levels - 1)
            numbers = codebook.straight_through(bounded, whole)
            scaled = 2 * numbers / (levels - 1) - 1 if self.symmetric else numbers / half
            indices = ((whole.long() - lowest) * self.basis).sum(dim=1)  # (N,)
        z_q = codebook.channels_first(scaled, like=z).to(self.unit.dtype)
        return z_q, rows.new_zeros(()), (None, None, self._shaped(indices, z, as_grid=True))


def _check_levels(levels: Sequence[int], symmetric: bool) -> None:
    if not levels or min(levels) < 2:
        least = "two" if symmetric else "three (two with symmetric: true)"
        raise UserError(f"FSQ: levels are {list(levels)}; give each channel at least {least}")
    if 2 in levels and not symmetric:
        raise UserError(
            f"FSQ: levels are {list(levels)}, and two levels of a channel need symmetric: true; "
            "set it, or give at least three"
        )
    if (codes := math.prod(levels)) > 2**MOST_BITS:
        raise UserError(
            f"FSQ: levels {list(levels)} are {codes:,} codes, more than {2**MOST_BITS:,}; take "
            "fewer channels or levels, or groups of codes (GroupedQuantizer)"
        )
