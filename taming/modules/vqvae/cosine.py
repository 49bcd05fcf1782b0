"""Nearest code by angle, in few dimensions (ViT-VQGAN, arXiv 2110.04627, section 3.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from taming.config_values import Count, CountOrZero, FilePath, Weight
from taming.modules.vqvae import codebook
from taming.modules.vqvae.codebook import UnknownIndex
from taming.modules.vqvae.entropy import EntropyOptions
from taming.modules.vqvae.nearest import VectorQuantizer2


class CosineQuantizer(VectorQuantizer2):
    """`VectorQuantizer2` of latents and codes of length 1, as LlamaGen's (arXiv 2406.06525).

    Distances, losses and the straight-through gradient are those of the normalized latents, so that
    the encoder's gradient passes through the normalization. Stored codes may be of any length.
    `beta` weighs the encoder's (commitment) term. Indices are [B, h, w].
    """

    def __init__(
        self,
        n_e: Count,
        e_dim: Count,
        beta: Weight = 0.25,
        remap: FilePath | None = None,
        unknown_index: UnknownIndex = "random",
        *,
        revive_after: CountOrZero = 0,
        clustering: bool = False,
        **entropy: Unpack[EntropyOptions],
    ) -> None:
        super().__init__(
            n_e,
            e_dim,
            beta,
            remap,
            unknown_index,
            sane_index_shape=True,
            legacy=False,
            revive_after=revive_after,
            clustering=clustering,
            **entropy,
        )

    def _table(self, weight: Tensor) -> Tensor:
        return F.normalize(codebook.precise(weight), dim=1)

    def _seen(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=1)
