"""In which order a transformer learns to read and predict codes, and what masked training reads.

    raster      row by row
    permuter    in the one order of `permuter_config`
    random      in another order in every step, of each image its own (arXiv 2411.00776), but for
                `raster_share` of the images, which are read row by row
    annealed    likewise without any at first; the share of images that are read row by row then
                rises from 0 to `raster_share`, by default all, between two shares of the run
                (section 3.3 there)

GPTs with `attention: full` have no order: a part of the codes is masked, and these are predicted.
Random numbers are those of torch's global generator, which every step of a run seeds by its place
(`taming.training.noise`), so that resumed runs go on alike; in validation they are of a generator
of their own, so that losses compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from taming.config_values import CountOrZero, Range
from taming.errors import UserError, shorten
from taming.modules.transformer.masked import random_masks
from taming.modules.transformer.orders import random_orders
from taming.run_length import RunLength, percent_or_all

StepOrShareOrAll = Annotated[CountOrZero | Annotated[float, Range(above=0, most=1)], percent_or_all]
OrderKind = Literal["raster", "permuter", "random", "annealed"]
ORDERS = ("raster", "permuter", "random", "annealed")
ANNEALED = (0.5, 0.75)  # of the run, as published
NOT_MASKED = -100  # the target of codes that are read, which cross-entropies leave out


@dataclass(frozen=True)
class ReadingOrder:
    """The options' meanings.

    Attributes:
        order: see the module; by default that of the permuter, if there is one, or else raster.
        anneal: the steps, or shares of the run, between which `order: annealed` becomes raster;
            by default `ANNEALED`. As a float, 1.0 is the whole run, and so is 1 beside a share.
        by_rows: `raster_share`; by default 0 for random, and 1 for annealed.
    """

    order: OrderKind | None = None
    anneal: Sequence[float | str] | None = None
    by_rows: float | None = None

    def __post_init__(self) -> None:
        if self.order not in (None, *ORDERS):
            raise UserError(f"order is one of {', '.join(ORDERS)}, not {shorten(self.order)}")
        first, last = self._bounds
        if _is_share(first) == _is_share(last):  # two shares, or two steps, of whatever run
            self._require_rise(first, last)

    @property
    def _between(self) -> Sequence[float | str]:
        return ANNEALED if self.anneal is None else self.anneal

    @property
    def _bounds(self) -> tuple[float, float]:
        """`_between` in numbers: shares are floats above 0 to 1, and all else are steps."""
        first, last = map(percent_or_all, self._between)
        return first, 1.0 if last == 1 and _is_share(first) else last

    def _require_rise(self, first: float, last: float) -> None:
        if last < first:
            raise UserError(
                f"model.params.anneal is {list(self._between)}; the second must not be before the "
                "first"
            )

    @property
    def any(self) -> bool:
        """Whether codes are read in any order, and not in one."""
        return self.order in ("random", "annealed")

    @property
    def ends_by_rows(self) -> bool:
        """Whether all images are read row by row in the end, when other orders are forgotten."""
        return self.any and self._last_share == 1

    @property
    def _last_share(self) -> float:
        """The share of images that are read row by row in the end."""
        if self.by_rows is None:
            return 1.0 if self.order == "annealed" else 0.0
        return self.by_rows

    def raster_share(self, step: int, run: RunLength) -> float:
        """The share of images that are read row by row in a step, counted from 0.

        Raises:
            UserError: if the run has no end, and the steps are shares of it, or they do not rise.
        """
        if self.order != "annealed":
            return self._last_share
        first, last = (_step_of(bound, run) for bound in self._bounds)
        self._require_rise(first, last)
        done = min(max((step - first) / max(last - first, 1), 0.0), 1.0)
        return done * self._last_share

    def draw(self, codes: Tensor, raster_share: float) -> Tensor:
        """Orders int64 (B, n) of training for `codes` (B, n)."""
        orders = random_orders(len(codes), codes.shape[1], codes.device)
        if self.order != "annealed" and not raster_share:
            return orders
        by_rows = torch.rand(len(codes), 1, device=codes.device) < raster_share
        return torch.where(by_rows, raster(codes), orders)


def _is_share(bound: float) -> bool:
    return isinstance(bound, float) and 0 < bound <= 1


def _step_of(bound: float, run: RunLength) -> int:
    key = "model.params.anneal"
    return run.end(key) if _is_share(bound) and bound == 1 else run.steps_of(bound, key)


def raster(codes: Tensor) -> Tensor:
    """The order by rows (B, n) of `codes` (B, n)."""
    return torch.arange(codes.shape[1], device=codes.device).expand_as(codes)


def fixed_orders(codes: Tensor, seed: int) -> Tensor:
    """Random orders int64 (B, n) of validation, of a batch by its number alone."""
    numbers = torch.rand(codes.shape, generator=torch.Generator().manual_seed(seed))
    return numbers.argsort(1).to(codes.device)


def fixed_masks(codes: Tensor, seed: int) -> Tensor:
    """Masks bool (B, n) of validation, of a batch by its number alone."""
    numbers = torch.Generator().manual_seed(seed)
    return random_masks(len(codes), codes.shape[1], generator=numbers).to(codes.device)


def masked_input(codes: Tensor, masks: Tensor, mask_token: int) -> tuple[Tensor, Tensor]:
    """What is read in the place of `codes` (B, n), and what is to be predicted."""
    return codes.masked_fill(masks, mask_token), codes.masked_fill(~masks, NOT_MASKED)
