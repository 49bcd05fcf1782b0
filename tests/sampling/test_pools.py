"""The best of large pools: what brute force finds, whoever shares the work, also interrupted."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from taming.errors import UserError
from taming.sampling import Request, Sample, pools, rejection
from taming.sampling.pools import Pool, PoolSampler, ScoreFiles
from taming.sampling.rejection import Group

GROUP = Group(4, 50)
POOLS = [Pool(Request(0, (c,), c), n, GROUP, frozenset(range(4 * n, 4 * n + 4)))
         for c in (3, 1) for n in (0, 1)]  # fmt: skip


def value(label: int | None, number: int) -> float:
    """The pixel of a candidate, in 8 bits; some are equal, and one is white, without a score."""
    if (label, number) == (3, 17):
        return 1.0
    generator = torch.Generator().manual_seed(1000 * (label or 0) + number)
    return 20 * int(torch.randint(11, (), generator=generator)) / 127.5 - 1


@dataclass
class Model:
    """Draws candidates, whose only pixel is their score, and notes which."""

    stop_after: int = 10**9
    drawn: list[tuple[int | None, int]] = field(default_factory=list)

    def __call__(self, requests: Iterable[Request]) -> Iterator[Sample]:
        for request in requests:
            if len(self.drawn) == self.stop_after:
                raise KeyboardInterrupt
            self.drawn.append((request.label, request.number))
            rounding = 1e-3 * (len(self.drawn) % 3)  # is not seen
            pixel = torch.full((1, 1, 1), value(request.label, request.number) + rounding)
            yield Sample(request.number, request.label, torch.zeros(1), pixel)


def score(images: Tensor, labels: Tensor) -> Tensor:
    assert len(images) == len(labels) == rejection.SCORED
    pixels = images.flatten()
    return pixels.where(pixels < 1, math.nan)


def brute_force(pool: Pool) -> list[tuple[int | None, int, int]]:
    label = pool.request.label
    known = {n: value(label, n) for n in pool.candidates}
    ranked = sorted(known, key=lambda n: (-known[n] if known[n] < 1 else math.inf, n))
    return [(label, 4 * pool.number + place, n) for place, n in enumerate(ranked[:4])]


EXPECTED = [chosen for pool in POOLS for chosen in brute_force(pool)]


def found(samples: Iterable[Sample]) -> list[tuple[int | None, int, int | None]]:
    rows = []
    for sample in samples:
        assert sample.candidate is not None
        assert sample.score == pytest.approx(value(sample.label, sample.candidate))
        assert sample.image.item() == pytest.approx(sample.score, abs=3e-3)
        rows.append((sample.label, sample.number, sample.candidate))
    return rows


def test_the_best_of_every_pool() -> None:
    model, noted = Model(), []
    sampler = PoolSampler(POOLS, model, score, on_candidate=lambda: noted.append(1))
    assert found(sampler) == EXPECTED
    assert len(model.drawn) == len(set(model.drawn)) == len(noted) == 200


def test_samples_that_are_there_are_not_given_again() -> None:
    some = Pool(POOLS[0].request, 1, GROUP, frozenset({5, 7}))
    assert found(PoolSampler([some], Model(), score)) == [EXPECTED[5], EXPECTED[7]]


def test_few_images_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    class Counted(pools.Best):
        def add(self, number: int, score: float, sample: Sample | None = None) -> None:
            super().add(number, score, sample)
            held.append(len(self.samples))

    monkeypatch.setattr(pools, "Best", Counted)
    assert found(PoolSampler(POOLS, Model(), score)) == EXPECTED
    assert max(held) == 4 and len(held) == 200


class Meeting:
    """`gather_objects` of threads."""

    def __init__(self, processes: int) -> None:
        self.barrier = threading.Barrier(processes)
        self.values: dict[int, object] = {}
        self.ranks: dict[int, int] = {}

    def __call__(self, value: object) -> list[object]:
        self.values[self.ranks[threading.get_ident()]] = value
        self.barrier.wait(20)
        values = [self.values[rank] for rank in sorted(self.values)]
        self.barrier.wait(20)
        return values


def in_processes(
    count: int, files: ScoreFiles | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[tuple[int | None, int, int | None]], list[Model]]:
    meeting, models = Meeting(count), [Model() for _ in range(count)]
    monkeypatch.setattr(pools, "gather_objects", meeting)
    rows: list[tuple[int | None, int, int | None]] = []

    def work(rank: int) -> None:
        meeting.ranks[threading.get_ident()] = rank
        rows.extend(found(PoolSampler(POOLS, models[rank], score, (rank, count), files)))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return rows, models


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_a_pool(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, models = in_processes(count, None, monkeypatch)
    assert sorted(rows) == sorted(EXPECTED)
    drawn = [len(model.drawn) for model in models]
    assert sum(drawn) == 200 and max(drawn) - min(drawn) <= 4


def test_an_interrupted_pool_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "SAVE_EVERY", 0)
    files = ScoreFiles(tmp_path, "key")
    with pytest.raises(KeyboardInterrupt):
        list(PoolSampler(POOLS, Model(stop_after=45), score, files=files))
    scored = files.load(POOLS[0])
    assert len(scored) == 32 and ScoreFiles(tmp_path, "other").load(POOLS[0]) == {}
    # By other processes than before: candidates with a score are not drawn, but for the best.
    rows, models = in_processes(2, files, monkeypatch)
    assert sorted(rows) == sorted(EXPECTED)
    drawn = {number for model in models for label, number in model.drawn if label == 3}
    best = {candidate for _, _, candidate in EXPECTED[:4]} & scored.keys()
    assert best and drawn & scored.keys() == best
    files.delete(POOLS[1:])
    assert files.load(POOLS[0]).keys() == set(POOLS[0].candidates) and not files.load(POOLS[1])
    files.delete(POOLS)
    assert list(tmp_path.iterdir()) == []


def test_what_is_handed_on_and_not_written_is_not_scored_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command may be stopped before the first sample of a pool, or the last, is on the disk."""
    files, counted = ScoreFiles(tmp_path, "key"), []

    def now_and_then() -> None:
        counted.append(len(counted) % 20)
        monkeypatch.setattr(pools, "SAVE_EVERY", 0 if counted[-1] == 9 else 1e9)

    given = iter(PoolSampler(POOLS, Model(), score, files=files, on_candidate=now_and_then))
    for _ in range(5):  # the whole first pool, and one of the second
        next(given)
    again = Model()
    assert found(PoolSampler(POOLS, again, score, files=files)) == EXPECTED
    assert len(again.drawn) == 4 + 4 + 50 + 50


