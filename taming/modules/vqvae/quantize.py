"""Vector quantizers: latents [B, C, h, w] -> codes, loss and indices.

All return `(z_q [B, C, h, w], loss, (perplexity, min_encodings, indices))`, in fp32 even under
autocast. Sources: VQ-VAE (arXiv 1711.00937) for the losses and, in appendix A.1, for the moving
averages; Gumbel-softmax (arXiv 1611.01144) as in DALL-E (arXiv 2102.12092, section 2.1).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.devices import without_autocast
from taming.distributed import same_on_all_ranks, sum_over_ranks
from taming.modules.vqvae.codebook import (
    Codebook,
    channels_first,
    channels_last,
    count_codes,
    nearest_code,
    perplexity,
    straight_through,
)

Quantized = tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None, Tensor]]


class VectorQuantizer2(Codebook):
    """Nearest code in L2 with a straight-through gradient (arXiv 2012.09841, equations 2 and 4).

    `legacy=True` weights the codebook's term by `beta`, as the original code does by mistake and
    published models were trained; `legacy=False` weights the encoder's (commitment) term.
    Indices are [B * h * w], [B * h * w, 1] with `remap`, or [B, h, w] with `sane_index_shape`.
    """

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float,
        remap: str | None = None,
        unknown_index: str | int = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        super().__init__(n_e, e_dim, remap, unknown_index)
        self.beta, self.legacy, self.sane_index_shape = beta, legacy, sane_index_shape
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)

    @property
    def codes(self) -> Tensor:
        return self.embedding.weight

    def _loss(self, rows: Tensor, codes: Tensor) -> Tensor:
        encoder_term = F.mse_loss(rows, codes.detach())
        codebook_term = F.mse_loss(codes, rows.detach())
        if self.legacy:
            return encoder_term + self.beta * codebook_term
        return self.beta * encoder_term + codebook_term

    def forward(self, z: Tensor) -> Quantized:
        rows = channels_last(z)  # (N, C)
        indices = nearest_code(rows, self.codes)  # (N,)
        codes = F.embedding(indices, self.codes).float()
        loss = self._loss(rows, codes)
        z_q = channels_first(straight_through(rows, codes), like=z)
        if self.remap is not None:
            indices = self.remap_to_used(indices)[:, None]
        if self.sane_index_shape:
            indices = indices.reshape(z.shape[0], *z.shape[2:])
        return z_q, loss, (None, None, indices)


class VectorQuantizer(VectorQuantizer2):
    """The first quantizer of the original: as `VectorQuantizer2`, and with statistics.

    Also returns the perplexity of this batch's codes and their one-hot encodings [N, n_e];
    indices are [N, 1].
    """

    def __init__(self, n_e: int, e_dim: int, beta: float) -> None:
        super().__init__(n_e, e_dim, beta)

    def forward(self, z: Tensor) -> Quantized:
        z_q, loss, (_, _, indices) = super().forward(z)
        encodings = F.one_hot(indices, self.n_e).float()
        return z_q, loss, (perplexity(indices, self.n_e), encodings, indices[:, None])


class GumbelQuantize(Codebook):
    """Draw codes by Gumbel-softmax over logits; indices are [B, h, w].

    In training the noise has temperature `temperature` (set it by a schedule) and the one-hot is
    hard with a soft gradient, or soft without `straight_through`. In evaluation the most probable
    code is taken, without noise. The loss is `kl_weight` times the KL divergence (in nats) from the
    uniform prior. `use_vqinterface=False` returns the indices alone in the third place.
    """

    def __init__(
        self,
        num_hiddens: int,
        embedding_dim: int,
        n_embed: int,
        straight_through: bool = True,
        kl_weight: float = 5e-4,
        temp_init: float = 1.0,
        use_vqinterface: bool = True,
        remap: str | None = None,
        unknown_index: str | int = "random",
    ) -> None:
        super().__init__(n_embed, embedding_dim, remap, unknown_index)
        self.num_hiddens, self.embedding_dim, self.n_embed = num_hiddens, embedding_dim, n_embed
        self.straight_through, self.kl_weight = straight_through, kl_weight
        self.temperature, self.use_vqinterface = temp_init, use_vqinterface
        self.proj = nn.Conv2d(num_hiddens, n_embed, 1)
        self.embed = nn.Embedding(n_embed, embedding_dim)

    @property
    def codes(self) -> Tensor:
        return self.embed.weight

    def _draw(self, logits: Tensor, codes: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Codes [B, C, h, w] and indices [B, h, w] for logits [B, K, h, w]."""
        if not self.training:
            indices = logits.argmax(dim=1)
            return F.embedding(indices, codes).permute(0, 3, 1, 2).contiguous(), indices
        weights = F.gumbel_softmax(logits, tau=temperature, dim=1, hard=self.straight_through)
        return torch.einsum("bkhw,kc->bchw", weights, codes), weights.argmax(dim=1)

    def forward(self, z: Tensor, temp: float | None = None, return_logits: bool = False) -> Any:
        """Latents [B, num_hiddens, h, w] -> `Quantized`; `return_logits` appends the logits.

        `temp` replaces `temperature` for this call. With `remap` only used codes are drawn.
        """
        temperature = self.temperature if temp is None else temp
        with without_autocast(z.device):
            logits, codes = self.proj(z.float()), self.codes  # (B, K, h, w), (K, C)
            if self.remap is not None:
                logits, codes = logits[:, self.used], codes[self.used]
            z_q, indices = self._draw(logits, codes, temperature)
            loss = self.kl_weight * self._divergence(logits)
        info = (None, None, indices) if self.use_vqinterface else indices
        return (z_q, loss, info, logits) if return_logits else (z_q, loss, info)

    @staticmethod
    def _divergence(logits: Tensor) -> Tensor:
        """KL(softmax(logits) || uniform), averaged over positions."""
        probabilities = logits.softmax(dim=1)
        ratios = probabilities * logits.shape[1] + 1e-10  # to the prior, 1 / K
        return (probabilities * ratios.log()).sum(dim=1).mean()


