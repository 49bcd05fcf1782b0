"""What will be read through windows, step by step, without reading it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from taming.modules.transformer.inference import Weights
from taming.modules.transformer.orders import COSINE
from taming.modules.transformer.own_methods import OwnMethods
from taming.sampling.any_order import orders_of
from taming.sampling.chance import Chance
from taming.sampling.settings import INWARDS, SampleSettings
from taming.sampling.walks import Room, passes, tokens_of, walks_of
from taming.sampling.windows import Corner, Layout, windows_in_memory


class Step(NamedTuple):
    """What the transformer reads of an image in a step: tokens, in windows of so many positions."""

    positions: int
    tokens: float  # of each of the batch's sequences, on average


@dataclass(frozen=True)
class Window:
    """What windows of such `sides` are to the samples `streams` (see `Request.stream`).

    They begin with a `prefix` of so many tokens of the condition, or (None) with a map of it. The
    transformer's `weights` tell how many can be kept in memory.
    """

    prefix: int | None
    sides: tuple[int, int]
    weights: Weights | OwnMethods
    settings: SampleSettings
    streams: Sequence[int]

    @property
    def rows(self) -> int:
        """How many sequences are read."""
        return len(self.streams) * self.copies

    @property
    def copies(self) -> int:
        """How many sequences of each sample are read."""
        return 2 if self.settings.guided else 1

    @property
    def length(self) -> int:
        """The most tokens that are read of one."""
        return self.before(self.sides) + self.sides[0] * self.sides[1] - 1

    def code_by_code(self) -> Window:
        """The same, with one code sampled after the other."""
        return self

    def before(self, sides: tuple[int, int]) -> int:
        """How many tokens of the condition windows of these sides begin with."""
        return sides[0] * sides[1] if self.prefix is None else self.prefix

    def steps(self, layout: Layout, unknown: Sequence[Sequence[bool]]) -> Iterator[Step]:
        """The steps of a `SlidingWindow` that have something to sample.

        Windows that serve one position are read from their start, others, as far as there is room
        for them, go on where they were left.
        """
        limit = windows_in_memory(self.weights, self.rows, self.length)
        n_unmasked, kept = self.weights.n_unmasked, isinstance(self.weights, Weights)
        before, read = self.before(layout.window), dict[Corner, int]()
        for step in layout.steps():
            sampled = [position for position in step if unknown[position[0]][position[1]]]
            tokens = 0
            for row, column in sampled:
                top, left = corner = layout.corner(row, column)
                seen = before + (row - top) * layout.window[1] + column - left
                start = read.get(corner, 0)
                tokens += seen - (start if start >= n_unmasked else 0)
                rows, columns = layout.served(corner)
                again = len(columns) > 1 or (len(rows) > 1 and len(read) < limit)
                if kept and (corner in read or again):
                    read[corner] = seen
            for row, column in step:
                rows, columns = layout.served(corner := layout.corner(row, column))
                if corner in read and (row, column) == (rows[-1], columns[-1]):
                    del read[corner]
            if sampled:
                yield Step(len(sampled), tokens)


class AnyOrderWindow(Window):
    """Of models of any order, whose windows show all that is known."""

    def code_by_code(self) -> AnyOrderWindow:
        """The same, with one code sampled after the other, inwards."""
        settings = replace(self.settings, order=INWARDS, steps=None, step_schedule=COSINE)
        return replace(self, settings=settings)

    def steps(self, layout: Layout, unknown: Sequence[Sequence[bool]]) -> Iterator[Step]:
        """The passes of `sample_in_windows`."""
        images, (height, width), (h, w) = len(self.streams), layout.shape, layout.window
        known = torch.where(torch.tensor(unknown), -1, 0).expand(images, -1, -1)
        given = None if (known < 0).all() else known
        device = torch.device("cpu")
        chance = Chance(self.settings, None, 0, self.streams, length=height * width, device=device)
        before = self.before((h, w))
        kept = max(1, windows_in_memory(self.weights, self.rows, before + h * w - 1))
        room = Room(before, self.copies, kept)
        for work in passes(walks_of(orders_of(chance, given), given, layout, self.settings), room):
            positions = sum(len(visit.places) for _, visit in work)
            yield Step(positions, sum(tokens_of(*pair, room) for pair in work) / self.rows)
