"""Gumbel-softmax quantization (arXiv 1611.01144), as in DALL-E (arXiv 2102.12092, section 2.1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.config_values import Count, CountOrZero, FilePath, Positive, Weight
from taming.devices import without_autocast
from taming.modules.vqvae import codebook
from taming.modules.vqvae.codebook import Codebook, UnknownIndex
from taming.modules.vqvae.convolution import PreciseConv2d
from taming.modules.vqvae.products import fp32_products
from taming.modules.vqvae.revival import IdleCodes, one_for_each, replace


class GumbelQuantize(Codebook):
    """Sample codes by Gumbel-softmax over logits; indices are [B, h, w].

    In training the noise has temperature `temperature` (set it by a schedule) and the one-hot is
    hard with a soft gradient, or soft without `straight_through`. In evaluation the most probable
    code is taken, without noise. The loss is `kl_weight` times the KL divergence (in nats) from the
    uniform prior. `use_vqinterface=False` returns the indices alone in the third place.
    `revive_after` > 0 makes a code that was not sampled in so many batches of training the twin of
    one that is probable in the batch, from which the noise parts it.
    """

    def __init__(
        self,
        num_hiddens: Count,
        embedding_dim: Count,
        n_embed: Count,
        straight_through: bool = True,
        kl_weight: Weight = 5e-4,
        temp_init: Positive = 1.0,
        use_vqinterface: bool = True,
        remap: FilePath | None = None,
        unknown_index: UnknownIndex = "random",
        *,
        revive_after: CountOrZero = 0,
    ) -> None:
        super().__init__(n_embed, embedding_dim, remap, unknown_index)
        self.num_hiddens, self.embedding_dim, self.n_embed = num_hiddens, embedding_dim, n_embed
        self.straight_through, self.kl_weight = straight_through, kl_weight
        self.temperature, self.use_vqinterface = temp_init, use_vqinterface
        self.proj = PreciseConv2d(num_hiddens, n_embed, 1)
        self.embed = nn.Embedding(n_embed, embedding_dim)
        self.idle = IdleCodes(n_embed, revive_after) if revive_after else None

    @property
    def codes(self) -> Tensor:
        return self.embed.weight

    @property
    def input_channels(self) -> int:
        return self.num_hiddens

    def _logits(self, z: Tensor) -> Tensor:
        """`proj` of latents [B, num_hiddens, h, w] -> [B, K, h, w], in fp32 at least."""
        logits: Tensor = self.proj(z)
        return logits

    def _choose(self, logits: Tensor, codes: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Codes [B, C, h, w] and indices [B, h, w] for logits [B, K, h, w] of codes [K, C]."""
        if not self.training:
            indices = logits.argmax(dim=1)
            return F.embedding(indices, codes).permute(0, 3, 1, 2).contiguous(), indices
        # (B, K, h, w): one-hot over K if hard, else summing to 1, so that codes are mixed
        weights = F.gumbel_softmax(logits, tau=temperature, dim=1, hard=self.straight_through)
        mixed = fp32_products(codebook.channels_last(weights), codes.t())  # (B * h * w, C)
        return codebook.channels_first(mixed, like=logits), weights.argmax(dim=1)

    @torch.no_grad()
    def _revive(self, z: Tensor, idle: IdleCodes) -> None:
        """Give dead codes the weights of probable ones of the latents [B, num_hiddens, h, w]."""
        probable = self._logits(z).argmax(dim=1).reshape(-1)  # (B * h * w,)
        source, dead = one_for_each(probable, self.n_e), idle.take_dead()  # (K,), (K,)
        for table in (self.proj.weight, self.proj.bias, self.embed.weight):
            if table is not None:
                replace(table, dead, table[source])

    # Any, as two published switches change what is returned.
    def forward(self, z: Tensor, temp: float | None = None, return_logits: bool = False) -> Any:
        """Latents [B, num_hiddens, h, w] -> `Quantized`; `return_logits` appends the logits.

        `temp` replaces `temperature` for this call. With `remap` only used codes are sampled.
        """
        temperature = self.temperature if temp is None else temp
        # Without gradients it is the discriminator's turn, on a batch that was counted before.
        idle = self.idle if self.training and torch.is_grad_enabled() else None
        with without_autocast(z.device):
            if idle is not None:
                self._revive(z, idle)
            logits, codes = self._logits(z), codebook.precise(self.codes)  # (B, K, h, w), (K, C)
            if self.remap is not None:
                # K becomes len(used).
                logits, codes = logits[:, self.used], codes[self.used]
            z_q, indices = self._choose(logits, codes, temperature)
            used = indices if self.remap is None else self.used[indices]
            if idle is not None:
                idle.follow(used)
            indices = used if self.remap is None else self.remap_to_used(used)
            # KL(softmax(logits) || uniform), averaged over positions; the prior is 1 / K
            probabilities = logits.softmax(dim=1)
            log_ratios = (probabilities * logits.shape[1] + 1e-10).log()  # (B, K, h, w)
            loss = self.kl_weight * (probabilities * log_ratios).sum(dim=1).mean()
        z_q = z_q.to(self.codes.dtype)
        info = (None, None, indices) if self.use_vqinterface else indices
        return (z_q, loss, info, logits) if return_logits else (z_q, loss, info)
