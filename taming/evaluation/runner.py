"""One pass over a set of images: everything that metrics need of it, continued where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from taming.distributed import gather_objects, own_share
from taming.errors import UserError
from taming.evaluation.cache import SAVE_EVERY, Cache, State, Timer, key_of
from taming.evaluation.metrics.base import CountedTally, Tally, joined_states, split_states
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.fidelity import SEED, FeatureBank, InceptionScores, Moments, PerClass
from taming.evaluation.sources.folder import ImageSource
from taming.evaluation.sources.picture import Content, Picture

KINDS = {"moments": Moments, "bank": FeatureBank, "classes": PerClass, "scores": InceptionScores}


@dataclass(frozen=True)
class Need:
    """What is wanted of a set: an accumulator of one layer's features.

    Attributes:
        kind: one of `KINDS`.
        splits: of "scores".
    """

    kind: str
    extractor: Extractor
    layer: str
    splits: int = 0

    def key(self, content_key: str) -> str:
        """Hash of all that decides the accumulator's state."""
        extractor = {k: v for k, v in self.extractor.describe().items() if k != "layers"}
        setting = [self.kind, self.layer, self.splits, SEED if self.splits else None]
        return key_of(content=content_key, extractor=extractor, setting=setting)

    def empty(self, images: int) -> Any:
        """The accumulator of nothing, for a set of `images` images."""
        if self.kind == "scores":
            return InceptionScores(images, self.splits)
        return KINDS[self.kind]()

    def add(
        self, accumulator: Any, pictures: Sequence[Picture], features: Mapping[str, torch.Tensor]
    ) -> None:
        """Add the features (per layer) of `pictures` to an accumulator."""
        rows = features[self.layer]
        if self.kind == "moments":
            accumulator.add(rows)
        elif self.kind == "classes":
            labels = [picture.label for picture in pictures]
            known = [n for n, label in enumerate(labels) if label is not None]
            if known:
                accumulator.add([labels[n] for n in known], rows[known])
        else:
            accumulator.add(torch.tensor([picture.index for picture in pictures]), rows)


T = TypeVar("T", bound=Tally)
C = TypeVar("C", bound=CountedTally)


@dataclass
class Gathered:
    """Of a set of images: what they are, and an accumulator for each need."""

    content: Content
    parts: dict[Need, Any] = field(default_factory=dict)

    @classmethod
    def nothing(cls, needs: Sequence[Need], images: int) -> Gathered:
        return cls(Content(images), {need: need.empty(images) for need in needs})

    def add(self, pictures: Sequence[Picture]) -> None:
        """Extract features of pictures of one size, and add them."""
        images = torch.stack([picture.pixels for picture in pictures])
        extractors = dict.fromkeys(need.extractor for need in self.parts)
        features = {extractor: extractor(images) for extractor in extractors}
        self.content.add(pictures)
        for need, accumulator in self.parts.items():
            need.add(accumulator, pictures, features[need.extractor])

    def merge(self, other: Gathered) -> None:
        """Add what was gathered of other images of the same set."""
        self.content.merge(other.content)
        for need, accumulator in self.parts.items():
            accumulator.merge(other.parts[need])

    def state(self) -> State:
        """Arrays for `from_state`."""
        states = {"content": self.content.state()}
        states |= {f"{n}": part.state() for n, part in enumerate(self.parts.values())}
        return joined_states(states)

    @classmethod
    def from_state(cls, state: State, needs: Sequence[Need]) -> Gathered:
        """What had this state, of the same needs in the same order."""
        states = split_states(state)
        parts = {
            need: KINDS[need.kind].from_state(states.get(f"{n}", {}))  # type: ignore[attr-defined]
            for n, need in enumerate(needs)
        }
        return cls(Content.from_state(states["content"]), parts)


