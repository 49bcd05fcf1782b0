"""Images of another size than the training's, of models that fill in masked codes.

Every step predicts all masked codes of the image, each from a window as large as an image of
training, of which it is near the middle as far as the image's borders let it. Windows are half
their sides apart, and one lies at each border, so that a step reads few of them. An example: those
of 4 on a row of 7 begin at 0, 2 and 3, and serve these places:

    window   0 to 3   2 to 5   3 to 6
    places   0 1 2 3    4       5 6

An image that is smaller is the upper left part of one of training, of which the rest is masked and
never asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from taming.modules.transformer.decoding import check_length
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.segment import Segment
from taming.modules.transformer.variants import check_layout
from taming.sampling.any_order import fill_in_masked
from taming.sampling.chance import Chance
from taming.sampling.windows import Conditions, Corner, Layout, check_condition

MOST_READ = 2**13  # tokens of a pass, each of which gives logits of the whole vocabulary


def corner_near(at: int, last: int, side: int) -> int:
    """Of the windows of a side, the beginning next to `at`; the last one is at `last`."""
    beginnings = [*range(0, last, max(1, side // 2)), last]
    nearest: int = min(beginnings, key=lambda one: (abs(one - at), one))
    return nearest


def corner_of(layout: Layout, place: int) -> Corner:
    """Of the window that predicts a place, by rows of the image."""
    (height, width), (h, w), (top, left) = layout.shape, layout.window, layout.corner_of(place)
    return corner_near(top, height - h, h), corner_near(left, width - w, w)


@dataclass(frozen=True)
class MaskedWindows:
    """Predicts the masked codes of images of the conditions' layout.

    Args:
        conditions: of (copies * B) sequences.
        trained: (height, width) in tokens of the images of training.

    Raises:
        UserError: for conditions that do not fit the image or the transformer.
    """

    weights: Weights
    conditions: Conditions
    trained: tuple[int, int]
    mask_token: int

    def __post_init__(self) -> None:
        conditions, before = self.conditions, self.conditions.length_in(self.trained)
        check_condition(conditions.whole, conditions.layout.shape)
        check_layout(self.weights.config, before, self.trained)
        check_length(self.weights.config.block_size, before + prod(self.trained))

    @cached_property
    def _path(self) -> Tensor:
        """Where the tokens of a window stand in an image of training, (n + length,)."""
        first = self.conditions.length_in(self.trained)
        codes = torch.arange(first, first + prod(self.trained))
        path = torch.cat((self.conditions.positions(self.trained), codes))
        return path.to(self.weights.device)

    @cached_property
    def _within(self) -> Tensor:
        """Which of a window's codes are the image's, (h * w,)."""
        return self.conditions.layout.positions(self.trained).to(self.weights.device)

    def fill_in(
        self, known: Tensor | None, chance: Chance, report: Callable[[Tensor, int], None]
    ) -> Tensor:
        """Codes (B, H * W); `known` (B, H, W) is -1 where to sample. See `fill_in_masked`."""
        return fill_in_masked(
            self.weights,
            self.conditions.whole,
            None if known is None else known.flatten(1),
            chance,
            mask_token=self.mask_token,
            report=report,
            read=self.logits,
        )

    def logits(self, codes: Tensor) -> Tensor:
        """Float32 logits (copies * B, H * W, V) of `codes` (copies * B, H * W), where they are
        masked in any of the images; zeros elsewhere."""
        masked = (codes == self.mask_token).any(0).nonzero()[:, 0].tolist()
        served: dict[Corner, list[int]] = defaultdict(list)
        for place in masked:
            served[corner_of(self.conditions.layout, place)].append(place)
        logits = torch.zeros(*codes.shape, self.weights.config.vocab_size, device=codes.device)
        corners, size = list(served), len(codes) * len(self._path)
        count = max(1, MOST_READ // size)
        for start in range(0, len(corners), count):
            some = corners[start : start + count]
            for corner, found in zip(some, self._read(codes, some), strict=True):
                places = served[corner]
                within = self._within[self.conditions.layout.inside(corner, places)]
                logits[:, places] = found[:, within]
        return logits

    def _read(self, codes: Tensor, corners: Sequence[Corner]) -> list[Tensor]:
        """Logits (copies * B, length, V) of all codes of each of the windows, from one pass."""
        (height, width), (h, w) = self.conditions.layout.shape, self.conditions.layout.window
        grid, sequences = codes.view(-1, height, width), list[Tensor]()
        for top, left in corners:
            window = codes.new_full((len(codes), prod(self.trained)), self.mask_token)
            window[:, self._within] = grid[:, top : top + h, left : left + w].flatten(1)
            sequences.append(torch.cat((self.conditions.at((top, left)), window), dim=1))
        tokens = torch.cat(sequences)  # (k * copies * B, n + length)
        path = self._path.expand_as(tokens)
        length = tokens.shape[1]
        segment = Segment(tokens, slice(0, length), length, answers=prod(self.trained))
        segment.path = path, path
        logits = self.weights.logits([segment]).view(len(tokens), segment.answers, -1)
        return list(logits.split(len(codes)))
