"""Codes that a scale of a pyramid does not use are put on its residuals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taming.distributed import same_on_all_ranks
from taming.modules.vqvae.revival import replace


class ScaleRevival(nn.Module):
    """Keeps the codes of K scales, which share a codebook of V, in use at each of them.

    A pyramid collapses in two ways. Codes that no scale uses do not come back by themselves; they
    are put on residuals of scales that are drawn evenly. And where residuals of coarse scales
    differ from those of fine ones, which are most, the coarse ones come to share a few codes. So
    codes that the scale furthest below its goal does not use are put on its residuals, a few in a
    batch: those that all scales together use least.

    Used is what was taken within `after` batches. The goal is the share `least_use` of the codes,
    or of the scale's positions in that time, where these are fewer than codes.
    """

    idle: Tensor  # (K, V), batches since each scale took each code

    def __init__(self, n_scales: int, n_codes: int, after: int, least_use: float) -> None:
        super().__init__()
        self.after, self.least_use = after, least_use
        self.most_moved = math.ceil(n_codes / (4 * after))  # in a batch, to one scale
        self.register_buffer("idle", torch.zeros(n_scales, n_codes, dtype=torch.long))

    @torch.no_grad()
    def follow(self, table: Tensor, hits: Tensor, recent: Tensor, rows: Sequence[Tensor]) -> None:
        """Count a batch of training, and change the codes [V, C] of a `table`.

        Args:
            hits: how often all processes have taken each code at each scale, [K, V].
            recent: the same of late, as averages.
            rows: the residuals of each scale, K of [N, C].
        """
        self.idle.add_(1).masked_fill_(hits > 0, 0)
        unused = self.idle >= self.after  # (K, V)
        dead = unused.all(dim=0)  # (V,)
        lacking, neediest = self.lacking(unused, hits).max(dim=0)
        # As a plain index, `neediest` would be waited for.
        free = unused.index_select(0, neediest[None])[0] & ~dead & (lacking > 0)
        moved = self._least_used(free, recent.sum(dim=0))
        scale = torch.randint_like(self.idle[0], len(rows))  # for codes that no scale uses
        scale = torch.where(dead, scale, neediest)
        replace(table, dead | moved, same_on_all_ranks(self._one_of_each(rows, scale)))
        self.idle.masked_fill_(dead | moved, 0)

    def lacking(self, unused: Tensor, hits: Tensor) -> Tensor:
        """How many codes each scale is below its goal, [K]."""
        positions = hits.sum(dim=1) * self.after
        goals = self.least_use * positions.clamp(max=unused.shape[1])
        return goals - (~unused).sum(dim=1)

    def _least_used(self, free: Tensor, recent: Tensor) -> Tensor:
        """Those of the `free` codes [V] that are used least, as many as may be moved."""
        order = recent.masked_fill(~free, torch.inf).argsort()[: self.most_moved]
        return torch.zeros_like(free).scatter_(0, order, free[order])

    @staticmethod
    def _one_of_each(rows: Sequence[Tensor], scale: Tensor) -> Tensor:
        """For every code a random residual of its `scale` [V], [V, C]."""
        drawn = [torch.randint(len(part), scale.shape, device=part.device) for part in rows]
        candidates = torch.stack([part[at] for part, at in zip(rows, drawn, strict=True)])
        return candidates[scale, torch.arange(len(scale), device=scale.device)]
