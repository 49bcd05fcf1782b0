from __future__ import annotations

import functools
import pickle
import random
from itertools import pairwise
from typing import Any

import albumentations
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from taming.data.seeding import BLOCKS_MIXED, Position, PositionSampler, SeededDataset
from taming.errors import UserError


class Noise(Dataset[dict[str, Any]]):
    """A third party's dataset: draws from everything global, and from its own pipeline."""

    def __init__(self) -> None:
        self.pipeline = albumentations.Compose([albumentations.RandomCrop(2, 2)])
        self.image = np.arange(400, dtype=np.uint8).reshape(20, 20, 1)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        assert type(index) is int
        if index == 11:
            raise ValueError("broken item")
        return {
            "index": index,
            "python": random.random(),
            "numpy": np.random.randn(),
            "torch": torch.rand(()),
            "crop": self.pipeline(image=self.image)["image"],
        }


def items(workers: int, epoch: int, seed: int = 5, start: int = 0) -> list[dict[str, Any]]:
    sampler = PositionSampler(11, seed)
    sampler.set_position(epoch, start)
    loader = DataLoader(
        SeededDataset(Noise(), seed), batch_size=2, sampler=sampler, num_workers=workers
    )
    return [
        {key: batch[key][row].tolist() for key in batch}
        for batch in loader
        for row in range(len(batch["index"]))
    ]


def test_workers_do_not_matter() -> None:
    assert items(workers=2, epoch=1) == items(workers=0, epoch=1)


def test_a_resumed_epoch_is_the_rest_of_the_whole_one() -> None:
    assert items(workers=0, epoch=3, start=4) == items(workers=0, epoch=3)[4:]