def test_a_pool_whose_scores_are_all_there(tmp_path: Path) -> None:
    files, model = ScoreFiles(tmp_path, "key"), Model()
    scores = {n: value(3, n) for n in POOLS[0].candidates}
    files.save(POOLS[0], 7, {n: -math.inf if v == 1 else v for n, v in scores.items()})
    assert found(PoolSampler(POOLS, model, score, files=files)) == EXPECTED
    assert len(model.drawn) == 154


def test_damaged_scores_are_computed_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = ScoreFiles(tmp_path, "key")
    files.save(POOLS[0], 0, {0: 0.5, 999: 1.0})
    assert files.load(POOLS[0]) == {0: 0.5}  # of its own candidates
    for content in ("{", "[1]", '{"a": 1}', '{"1": null}'):
        next(tmp_path.iterdir()).write_text(content)
        assert files.load(POOLS[0]) == {}
    assert "is damaged and computed anew" in caplog.text


def test_processes_have_to_meet() -> None:
    with pytest.raises(ValueError, match="2 processes share the pool, and 1 are here"):
        list(PoolSampler(POOLS, Model(), score, (0, 2)))


def test_classless_samples() -> None:
    pool = Pool(Request(0, (0,)), 0, GROUP, frozenset({0}))
    with pytest.raises(UserError, match="this model has none"):
        list(PoolSampler([pool], Model(), score))
