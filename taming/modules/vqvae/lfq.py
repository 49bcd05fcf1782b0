"""Codes without a table: the signs of the latents (LFQ, arXiv 2310.05737, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from taming.config_values import Count, FilePath, Weight
from taming.devices import without_autocast
from taming.errors import UserError
from taming.modules.vqvae import codebook
from taming.modules.vqvae.codebook import Codebook, Quantized, UnknownIndex
from taming.modules.vqvae.entropy import EntropyOptions, sign_entropies, weighted

MOST_BITS = 24  # the use of 2^24 codes is counted in 128 MiB


def bits_of(n_e: int, owner: str) -> int:
    """D of 2^D codes; UserError for other numbers, and more than `MOST_BITS`."""
    bits = n_e.bit_length() - 1
    if n_e != 2**bits or not 1 <= bits <= MOST_BITS:
        near = 2 ** min(max(1, bits), MOST_BITS)
        raise UserError(
            f"{owner}: n_e is {n_e}, and codes of signs are a power of two, from 2 to "
            f"{2**MOST_BITS}; make it {near}, or take groups of codes (GroupedQuantizer)"
        )
    return bits


class LFQ(Codebook):
    """Each of the log2(`n_e`) channels becomes 1 if it is above 0, else -1.

    Channel d is bit d of the index, the first one the lowest. The gradient is straight-through. The
    loss is `beta` * |z - sg(z_q)|^2, a mean over all numbers, and that of `entropy` options over
    all codes, by default with weight 0.1 (see `taming.modules.vqvae.entropy`), of latents as they
    are: p = softmax(2 z c / temperature). As in Open-MAGVIT2 (arXiv 2409.04410), nothing is in the
    state dict. Indices are [B, h, w].

    Raises:
        UserError: if `n_e` is no power of two, or too large.
    """

    unit: Tensor  # the size of a code's numbers, and their dtype and device
    powers: Tensor  # what each channel counts in the index, int64 [D]

    def __init__(
        self,
        n_e: Count,
        beta: Weight = 0.25,
        remap: FilePath | None = None,
        unknown_index: UnknownIndex = "random",
        **entropy: Unpack[EntropyOptions],
    ) -> None:
        bits = bits_of(n_e, type(self).__name__)
        super().__init__(n_e, bits, remap, unknown_index)
        self.beta = beta
        self.entropy: EntropyOptions = {"entropy_weight": 0.1, "entropy_epsilon": 1e-5}
        self.entropy |= entropy
        self.register_buffer("unit", torch.tensor(self._size(bits)), persistent=False)
        self.register_buffer("powers", 2 ** torch.arange(bits), persistent=False)

    @staticmethod
    def _size(bits: int) -> float:
        return 1.0

    def _seen(self, rows: Tensor) -> Tensor:
        """Latents [N, D] as they are compared."""
        return rows

    @property
    def codes(self) -> Tensor:
        return self.look_up(torch.arange(self.n_e, device=self.unit.device))

    def look_up(self, indices: Tensor) -> Tensor:
        bits = indices[..., None] // self.powers % 2  # (..., D)
        return (2 * bits - 1).to(self.unit.dtype) * self._size(self.e_dim)

    def forward(self, z: Tensor) -> Quantized:
        """Latents [B, log2(n_e), h, w] -> `Quantized`."""
        size = self._size(self.e_dim)
        with without_autocast(z.device):
            rows = self._seen(codebook.channels_last(z))  # (N, D)
            positive = rows > 0
            codes = torch.where(positive, size, -size).to(rows)
            indices = (positive.long() * self.powers).sum(dim=1)  # (N,)
            loss = self.beta * F.mse_loss(rows, codes)
            if self.entropy["entropy_weight"]:
                loss = loss + weighted(self._entropies(rows), self.entropy)
            passed_through = codebook.straight_through(rows, codes)
        z_q = codebook.channels_first(passed_through, like=z).to(self.unit.dtype)
        return z_q, loss, (None, None, self._shaped(indices, z, as_grid=True))

    def _entropies(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        # 2 z c of the two signs of a channel differ by 4 |c| z.
        temperature = self.entropy.get("entropy_temperature", 0.01)
        log_odds = rows * (4 * self._size(self.e_dim) / temperature)
        return sign_entropies(log_odds, self.entropy["entropy_epsilon"])
