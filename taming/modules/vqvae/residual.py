"""Several codes a position, each of what those before it have left (residual VQ).

As in SoundStream (arXiv 2107.03312, section III-C) and, for images, RQ-VAE (arXiv 2203.01941).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from taming.config_values import Count, CountOrZero, FilePath, Weight
from taming.errors import UserError
from taming.modules.vqvae import codebook
from taming.modules.vqvae.codebook import Quantized, UnknownIndex, indexed_codes
from taming.modules.vqvae.entropy import EntropyOptions
from taming.modules.vqvae.nearest import VectorQuantizer2


class ResidualQuantizer(nn.Module):
    """Level d takes the nearest of its `n_codes` codes to what z less the codes before it is.

    Their sum is the result, with a straight-through gradient, once. The loss is the sum of those of
    the levels, each a `VectorQuantizer2` with `legacy=False` and these options. `shared` levels
    have one codebook: a code is in use if any level takes it, and one that `revive_after` replaces
    is put on what any level was given.
    Indices are [B, h, w, levels], each counted from 0. `n_e` is the number of all codes. `remap`
    and `unknown_index` (see `Codebook`) hold for every level.

    The state dict has the levels' codebooks as `levels.<d>.embedding.weight`.
    """

    def __init__(
        self,
        n_codes: Count,
        e_dim: Count,
        levels: Count = 4,
        beta: Weight = 0.25,
        shared: bool = False,
        *,
        remap: FilePath | None = None,
        unknown_index: UnknownIndex = "random",
        revive_after: CountOrZero = 0,
        **entropy: Unpack[EntropyOptions],
    ) -> None:
        super().__init__()
        options: Any = {"legacy": False, "sane_index_shape": True, "revive_after": revive_after}
        options |= {"remap": remap, "unknown_index": unknown_index}
        made = [
            VectorQuantizer2(n_codes, e_dim, beta, **options, **entropy)
            for _ in range(1 if shared else levels)
        ]
        self.levels = nn.ModuleList(made)
        self.shared, self.n_levels, self.n_codes = shared, levels, n_codes
        self.n_e, self.e_dim, self.re_embed = n_codes * len(made), e_dim, made[0].re_embed

    def _of(self, level: int) -> VectorQuantizer2:
        quantizer = self.levels[0 if self.shared else level]
        assert isinstance(quantizer, VectorQuantizer2)
        return quantizer

    @property
    def level_sizes(self) -> dict[str, int]:
        return {str(level): self.re_embed for level in range(self.n_levels)}

    @property
    def table_numbers(self) -> tuple[int, ...]:
        return tuple(0 if self.shared else level for level in range(self.n_levels))

    @property
    def level_tables(self) -> tuple[Tensor, ...]:
        return tuple(indexed_codes(self._of(level)) for level in range(self.n_levels))

    @property
    def level_factors(self) -> tuple[int, ...]:
        return (1,) * self.n_levels

    def combined(self, *grids: Tensor) -> Tensor:
        return torch.stack(grids).sum(dim=0)

    def index_shape(self, height: int, width: int) -> tuple[int, ...]:
        return height, width, self.n_levels

    def split_levels(self, indices: Tensor) -> dict[str, Tensor]:
        check_depth(indices, self.n_levels)
        return {str(level): one for level, one in enumerate(indices.unbind(dim=3))}

    def forward(self, z: Tensor) -> Quantized:
        """Latents [B, e_dim, h, w] -> `Quantized`."""
        residual, total = codebook.precise(z), torch.zeros_like(codebook.precise(z))
        indices, losses, given, taken = [], [], [], []
        for level in range(self.n_levels):
            given.append(residual.detach())
            quantizer = self._of(level)
            if self.shared:  # whose batches are counted below, once for all levels
                codes, loss, chosen = quantizer.search(residual)
                taken.append(chosen)
                chosen = quantizer.shaped(chosen, residual)
            else:
                codes, loss, (_, _, chosen) = quantizer(residual)
            total, residual = total + codes.detach(), residual - codes.detach()
            indices.append(chosen)
            losses.append(loss)
        z_q = codebook.straight_through(codebook.precise(z), total)
        z_q = z_q.to(self._of(0).codes.dtype)
        if self.shared:
            self._revive(taken, given)
        together = torch.stack(indices, dim=3)  # (B, h, w, levels)
        return z_q, torch.stack(losses).sum(), (None, None, together)

    def _revive(self, taken: Sequence[Tensor], residuals: Sequence[Tensor]) -> None:
        """Count the codes [N] that shared levels have `taken` of a batch, and replace dead ones,
        which none of its graph reads."""
        quantizer = self._of(0)
        if quantizer.idle is not None and quantizer.counts:
            quantizer.idle.follow(torch.cat(list(taken)))
            rows = torch.cat([codebook.channels_last(one) for one in residuals])
            quantizer.idle.revive(quantizer.embedding.weight, rows)

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Indices [B, h, w, levels] -> codes [B, e_dim, h, w].

        Raises:
            UserError: for indices of another shape.
        """
        return self.combined(
            *(
                self._of(level).get_codebook_entry(one, (*one.shape, self.e_dim))
                for level, one in enumerate(self.split_levels(indices).values())
            )
        )


def check_depth(indices: Tensor, depth: int) -> None:
    """Refuse (`UserError`) what is not [B, h, w, depth]."""
    if indices.dim() != 4 or indices.shape[3] != depth:
        raise UserError(
            f"indices of these {depth} levels are [B, h, w, {depth}]; these are "
            f"{list(indices.shape)}"
        )
