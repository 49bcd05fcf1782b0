"""Dead codes: those that no batch has used for long, which nothing would bring back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taming.config_values import Count, FractionBelowOne
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

    def revive(self, table: Tensor, rows: Tensor) -> None:
        """Put the dead codes of a `table` [K, C] on random ones of the latents [N, C]."""
        replace(table, self.take_dead(), one_for_each(rows.detach(), len(table)))


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


class ClusteredCodes(nn.Module):
    """Codes that move towards latents, the more the rarer they are (arXiv 2307.15139, section 3.2).

    With the moving average P of a code's share of latents, K codes and the latent f nearest to it,
    a code becomes (1 - a) code + a f, a = exp(-10 K P / (1 - decay) - 0.001).
    """

    embed_prob: Tensor  # (K,)

    def __init__(self, n_codes: Count, decay: FractionBelowOne = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("embed_prob", torch.zeros(n_codes))

    @torch.no_grad()
    def move(self, table: Tensor, latents: Tensor, indices: Tensor) -> None:
        """Count a batch's indices [N], and move the table [K, C] towards latents [K, C], those of
        the first process."""
        counts = sum_over_ranks(codebook.count_codes(indices, len(table)))
        self.embed_prob.lerp_((counts / counts.sum()).to(self.embed_prob), 1 - self.decay)
        exponents = self.embed_prob * len(table) * 10 / (1 - self.decay) + 1e-3
        share = torch.exp(-exponents)[:, None]
        table.lerp_(same_on_all_ranks(latents).to(table), share.to(table))
