"""The best of large pools of candidates, such as all of a class, with few of them in memory.

A process scores its share of a pool's candidates and keeps, as images, no more than can be among
the pool's best; then all processes learn of all scores. Scores are written down now and then: a
command that goes on makes, of what it has scored before, the best alone once more. They stay until
who wants the samples has kept all of them, in all processes: to be handed on is not to be written.
"""

from __future__ import annotations

import heapq
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from taming.atomic_files import write_text
from taming.distributed import gather_objects
from taming.sampling.engine import Sample
from taming.sampling.rejection import Group, Score, scored
from taming.sampling.requests import Request

Draw = Callable[[Iterable[Request]], Iterator[Sample]]
SAVE_EVERY = 30.0  # seconds
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pool:
    """Candidates of which the best, best first, are samples `number * kept` and those after it."""

    request: Request  # for any of its candidates, but for the number
    number: int  # of the pools of its class
    group: Group
    wanted: frozenset[int]  # which of its samples are needed

    @property
    def candidates(self) -> range:
        """Their numbers."""
        return range(self.number * self.group.of, (self.number + 1) * self.group.of)

    def wanted_of(self, scores: Mapping[int, float]) -> dict[int, int]:
        """The wanted samples' numbers by their candidates', of the scores of all candidates."""
        ranked = sorted(scores, key=lambda number: (-scores[number], number))
        first = self.number * self.group.kept
        chosen = {c: first + place for place, c in enumerate(ranked[: self.group.kept])}
        return {c: number for c, number in chosen.items() if number in self.wanted}

    def requests(self, numbers: Iterable[int]) -> Iterator[Request]:
        """For candidates of these numbers."""
        return (replace(self.request, number=number) for number in numbers)


@dataclass(frozen=True)
class ScoreFiles:
    """Files with the scores of unfinished pools; `key` is of all that decides them."""

    folder: Path
    key: str

    def _name(self, pool: Pool) -> str:
        return f".scores-{self.key}-{pool.request.label}-{pool.number}"

    def load(self, pool: Pool) -> dict[int, float]:
        """What any process has scored of a pool."""
        scores: dict[int, float] = {}
        for path in sorted(self.folder.glob(f"{self._name(pool)}-*.json")):
            try:
                found = json.loads(path.read_text("utf-8"))
                scores |= {int(number): float(score) for number, score in found.items()}
            except (OSError, ValueError, TypeError, AttributeError) as error:
                log.warning("%s is damaged and computed anew (%s)", path, error)
        return {number: scores[number] for number in scores if number in pool.candidates}

    def save(self, pool: Pool, rank: int, scores: dict[int, float]) -> None:
        """Write what process `rank` knows."""
        write_text(self.folder / f"{self._name(pool)}-{rank}.json", json.dumps(scores))

    def delete(self, pools: Iterable[Pool]) -> None:
        """Forget pools whose samples are kept, by all processes."""
        names = {self._name(pool) for pool in pools}
        for path in self.folder.glob(f".scores-{self.key}-*.json"):
            if path.stem.rpartition("-")[0] in names:
                path.unlink(missing_ok=True)


class Best:
    """The best `most` of a pool's candidates: their scores, and images as far as they are here.

    Of equal scores the lower number is the better one.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.samples: dict[int, Sample] = {}
        self._heap: list[tuple[float, int]] = []  # (score, -number), the worst first

    def add(self, number: int, score: float, sample: Sample | None = None) -> None:
        """Note a candidate; one that is worse than `most` others is forgotten."""
        if sample is not None:
            self.samples[number] = sample
        heapq.heappush(self._heap, (score, -number))
        if len(self._heap) > self.most:
            _, worst = heapq.heappop(self._heap)
            self.samples.pop(-worst, None)


@dataclass
class PoolSampler:
    """Samples the best of each pool, for one of the processes that `share` all of them.

    Every process has the same `pools`, and goes through all of them.
    """

    pools: Sequence[Pool]
    draw: Draw
    score: Score
    share: tuple[int, int] = (0, 1)
    files: ScoreFiles | None = None
    announce: Callable[[Iterable[Request]], Iterable[Request]] = iter  # says what is sampled, once
    on_candidate: Callable[[], object] = lambda: None
    _known: dict[int, dict[int, float]] = field(default_factory=dict)  # by place in `pools`
    _finished: int = 0  # pools

    def __iter__(self) -> Iterator[Sample]:
        drawn = self.draw(self.announce(self._requests()))  # read ahead, as batches go across pools
        for place, pool in enumerate(self.pools):
            yield from self._best(place, pool, drawn)
            self._finished += 1
            self._known.pop(place)

    def _requests(self) -> Iterator[Request]:
        for place, pool in enumerate(self.pools):
            if place >= self._finished:  # else, all of its candidates had scores
                yield from pool.requests(self._own(place))

    def _own(self, place: int) -> list[int]:
        """The candidates of a pool that this process has to make: those without a score."""
        pool, (rank, processes) = self.pools[place], self.share
        if place not in self._known:
            self._known[place] = {} if self.files is None else self.files.load(pool)
        known = self._known[place]
        return [n for n in pool.candidates if n % processes == rank and n not in known]

    def _best(self, place: int, pool: Pool, drawn: Iterator[Sample]) -> Iterator[Sample]:
        """The samples of a pool that this process is to give."""
        own = islice(drawn, len(self._own(place)))
        scores, best = dict(self._known[place]), Best(pool.group.kept)
        for number, score in scores.items():
            best.add(number, score)
        saved, noted = time.monotonic(), len(scores)
        for sample, score in scored(own, self.score):
            scores[sample.number] = score
            best.add(sample.number, score, sample)
            self.on_candidate()
            if self.files is not None and time.monotonic() - saved > SAVE_EVERY:
                self.files.save(pool, self.share[0], scores)
                saved, noted = time.monotonic(), len(scores)
        if self.files is not None and 0 < noted < len(scores):  # not of pools that take moments
            self.files.save(pool, self.share[0], scores)
        yield from self._chosen(pool, scores, best)

    def _chosen(self, pool: Pool, scores: dict[int, float], best: Best) -> Iterator[Sample]:
        """Of the best candidates of all processes those that this one has, or has to make again."""
        rank, processes = self.share
        part = scores, set(best.samples)
        parts = gather_objects(part) if processes > 1 else [part]
        if len(parts) != processes:
            raise ValueError(f"{processes} processes share the pool, and {len(parts)} are here")
        for others, _ in parts:
            scores |= others
        numbers = pool.wanted_of(scores)
        holders = {c: r for r in reversed(range(processes)) for c in parts[r][1]}
        lost = [c for c in numbers if c not in holders][rank::processes]  # scored in earlier runs
        held = (best.samples.pop(c) for c in numbers if holders.get(c) == rank)
        for sample in chain(held, self.draw(pool.requests(lost)) if lost else ()):
            c = sample.number
            yield replace(sample, number=numbers[c], candidate=c, score=scores[c])