class EmbeddingEMA(nn.Module):
    """Codes [n_embed, embedding_dim] that follow the mean of the latents assigned to them."""

    weight: Tensor
    cluster_size: Tensor
    embed_avg: Tensor

    def __init__(self, n_embed: int, embedding_dim: int, decay: float, eps: float) -> None:
        super().__init__()
        self.decay, self.eps = decay, eps
        weight = torch.randn(n_embed, embedding_dim)
        self.register_buffer("weight", weight)
        # A size of one agrees with `embed_avg`: with zero, codes not yet used would be divided by
        # almost nothing at the first update, and be out of reach for good.
        self.register_buffer("cluster_size", torch.ones(n_embed))
        self.register_buffer("embed_avg", weight.clone())

    @torch.no_grad()
    def update(self, rows: Tensor, indices: Tensor) -> None:
        """Move towards latents [N, C] with codes [N], of all processes of a distributed run."""
        counts = sum_over_ranks(count_codes(indices, len(self.weight)))
        sums = sum_over_ranks(torch.zeros_like(self.embed_avg).index_add_(0, indices, rows))
        self.cluster_size.lerp_(counts, 1 - self.decay)
        self.embed_avg.lerp_(sums, 1 - self.decay)
        total = self.cluster_size.sum()
        smoothing = total / (total + len(self.weight) * self.eps)  # Laplace
        self.weight.copy_(self.embed_avg / ((self.cluster_size + self.eps) * smoothing)[:, None])

    @torch.no_grad()
    def revive(self, rows: Tensor, threshold: float) -> None:
        """Put codes with a cluster size below `threshold` on random ones of the latents [N, C]."""
        choice = torch.randint(len(rows), (len(self.weight),), device=rows.device)
        latents = same_on_all_ranks(rows[choice])  # (n_embed, C)
        dead = self.cluster_size < threshold  # (n_embed,)
        for state in (self.weight, self.embed_avg):
            state.copy_(torch.where(dead[:, None], latents, state))
        self.cluster_size.masked_fill_(dead, 1.0)


class EMAVectorQuantizer(Codebook):
    """Nearest code in L2; codes are moving averages of their latents instead of being trained.

    The loss is the encoder's (commitment) term alone, times `beta`. Codes move in training mode.
    `revive_after` > 0 replaces dead codes by random latents of the batch: a code that was used once
    a batch is dead after so many batches without use, rarer ones sooner. Indices are [B * h * w],
    with `remap` [B * h * w, 1], with `sane_index_shape` [B, h, w].
    """

    def __init__(
        self,
        n_embed: int,
        embedding_dim: int,
        beta: float,
        decay: float = 0.99,
        eps: float = 1e-5,
        remap: str | None = None,
        unknown_index: str | int = "random",
        revive_after: int = 0,
        sane_index_shape: bool = False,
    ) -> None:
        super().__init__(n_embed, embedding_dim, remap, unknown_index)
        self.sane_index_shape = sane_index_shape
        self.beta, self.decay, self.revive_after = beta, decay, revive_after
        self.embedding = EmbeddingEMA(n_embed, embedding_dim, decay, eps)

    @property
    def codes(self) -> Tensor:
        return self.embedding.weight

    def forward(self, z: Tensor) -> Quantized:
        rows = channels_last(z)  # (N, C)
        indices = nearest_code(rows, self.codes)  # (N,)
        codes = F.embedding(indices, self.codes)
        # Without gradients it is the discriminator's turn, on a batch that was counted before.
        if self.training and torch.is_grad_enabled():
            self._follow(rows.detach(), indices)
        loss = self.beta * F.mse_loss(rows, codes)
        z_q = channels_first(straight_through(rows, codes), like=z)
        usage = perplexity(indices, self.n_e)
        if self.remap is not None:
            indices = self.remap_to_used(indices)[:, None]
        if self.sane_index_shape:
            indices = indices.reshape(z.shape[0], *z.shape[2:])
        return z_q, loss, (usage, None, indices)

    def _follow(self, rows: Tensor, indices: Tensor) -> None:
        self.embedding.update(rows, indices)
        if self.revive_after > 0:
            self.embedding.revive(rows, self.decay**self.revive_after)
