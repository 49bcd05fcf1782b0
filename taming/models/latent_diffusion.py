"""First stages of latent diffusion (arXiv 2112.10752) as its configs name them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from taming.models.codes import as_grid
from taming.models.result_checks import quantize
from taming.models.vqgan import VQModel
from taming.modules.vqvae.codebook import Quantized


class VQModelInterface(VQModel):
    """A VQModel whose latents, before the codebook, a diffusion model works on.

    `encode` stops before the quantizer, with which `decode` begins. Reconstructions and indices are
    those of a VQModel.
    """

    def encode(self, x: Tensor) -> Any:
        """Images [B, C, H, W] -> latents [B, embed_dim, h, w], not quantized."""
        return self.encode_to_prequant(x)

    def decode(self, quant: Tensor, force_not_quantize: bool = False) -> Tensor:
        """Latents -> images [B, C, H, W]; `force_not_quantize` takes them for codes already."""
        return super().decode(quant if force_not_quantize else quantize(self.quantize, quant)[0])

    def quantized(self, x: Tensor) -> Quantized:
        return quantize(self.quantize, self.encode_to_prequant(x))

    def images_of(self, quant: Tensor) -> Tensor:
        return super().decode(quant)

    def encode_to_indices(self, x: Tensor) -> Tensor:
        self.check_images(x)
        quant, _, (_, _, indices) = self.quantized(x)
        return indices.reshape(quant.shape[0], *quant.shape[2:])

    def decode_indices(self, indices: Tensor) -> Tensor:
        self.check_indices(indices)
        grid = as_grid(indices)
        shape = (*grid.shape, self.quantize.e_dim)
        return self.images_of(self.quantize.get_codebook_entry(grid.reshape(-1), shape))