@dataclass
class Reading:
    """How sets are gone through.

    Attributes:
        batch_size: images that are extracted, or drawn, at once.
        cache: of finished sets and of unfinished evaluations.
        save_every: seconds between saves of what an unfinished evaluation has.
    """

    batch_size: int = 50
    cache: Cache = field(default_factory=Cache)
    save_every: float = SAVE_EVERY
    _unfinished: list[str] = field(default_factory=list)

    def finish(self) -> None:
        """Forget the unfinished states: what they were for is there."""
        if own_share()[0] == 0:
            for key in self._unfinished:
                self.cache.forget_parts(key)
        self._unfinished.clear()

    def gather(
        self, source: ImageSource, needs: Sequence[Need], label: str, keep: bool = False
    ) -> Gathered:
        """Everything that `needs` want of a set; complete in the process of rank 0 alone.

        What the cache has is not computed; with `keep`, what was computed goes there. All
        processes that torchrun started take their share.
        """
        needs = list(dict.fromkeys(needs))
        key = self._agreed(source.content_key() if own_share()[0] == 0 else None)
        found = self._cached(key, needs) if own_share()[0] == 0 else Gathered(Content(0))
        missing = [needs[n] for n in self._agreed(_missing(found, needs))]
        if not missing:
            return found
        gathered = self._read(source, missing, key, label)
        if keep and own_share()[0] == 0:
            self.cache.save(key_of(content=key), gathered.content.state())
            for need, part in gathered.parts.items():
                self.cache.save(need.key(key), part.state())
            self.finish()
        return Gathered(gathered.content, found.parts | gathered.parts)

    def _agreed(self, value: Any) -> Any:
        """The value of rank 0."""
        return gather_objects(value)[0]

    def _cached(self, key: str, needs: Sequence[Need]) -> Gathered:
        content = self.cache.load(key_of(content=key))
        if content is None:
            return Gathered(Content(0))
        states = {need: self.cache.load(need.key(key)) for need in needs}
        parts = {
            need: KINDS[need.kind].from_state(state)  # type: ignore[attr-defined]
            for need, state in states.items()
            if state is not None
        }
        return Gathered(Content.from_state(content), parts)

    def _read(
        self, source: ImageSource, needs: Sequence[Need], content_key: str, label: str
    ) -> Gathered:
        def restored(state: State | None) -> Gathered:
            if state is None:
                return Gathered.nothing(needs, len(source))
            return Gathered.from_state(state, needs)

        key = key_of(unfinished=[need.key(content_key) for need in needs])
        return self.collect(source, key, label, restored)

    def count(self, source: ImageSource, label: str, empty: Callable[[], C], **identity: Any) -> C:
        """A tally of all images of a set, like `collect`, from `empty` ones.

        Args:
            identity: JSON values that decide the tally, beside the set's content.
        """

        def restored(state: State | None) -> C:
            tally = empty()
            if state is not None:
                tally.restore(state)
            return tally

        needed = own_share()[0] == 0 and self.cache.enabled
        content = source.content_key() if needed else None
        return self.collect(source, key_of(**identity, content=content), label, restored)

    def collect(
        self, source: ImageSource, key: str, label: str, restored: Callable[[State | None], T]
    ) -> T:
        """A tally of all images of a set; complete in the process of rank 0 alone.

        Args:
            key: hash of all that decides the tally, under which an unfinished one is kept; that of
                rank 0 counts.
            label: of the progress bar.
            restored: the tally that had this state; of no images for None.
        """
        key = self._agreed(key)
        self._unfinished.append(key)
        images, (rank, processes) = len(source), own_share()
        tally = self._continued(key, restored, images)
        done = set(self._agreed(tally.content.indices().tolist() if rank == 0 else None))
        timer = Timer(self.save_every)
        with tqdm(
            total=images, initial=len(done), desc=label, unit="image", disable=rank > 0
        ) as bar:
            for pictures in source.batches(self.batch_size, (rank, processes), done):
                tally.add(pictures)
                bar.update(min(len(pictures) * processes, images - bar.n))
                if timer.due():
                    timer.saved(self._save(key, tally))
        self._save(key, tally)
        return self._joined(tally, restored)

    def _save(self, key: str, tally: Tally) -> float:
        start = time.monotonic()
        if self.cache.enabled:
            self.cache.save_part(key, own_share()[0], tally.state())
        return time.monotonic() - start

    def _continued(self, key: str, restored: Callable[[State | None], T], images: int) -> T:
        """What an interrupted evaluation has, for rank 0; nothing for the others.

        A process may have been stopped while parts were being joined: the largest part counts, and
        those that share no image with it.
        """
        tally = restored(None)
        if own_share()[0] > 0:
            return tally
        parts = [restored(state) for state in self.cache.parts(key)]
        for part in sorted(parts, key=lambda part: -int(part.content.seen.sum())):
            if len(part.content.seen) == images:
                if not (part.content.seen & tally.content.seen).any():
                    tally.merge(part)
        if parts:
            self._save(key, tally)
            self.cache.forget_parts(key, but=0)
        return tally

    def _joined(self, tally: T, restored: Callable[[State | None], T]) -> T:
        joined = tally
        if own_share()[1] > 1:
            states = gather_objects(tally.state())
            joined = restored(None)
            for state in states if own_share()[0] == 0 else []:
                joined.merge(restored(state))
        if own_share()[0] == 0 and not joined.content.seen.all():
            lost = np.flatnonzero(~joined.content.seen)
            raise UserError(
                f"{len(lost)} of {len(joined.content.seen)} images did not arrive, the first is "
                f"{lost[0]}"
            )
        return joined


def _missing(found: Gathered, needs: Sequence[Need]) -> list[int] | None:
    if own_share()[0] > 0:
        return None
    return [n for n, need in enumerate(needs) if need not in found.parts]
