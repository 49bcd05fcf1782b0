"""A frozen random codebook under one trained linear layer (SimVQ, arXiv 2411.02038)."""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import Unpack

from taming.config_values import Count, FilePath, Weight
from taming.devices import without_autocast
from taming.modules.vqvae import codebook
from taming.modules.vqvae.codebook import UnknownIndex
from taming.modules.vqvae.entropy import EntropyOptions
from taming.modules.vqvae.nearest import VectorQuantizer2
from taming.modules.vqvae.products import fp32_products


class SimVQ(VectorQuantizer2):
    """`VectorQuantizer2` whose codes are E W^T + b: E is random and stays, W and b are trained.

    All codes move together, so that none is left behind. Names in the state dict are the published
    ones: `embedding.weight` is E, `embedding_proj` the layer. Indices are [B, h, w].
    """

    def __init__(
        self,
        n_e: Count,
        e_dim: Count,
        beta: Weight = 0.25,
        remap: FilePath | None = None,
        unknown_index: UnknownIndex = "random",
        *,
        legacy: bool = False,
        **entropy: Unpack[EntropyOptions],
    ) -> None:
        super().__init__(
            n_e, e_dim, beta, remap, unknown_index, sane_index_shape=True, legacy=legacy, **entropy
        )
        nn.init.normal_(self.embedding.weight, std=e_dim**-0.5)
        self.embedding.requires_grad_(False)
        self.embedding_proj = nn.Linear(e_dim, e_dim)

    def _table(self, weight: Tensor) -> Tensor:
        with without_autocast(weight.device):
            layer = self.embedding_proj
            products = fp32_products(codebook.precise(weight), codebook.precise(layer.weight))
            return products + layer.bias
