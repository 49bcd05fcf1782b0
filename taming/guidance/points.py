"""Where an image is while it is optimized: latents near codes, or logits of all codes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.guidance.code_grids import CodeGrids, Rows
from taming.modules.vqvae.codebook import nearest_code, straight_through

STRAIGHT_THROUGH, GUMBEL, SOFT = "straight-through", "gumbel", "soft"
RELAXATIONS = (STRAIGHT_THROUGH, GUMBEL, SOFT)


class Point:
    """What is optimized, as offsets from the start, so that weight decay leads back to it.

    Rows where `free` is False stay as they are. Subclasses say what rows are.
    """

    def __init__(
        self, grids: CodeGrids, start: Rows, free: Sequence[Tensor] | None, decay: float
    ) -> None:
        self.grids, self.start, self.decay = grids, start, decay
        self.offsets = [nn.Parameter(torch.zeros_like(rows)) for rows in start]
        self.averages = [torch.zeros_like(rows) for rows in start]
        self._fixed = None if free is None else [~marks[:, None] for marks in free]
        self._steps = 0

    def codes(self, noise: torch.Generator | None = None) -> Rows:
        """The codes [h * w, c] of every grid, with gradients; `noise` is what samples them."""
        return self.codes_of(self._values(self.offsets), noise)

    def codes_of(self, values: Rows, noise: torch.Generator | None) -> Rows:
        raise NotImplementedError

    def indices_of(self, values: Rows) -> list[Tensor]:
        """The code of each position, int64 [h * w]."""
        raise NotImplementedError

    def final_codes(self, values: Rows) -> Rows:
        """The codes to decode at the end: without the rounding of gradients' detours, or noise."""
        return self.grids.look_up(self.indices_of(values))

    def from_start(self) -> Tensor:
        """Mean squared distance of the start, as `--init_weight` weighs it."""
        parts = [offset.square().flatten() for offset in self.offsets]
        return torch.cat(parts).mean()

    def _values(self, offsets: Sequence[Tensor]) -> Rows:
        return [start + offset for start, offset in zip(self.start, offsets, strict=True)]

    def hold(self) -> None:
        """Between the backward pass and the optimizer's step: no gradient where rows are fixed."""
        for offset, fixed in zip(self.offsets, self._fixed or (), strict=False):
            if offset.grad is not None:
                offset.grad.masked_fill_(fixed, 0.0)

    @torch.no_grad()
    def settle(self) -> None:
        """After the optimizer's step: back within the range of codes, and into the average."""
        self._steps += 1
        for number, offset in enumerate(self.offsets):
            self._limit(number, offset)
            self.averages[number].lerp_(offset, 1 - self.decay)

    def _limit(self, number: int, offset: Tensor) -> None:
        """Leave an offset within what its values may be."""

    def result(self) -> Rows:
        """The values to decode at the end: those of the last steps, averaged if there is a decay.

        The average starts at 0, and is divided by the weights that it has had so far.
        """
        if not self.decay or not self._steps:
            return self._values([offset.detach() for offset in self.offsets])
        share = 1 - self.decay**self._steps
        return self._values([average / share for average in self.averages])


class Latents(Point):
    """A latent for each position, [h * w, c], kept within the codebook's range per channel.

    What is decoded are the nearest codes, with the latents' gradient (straight-through,
    arXiv 1711.00937), or the latents themselves if not `quantized`.
    """

    def __init__(
        self,
        grids: CodeGrids,
        indices: Sequence[Tensor],
        free: Sequence[Tensor] | None,
        decay: float = 0.0,
        *,
        quantized: bool = True,
    ) -> None:
        super().__init__(grids, grids.look_up(indices), free, decay)
        self.quantized = quantized
        self._ranges = [table.aminmax(dim=0) for table in grids.tables]

    def codes_of(self, values: Rows, noise: torch.Generator | None) -> Rows:
        if not self.quantized:
            return values
        codes = self.grids.look_up(self.indices_of(values))
        return [straight_through(z, z_q) for z, z_q in zip(values, codes, strict=True)]

    def final_codes(self, values: Rows) -> Rows:
        return super().final_codes(values) if self.quantized else values

    def indices_of(self, values: Rows) -> list[Tensor]:
        tables = self.grids.tables
        return [nearest_code(z.detach(), t) for z, t in zip(values, tables, strict=True)]

    def _limit(self, number: int, offset: Tensor) -> None:
        low, high = self._ranges[number]
        start = self.start[number]
        offset.copy_((start + offset).clamp(low, high).sub_(start))


class Logits(Point):
    """A logit for each code at each position, [h * w, K].

    What is decoded is the likeliest code with the gradient of the softmax ("straight-through"), a
    code that is sampled with the gradient of the Gumbel-softmax ("gumbel", arXiv 1611.01144), or
    the codes mixed by their probabilities ("soft"). The start's codes have probability 1/2.
    """

    def __init__(
        self,
        grids: CodeGrids,
        indices: Sequence[Tensor],
        free: Sequence[Tensor] | None,
        decay: float = 0.0,
        *,
        relaxation: str = STRAIGHT_THROUGH,
        temperature: float = 1.0,
    ) -> None:
        start = [
            # e^x / (e^x + K - 1) = 1/2 for x = log(K - 1)
            F.one_hot(i, len(table)).to(table) * math.log(max(len(table) - 1, 2))
            for i, table in zip(indices, grids.tables, strict=True)
        ]
        super().__init__(grids, start, free, decay)
        self.relaxation, self.temperature = relaxation, temperature

    def codes_of(self, values: Rows, noise: torch.Generator | None) -> Rows:
        return [
            self._weights(logits, noise) @ table
            for logits, table in zip(values, self.grids.tables, strict=True)
        ]

    def _weights(self, logits: Tensor, noise: torch.Generator | None) -> Tensor:
        """How much of each code is at each position: [h * w, K], rows that sum to 1."""
        if self.relaxation == GUMBEL and noise is not None:
            # -log(-log u) for u in (0, 1); u is 0 once in 2^24 numbers, and never 1
            u = torch.rand(logits.shape, generator=noise, device=logits.device)
            logits = logits - u.clamp_min(2**-25).log().neg().log()
        soft = (logits / self.temperature).softmax(dim=1)
        if self.relaxation == SOFT:
            return soft
        hard = F.one_hot(soft.argmax(dim=1), soft.shape[1]).to(soft)
        return straight_through(soft, hard)

    def final_codes(self, values: Rows) -> Rows:
        soft = self.relaxation == SOFT
        return self.codes_of(values, None) if soft else super().final_codes(values)

    def indices_of(self, values: Rows) -> list[Tensor]:
        return [logits.argmax(dim=1) for logits in values]
