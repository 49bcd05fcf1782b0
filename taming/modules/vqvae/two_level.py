"""A quantizer of two levels: a coarse grid of codes, and a fine one that depends on it.

In the manner of VQ-VAE-2 (arXiv 1906.00446, section 3.1), between the encoder and the decoder of a
VQGAN, whose paper's Table 5 has two levels (arXiv 2012.09841).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.config_values import Count
from taming.errors import UserError
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.vqvae.codebook import Quantized, indexed_codes
from taming.modules.vqvae.nearest import VectorQuantizer2

LEVELS = ("top", "bottom")


class TwoLevelQuantizer(nn.Module):
    """Latents [B, C, h, w] -> codes [B, 2 * embed_dim, h, w] of two codebooks of `n_embed` vectors.

    The top codes are of latents that an encoder has made f times smaller; what a decoder makes of
    them is put beside the latents, of which the bottom codes are. Both codes together, the top ones
    repeated f x f times, are what an image is decoded from.

    Indices are [B, h / f, w / f, 1 + f * f]: of each top position its code, then the bottom codes
    of its square, row by row. They are of one table of `n_e` codes, in which those of the bottom
    follow those of the top:

        n_embed = 512, f = 2     [7, 512, 1023, 515, 512] is top code 7, and bottom codes 0, 511
                                                          in the square's first row, 3, 0 below

    With a `remap` of both levels, indices of each count within its list instead.

    Args:
        ddconfig: of the encoder and decoder between the levels; C is its `in_channels`.
        quantizer: arguments of both `VectorQuantizer2`.
    """

    def __init__(
        self, n_embed: Count, embed_dim: Count, ddconfig: Mapping[str, Any], **quantizer: Any
    ) -> None:
        super().__init__()
        self.n_embed, self.embed_dim = n_embed, embed_dim
        self.n_e, self.e_dim = 2 * n_embed, 2 * embed_dim
        self.input_channels: int = ddconfig["in_channels"]
        self.top_encoder, self.top_decoder = Encoder(**ddconfig), Decoder(**ddconfig)
        self.factor: int = 2 ** (self.top_decoder.num_resolutions - 1)
        width = ddconfig["z_channels"]
        self.top_conv = nn.Conv2d(width, embed_dim, 1)
        self.post_top_conv = nn.Conv2d(embed_dim, width, 1)
        self.bottom_conv = nn.Conv2d(self.input_channels + ddconfig["out_ch"], embed_dim, 1)
        self.top = VectorQuantizer2(n_embed, embed_dim, beta=0.25, **quantizer)
        self.bottom = VectorQuantizer2(n_embed, embed_dim, beta=0.25, **quantizer)
        self.re_embed = 2 * self.of_level

    def forward(self, z: Tensor) -> Quantized:
        """Latents [B, C, h, w] -> codes [B, 2 * embed_dim, h, w], loss, and indices as above."""
        top, top_loss, (_, _, top_indices) = self.top(self.top_conv(self.top_encoder(z)))
        seen = self.top_decoder(self.post_top_conv(top))  # (B, out_ch, h, w)
        latents = self.bottom_conv(torch.cat([z, seen.to(z)], dim=1))
        bottom, bottom_loss, (_, _, bottom_indices) = self.bottom(latents)
        grids = (
            top_indices.reshape(len(z), *top.shape[2:]),
            bottom_indices.reshape(len(z), *z.shape[2:]),
        )
        return self.combined(top, bottom), top_loss + bottom_loss, (None, None, self.join(*grids))

    @property
    def of_level(self) -> int:
        """How many indices each level has."""
        return self.top.re_embed

    @property
    def level_sizes(self) -> dict[str, int]:
        return dict.fromkeys(LEVELS, self.of_level)

    @property
    def level_tables(self) -> tuple[Tensor, ...]:
        return indexed_codes(self.top), indexed_codes(self.bottom)

    @property
    def level_factors(self) -> tuple[int, ...]:
        return 1, self.factor

    def index_shape(self, height: int, width: int) -> tuple[int, ...]:
        f = self.factor
        return height // f, width // f, 1 + f * f

    def split_levels(self, indices: Tensor) -> dict[str, Tensor]:
        return dict(zip(LEVELS, self.split(indices), strict=True))

    def combined(self, top: Tensor, bottom: Tensor) -> Tensor:
        """Codes of both levels as the image's decoder takes them, [B, 2 * embed_dim, h, w]."""
        repeated = F.interpolate(top, scale_factor=float(self.factor), mode="nearest")
        return torch.cat([repeated, bottom], dim=1)

    def join(self, top: Tensor, bottom: Tensor) -> Tensor:
        """Indices [B, h / f, w / f] and [B, h, w], each from 0 on -> [B, h / f, w / f, 1 + f * f].

        Raises:
            UserError: for grids that do not fit together.
        """
        f = self.factor
        fits = top.dim() == 3 and bottom.dim() == 3
        if not fits or bottom.shape != (len(top), f * top.shape[1], f * top.shape[2]):
            raise UserError(
                f"indices of the top {list(top.shape)} and of the bottom {list(bottom.shape)} do "
                f"not fit: they are [B, h, w] and [B, {f} * h, {f} * w]"
            )
        squares = F.pixel_unshuffle(bottom[:, None], f).permute(0, 2, 3, 1)
        return torch.cat([top[..., None], squares + self.of_level], dim=3)

    def split(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `join`; raises `UserError` for indices of another shape, or that have one
        level's codes in the other's place."""
        f = self.factor
        if indices.dim() != 4 or indices.shape[3] != 1 + f * f:
            raise UserError(
                f"indices of two levels are [B, h, w, {1 + f * f}], or a pair of [B, h, w] and "
                f"[B, {f} * h, {f} * w]; these are {list(indices.shape)}"
            )
        top, squares = indices[..., 0], indices[..., 1:] - self.of_level
        bottom = F.pixel_shuffle(squares.permute(0, 3, 1, 2), f)[:, 0]
        return top, bottom

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Indices [B, h / f, w / f, 1 + f * f] -> codes [B, 2 * embed_dim, h, w].

        Raises:
            UserError: for indices of another shape.
        """
        top, bottom = self.split(indices)
        codes = (
            table.get_codebook_entry(grid.reshape(-1), (*grid.shape, self.embed_dim))
            for table, grid in ((self.top, top), (self.bottom, bottom))
        )
        return self.combined(*codes)
