"""Signs of latents on a sphere (binary spherical quantization, arXiv 2406.07548, section 4.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from taming.modules.vqvae.lfq import LFQ


class BSQ(LFQ):
    """`LFQ` of latents of length 1: codes are the corners of a cube within the unit sphere, whose
    numbers are 1 / sqrt(D) and -1 / sqrt(D). The error is bounded, and so are its losses.
    """

    @staticmethod
    def _size(bits: int) -> float:
        return float(bits**-0.5)

    def _seen(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=1)
