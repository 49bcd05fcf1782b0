"""In which order, and through which windows, images of other sizes are sampled in any order."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
import torch

from taming.modules.transformer.orders import inwards
from taming.sampling import SampleSettings, walks
from taming.sampling.walks import Room, Walk, passes, sizes_for, tokens_of, walks_of
from taming.sampling.windows import Layout

ROOM = Room(condition=1, copies=1, kept=9)


def walk_of(shape: tuple[int, int], order: list[int], sizes: list[int], window: int = 4) -> Walk:
    return Walk(Layout.of(shape, (window, window)), (0,), tuple(order), tuple(sizes))


def test_the_worked_example() -> None:
    walk = walk_of((1, 5), [0, 4, 1, 3, 2], [1, 1, 1], 3)
    first, second = walk.visits(ROOM)
    assert [(v.corner, v.seen, v.places, v.before) for v in first] == [
        ((0, 0), 1, (1,), 2),
        ((0, 2), 1, (3,), 3),
    ]
    assert [(v.corner, v.seen, v.places, v.before) for v in second] == [((0, 1), 2, (2,), 4)]
    assert walk.path((0, 1)).tolist() == [0, 2, 1]
    assert walk.layout.outside((0, 1), walk.path((0, 1))).tolist() == [1, 3, 2]
    assert walk.layout.inside((0, 1), [3, 2]) == [2, 1]


@pytest.mark.parametrize("steps", [None, 1, 5])
@pytest.mark.parametrize("kept", [0, 2, 9])
def test_a_window_is_read_on_when_all_before_its_places_is_there(
    steps: int | None, kept: int
) -> None:
    """And what it has read by then does not change, so that keys and values stay right."""
    shape, settings = (7, 9), SampleSettings(steps=steps)
    order = torch.randperm(63, generator=torch.Generator().manual_seed(1)).tolist()
    walk = walk_of(shape, order, list(sizes_for(settings, 50)))
    there, done = set(order[:13]), Counter[int]()
    read: dict[tuple[int, int], int] = {}
    for visits in walk.visits(Room(1, 1, kept)):
        assert len({visit.corner for visit in visits}) == len(visits)
        for visit in visits:
            path = walk.layout.outside(visit.corner, walk.path(visit.corner)).tolist()
            assert set(path[: visit.seen]) <= there
            # All codes of earlier steps, and none of the own.
            assert set(path[: visit.seen]) == {p for p in path if order.index(p) < visit.before}
            assert set(visit.places) <= set(path[visit.seen :])
            assert visit.start == read.get(visit.corner, 0) <= visit.seen
            if visit.keeps:
                followed = path[visit.seen] == visit.places[0]
                read[visit.corner] = 1 + visit.seen - (not followed)
            if visit.last:
                read.pop(visit.corner, None)
            done.update(visit.places)
        assert len(read) <= kept
        there |= {place for visit in visits for place in visit.places}
    assert done == Counter(order[13:]) and not read


def test_images_that_keep_the_same_go_the_same_way() -> None:
    known = torch.zeros(4, 5, 6, dtype=torch.long)
    known[:2, :2], known[2, :3] = -1, -1
    known[1, 4] = 5  # other codes
    layout, settings = Layout.of((5, 6), (4, 4)), SampleSettings(steps=3)
    found = walks_of(inwards(known), known, layout, settings)
    assert [walk.images for walk in found] == [(0, 1), (2,), (3,)]
    assert [walk.sampled for walk in found] == [12, 18, 0]
    assert [walk.sizes for walk in found] == [sizes_for(settings, n) for n in (12, 18)] + [()]
    work = list(passes(found, ROOM))
    both = {images for step in work for (walk, _) in step for images in [walk.images]}
    assert both == {(0, 1), (2,)} and len(work) >= 3
    # By rows, nothing known: those of 1 that are known come first in the same order.
    rows = torch.arange(30).expand(2, -1)
    first = torch.full((2, 5, 6), -1)
    first[0, 0, 0] = 3
    assert len(walks_of(rows, first, layout, SampleSettings())) == 2


def test_passes_are_no_longer_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    order = list(range(63))
    walk = walk_of((7, 9), order, [63])
    (whole,) = passes([walk], ROOM)
    monkeypatch.setattr(walks, "MOST_READ", 10)
    parts = list(passes([walk], ROOM))
    assert [pair for part in parts for pair in part] == whole
    for part in parts:
        assert len(part) == 1 or sum(tokens_of(*pair, ROOM) for pair in part) <= 10


def test_every_order_of_few_places_takes_each_once() -> None:
    for order in permutations(range(4)):
        walk = walk_of((2, 2), list(order), [1, 1, 1])
        places = [v.places[0] for visits in walk.visits(ROOM) for v in visits]
        assert places == list(order[1:])  # one window: one after the other
