"""A quantizer outside of the package, with nothing but what the protocol `Quantizer` asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.modules.vqvae.codebook import Quantized


class SignQuantizer(nn.Module):
    """Every channel becomes -1 or 1: 2^bits codes without a table."""

    places: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.n_e, self.e_dim = 2**bits, bits
        self.register_buffer("places", 2 ** torch.arange(bits))

    def forward(self, z: Tensor) -> Quantized:
        signs = torch.where(z > 0, 1.0, -1.0)  # (B, bits, h, w)
        indices = ((z > 0) * self.places[:, None, None]).sum(dim=1)  # (B, h, w)
        return z + (signs - z).detach(), F.mse_loss(z, signs), (None, None, indices)

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        codes = (indices[..., None] // self.places % 2 * 2 - 1).float()  # (..., bits)
        return codes if shape is None else codes.reshape(tuple(shape)).permute(0, 3, 1, 2)