def test_epochs_seeds_and_items_differ_in_every_generator() -> None:
    def by_index(drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(drawn, key=lambda item: item["index"])

    first, later, other = (by_index(items(0, *address)) for address in ((0,), (1,), (0, 6)))
    for key in ("python", "numpy", "torch"):
        values = [item[key] for drawn in (first, later, other) for item in drawn]
        assert len(set(values)) == 33
    assert [item["crop"] for item in first] != [item["crop"] for item in later]
    assert len({str(item["crop"]) for drawn in (first, later, other) for item in drawn}) > 20


def test_order_is_a_permutation_per_epoch() -> None:
    sampler = PositionSampler(50, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(50)) != first
    assert {position.epoch for position in first} == {0}
    sampler.set_epoch(1)
    assert list(sampler) != first and {position.epoch for position in sampler} == {1}
    sampler.set_epoch(0)
    assert list(sampler) == first != list(PositionSampler(50, seed=2))


def test_order_stays_what_it_is() -> None:
    """Runs are resumed with later versions, so the order may never change."""
    assert list(PositionSampler(8, seed=23)) == [0, 2, 3, 1, 6, 7, 5, 4]
    shards = PositionSampler(24, seed=23, blocks=[1, 2, 1] * 6)
    expected = [11, 19, 0, 20, 10, 14, 8, 3, 21, 1, 12, 4]
    expected += [6, 23, 9, 15, 22, 13, 5, 2, 7, 17, 16, 18]
    assert list(shards) == expected


def test_what_is_drawn_for_an_item_stays_what_it_is() -> None:
    item = SeededDataset(Noise(), 5)[Position(2, 3)]
    assert (item["python"], item["numpy"]) == (0.7855646513028925, -1.4681173797690956)
    assert item["torch"].item() == pytest.approx(0.5931739807128906, abs=1e-7)


def test_without_shuffling_items_come_in_order() -> None:
    assert list(PositionSampler(5, shuffle=False)) == [0, 1, 2, 3, 4]


def test_set_epoch_keeps_the_position_of_its_own_epoch_only() -> None:
    sampler = PositionSampler(10, seed=1)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_position(2, 7)
    sampler.set_epoch(2)  # as a trainer does when it resumes
    assert list(sampler) == whole[7:] and len(sampler) == 10
    sampler.set_epoch(3)
    assert len(list(sampler)) == 10
    assert sampler.share(10) == sampler.share(30) == 0  # of a dataset that has become smaller


@pytest.mark.parametrize("length", [8, 9, 10, 11])
def test_ranks_share_without_overlap(length: int) -> None:
    padded = [list(PositionSampler(length, 1, rank=r, world_size=4)) for r in range(4)]
    assert {len(rank) for rank in padded} == {-(-length // 4)}
    assert set().union(*padded) == set(range(length))
    order = list(PositionSampler(length, 1))
    together = [item for step in zip(*padded, strict=True) for item in step]
    assert together == order + order[: len(together) - length]


def test_more_ranks_than_items() -> None:
    assert list(PositionSampler(1, rank=2, world_size=3)) == [0]
    with pytest.raises(UserError, match="0 items"):
        PositionSampler(0)


def test_position_survives_the_way_to_a_worker() -> None:
    position = pickle.loads(pickle.dumps(Position(3, 14)))
    assert position == 14 and position.epoch == 3 and [*range(20)][position] == 14


def states() -> tuple[Any, ...]:
    _name, keys, *rest = np.random.get_state()
    return random.getstate(), keys.tolist(), rest, torch.get_rng_state().tolist()


def test_the_caller_s_generators_are_left_alone() -> None:
    dataset = SeededDataset(Noise(), 0)
    np.random.randn()  # numpy now holds a second normal number back
    before = states()
    dataset[3], dataset[Position(2, 1)]
    with pytest.raises(UserError, match="item 11 of .*Noise raises ValueError: broken item"):
        dataset[11]
    assert states() == before


def test_plain_index_is_epoch_zero() -> None:
    dataset = SeededDataset(Noise(), 0)
    assert (
        dataset[4]["numpy"] == dataset[Position(0, 4)]["numpy"] != dataset[Position(1, 4)]["numpy"]
    )


def test_pipelines_inside_other_datasets_are_found() -> None:
    nested = SeededDataset(ConcatDataset([Noise(), Noise()]), 0)
    for part in (range(11), range(12, 23)):
        first = [nested[index]["crop"].tolist() for index in part]
        assert first == [nested[index]["crop"].tolist() for index in part]
        assert first != [nested[Position(1, index)]["crop"].tolist() for index in part]


def test_datasets_may_refer_to_each_other() -> None:
    first, second = Noise(), Noise()
    first.other, second.other = second, first  # type: ignore[attr-defined]
    assert len(SeededDataset(first, 0)._pipelines) == 2
    first.more = (albumentations.Compose([]), [albumentations.Compose([])])  # type: ignore[attr-defined]
    assert len(SeededDataset(first, 0)._pipelines) == 4


class Helper:
    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def __call__(self) -> None: ...


CONSTANT = albumentations.Compose([albumentations.RandomCrop(2, 2)])


@pytest.mark.parametrize(
    "place",
    [
        lambda pipeline: {"train": {"a": pipeline}},
        Helper,
        lambda pipeline: Helper(pipeline).__call__,
        lambda pipeline: functools.partial(print, a=Helper(pipeline)),
        lambda pipeline: [{"a": (Helper([pipeline]),)}],
        lambda pipeline: lambda image: pipeline(image=image),
        lambda pipeline: lambda: CONSTANT,
        lambda pipeline: lambda: (albumentations, pipeline, Helper([albumentations.Compose])),
        lambda pipeline: Helper([albumentations.Compose, albumentations, pipeline]),
        lambda pipeline: type("Own", (Helper,), {"shared": pipeline})(None),
        lambda pipeline: type("Own", (Helper,), {"shared": property(lambda _: CONSTANT)})(None),
    ],
)
def test_pipelines_are_found_wherever_a_dataset_keeps_them(place: Any) -> None:
    found = place(pipeline := albumentations.Compose([albumentations.RandomCrop(2, 2)]))
    dataset = Noise()
    dataset.pipeline, dataset.more = None, {"me": dataset, "found": found}  # type: ignore[attr-defined,assignment]
    seeded = SeededDataset(dataset, 0)
    (one,) = seeded._pipelines
    assert one is pipeline or one is CONSTANT
    assert "_pipelines" not in seeded.__getstate__()


def test_a_constant_of_a_module_is_seeded() -> None:
    class Own(Noise):
        def __getitem__(self, index: int) -> Any:
            return CONSTANT(image=self.image)["image"]

    seeded = SeededDataset(Own(), 0)
    crops = [str(seeded[Position(epoch, 3)]) for epoch in (0, 1, 2, 0, 1, 2)]
    assert crops[:3] == crops[3:] and len(set(crops)) > 1


def test_order_stays_among_a_few_shards_and_is_resumed() -> None:
    blocks = [10] * (2 * BLOCKS_MIXED)
    samplers = [PositionSampler(320, 1, rank=r, world_size=2, blocks=blocks) for r in range(2)]
    orders = [list(sampler) for sampler in samplers]
    assert sorted(orders[0] + orders[1]) == list(range(320))
    first = {index // 10 for order in orders for index in order[:80]}
    assert len(first) == BLOCKS_MIXED and first != set(range(BLOCKS_MIXED))
    jumps = [abs(b // 10 - a // 10) > 0 for a, b in pairwise(orders[0][:80])]
    assert sum(jumps) > 60  # items of different shards follow each other
    samplers[0].set_position(0, 74)
    assert list(samplers[0]) == orders[0][37:]
    samplers[0].set_position(1, 0)
    assert list(samplers[0]) != orders[0]
