"""In which order images of another size are sampled by models of any order, and what each window
has read by then: all of it is decided before anything is computed.

A place is predicted from a window around it (`windows.Layout`): from all that is known there,
wherever it lies, and all that was sampled there before. An example without a condition, windows of
3 x 3 on a row of 5 whose ends are kept, sampled inwards: places 0 and 4, then 1, 3 and 2.

    place   window   reads    predicts
    1       0 to 2   0        1
    3       2 to 4   4        3
    2       1 to 3   1 3      2

1 and 3 do not see each other, so that one pass predicts both, and the next one 2.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise, zip_longest

import numpy as np
from torch import Tensor

from taming.modules.transformer.orders import left_after, sizes_of
from taming.sampling.settings import SampleSettings
from taming.sampling.windows import Corner, Layout

# Tokens of a pass, so that what a pass computes fits into memory; of a single window maybe more.
MOST_READ = 2**15


@dataclass(frozen=True)
class Visit:
    """A window is read on, and then predicts places.

    Attributes:
        corner: of the window.
        seen: how many of its codes are read, the first ones of its path (`Walk.path`).
        start: so many tokens, with the condition's before the codes, have been read already.
        places: what it predicts, of the image by rows, each as if it came next.
        before: how many of the whole image's codes come before these places.
        keeps: whether keys and values are kept for the window's next visit, which `last` has not.
    """

    corner: Corner
    seen: int
    start: int
    places: tuple[int, ...]
    before: int
    keeps: bool
    last: bool


@dataclass(frozen=True)
class Room:
    """What windows take: `condition` tokens before the codes, of `copies` sequences an image; and
    how many windows of all images may keep their keys and values."""

    condition: int
    copies: int
    kept: int


@dataclass(frozen=True)
class Walk:
    """The same way through several images of a batch.

    Attributes:
        images: their numbers in the batch.
        order: all places by rows, in the order in which they are read; what is known comes first.
        sizes: how many of them each step samples. Places of a step do not see each other.
    """

    layout: Layout
    images: tuple[int, ...]
    order: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def sampled(self) -> int:
        """How many places are sampled."""
        return sum(self.sizes)

    @cached_property
    def rank(self) -> np.ndarray:
        """When each place comes: (H, W)."""
        rank = np.empty(len(self.order), np.int64)
        rank[list(self.order)] = np.arange(len(self.order))
        return rank.reshape(self.layout.shape)

    def path(self, corner: Corner) -> np.ndarray:
        """The places (h * w,) of a window, by rows of the window, in the order of reading."""
        path: np.ndarray = self._within(self.rank, corner).flatten().argsort()
        return path

    def visits(self, room: Room) -> Iterator[list[Visit]]:
        """What can be predicted at once, after what comes before it; each window at most once."""
        windows = _WindowsOfWalk(self, room)
        for ready in self._ready():
            together: dict[Corner, list[int]] = defaultdict(list)
            for place in ready:
                together[self.layout.corner_of(place)].append(place)
            yield windows.visits(together)

    def before(self, place: int) -> int:
        """How many codes of the image come before the step that samples a place."""
        return int(self._before[place])

    def seen(self, corner: Corner, before: int) -> int:
        """How many codes of a window are among so many first ones of the image."""
        return int((self._within(self.rank, corner) < before).sum())

    def _ready(self) -> list[list[int]]:
        """The sampled places by when they can be: once all before them in their windows are there.

        Each list is in the walk's order.
        """
        when = np.zeros(self.layout.shape, np.int64)  # 0: known, or not reached yet
        ready: list[list[int]] = []
        for first, last in self._steps:
            places = self.order[first:last]
            times = [
                int(self._within(when, self.layout.corner_of(place)).max()) + 1 for place in places
            ]
            for place, time in zip(places, times, strict=True):
                when[divmod(place, self.layout.shape[1])] = time
                ready.extend([] for _ in range(time - len(ready)))
                ready[time - 1].append(place)
        return ready

    @cached_property
    def _steps(self) -> list[tuple[int, int]]:
        """From where to where in the order each step goes."""
        ends = list(accumulate(self.sizes, initial=len(self.order) - self.sampled))
        return list(pairwise(ends))

    @cached_property
    def _before(self) -> np.ndarray:
        """By place, (H * W,): how many codes there are before its step; -1 of known ones."""
        before = np.full(len(self.order), -1)
        for first, last in self._steps:
            before[list(self.order[first:last])] = first
        return before

    def _within(self, values: np.ndarray, corner: Corner) -> np.ndarray:
        """What a window shows of values (H, W)."""
        (top, left), (h, w) = corner, self.layout.window
        return values[top : top + h, left : left + w]


class _WindowsOfWalk:
    """What the windows of a walk have read so far."""

    def __init__(self, walk: Walk, room: Room) -> None:
        self.walk, self.room = walk, room
        first = len(walk.order) - walk.sampled
        self._left = Counter(map(walk.layout.corner_of, walk.order[first:]))  # places to predict
        self._read: dict[Corner, int] = {}  # tokens, where keys and values are kept

    def visits(self, places: Mapping[Corner, Sequence[int]]) -> list[Visit]:
        """Of all windows that now predict places; they are done before others have their room."""
        visits = [self._visit(*of_window) for of_window in places.items()]
        for visit in visits:
            if visit.last:
                self._read.pop(visit.corner, None)
        return visits

    def _visit(self, corner: Corner, places: Sequence[int]) -> Visit:
        self._left[corner] -= len(places)
        again, before = self._left[corner] > 0, self.walk.before(places[0])
        visit = Visit(
            corner,
            seen=self.walk.seen(corner, before),
            start=self._read.get(corner, 0),
            places=tuple(places),
            before=before,
            keeps=corner in self._read or (again and len(self._read) < self.room.kept),
            last=not again,
        )
        if visit.keeps:
            self._read[corner] = self._read_by(visit)
        return visit

    def _read_by(self, visit: Visit) -> int:
        """How many tokens need not be read again: all but the last one, unless it was read for the
        place that really comes next."""
        path = self.walk.path(visit.corner)[visit.seen :]
        (following,) = self.walk.layout.outside(visit.corner, path[:1])
        return self.room.condition + visit.seen - int(following != visit.places[0])


def walks_of(
    orders: Tensor, known: Tensor | None, layout: Layout, settings: SampleSettings
) -> list[Walk]:
    """The walks of a batch, of which those images share one that have the same order.

    Args:
        orders: int64 (B, H * W), with what is known first.
        known: (B, H, W), -1 where to sample.
    """
    counts = [0] * len(orders) if known is None else (known >= 0).flatten(1).sum(1).tolist()
    shared: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
    for image, (count, order) in enumerate(zip(counts, orders.tolist(), strict=True)):
        shared[count, tuple(order)].append(image)
    return [
        Walk(layout, tuple(images), order, sizes_for(settings, len(order) - count))
        for (count, order), images in shared.items()
    ]


def sizes_for(settings: SampleSettings, unknown: int) -> tuple[int, ...]:
    """How many of `unknown` places each step samples."""
    if settings.steps is None:
        return (1,) * unknown
    return tuple(sizes_of(left_after(unknown, settings.steps, settings.step_schedule), unknown))


Work = list[tuple[Walk, Visit]]
"""Visits of one pass through the transformer, with their walks."""


def passes(walks: Sequence[Walk], room: Room) -> Iterator[Work]:
    """All visits of the walks of a batch, side by side."""
    for together in zip_longest(*(walk.visits(room) for walk in walks), fillvalue=()):
        work: Work = []
        tokens = 0
        for walk, visits in zip(walks, together, strict=True):
            for visit in visits:
                more = tokens_of(walk, visit, room)
                if work and tokens + more > MOST_READ:
                    yield work
                    work, tokens = [], 0
                work.append((walk, visit))
                tokens += more
        if work:
            yield work


def tokens_of(walk: Walk, visit: Visit, room: Room) -> int:
    """How many tokens a visit reads, in all sequences."""
    read = room.condition + visit.seen - visit.start + len(visit.places) - 1
    return read * len(walk.images) * room.copies
