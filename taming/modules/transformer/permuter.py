"""Orders in which the transformer reads and writes the latent's positions (paper, section 4.4 and
its figure on autoregressive orderings).

`forward_shuffle_idx[i]` is the raster position that comes i-th; `backward_shuffle_idx` is its
inverse: `backward_shuffle_idx[p]` says when position p comes. Every order exists for every height
and width. For 2 rows of 3 positions, `AlternateParsing` walks

    0 1 2                                forward_shuffle_idx   [0, 1, 2, 5, 4, 3]
    3 4 5, the second row backwards      backward_shuffle_idx  [0, 1, 2, 5, 4, 3], its own inverse

and `SpiralIn`, from the lower right corner up, then left and down,

    3 2 1    the numbers of the steps    forward_shuffle_idx   [5, 2, 1, 0, 3, 4]
    4 5 0                                backward_shuffle_idx  [3, 2, 1, 4, 5, 0]
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from taming.config_values import Range
from taming.errors import UserError
from taming.limits import check_sizes

Index = TypeVar("Index", int, Tensor)
_MOST_SIDE = 2**12
Side = Annotated[int, Range(1, _MOST_SIDE)]


class AbstractPermuter(nn.Module):
    """Reorders sequences of latent indices; an order of your own inherits from it or `Permuter`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, x: Tensor, reverse: bool = False) -> Tensor:
        """Put `x` (B, H * W, ...) into this order, or with `reverse` back into raster order."""
        raise NotImplementedError


class Permuter(AbstractPermuter):
    """Reorders by a fixed permutation; a class for every order."""

    forward_shuffle_idx: Tensor
    backward_shuffle_idx: Tensor

    def __init__(self, H: Side, W: Side) -> None:
        super().__init__()
        check_sizes(most=_MOST_SIDE, H=H, W=W)
        order = self._order(H, W)
        self.register_buffer("forward_shuffle_idx", order)
        self.register_buffer("backward_shuffle_idx", order.argsort())

    def _order(self, height: int, width: int) -> Tensor:
        """Raster positions in the order in which they are visited: int64 `(height * width,)`."""
        raise NotImplementedError

    def forward(self, x: Tensor, reverse: bool = False) -> Tensor:
        order = self.backward_shuffle_idx if reverse else self.forward_shuffle_idx
        if x.shape[1] != len(order):
            raise UserError(
                f"the {type(self).__name__} permuter orders {len(order)} positions, but the latent "
                f"has {x.shape[1]}: set H and W under permuter_config to the latent's size"
            )
        return x[:, order]


class Identity(AbstractPermuter):
    """Raster order: left to right, top to bottom."""

    def forward(self, x: Tensor, reverse: bool = False) -> Tensor:
        return x


def _grid(height: int, width: int) -> Tensor:
    return torch.arange(height * width).view(height, width)


def mortonify(i: Index, j: Index) -> Index:
    """The place of row `i` and column `j`, below 2**31, along a Z-shaped curve: their bits in turn.

    Row 2 = 0b10 and column 3 = 0b11 have the place 0b1101.
    """
    place = i * 0
    for bit in range(31):
        place = place | (i >> bit & 1) << (2 * bit + 1) | (j >> bit & 1) << (2 * bit)
    return place


def _sorted_by_lowest_bits(height: int, width: int) -> Tensor:
    """Positions sorted by the bits of (row, column), of which the lowest counts most.

    Each bit adds a digit in base 4 to a position's key, 2 * (row's bit) + (column's bit): row 2 =
    0b10 and column 3 = 0b11 have the key 7, the digits 1, 3.
    """
    row = torch.arange(height)[:, None]
    column = torch.arange(width)
    key = torch.zeros(height, width, dtype=torch.int64)
    for bit in range((max(height, width) - 1).bit_length()):  # 0, 1, 2 for sides of 5 to 8
        key = key * 4 + 2 * (row >> bit & 1) + (column >> bit & 1)
    return key.flatten().argsort()


class Subsample(Permuter):
    """Coarse to fine: every fourth position first, themselves ordered coarse to fine."""

    def _order(self, height: int, width: int) -> Tensor:
        return _sorted_by_lowest_bits(height, width)


class ZCurve(Permuter):
    """Morton order: quadrant by quadrant, each of them quadrant by quadrant."""

    def _order(self, height: int, width: int) -> Tensor:
        key = mortonify(torch.arange(height)[:, None], torch.arange(width))
        return key.flatten().argsort()


class SpiralIn(Permuter):
    """From the lower right corner up and counter-clockwise around to the middle."""

    def _order(self, height: int, width: int) -> Tensor:
        rest, sides = _grid(height, width), []
        while rest.numel():
            sides.append(rest[:, -1].flip(0))
            # A clockwise turn makes the top row the next right-hand column, its end at the bottom.
            rest = rest[:, :-1].rot90(-1)
        return torch.cat(sides)


class SpiralOut(SpiralIn):
    """From the middle outwards: `SpiralIn` backwards."""

    def _order(self, height: int, width: int) -> Tensor:
        return super()._order(height, width).flip(0)


class Random(Permuter):
    """One fixed random order, the same for every model of this size."""

    def _order(self, height: int, width: int) -> Tensor:
        # Published models were trained with this generator and seed; torch's would differ.
        return torch.from_numpy(np.random.RandomState(1).permutation(height * width)).long()


class AlternateParsing(Permuter):
    """Row by row, every second one from right to left."""

    def _order(self, height: int, width: int) -> Tensor:
        order = _grid(height, width)
        order[1::2] = order[1::2].flip(1)
        return order.flatten()
