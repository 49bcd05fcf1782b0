"""A codebook of moving averages instead of trained vectors (arXiv 1711.00937, appendix A.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from taming.config_values import (
    Count,
    CountOrZero,
    FilePath,
    FractionBelowOne,
    Positive,
    Weight,
)
from taming.distributed import sum_over_ranks
from taming.modules.vqvae import codebook
from taming.modules.vqvae.codebook import Codebook, Quantized, UnknownIndex
from taming.modules.vqvae.entropy import EntropyOptions, weighted_entropy
from taming.modules.vqvae.revival import one_for_each, replace


class EmbeddingEMA(nn.Module):
    """Codes [n_embed, embedding_dim] that follow the mean of the latents assigned to them.

    They stay where they are while `update` is False.
    """

    weight: Tensor
    cluster_size: Tensor
    embed_avg: Tensor

    def __init__(
        self, n_embed: int, embedding_dim: int, decay: float = 0.99, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.decay, self.eps, self.update = decay, eps, True
        weight = torch.randn(n_embed, embedding_dim)
        self.register_buffer("weight", weight)
        # A size of one agrees with `embed_avg`: with zero, codes not yet used would be divided by
        # almost nothing at the first update, and be out of reach for good.
        self.register_buffer("cluster_size", torch.ones(n_embed))
        self.register_buffer("embed_avg", weight.clone())

    def forward(self, embed_id: Tensor) -> Tensor:
        """Indices [...] -> codes [..., embedding_dim]."""
        return F.embedding(embed_id, self.weight)

    @torch.no_grad()
    def follow(self, rows: Tensor, indices: Tensor) -> None:
        """Move towards the latents [N, C] that have the codes [N], of all processes together.

        With n latents a batch and their sum m, averages N <- decay N + (1 - decay) n and likewise
        M, a code is M / N (arXiv 1711.00937, equations 6 to 8). Laplace smoothing keeps N from 0.
        """
        counts = sum_over_ranks(codebook.count_codes(indices, len(self.weight)))  # (n_embed,)
        empty = rows.new_zeros(self.embed_avg.shape)
        sums = sum_over_ranks(empty.index_add_(0, indices, rows))
        self.cluster_size_ema_update(counts)
        self.embed_avg_ema_update(sums)
        self.weight_update(len(self.weight))

    @torch.no_grad()
    def cluster_size_ema_update(self, new_cluster_size: Tensor) -> None:
        """Move N towards a batch's counts n [n_embed]."""
        self.cluster_size.lerp_(new_cluster_size.to(self.cluster_size), 1 - self.decay)

    @torch.no_grad()
    def embed_avg_ema_update(self, new_embed_avg: Tensor) -> None:
        """Move M towards a batch's sums m [n_embed, C]."""
        self.embed_avg.lerp_(new_embed_avg.to(self.embed_avg), 1 - self.decay)

    @torch.no_grad()
    def weight_update(self, num_tokens: int) -> None:
        """Take M / N as codes, of which there are `num_tokens`."""
        total = self.cluster_size.sum()
        smoothing = total / (total + num_tokens * self.eps)
        self.weight.copy_(self.embed_avg / ((self.cluster_size + self.eps) * smoothing)[:, None])

    @torch.no_grad()
    def revive(self, rows: Tensor, threshold: float) -> None:
        """Put codes with a cluster size below `threshold` on random ones of the latents [N, C]."""
        latents = one_for_each(rows, len(self.weight))  # (n_embed, C)
        dead = self.cluster_size < threshold  # (n_embed,)
        for state in (self.weight, self.embed_avg):
            replace(state, dead, latents)
        self.cluster_size.masked_fill_(dead, 1.0)


class EMAVectorQuantizer(Codebook):
    """Nearest code in L2; codes are moving averages of their latents instead of being trained.

    The loss is the encoder's (commitment) term alone, times `beta`. Codes move in training mode.
    `revive_after` > 0 replaces dead codes by random latents of the batch: a code that was used once
    a batch is dead after so many batches without use, rarer ones sooner. Indices are [B * h * w],
    with `remap` [B * h * w, 1], with `sane_index_shape` [B, h, w]. `entropy` options: see
    `taming.modules.vqvae.entropy`; they pull latents alone.
    """

    def __init__(
        self,
        n_embed: Count,
        embedding_dim: Count,
        beta: Weight,
        decay: FractionBelowOne = 0.99,
        eps: Positive = 1e-5,
        remap: FilePath | None = None,
        unknown_index: UnknownIndex = "random",
        revive_after: CountOrZero = 0,
        sane_index_shape: bool = False,
        **entropy: Unpack[EntropyOptions],
    ) -> None:
        super().__init__(n_embed, embedding_dim, remap, unknown_index)
        self.sane_index_shape, self.entropy = sane_index_shape, entropy
        self.beta, self.decay, self.revive_after = beta, decay, revive_after
        self.num_tokens, self.codebook_dim = n_embed, embedding_dim
        self.embedding = EmbeddingEMA(n_embed, embedding_dim, decay, eps)

    @property
    def codes(self) -> Tensor:
        return self.embedding.weight

    def forward(self, z: Tensor) -> Quantized:
        rows = codebook.channels_last(z)  # (N, C)
        indices = codebook.nearest_code(rows, self.codes)  # (N,)
        codes = self.embedding(indices).to(rows)  # (N, C), before this batch moves them
        entropy = weighted_entropy(rows, self.codes, self.entropy)
        # Without gradients it is the discriminator's turn, on a batch that was counted before.
        if self.training and self.embedding.update and torch.is_grad_enabled():
            self.embedding.follow(rows.detach(), indices)
            if self.revive_after > 0:
                self.embedding.revive(rows.detach(), self.decay**self.revive_after)
        loss = self.beta * F.mse_loss(rows, codes)  # codes are buffers: only the encoder is pulled
        loss = loss + entropy
        passed_through = codebook.straight_through(rows, codes)
        z_q = codebook.channels_first(passed_through, like=z).to(self.codes.dtype)
        usage = codebook.perplexity(indices, self.n_e)
        return z_q, loss, (usage, None, self._shaped(indices, z, self.sane_index_shape))
