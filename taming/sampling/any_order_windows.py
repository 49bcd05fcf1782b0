"""Samples of models of any order at other sizes than the training's: through windows that show all
that is known in them, wherever it lies.

What is read in which window, and when, is a value (`walks.Walk`); here it is read. Codes stand at
the positions that they would have in an image of training. So an image that is smaller is read as
the upper left part of one, of which the rest is never asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from taming.modules.transformer.decoding import (
    check_length,
    forked_segment,
    path_read,
    segment_at,
)
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.segment import Segment
from taming.modules.transformer.variants import check_layout
from taming.sampling.any_order import orders_of
from taming.sampling.chance import Chance
from taming.sampling.walks import Room, Visit, Walk, Work, passes, walks_of
from taming.sampling.windows import Conditions, Corner, check_condition, windows_in_memory


@torch.inference_mode()
def sample_in_windows(
    weights: Weights,
    conditions: Conditions,
    trained: tuple[int, int],
    chance: Chance,
    *,
    known: Tensor | None = None,
    report: Callable[[Tensor, int], None] = lambda codes, done: None,
) -> Tensor:
    """Codes int64 (B, H * W) by rows, of images of the conditions' layout.

    Args:
        conditions: of (copies * B) sequences, as guidance reads each with its own and without.
        trained: (height, width) in tokens of the images of training.
        known: (B, H, W), -1 where to sample.
        report: called after every pass with all codes, and how many are sampled: of the image that
            has most left, as if all had as many to sample as the one that has most.

    Raises:
        UserError: for conditions that do not fit the image, or that make sequences which the
            transformer is too small for.
    """
    _check(weights, conditions, trained)
    layout, images = conditions.layout, len(chance.streams)
    walks = walks_of(orders_of(chance, known), known, layout, chance.settings)
    codes = conditions.whole.new_zeros(images, chance.length)
    if known is not None:
        codes = known.flatten(1).clamp(min=0)
    room = room_for(weights, conditions, images)
    windows = _Windows(weights, conditions, trained, room)
    parts = {walk.images: _Part.of(walk, chance, room) for walk in walks}
    left = {walk.images: walk.sampled for walk in walks}
    most = max(left.values())
    for work in passes(walks, room):
        for (walk, visit), logits in zip(work, windows.logits(codes, parts, work), strict=True):
            part = parts[walk.images]
            places = _moved(visit.places, codes.device)
            codes[part.images[:, None], places] = part.pick(walk, visit, logits)
            left[walk.images] -= len(visit.places)
        report(codes, most - max(left.values()))
    return codes


def _check(weights: Weights, conditions: Conditions, trained: tuple[int, int]) -> None:
    check_condition(conditions.whole, conditions.layout.shape)
    before = conditions.length_in(trained)
    check_layout(weights.config, before, trained)
    check_length(weights.config.block_size, before + prod(trained) - 1)


def room_for(weights: Weights, conditions: Conditions, images: int) -> Room:
    """What windows of so many images take."""
    rows = len(conditions.whole)
    length = conditions.length + prod(conditions.layout.window) - 1
    return Room(conditions.length, rows // images, max(1, windows_in_memory(weights, rows, length)))


def _moved(numbers: Sequence[int] | np.ndarray, device: torch.device) -> Tensor:
    """Whole numbers on a device, which is not waited for."""
    return torch.as_tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


@dataclass(frozen=True)
class _Part:
    """The images of a walk.

    Attributes:
        images: their numbers in the batch, (b,).
        rows: those of their sequences, (copies * b,).
        chance: what decides of them.
    """

    images: Tensor
    rows: Tensor
    chance: Chance

    @classmethod
    def of(cls, walk: Walk, chance: Chance, room: Room) -> _Part:
        images = _moved(walk.images, chance.device)
        copies = torch.arange(room.copies, device=chance.device)[:, None] * len(chance.streams)
        return cls(images, (copies + images).flatten(), chance.of(walk.images))

    def pick(self, walk: Walk, visit: Visit, logits: Tensor) -> Tensor:
        """Codes (b, k) of what a visit predicts, from logits (copies * b, k, V)."""
        guided = self.chance.guide(logits, visit.before / self.chance.length)
        ranks = _moved(walk.rank.flat[list(visit.places)], logits.device)
        return self.chance.choose(guided, self.chance.uniform[:, ranks])


Parts = dict[tuple[int, ...], _Part]
"""By the numbers of their images, as walks have them."""


class _Windows:
    """Reads windows, and keeps their keys and values as `Visit` says."""

    def __init__(
        self, weights: Weights, conditions: Conditions, trained: tuple[int, int], room: Room
    ) -> None:
        self.weights, self.conditions, self.room = weights, conditions, room
        self.device, layout = weights.device, conditions.layout
        path, n = conditions.path(trained).to(self.device), conditions.length
        self._of_condition, self._of_codes = path[:n], path[n:]  # (n,), (h * w,)
        self._length = room.condition + prod(layout.window) - 1
        self._columns = torch.arange(self._length, device=self.device)
        self._modulations = weights.modulations(conditions.whole[:, 0])
        self._caches: dict[tuple[tuple[int, ...], Corner], Tensor] = {}
        self._free: dict[int, list[Tensor]] = defaultdict(list)  # by their number of sequences

    def logits(self, codes: Tensor, parts: Parts, work: Work) -> list[Tensor]:
        """Logits (copies * b, k, V) of what each of the visits predicts, from one pass.

        Visits with a cache are a segment each; others that read and predict equally many tokens
        share one.
        """
        shared: dict[tuple[int, ...], list[int]] = defaultdict(list)  # numbers of visits
        for number, (_, visit) in enumerate(work):
            alike = (visit.seen, len(visit.places))
            shared[(*alike, number) if visit.keeps else alike].append(number)
        owners = list(shared.values())
        segments = [self._segment(codes, parts, [work[n] for n in same]) for same in owners]
        logits = self.weights.logits(segments)  # (N, V)
        sizes = [len(segment.tokens) * segment.answers for segment in segments]
        found: dict[int, Tensor] = {}
        for segment, own, same in zip(segments, logits.split(sizes), owners, strict=True):
            counts = [len(parts[work[n][0].images].rows) for n in same]
            rows = own.unflatten(0, (-1, segment.answers)).split(counts)
            found.update(zip(same, rows, strict=True))
        for walk, visit in work:
            self._leave(walk, visit)
        return [found[number] for number in range(len(work))]

    def _segment(self, codes: Tensor, parts: Parts, work: Work) -> Segment:
        """Of visits that read and predict equally many tokens; of one alone, if it has a cache."""
        walk, visit = work[0]
        start, stop, count = visit.start, self.room.condition + visit.seen, len(visit.places)
        read = [self._sequence(codes, parts[w.images], w, v) for w, v in work]
        tokens = torch.cat([sequence for sequence, _ in read])[:, start:]  # (N, stop - start)
        path = torch.cat([positions for _, positions in read])  # (N, stop + count)
        cache = self._cache(walk, visit, len(tokens)) if visit.keeps else None
        if count == 1:
            segment = segment_at(tokens, start, self._columns, cache=cache)
        else:
            segment = forked_segment(tokens, start, count, self._columns, cache)
        segment.path = path_read(path, start, stop, count)
        if not segment.starts and self._modulations:
            rows = parts[walk.images].rows
            segment.modulations = [change[rows] for change in self._modulations]
        return segment

    def _sequence(
        self, codes: Tensor, part: _Part, walk: Walk, visit: Visit
    ) -> tuple[Tensor, Tensor]:
        """Tokens (copies * b, T) that a window has read after a visit, and (copies * b, T + k)
        their positions and those of what it predicts."""
        path = walk.path(visit.corner)[: visit.seen]
        places = _moved(walk.layout.outside(visit.corner, path), self.device)
        image = codes[part.images[:, None], places].repeat(self.room.copies, 1)
        tokens = torch.cat((self.conditions.at(visit.corner)[part.rows], image), dim=1)
        targets = walk.layout.inside(visit.corner, visit.places)
        within = _moved(np.concatenate((path, targets)), self.device)
        positions = torch.cat((self._of_condition, self._of_codes[within]))
        return tokens, positions.expand(len(tokens), -1)

    def _cache(self, walk: Walk, visit: Visit, rows: int) -> Tensor:
        key = (walk.images, visit.corner)
        if key not in self._caches:
            free = self._free[rows]
            self._caches[key] = free.pop() if free else self.weights.new_cache(rows, self._length)
        return self._caches[key]

    def _leave(self, walk: Walk, visit: Visit) -> None:
        """A window that is not visited again needs no cache."""
        if visit.last and visit.keeps:
            cache = self._caches.pop((walk.images, visit.corner))
            self._free[cache.shape[2]].append(cache)
