"""Samples of models of any order at other sizes than the training's: through windows that show all
that is known in them, wherever it lies.

What is read in which window, and when, is a value (`walks.Walk`); here it is read. Codes stand at
the positions that they would have in an image of training. So an image that is smaller is read as
the upper left part of one, of which the rest is never asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from math import prod

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


def check_windows(weights: Weights, conditions: Conditions, trained: tuple[int, int]) -> None:
    """Raise `UserError` for conditions that do not fit the image, or that make sequences which the
    transformer is too small for."""
    check_condition(conditions.whole, conditions.layout.shape)
    before = length_in_training(conditions, trained)
    check_layout(weights.config, before, trained)
    check_length(weights.config.block_size, before + prod(trained) - 1)


def length_in_training(conditions: Conditions, trained: tuple[int, int]) -> int:
    """How many tokens a condition of an image of `trained` (height, width) has."""
    return prod(trained) if conditions.whole.dim() == 3 else conditions.length


def room_for(weights: Weights, conditions: Conditions, images: int) -> Room:
    """What windows of so many images take."""
    rows = len(conditions.whole)
    length = conditions.length + prod(conditions.layout.window) - 1
    return Room(conditions.length, rows // images, max(1, windows_in_memory(weights, rows, length)))


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
        UserError: see `check_windows`.
    """
    check_windows(weights, conditions, trained)
    layout, images = conditions.layout, len(chance.streams)
    walks = walks_of(orders_of(chance, known), known, layout, chance.settings)
    codes = conditions.whole.new_zeros(images, chance.length)
    if known is not None:
        codes = known.flatten(1).clamp(min=0)
    room = room_for(weights, conditions, images)
    windows = _Windows(weights, conditions, trained, room)
    chances = {walk.images: chance.of(walk.images) for walk in walks}
    left = {walk.images: walk.sampled for walk in walks}
    most = max(left.values())
    for work in passes(walks, room):
        for (walk, visit), logits in zip(work, windows.logits(codes, work), strict=True):
            own = chances[walk.images]
            guided = own.guide(logits, visit.before / chance.length)
            ranks = walk.rank.flat[list(visit.places)]
            new = own.choose(guided, own.uniform[:, ranks.tolist()])  # (B', k)
            rows = torch.tensor(walk.images, device=codes.device)[:, None]
            codes[rows, torch.tensor(visit.places, device=codes.device)] = new
            left[walk.images] -= len(visit.places)
        report(codes, most - max(left.values()))
    return codes


class _Windows:
    """Reads windows, and keeps their keys and values as `Visit` says."""

    def __init__(
        self, weights: Weights, conditions: Conditions, trained: tuple[int, int], room: Room
    ) -> None:
        self.weights, self.conditions, self.room = weights, conditions, room
        device, layout = weights.device, conditions.layout
        before = length_in_training(conditions, trained)
        self._of_condition = conditions.positions(trained).to(device)  # (n,)
        self._of_codes = (before + layout.positions(trained)).to(device)  # (h * w,)
        self._length = room.condition + prod(layout.window) - 1
        self._columns = torch.arange(self._length, device=device)
        self._modulations = weights.modulations(conditions.whole[:, 0])
        self._caches: dict[tuple[tuple[int, ...], Corner], Tensor] = {}
        self._free: dict[int, list[Tensor]] = defaultdict(list)  # by their number of sequences

    def logits(self, codes: Tensor, work: Work) -> list[Tensor]:
        """Logits (copies * B', k, V) of what each of the visits predicts, from one pass.

        Visits with a cache are a segment each; others that read and predict equally many tokens
        share one.
        """
        segments: list[Segment] = []
        owners: list[list[int]] = []  # whose logits those of each segment are
        fresh: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, (walk, visit) in enumerate(work):
            if visit.keeps:
                segments.append(self._segment(codes, [(walk, visit)], self._cache(walk, visit)))
                owners.append([number])
            else:
                fresh[visit.seen, len(visit.places)].append(number)
        for same in fresh.values():
            segments.append(self._segment(codes, [work[number] for number in same]))
            owners.append(same)
        logits = self._shared_out(self.weights.logits(segments), segments, owners, work)
        for walk, visit in work:
            self._leave(walk, visit)
        return logits

    def _shared_out(
        self, logits: Tensor, segments: list[Segment], owners: list[list[int]], work: Work
    ) -> list[Tensor]:
        """By visit, (copies * B', k, V), of the logits (N, V) of segments and their owners."""
        sizes = [len(segment.tokens) * segment.answers for segment in segments]
        found: dict[int, Tensor] = {}
        for segment, part, same in zip(segments, logits.split(sizes), owners, strict=True):
            rows = part.unflatten(0, (-1, segment.answers))
            counts = [len(self._rows(work[number][0])) for number in same]
            found.update(zip(same, rows.split(counts), strict=True))
        return [found[number] for number in range(len(work))]

    def _segment(self, codes: Tensor, work: Work, cache: Tensor | None = None) -> Segment:
        """Of visits that read and predict equally many tokens."""
        _, visit = work[0]
        start, stop, count = visit.start, self.room.condition + visit.seen, len(visit.places)
        read = [self._sequence(codes, walk, each) for walk, each in work]
        tokens = torch.cat([sequence for sequence, _ in read])[:, start:]  # (N, stop - start)
        path = torch.cat([positions for _, positions in read])  # (N, stop + count)
        if count == 1:
            segment = segment_at(tokens, start, self._columns, cache=cache)
        else:
            segment = forked_segment(tokens, start, count, self._columns, cache)
        segment.path = path_read(path, start, stop, count)
        if not segment.starts and self._modulations:
            rows = [row for walk, _ in work for row in self._rows(walk)]
            segment.modulations = [change[rows] for change in self._modulations]
        return segment

    def _sequence(self, codes: Tensor, walk: Walk, visit: Visit) -> tuple[Tensor, Tensor]:
        """Tokens (copies * B', T) that a window has read after a visit, and (copies * B', T + k)
        their positions and those of what it predicts."""
        device, rows = codes.device, self._rows(walk)
        path = walk.path(visit.corner)[: visit.seen]
        places = torch.from_numpy(walk.places_of(visit.corner, path)).to(device)
        image = codes[list(walk.images)][:, places].repeat(self.room.copies, 1)
        tokens = torch.cat((self.conditions.at(visit.corner)[rows], image), dim=1)
        local = [*path.tolist(), *walk.in_window(visit.corner, visit.places)]
        positions = torch.cat((self._of_condition, self._of_codes[local]))
        return tokens, positions.expand(len(rows), -1)

    def _rows(self, walk: Walk) -> list[int]:
        """Of the sequences of all copies."""
        images = len(self.conditions.whole) // self.room.copies
        return [n * images + image for n in range(self.room.copies) for image in walk.images]

    def _cache(self, walk: Walk, visit: Visit) -> Tensor:
        key, rows = (walk.images, visit.corner), len(self._rows(walk))
        if key not in self._caches:
            free = self._free[rows]
            self._caches[key] = free.pop() if free else self.weights.new_cache(rows, self._length)
        return self._caches[key]

    def _leave(self, walk: Walk, visit: Visit) -> None:
        """A window that is not visited again needs no cache."""
        if visit.last and visit.keeps:
            cache = self._caches.pop((walk.images, visit.corner))
            self._free[cache.shape[2]].append(cache)
