"""Index backpropagation: gradients reach all codes (IBQ, arXiv 2412.02692, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import Unpack

from taming.config_values import Count, FilePath, Weight
from taming.devices import without_autocast
from taming.modules.vqvae import codebook
from taming.modules.vqvae.codebook import Codebook, Quantized, UnknownIndex
from taming.modules.vqvae.entropy import COPIES, EntropyOptions, weighted_entropy
from taming.modules.vqvae.products import fp32_products


class IBQ(Codebook):
    """The code with the largest product with the latent; its gradient is that of a softmax.

    With p = softmax(z E^T) over all codes and the one-hot vector o of the largest, the result is
    (o - sg(p) + p) E: its value is the code, and its gradient reaches z and all codes through p
    alone, the code that is taken also directly. There is no straight-through copy.

    The loss is |z_q - z|^2 + |z - sg(o E)|^2 + `beta` * |sg(z) - o E|^2, means over all numbers, of
    which the first is pulled on both sides; and that of `entropy` options of the same products, by
    default with weight 0.05 (see `taming.modules.vqvae.entropy`). Indices are [B, h, w].
    """

    def __init__(
        self,
        n_e: Count,
        e_dim: Count,
        beta: Weight = 0.25,
        remap: FilePath | None = None,
        unknown_index: UnknownIndex = "random",
        **entropy: Unpack[EntropyOptions],
    ) -> None:
        super().__init__(n_e, e_dim, remap, unknown_index)
        self.beta = beta
        self.entropy: EntropyOptions = {"entropy_weight": 0.05, "entropy_epsilon": 1e-5}
        self.entropy |= entropy
        self.embedding = nn.Embedding(n_e, e_dim)  # of N(0, 1), as published

    @property
    def codes(self) -> Tensor:
        return self.embedding.weight

    def forward(self, z: Tensor) -> Quantized:
        """Latents [B, e_dim, h, w] -> `Quantized`."""
        rows, table = codebook.channels_last(z), codebook.precise(self.codes)
        at_a_time = max(1, codebook.MAX_DISTANCES // (COPIES * self.n_e))
        parts = torch.split(rows.to(table), at_a_time)
        with without_autocast(z.device):
            # N x K probabilities of many parts are not kept, but made again for the gradient.
            chosen = [
                _chosen(part, table)
                if len(parts) == 1
                else checkpoint(_chosen, part, table, use_reentrant=False)
                for part in parts
            ]
            indices = torch.cat([of_part for _, of_part in chosen])
            codes = F.embedding(indices, table)  # (N, C)
            z_q = codes + torch.cat([of_part for of_part, _ in chosen])
            loss = self._loss(rows, z_q, codes)
            loss = loss + weighted_entropy(rows, table, self.entropy, fp32_products)
        z_q = codebook.channels_first(z_q, like=z).to(self.codes.dtype)
        return z_q, loss, (None, None, self._shaped(indices, z, as_grid=True))

    def _loss(self, rows: Tensor, z_q: Tensor, codes: Tensor) -> Tensor:
        encoder_term = F.mse_loss(rows, codes.detach())
        codebook_term = F.mse_loss(codes, rows.detach())
        return F.mse_loss(z_q, rows) + encoder_term + self.beta * codebook_term


def _chosen(rows: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Of latents [n, C] and codes [K, C]: p E - sg(p E) [n, C], zeros with the gradient of p, and
    the indices [n]."""
    products = fp32_products(rows, table)  # (n, K)
    indices = products.argmax(dim=1)
    if not torch.is_grad_enabled():
        return torch.zeros_like(rows), indices
    mixed = fp32_products(products.softmax(dim=1), table.detach().t())
    return mixed - mixed.detach(), indices
