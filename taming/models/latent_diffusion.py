"""First stages of latent diffusion (arXiv 2112.10752) as its configs name them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

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
