"""One pass over a set of images: continued where it stopped, and shared among processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from tqdm import tqdm

from taming.devices import own_share
from taming.distributed import gather_objects
from taming.errors import UserError, interruptible
from taming.evaluation.cache import SAVE_EVERY, Cache, Timer
from taming.evaluation.metrics.base import ImageAccumulator
from taming.evaluation.metrics.features import FeatureAccumulators, Requests, SetFeatures
from taming.evaluation.sources.images import (
    ImageSource,
    Manifest,
    State,
    joined_states,
    key_of,
    part_of,
)

A = TypeVar("A", bound=ImageAccumulator)


def _of_rank_0(value: Any) -> Any:
    """The value that the process of rank 0 has."""
    return gather_objects(value)[0] if own_share()[1] > 1 else value


@dataclass
class _Part(Generic[A]):
    """What one process has counted."""

    manifest: Manifest
    accumulator: A

    def state_dict(self) -> State:
        manifest, counted = self.manifest.state_dict(), self.accumulator.state_dict()
        return joined_states({"manifest": manifest, "counted": counted})

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.manifest.merge_state(part_of(state, "manifest"))
        self.accumulator.merge_state(part_of(state, "counted"))


@dataclass
class Runner:
    """How sets of images are gone through; raises UserError for a batch size below 1."""

    batch_size: int = 50  # images that are counted, or sampled, at once
    cache: Cache = field(default_factory=Cache)  # of finished sets and of unfinished evaluations
    save_every: float = SAVE_EVERY  # seconds between saves of an unfinished evaluation
    left_out: list[str] = field(default_factory=list)  # a sentence per damaged image
    _unfinished: dict[str, ImageSource] = field(default_factory=dict)  # by keys

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--batch_size must be at least 1, not {self.batch_size}")

    def run(
        self,
        source: ImageSource,
        make_accumulator: Callable[[], A],
        key: str,
        label: str,
        damage_key: str = "",
        without: Sequence[int] = (),
    ) -> tuple[Manifest, A]:
        """Count all images of a set; both results are complete in the process of rank 0 alone.

        `key` is the hash of all that decides the result, under which an unfinished one is kept;
        that of rank 0 counts. `label` is that of the progress bar. Damaged images are left out, and
        remembered under `damage_key`, by default `key`; `without` are those that were before.
        """
        key = _of_rank_0(key)
        damage_key = damage_key or key
        self._recall_damage(source, damage_key)
        while True:
            without = [*without, *self._leave_out_damaged(source, damage_key)]
            # The same for the command that goes on, which knows from the first what is damaged.
            own_key = key_of(key=key, without=without) if without else key
            with interruptible(self._kept):
                counted = self._pass(source, make_accumulator, own_key, label)
            if counted is not None:
                return counted.manifest, counted.accumulator

    @property
    def _kept(self) -> str:
        """What is kept of an evaluation that is interrupted."""
        if not self.cache.enabled:
            return "nothing of the evaluation is kept"
        return f"what is counted is kept every {self.save_every:g} s, and the same command goes on"

    def _pass(
        self, source: ImageSource, make_accumulator: Callable[[], A], key: str, label: str
    ) -> _Part[A] | None:
        """All images, once; None if some turn out to be damaged, as `source.damaged` then says."""
        self._unfinished[key] = source
        images, (rank, processes) = len(source), own_share()
        source.keep_unfinished_in(self.cache.folder if self.cache.enabled else None)

        def empty() -> _Part[A]:
            return _Part(Manifest(images), make_accumulator())

        part = self._continued(key, empty)
        done = set(_of_rank_0(np.flatnonzero(part.manifest.seen).tolist()))
        timer = Timer(self.save_every)
        with tqdm(
            total=images, initial=len(done), desc=label, unit="image", disable=rank > 0
        ) as bar:
            for batch in source.batches(self.batch_size, (rank, processes), done):
                part.accumulator.update(batch)
                part.manifest.update(batch)
                bar.update(min(len(batch) * processes, images - bar.n))
                if timer.due():
                    timer.saved(self._save(key, part))
        self._save(key, part)
        source.gather_damage()
        return None if source.damaged else self._joined(part, empty)

    def finish(self) -> None:
        """Delete the unfinished states: the results that they were kept for are there."""
        if own_share()[0] == 0:
            for key, source in self._unfinished.items():
                self.cache.delete_parts(key)
                source.forget_unfinished()
        self._unfinished.clear()

    def key_for(self, source: ImageSource, **identity: Any) -> str:
        """A key for `run` of the set's content and `identity`, JSON values that decide the rest.

        Without a cache, or in processes above rank 0, the content is not looked at.
        """
        source.pass_over_damage()
        needed = own_share()[0] == 0 and self.cache.enabled
        return key_of(**identity, content=source.content_key() if needed else None)

    def features(
        self, source: ImageSource, requests: Requests, label: str, keep: bool = False
    ) -> SetFeatures:
        """What `requests` ask of a set; complete in the process of rank 0 alone.

        What the cache has is not computed; with `keep`, what was computed goes there.
        """
        requests, rank = list(dict.fromkeys(requests)), own_share()[0]
        source.pass_over_damage()
        key = _of_rank_0(source.content_key() if rank == 0 else None)
        self._recall_damage(source, key)
        whole, without = key, self._leave_out_damaged(source, key)
        if without:
            key = _of_rank_0(source.content_key() if rank == 0 else None)
        cached = self._cached(key, requests, len(source)) if rank == 0 else SetFeatures(Manifest(0))
        places = [n for n, request in enumerate(requests) if request not in cached.parts]
        missing = [requests[place] for place in _of_rank_0(places)]
        if not missing:
            return cached
        manifest, counted = self.run(
            source,
            lambda: FeatureAccumulators(missing, len(source)),
            key_of(unfinished=[request.key(whole) for request in missing]),
            label,
            damage_key=whole,
            without=without,
        )
        if keep and rank == 0:
            key = source.content_key()  # of what is left
            self._keep(key, SetFeatures(manifest, counted.parts))
        return SetFeatures(manifest, cached.parts | counted.parts)

    def _recall_damage(self, source: ImageSource, key: str) -> None:
        """Note as damaged what an earlier evaluation of the same set, by `key`, found to be so."""
        source.pass_over_damage()
        state = self.cache.load(key_of(damaged=key)) if own_share()[0] == 0 else None
        if state is not None:
            source.merge_damage(state)

    def _leave_out_damaged(self, source: ImageSource, key: str) -> list[int]:
        """Leave out, in all processes, what is damaged, and return it; UserError if all is.

        Numbers are then those of the set without these files, whatever depends on its size.
        """
        source.gather_damage()
        damaged = sorted(source.damaged)
        if source.damaged and own_share()[0] == 0:
            self.cache.save(key_of(damaged=key), source.damage_state())
        sentences = source.leave_out_damaged()
        # A file can be in several sets of a command, or in one set by several filters.
        self.left_out = list(dict.fromkeys([*self.left_out, *sentences]))
        if sentences and not len(source):
            raise UserError(f"none of the images can be used; {sentences[0]}")
        return damaged

    def _cached(self, key: str, requests: Requests, images: int) -> SetFeatures:
        found = SetFeatures(Manifest(images))
        manifest = self.cache.load(key_of(content=key))
        if manifest is None:
            return found
        found.manifest.merge_state(manifest)
        for request in requests:
            state = self.cache.load(request.key(key))
            if state is not None:
                found.parts[request] = request.make(images)
                found.parts[request].merge_state(state)
        return found

    def _keep(self, key: str, features: SetFeatures) -> None:
        self.cache.save(key_of(content=key), features.manifest.state_dict())
        for request, part in features.parts.items():
            self.cache.save(request.key(key), part.state_dict())
        self.finish()

    def _save(self, key: str, part: _Part[Any]) -> float:
        """Keep what this process has; returns the seconds that it took."""
        start = time.monotonic()
        if self.cache.enabled:
            self.cache.save_part(key, own_share()[0], part.state_dict())
        return time.monotonic() - start

    def _continued(self, key: str, make: Callable[[], _Part[A]]) -> _Part[A]:
        """What an interrupted evaluation has, for rank 0; nothing for the others.

        A process may have been stopped while parts were being joined: the largest part counts, and
        those that share no image with it.
        """
        joined = make()
        if own_share()[0] > 0:
            return joined
        states = self.cache.parts(key)
        for state in sorted(states, key=lambda state: -int(state["manifest/seen"].sum())):
            seen, joined_seen = state["manifest/seen"], joined.manifest.seen
            if len(seen) == len(joined_seen) and not (seen & joined_seen).any():
                joined.merge_state(state)
        if states:
            self._save(key, joined)
            self.cache.delete_parts(key, but=0)
        return joined

    def _joined(self, part: _Part[A], make: Callable[[], _Part[A]]) -> _Part[A]:
        """The parts of all processes, for rank 0; UserError if images are missing."""
        rank, processes = own_share()
        if processes > 1:
            states = gather_objects(part.state_dict())
            part = make()
            for state in states if rank == 0 else []:
                part.merge_state(state)
        if rank == 0 and not part.manifest.seen.all():
            lost = np.flatnonzero(~part.manifest.seen)
            raise UserError(
                f"{len(lost)} of {len(part.manifest.seen)} images did not arrive, the first is "
                f"{lost[0]}"
            )
        return part
