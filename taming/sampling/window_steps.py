"""What a `SlidingWindow` will read, step by step, without reading it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from taming.modules.transformer.inference import Weights
from taming.modules.transformer.own_methods import OwnMethods
from taming.sampling.sliding_window import Corner, Layout, windows_in_memory


class Step(NamedTuple):
    """What the transformer reads of an image in a step: tokens, in windows of so many positions."""

    positions: int
    tokens: int


@dataclass(frozen=True)
class Window:
    """What windows of such `sides` are to `rows` sequences, after `before` tokens of the condition.

    The transformer's `weights` tell how many can be kept in memory.
    """

    before: int
    sides: tuple[int, int]
    weights: Weights | OwnMethods
    rows: int

    @property
    def length(self) -> int:
        """The most tokens that are read of one."""
        return self.before + self.sides[0] * self.sides[1] - 1

    def steps(self, layout: Layout, unknown: Sequence[Sequence[bool]]) -> Iterator[Step]:
        """The steps of a `SlidingWindow` that have something to sample.

        Windows that serve one position are read from their start, others, as far as there is room
        for them, go on where they were left.
        """
        limit = windows_in_memory(self.weights, self.rows, self.length)
        n_unmasked, kept = self.weights.n_unmasked, isinstance(self.weights, Weights)
        read: dict[Corner, int] = {}
        for step in layout.steps():
            sampled = [position for position in step if unknown[position[0]][position[1]]]
            tokens = 0
            for row, column in sampled:
                top, left = corner = layout.corner(row, column)
                seen = self.before + (row - top) * layout.window[1] + column - left
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
