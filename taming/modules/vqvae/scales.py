"""The scales of a residual pyramid: their sizes, and the convolution that each is smoothed by.

Of the multi-scale tokenizer of VAR (arXiv 2404.02905, section 3.2 and algorithms 1 and 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from taming.errors import UserError
from taming.modules.resizing import Size, resized
from taming.modules.vqvae.codebook import SeveralLevels
from taming.modules.vqvae.convolution import PreciseConv2d

PUBLISHED: dict[int, tuple[int, ...]] = {
    16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    64: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
"""Sides of the scales that VAR has for latents of these sides (256, 512 and 1024 pixels)."""


@runtime_checkable
class SizedLevels(SeveralLevels, Protocol):
    """Levels whose indices [B, n] tell no sides: without any given, those of square codes are
    meant. `get_codebook_entry` takes a shape (B, height, width, e_dim) then."""

    def split_sized(self, indices: Tensor, height: int, width: int, /) -> dict[str, Tensor]:
        """As `split_levels`, of codes [e_dim, height, width]."""


def scales_for(side: int) -> tuple[int, ...]:
    """Sides of the scales of latents `side` x `side`: VAR's own, or ten that grow by a factor,
    less those that are equal when rounded."""
    if side in PUBLISHED:
        return PUBLISHED[side]
    return tuple(sorted({round(side ** (step / 9)) for step in range(10)}))


def checked_scales(scales: Sequence[int]) -> tuple[int, ...]:
    """The sides of scales; raises `UserError` unless they grow from 1 or more."""
    sides = tuple(scales)
    grow = all(a < b for a, b in pairwise(sides))
    if not sides or not all(isinstance(side, int) for side in sides) or sides[0] < 1 or not grow:
        raise UserError(
            f"scales are sides that grow up to that of the latents, such as [1, 2, 4, 8], not "
            f"{list(scales)}"
        )
    return sides


def sizes_on(scales: Sequence[int], height: int, width: int) -> tuple[Size, ...]:
    """The sizes of scales made for latents of side `scales[-1]` on latents `height` x `width`: the
    same shares of both sides; the last is the latents' own."""

    def part(side: int, scale: int) -> int:
        return max(1, math.floor(side * scale / scales[-1] + 0.5))

    return tuple((part(height, scale), part(width, scale)) for scale in scales)


def side_of(scales: Sequence[int], count: int) -> int | None:
    """The side of the square latents that have so many indices in all, if there is one."""
    tried = [scales[-1], *range(1, math.isqrt(count) + 1)]
    totals = {side: sum(h * w for h, w in sizes_on(scales, side, side)) for side in tried}
    return next((side for side, total in totals.items() if total == count), None)


def area_down(z: Tensor, size: Size) -> Tensor:
    """Latents [B, C, h, w] averaged over areas, [B, C, *size]; themselves if that is their size."""
    return z if tuple(z.shape[2:]) == size else resized(z, size, "area")


def bicubic_up(codes: Tensor, size: Size) -> Tensor:
    """Codes [B, C, p, q] as [B, C, *size]; themselves if that is their size."""
    if tuple(codes.shape[2:]) == size:
        return codes
    return resized(codes, size, "bicubic")


class Phi(PreciseConv2d):
    """(1 - q) x + q conv3x3(x): what undoes the blur of interpolation, with q = |`ratio`|."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)
        self.ratio = abs(ratio)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] in fp32 -> the same."""
        return x * (1 - self.ratio) + super().forward(x) * self.ratio


LEAST_RATIO = 1e-6  # below it there is no convolution


def make_phis(shared: int, n_scales: int, channels: int, ratio: float) -> nn.Module:
    """`shared` convolutions for all scales, or one for each with 0; none if `ratio` is nearly 0.

    They have the names that published weights have: `<number>`, `qresi`, `qresi_ls.<number>`.
    """

    def phi() -> nn.Module:
        return Phi(channels, ratio) if abs(ratio) > LEAST_RATIO else nn.Identity()

    if shared == 1:
        return nn.ModuleDict({"qresi": phi()})
    phis = nn.ModuleList(phi() for _ in range(shared or n_scales))
    return nn.ModuleDict({"qresi_ls": phis}) if shared else phis


def phi_numbers(n_phis: int, n_scales: int) -> tuple[int, ...]:
    """For each scale the number of its convolution: the one whose tick is nearest to the scale's
    place in [0, 1].

    Ten scales and four convolutions: 0 0 1 1 1 2 2 3 3 3. Two of these are ties on paper, which
    float64 decides as it did in the published training; other precisions may not.
    """
    edge = 1 / 3 / n_phis if n_phis == 4 else 1 / 2 / n_phis
    ticks = np.linspace(edge, 1 - edge, n_phis)
    places = [scale / max(1, n_scales - 1) for scale in range(n_scales)]
    return tuple(int(np.argmin(np.abs(ticks - place))) for place in places)
