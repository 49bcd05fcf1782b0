"""A quantizer of a pyramid of residuals: coarse codes first, each finer grid of what is left.

The tokenizer of VAR (arXiv 2404.02905, section 3.2, algorithms 1 and 2), with its state dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.config_values import Count, CountOrZero, FilePath, Finite, Fraction, Weight
from taming.devices import without_autocast
from taming.distributed import sum_over_ranks
from taming.errors import UserError
from taming.modules.resizing import Size
from taming.modules.vqvae import codebook
from taming.modules.vqvae.codebook import Codebook, Quantized, UnknownIndex
from taming.modules.vqvae.scale_revival import ScaleRevival
from taming.modules.vqvae.scales import (
    area_down,
    bicubic_up,
    checked_scales,
    make_phis,
    phi_numbers,
    side_of,
    sizes_on,
)

EARLY_DECAY, LATE_DECAY, EARLY = 0.9, 0.99, 100  # of the hits, and updates until the late one


class Step(NamedTuple):
    """What one scale adds to a pyramid: of N = B * p * q positions."""

    rows: Tensor
    """Averaged residuals [N, C], which codes were sought for."""
    indices: Tensor
    """[N], those of the codebook."""
    latents: Tensor
    """The sum of this scale and all before it, [B, C, h, w], with gradients to the codes."""


class MultiScaleQuantizer(Codebook):
    """Latents [B, C, h, w] as codes on several grids, of one codebook E of `n_e` vectors.

    With the residual r = z and the sum F = 0, each scale of p x q positions takes the nearest
    codes to the area average of r on its grid, brings them to h x w by bicubic interpolation and a
    convolution phi, adds that to F and takes it from r. F after the last scale is the result. Its
    loss is the mean over scales of beta |F - sg(z)|^2 for the encoder and |sg(F) - z|^2, both with
    gradients on the side that is not stopped.

    Indices are [B, n], scale by scale, each row by row:

        scales [1, 2, 4], h = w = 4     n = 1 + 4 + 16; of 4 x 6 latents, 1 * 2 + 2 * 3 + 4 * 6

    Args:
        scales: sides of the grids for square latents; the last is that of the latents. Other
            latents have grids of the same shares of their sides.
        beta: weight of the term that pulls latents to their codes.
        using_znorm: compare directions alone; the codes that are taken keep their lengths.
        quant_resi: share of the convolution in phi; 0 is without convolutions.
        share_quant_resi: how many convolutions there are for all scales; 0 is one for each. More
            than there are scales leave some unused, which are not trained.
        remap, unknown_index: see `Codebook`; they hold for all scales.
        revive_after, least_use: see `ScaleRevival`; 0 leaves codes that are not used alone.

    Raises:
        UserError: for scales that do not grow.
    """

    # (K, n_e), how often each scale has taken each code of late; the published name
    ema_vocab_hit_SV: Tensor  # noqa: N815
    scale_losses: Tensor  # (K,), of the last batch
    hit_updates: Tensor  # (), how many scales the hits have counted since this was made

    def __init__(
        self,
        n_e: Count,
        e_dim: Count,
        scales: Sequence[Count],
        beta: Weight = 0.25,
        using_znorm: bool = False,
        *,
        quant_resi: Finite = 0.5,
        share_quant_resi: CountOrZero = 4,
        remap: FilePath | None = None,
        unknown_index: UnknownIndex = "random",
        revive_after: CountOrZero = 0,
        least_use: Fraction = 0.5,
    ) -> None:
        super().__init__(n_e, e_dim, remap, unknown_index)
        self.scales, self.beta, self.using_znorm = checked_scales(scales), beta, using_znorm
        n_scales = len(self.scales)
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(n_scales, n_e))
        self.register_buffer("hit_updates", torch.zeros((), dtype=torch.long), persistent=False)
        self.quant_resi = make_phis(share_quant_resi, n_scales, e_dim, quant_resi)
        self._n_phis = share_quant_resi or n_scales
        self._phi_of = phi_numbers(self._n_phis, n_scales)  # as no graph holds their computation
        for number, phi in enumerate(self._phis()):  # DDP waits for gradients of all that train
            phi.requires_grad_(number in self._phi_of)
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)
        self.revival = (
            ScaleRevival(n_scales, n_e, revive_after, least_use) if revive_after else None
        )
        self.register_buffer("scale_losses", torch.zeros(n_scales), persistent=False)

    @property
    def codes(self) -> Tensor:
        return self.embedding.weight

    # ------------------------------------------------------------------ sizes

    def sizes(self, height: int, width: int) -> tuple[Size, ...]:
        """(rows, columns) of each scale on latents `height` x `width`."""
        return sizes_on(self.scales, height, width)

    def index_shape(self, height: int, width: int) -> tuple[int]:
        """The shape (n,) of the indices of one image whose latents are `height` x `width`."""
        return (sum(p * q for p, q in self.sizes(height, width)),)

    @property
    def level_sizes(self) -> dict[str, int]:
        """The indices of each scale, by its sides for square latents: "1x1", "2x2" and so on."""
        return {f"{side}x{side}": self.re_embed for side in self.scales}

    @property
    def table_numbers(self) -> tuple[int, ...]:
        return (0,) * len(self.scales)

    def split_sized(self, indices: Tensor, height: int, width: int) -> dict[str, Tensor]:
        grids = self.split(indices, self.sizes(height, width))
        return dict(zip(self.level_sizes, grids, strict=True))

    def split_levels(self, indices: Tensor) -> dict[str, Tensor]:
        return self.split_sized(indices, *self._square_of(indices))

    def latent_size(self, count: int) -> Size:
        """(rows, columns) of the square latents that have `count` indices.

        Raises:
            UserError: if there are none.
        """
        side = side_of(self.scales, count)
        if side is None:
            raise UserError(
                f"{count} indices are those of no square image: scales {list(self.scales)} have "
                f"{self.index_shape(self.scales[-1], self.scales[-1])[0]}; of others, say height "
                "and width of the latents"
            )
        return side, side

    def _square_of(self, indices: Tensor) -> Size:
        self._require_rows(indices)
        return self.latent_size(indices.shape[1])

    def _require_rows(self, indices: Tensor) -> None:
        if indices.dim() != 2:
            raise UserError(
                f"indices of {len(self.scales)} scales are [B, n], scale by scale; these are "
                f"{list(indices.shape)}"
            )

    def split(self, indices: Tensor, grids: Sequence[Size]) -> list[Tensor]:
        """Indices [B, n] -> those of each scale [B, p, q], whose sizes are `grids`.

        Raises:
            UserError: if they are not that many.
        """
        self._require_rows(indices)
        counts = [p * q for p, q in grids]
        if sum(counts) != indices.shape[1]:
            raise UserError(
                f"scales of {', '.join(f'{p} x {q}' for p, q in grids)} have {sum(counts)} "
                f"indices, and these are {indices.shape[1]}"
            )
        parts = indices.split(counts, dim=1)
        return [part.reshape(-1, *grid) for part, grid in zip(parts, grids, strict=True)]

    # ------------------------------------------------------------------ latents -> codes

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """Indices [N] of the codes for residuals [N, C]."""
        codes = codebook.precise(self.codes)
        if self.using_znorm:
            rows, codes = F.normalize(rows, dim=1), F.normalize(codes, dim=1)
        return codebook.nearest_code(rows, codes)

    def _upwards(self, grid: Tensor, scale: int, n_scales: int, size: Size) -> Tensor:
        """What the codes of a scale [B, p, q] add to the latents: [B, C, *size]."""
        codes = codebook.precise(F.embedding(grid, self.codes)).permute(0, 3, 1, 2)
        usual = n_scales == len(self._phi_of)
        number = (self._phi_of if usual else phi_numbers(self._n_phis, n_scales))[scale]
        added: Tensor = self._phis()[number](bicubic_up(codes, size))
        return added

    def _phis(self) -> nn.ModuleList:
        phis = self.quant_resi
        if isinstance(phis, nn.ModuleDict):
            phis = phis["qresi_ls"] if "qresi_ls" in phis else nn.ModuleList([phis["qresi"]])
        assert isinstance(phis, nn.ModuleList)
        return phis

    def steps(self, z: Tensor, sizes: Sequence[Size] | None = None) -> Iterator[Step]:
        """What each scale takes of latents [B, C, h, w], coarse to fine.

        Args:
            sizes: other grids than `scales` says, any number; the last is that of the latents.

        Raises:
            UserError: if it is not.
        """
        height, width = z.shape[2:]
        grids = self.sizes(height, width) if sizes is None else sizes
        if not grids or grids[-1] != (height, width):
            raise UserError(f"the last of the sizes must be the latents' own, {height} x {width}")
        rest = codebook.precise(z).detach()
        total = torch.zeros_like(rest)
        for scale, grid in enumerate(grids):
            rows = codebook.channels_last(area_down(rest, grid))  # (B * p * q, C)
            indices = self.nearest(rows)
            placed = indices.reshape(-1, *grid)
            added = self._upwards(placed, scale, len(grids), (height, width))
            total, rest = total + added, rest - added.detach()
            yield Step(rows, indices, total)

    def forward(self, z: Tensor) -> Quantized:
        """Latents [B, C, h, w] -> `Quantized`, with indices [B, n]."""
        # Without gradients it is the discriminator's turn, on a batch that was counted before.
        learns = self.training and torch.is_grad_enabled()
        with without_autocast(z.device):
            precise = codebook.precise(z)
            steps = list(self.steps(precise))
            losses = torch.stack([self._loss(precise, step.latents) for step in steps])
            if learns:  # no step of the backward pass reads the codes, which may change here
                self._follow(steps)
            z_q = codebook.straight_through(precise, steps[-1].latents).to(self.codes.dtype)
        if not torch.compiler.is_exporting():  # other programs keep no statistics
            self.scale_losses.copy_(losses.detach())
        parts = [step.indices.reshape(len(z), -1) for step in steps]
        indices = torch.cat(parts, dim=1)  # (B, n)
        if self.remap is not None:
            indices = self.remap_to_used(indices)
        return z_q, losses.mean(), (None, None, indices)

    def _loss(self, z: Tensor, latents: Tensor) -> Tensor:
        encoder_term = F.mse_loss(latents.detach(), z)
        return self.beta * encoder_term + F.mse_loss(latents, z.detach())

    # ------------------------------------------------------------------ statistics

    @torch.no_grad()
    def _follow(self, steps: Sequence[Step]) -> None:
        """Count a batch of training."""
        hits = [codebook.count_codes(step.indices, self.n_e) for step in steps]
        summed = sum_over_ranks(torch.stack(hits))  # (K, n_e)
        self._follow_hits(summed)
        if self.revival is not None:
            rows, recent = [step.rows for step in steps], self.ema_vocab_hit_SV
            self.revival.follow(self.embedding.weight, summed, recent, rows)

    def _follow_hits(self, hits: Tensor) -> None:
        """Move the averages towards a batch's `hits`, as VAR counts them.

        Its updates are counted by scales, not by batches, so that only the first scale of the
        first batch is taken as it is.
        """
        scale = torch.arange(len(hits), device=hits.device)
        count = (self.hit_updates + scale)[:, None]  # (K, 1)
        decay = torch.where(count < EARLY, EARLY_DECAY, LATE_DECAY).masked_fill(count == 0, 0.0)
        self.ema_vocab_hit_SV.mul_(decay).add_(hits * (1 - decay))
        self.hit_updates.add_(len(hits))

    # ------------------------------------------------------------------ codes -> latents

    def latents_after(self, indices: Tensor, size: Size | None = None) -> list[Tensor]:
        """Indices [B, n] -> the sum of codes after each scale, K of [B, C, h, w].

        Args:
            size: (h, w); by default square.

        Raises:
            UserError: if that many indices do not fit.
        """
        height, width = size or self._square_of(indices)
        if self.remap is not None:
            indices = self.unmap_to_all(indices)
        grids = self.split(indices, self.sizes(height, width))
        sums: list[Tensor] = []
        with without_autocast(indices.device):
            for scale, grid in enumerate(grids):
                added = self._upwards(grid, scale, len(grids), (height, width))
                sums.append(sums[-1] + added if sums else added)
        return [one.to(self.codes.dtype) for one in sums]

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Indices [B, n] -> latents [B, C, h, w]; `shape` is (B, h, w, C), by default square."""
        size = None if shape is None else (int(shape[1]), int(shape[2]))
        return self.latents_after(indices, size)[-1]

    def next_scale_inputs(self, indices: Tensor, size: Size | None = None) -> Tensor:
        """What a transformer that predicts scale by scale reads (arXiv 2404.02905, section 3.1).

        Indices [B, n] -> [B, n - n_1, C] for the n_1 positions of the first scale: for each later
        scale the latents of all before it, averaged on its grid, row by row.

        Raises:
            UserError: as `latents_after`.
        """
        size = size or self._square_of(indices)
        grids, sums = self.sizes(*size), self.latents_after(indices, size)
        seen = [area_down(one, grid) for one, grid in zip(sums[:-1], grids[1:], strict=True)]
        empty = sums[0].new_zeros(len(indices), 0, self.e_dim)
        return torch.cat([empty, *(one.flatten(2).transpose(1, 2) for one in seen)], dim=1)
