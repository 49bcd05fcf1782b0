"""Random choices that depend on (seed, epoch, index) alone.

The number of workers, what was loaded before, and where a run was resumed do not matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import struct
from collections.abc import Iterator, Mapping, Sequence, Sized
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler

from taming.data.readings import Readings
from taming.data.wrapping import held_by
from taming.errors import UserError
from taming.limits import memory_limit
from taming.user_code import calling, name_of

_MANY = 2**27  # items of which even the numbers take much memory
BLOCKS_MIXED = 16  # shards that are shuffled together


class Position(int):
    """The index of an item that knows in which epoch it is wanted; otherwise a plain int."""

    epoch: int

    def __new__(cls, epoch: int, index: int) -> Position:
        position = super().__new__(cls, index)
        position.epoch = epoch
        return position

    def __reduce__(self) -> tuple[type[Position], tuple[int, int]]:
        return Position, (self.epoch, int(self))


def digest(*numbers: int) -> bytes:
    """32 bytes that depend on all of the numbers: generators seeded by them are unrelated."""
    try:
        packed = struct.pack(f"<{len(numbers)}q", *numbers)
    except struct.error:
        largest = max(numbers, key=abs)
        raise UserError(f"a seed must have at most 63 bits, and {largest} has more") from None
    return hashlib.blake2b(packed, digest_size=32).digest()


class PositionSampler(Sampler[Position]):
    """Which items this process loads in an epoch, and in which order: a function of (seed, epoch).

    Item k of the order goes to rank k % world_size, so that all have equally many: up to
    world_size - 1 items from the start of the order come a second time at its end.

    Args:
        length: number of items of the dataset.
        blocks: lengths of the shards that hold the items one after another. Only a few shards at a
            time are then shuffled together, so that reading stays near a few places; which shards
            these are differs from epoch to epoch.

    Raises:
        UserError: if there are no items.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        blocks: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.blocks = blocks
        self.rank, self.world_size = rank, world_size
        self._share = self.share()
        if not self._share:
            raise UserError(
                f"the dataset has {length} items for {world_size} devices; give it at least one"
            )
        self.epoch = self._seen = 0

    def share(self, seen: int = 0) -> int:
        """Items per rank that are left of an epoch after `seen` items of all ranks."""
        left = max(self.length - seen, 0)
        return -(-left // self.world_size)

    def __len__(self) -> int:
        """Items per epoch and rank, wherever iteration starts: a resumed epoch counts in full."""
        return self._share

    def set_epoch(self, epoch: int) -> None:
        """Iterate `epoch` from its start, or from `set_position`'s place if that is its epoch."""
        if epoch != self.epoch:
            self.set_position(epoch, 0)

    def set_position(self, epoch: int, seen: int) -> None:
        """Iterate what is left of `epoch` after `seen` items of all ranks together (resume)."""
        self.epoch, self._seen = epoch, seen

    def __iter__(self) -> Iterator[Position]:
        epoch = self.epoch
        for index in self._order(self._seen):
            yield Position(epoch, int(index))

    def _order(self, seen: int) -> np.ndarray:
        # RandomState because numpy promises that its streams never change between versions.
        words = np.frombuffer(digest(self.seed, self.epoch), dtype="<u4")
        order = (
            self._shuffled(np.random.RandomState(words)) if self.shuffle else np.arange(self.length)
        )
        places = seen + np.arange(self.share(seen) * self.world_size)
        # What is missing at the end for equal shares comes from the start of the order.
        return order[places[self.rank :: self.world_size] % self.length]

    def _shuffled(self, random: np.random.RandomState) -> np.ndarray:
        if self.blocks is None:
            return random.permutation(self.length)
        ends = np.cumsum(self.blocks)
        order = random.permutation(len(ends))
        starts = ends - self.blocks
        groups = []
        for first in range(0, len(order), BLOCKS_MIXED):
            chosen = order[first : first + BLOCKS_MIXED]
            items = np.concatenate([np.arange(starts[b], ends[b]) for b in chosen])
            groups.append(random.permutation(items))
        return np.concatenate(groups)


def length_of(dataset: object) -> int:
    """The number of a map-style dataset's items; `UserError` if it has none of use."""
    name = name_of(type(dataset))
    if not isinstance(dataset, Sized):
        raise UserError(
            f"{name} has no __len__, which gives the number of items; define it, or inherit from "
            "torch.utils.data.IterableDataset"
        )
    with calling(type(dataset), f"len() of {name}"):
        length = len(dataset)
    if length > _MANY and 8 * length > memory_limit():
        raise UserError(f"{name} has {length:,} items, whose order alone needs too much memory")
    return length


def as_entries(item: Any, name: str) -> Mapping[str, Any]:
    """An item of a dataset, called `name` in errors; `UserError` if it is no mapping."""
    if not isinstance(item, Mapping):
        raise UserError(
            f"{name} is a {type(item).__name__}; items must be dicts such as {{'image': pixels}}"
        )
    return item


class SeededDataset(Dataset[Any]):
    """Any map-style dataset, with the global generators seeded around the loading of each item.

    `dataset[Position(epoch, index)]` seeds Python, numpy, torch (CPU) and the albumentations
    pipelines that the dataset holds or its code names (see `held_by`), from (seed, epoch, index); a
    plain int means epoch 0. The caller's generators are afterwards as they were. Generators that a
    dataset makes for itself (`np.random.default_rng()`) are not seeded. `readings` is told what is
    being loaded.
    """

    def __init__(
        self, dataset: Dataset[Any], seed: int = 0, readings: Readings | None = None
    ) -> None:
        self.dataset, self.seed, self.readings = dataset, seed, readings

    @cached_property
    def _pipelines(self) -> list[_Pipeline]:
        return held_by(self.dataset, _Pipeline, in_code=True)  # type: ignore[type-abstract]

    def __getstate__(self) -> dict[str, Any]:
        # A process that is not a copy of this one has constants of its own.
        return {name: value for name, value in vars(self).items() if name != "_pipelines"}

    def __len__(self) -> int:
        return length_of(self.dataset)

    def __getitem__(self, position: int) -> Any:
        return self.__getitems__([position])[0]

    def entries(self, position: int) -> Mapping[str, Any]:
        """An item by its entries' names; `UserError` if it is no mapping."""
        name = f"item {int(position)} of {name_of(type(self.dataset))}"
        return as_entries(self[position], name)

    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        """A batch at once (torch's loader asks for it): states are saved and restored once."""
        with _generators_kept():
            return [self._item(position) for position in positions]

    def _item(self, position: int) -> Any:
        epoch = position.epoch if isinstance(position, Position) else 0
        seeds = digest(self.seed, epoch, position)
        python, _, pytorch, pipeline = struct.unpack("<4Q", seeds)
        random.seed(python)
        np.random.seed(np.frombuffer(seeds[8:16], dtype="<u4"))
        torch.default_generator.manual_seed(pytorch)  # not torch.manual_seed: that starts CUDA's
        for compose in self._pipelines:
            compose.set_random_seed(pipeline % 2**32)
        kind, number = type(self.dataset), int(position)
        reading = contextlib.nullcontext() if self.readings is None else self.readings.item(number)
        with reading, calling(kind, f"item {number} of {name_of(kind)}"):
            return self.dataset[number]


class NamedStream(IterableDataset[Any]):
    """An iterable dataset that is named in what it raises."""

    def __init__(self, dataset: IterableDataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # a TypeError says that it has none

    def __iter__(self) -> Iterator[Any]:
        kind = type(self.dataset)
        with calling(kind, name_of(kind)):
            yield from self.dataset


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


@runtime_checkable
class _Pipeline(Protocol):
    """An albumentations pipeline, as far as it is used here: that package may be absent."""

    def set_random_seed(self, seed: int) -> None: ...
