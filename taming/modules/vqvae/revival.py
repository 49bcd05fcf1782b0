"""Dead codes: those that no batch has used for long, which nothing would bring back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taming.distributed import same_on_all_ranks, sum_over_ranks
from taming.modules.vqvae import codebook


class IdleCodes(nn.Module):
    """Counts the batches since each code was used, by any process; codes are dead after `after`."""

    batches: Tensor  # (K,)

    def __init__(self, n_codes: int, after: int) -> None:
        super().__init__()
        self.after = after
        self.register_buffer("batches", torch.zeros(n_codes, dtype=torch.long))

    @torch.no_grad()
    def follow(self, indices: Tensor) -> None:
        """Count a batch with these codes."""
        counts = sum_over_ranks(codebook.count_codes(indices, len(self.batches)))
        self.batches.add_(1).masked_fill_(counts > 0, 0)

    @torch.no_grad()
    def take_dead(self) -> Tensor:
        """Which codes [K] are dead; they get another `after` batches."""
        dead = self.batches >= self.after
        self.batches.masked_fill_(dead, 0)
        return dead


@torch.no_grad()
def one_for_each(rows: Tensor, n_codes: int) -> Tensor:
    """A random one of the first process's rows [N, ...] for every code, [K, ...]."""
    # For every code, most of which are not dead: to know how many would mean to wait for the
    # device.
    choice = torch.randint(len(rows), (n_codes,), device=rows.device)
    return same_on_all_ranks(rows[choice])


@torch.no_grad()
def replace(table: Tensor, dead: Tensor, rows: Tensor) -> None:
    """Put `rows` [K, ...] into the dead rows of a table of that shape."""
    mask = dead.view(-1, *[1] * (table.dim() - 1))
    table.copy_(torch.where(mask, rows.to(table), table))
