"""Windows on images of another size than the transformer's: where they lie, what they show of a
condition, and how many of them are kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taming.errors import UserError
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.own_methods import OwnMethods

# Windows that only later rows use again keep their keys and values while all of them fit into it.
CACHE_BYTES = 4 * 2**30

Corner = tuple[int, int]
Position = tuple[int, int]  # (row, column)
Box = tuple[float, float, float, float]
"""(x0, y0, width, height) as shares of the image."""


@dataclass(frozen=True)
class Layout:
    """Windows of (h, w) tokens on a grid of (H, W), no smaller than they are.

    A window is centered on its position, which is then at (h // 2, w // 2) of it, as far as the
    grid's borders let it.
    """

    shape: tuple[int, int]
    window: tuple[int, int]

    def corner(self, row: int, column: int) -> Corner:
        """Upper left corner of the window of a position."""
        (height, width), (h, w) = self.shape, self.window
        return min(max(row - h // 2, 0), height - h), min(max(column - w // 2, 0), width - w)

    def corner_of(self, place: int) -> Corner:
        """The same of a place of the image by rows."""
        return self.corner(*divmod(place, self.shape[1]))

    def inside(self, corner: Corner, places: Sequence[int]) -> list[int]:
        """Places of the image, by rows, as those of the window at `corner`, by rows of it."""
        (top, left), (_, width), (_, w) = corner, self.shape, self.window
        return [(place // width - top) * w + place % width - left for place in places]

    def outside(self, corner: Corner, places: np.ndarray) -> np.ndarray:
        """Places of the window at `corner`, by rows of it, as those of the image."""
        (top, left), (_, width), (_, w) = corner, self.shape, self.window
        of_image: np.ndarray = (top + places // w) * width + left + places % w
        return of_image

    @classmethod
    def of(cls, shape: tuple[int, int], sides: tuple[int, int]) -> Layout:
        """Windows of these sides, or smaller ones where the grid of `shape` is."""
        return cls(shape, (min(sides[0], shape[0]), min(sides[1], shape[1])))

    def positions(self, trained: tuple[int, int]) -> Tensor:
        """Where the places (h * w,) of a window stand in images of training, (height, width).

        A window is smaller only where the whole image is, which then is at the upper left corner.
        """
        h, w = self.window
        return (torch.arange(h)[:, None] * trained[1] + torch.arange(w)).flatten()

    def served(self, corner: Corner) -> tuple[range, range]:
        """Rows and columns of the positions whose window is at `corner`."""
        # Inner corners serve the one position at their center; those at a border all towards it.
        rows, columns = (
            range(
                0 if at == 0 else at + window // 2,
                side if at == side - window else at + window // 2 + 1,
            )
            for at, side, window in zip(corner, self.shape, self.window, strict=True)
        )
        return rows, columns

    def steps(self) -> Iterator[list[Position]]:
        """Positions that can be sampled together, when all that they see has been sampled.

        In the rows above, a window reaches less than its width beyond its position: each row
        follows the one above it a window's width behind. At time t, row r is at column t - r * lag;
        with lag 4 on a grid of 3 x 8, time 9 has (0, 9) off the grid, (1, 5) and (2, 1).
        """
        (height, width), lag = self.shape, self.window[1]
        for time in range((height - 1) * lag + width):
            first = max(0, -(-(time - width + 1) // lag))  # rounded up: rows above are complete
            last = min(height - 1, time // lag)
            yield [(row, time - row * lag) for row in range(first, last + 1)]

    def order(self) -> list[int]:
        """The places of all positions, counted by rows, in the order of `steps`."""
        width = self.shape[1]
        return [row * width + column for step in self.steps() for row, column in step]


def windows_in_memory(weights: Weights | OwnMethods, rows: int, length: int) -> int:
    """How many windows of `rows` sequences may keep their keys and values: see `CACHE_BYTES`."""
    if isinstance(weights, OwnMethods):
        return 0
    size = rows * length * weights.config.n_embd * weights.dtype.itemsize
    return CACHE_BYTES // (2 * len(weights.layers) * size)


@dataclass(frozen=True)
class Conditions:
    """What windows show of the conditions of images.

    Attributes:
        whole: int64 [B, H, W], of which a window shows its part, or a prefix [B, n], which all do.
        within: the prefixes for a part of the image, if they are not the same for all parts.
    """

    whole: Tensor
    layout: Layout
    within: Callable[[Box], Tensor] | None = None

    @property
    def length(self) -> int:
        """How many tokens every window shows."""
        h, w = self.layout.window
        return h * w if self.whole.dim() == 3 else self.whole.shape[1]

    def length_in(self, shape: tuple[int, int]) -> int:
        """How many tokens a condition of an image of `shape` (height, width) has."""
        return shape[0] * shape[1] if self.whole.dim() == 3 else self.length

    def at(self, corner: Corner) -> Tensor:
        """Tokens (B, n) in the window there."""
        (top, left), (h, w), (height, width) = corner, self.layout.window, self.layout.shape
        if self.within is not None:
            return self.within((left / width, top / height, w / width, h / height))
        if self.whole.dim() == 3:
            return self.whole[:, top : top + h, left : left + w].flatten(1)
        return self.whole

    def positions(self, trained: tuple[int, int]) -> Tensor:
        """Where the tokens (n,) stand in sequences of images of training, (height, width)."""
        if self.whole.dim() == 3:
            return self.layout.positions(trained)
        return torch.arange(self.length)

    def path(self, trained: tuple[int, int]) -> Tensor:
        """The same (n + h * w,) of a window's condition and of its codes, by rows."""
        codes = self.length_in(trained) + self.layout.positions(trained)
        return torch.cat((self.positions(trained), codes))


def check_condition(cond: Tensor, shape: tuple[int, int]) -> None:
    """Raise `UserError` if a condition is no map [B, H, W] of an image's `shape`, nor a prefix."""
    if cond.dim() not in (2, 3) or (cond.dim() == 3 and tuple(cond.shape[1:]) != tuple(shape)):
        raise UserError(
            f"the condition has shape {list(cond.shape)}; for an image of {shape[0]} x {shape[1]} "
            f"tokens it must be a map [B, {shape[0]}, {shape[1]}] or a prefix [B, n]"
        )
    if not cond[0].numel():
        raise UserError("the condition is empty; without one, pass None")


def check_tokens(size: int | None, cond: Tensor | Sequence[int]) -> None:
    """Raise `UserError` if a vocabulary of this size, if it is known, lacks a condition's tokens.

    Call it before a condition is moved to a GPU, which it would wait for.
    """
    low, high = _extremes(cond)
    if size is not None and not 0 <= low <= high < size:
        raise UserError(
            f"the condition has tokens from {low} to {high}, but the transformer's "
            f"vocabulary counts from 0 to {size - 1}"
        )


def _extremes(tokens: Tensor | Sequence[int]) -> tuple[int, int]:
    if isinstance(tokens, Tensor):
        return (int(tokens.min()), int(tokens.max())) if tokens.numel() else (0, 0)
    return min(tokens, default=0), max(tokens, default=0)
