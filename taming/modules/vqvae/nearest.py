"""Quantizers that take the nearest code in L2 and train the codebook by a loss (VQ-VAE, VQGAN)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from taming.config_values import Count, CountOrZero, FilePath, Weight
from taming.errors import UserError
from taming.modules.vqvae import codebook
from taming.modules.vqvae.codebook import Codebook, Quantized, UnknownIndex
from taming.modules.vqvae.entropy import EntropyOptions, weighted_entropy
from taming.modules.vqvae.revival import ClusteredCodes, IdleCodes


class VectorQuantizer2(Codebook):
    """Nearest code in L2 with a straight-through gradient (arXiv 2012.09841, equations 2 and 4).

    `legacy=True` weights the codebook's term by `beta`, as the original code does by mistake and
    published models were trained; `legacy=False` weights the encoder's (commitment) term.
    Indices are [B * h * w], [B * h * w, 1] with `remap`, or [B, h, w] with `sane_index_shape`.
    `revive_after` > 0 puts codes on random latents of the batch after so many batches of training
    without use. `clustering` moves every code in training, the more the rarer it is, towards the
    latent that is nearest to it (`ClusteredCodes`). `entropy` options: see
    `taming.modules.vqvae.entropy`.
    """

    def __init__(
        self,
        n_e: Count,
        e_dim: Count,
        beta: Weight,
        remap: FilePath | None = None,
        unknown_index: UnknownIndex = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
        *,
        revive_after: CountOrZero = 0,
        clustering: bool = False,
        **entropy: Unpack[EntropyOptions],
    ) -> None:
        super().__init__(n_e, e_dim, remap, unknown_index)
        self.beta, self.legacy, self.sane_index_shape = beta, legacy, sane_index_shape
        self.entropy = entropy
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)
        self.idle = IdleCodes(n_e, revive_after) if revive_after else None
        self.clusters = ClusteredCodes(n_e) if clustering else None

    @property
    def codes(self) -> Tensor:
        return self._table(self.embedding.weight)

    def _table(self, weight: Tensor) -> Tensor:
        """The codes [n_e, e_dim] as they are compared, of those that are stored."""
        return weight

    def _seen(self, rows: Tensor) -> Tensor:
        """Latents [N, e_dim] as they are compared."""
        return rows

    def _loss(self, rows: Tensor, codes: Tensor) -> Tensor:
        encoder_term = F.mse_loss(rows, codes.detach())  # pulls latents to their codes
        codebook_term = F.mse_loss(codes, rows.detach())  # pulls codes to their latents
        if self.legacy:
            return encoder_term + self.beta * codebook_term
        return self.beta * encoder_term + codebook_term

    def forward(
        self,
        z: Tensor,
        temp: float | None = None,
        rescale_logits: bool = False,
        return_logits: bool = False,
    ) -> Quantized:
        """Latents [B, e_dim, h, w] -> `Quantized`.

        The other arguments are those of `GumbelQuantize` and change nothing here.

        Raises:
            UserError: if they ask for anything.
        """
        if temp not in (None, 1) or rescale_logits or return_logits:
            raise UserError(
                f"{type(self).__name__} takes the nearest code, without temperature or logits: "
                "leave out temp, rescale_logits and return_logits, or use GumbelQuantize"
            )
        idle = self.idle if self.counts else None
        if idle is not None:  # before codes are part of a graph
            idle.revive(self.embedding.weight, self._seen(codebook.channels_last(z)))
        z_q, loss, indices = self.search(z)
        if idle is not None:
            idle.follow(indices)
        return z_q, loss, (None, None, self.shaped(indices, z))

    def shaped(self, indices: Tensor, z: Tensor) -> Tensor:
        """Indices [N] into the codebook, of latents `z`, as a call returns them."""
        return self._shaped(indices, z, self.sane_index_shape)

    @property
    def counts(self) -> bool:
        """Whether a batch counts as one of training."""
        # Without gradients it is the discriminator's turn, on a batch that was counted before.
        return self.training and torch.is_grad_enabled()

    def search(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, loss, and indices [N] into the codebook, of latents [B, e_dim, h, w].

        Unlike a call, it neither counts the batch for `revive_after` nor revives codes: whoever
        asks one table several times for one batch does that once.
        """
        latents, weight = codebook.channels_last(z), self.embedding.weight  # (N, C), (K, C)
        rows, clusters = self._seen(latents), self.clusters if self.counts else None
        table = self._table(weight if clusters is None else weight.clone())  # as they move below
        indices = codebook.nearest_code(rows, table)  # (N,)
        codes = F.embedding(indices, table).to(rows)  # (N, C)
        loss = self._loss(rows, codes) + weighted_entropy(rows, table, self.entropy)
        if clusters is not None:
            nearest = codebook.nearest_code(table, rows)  # (K,)
            clusters.move(weight, latents.detach()[nearest], indices)
        passed_through = codebook.straight_through(rows, codes)
        z_q = codebook.channels_first(passed_through, like=z).to(weight.dtype)  # (B, C, h, w)
        return z_q, loss, indices


class VectorQuantizer(VectorQuantizer2):
    """The first quantizer of the original: as `VectorQuantizer2`, and with statistics.

    The perplexity of a batch's codes and their one-hot encodings [N, n_e]; indices are [N, 1].
    """

    def __init__(
        self,
        n_e: Count,
        e_dim: Count,
        beta: Weight,
        *,
        revive_after: CountOrZero = 0,
        **entropy: Unpack[EntropyOptions],
    ) -> None:
        super().__init__(n_e, e_dim, beta, revive_after=revive_after, **entropy)

    def forward(self, z: Tensor) -> Quantized:  # type: ignore[override]  # as published
        z_q, loss, (_, _, indices) = super().forward(z)
        encodings = F.one_hot(indices, self.n_e).float()
        return z_q, loss, (codebook.perplexity(indices, self.n_e), encodings, indices[:, None])
