"""The published names of the quantizers, each of which has a file of its own."""

from taming.modules.vqvae.codebook import Quantized
from taming.modules.vqvae.ema import EMAVectorQuantizer, EmbeddingEMA
from taming.modules.vqvae.gumbel import GumbelQuantize
from taming.modules.vqvae.nearest import VectorQuantizer, VectorQuantizer2

__all__ = [
    "EMAVectorQuantizer",
    "EmbeddingEMA",
    "GumbelQuantize",
    "Quantized",
    "VectorQuantizer",
    "VectorQuantizer2",
]
