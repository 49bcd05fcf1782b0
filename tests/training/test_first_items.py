"""What is looked at before training: a few items of each split, and nothing is changed by it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import IterableDataset

from taming.data.seeding import SeededDataset
from taming.errors import DamagedImage, UserError
from taming.training.data_module import DataModuleFromConfig
from taming.training.first_items import FirstBatches, check_first_items
from tests.kit.datasets import Noise


class Model(pl.LightningModule):
    """Keeps the batches that it is to check."""

    __module__ = "taming.models.ours"

    def __init__(self) -> None:
        super().__init__()
        self.checked: list[Any] = []

    def check_batch(self, batch: Any) -> None:
        self.checked.append(batch["class_label"].tolist())
        if len(batch["image"]) == 3:
            raise UserError("three")


class Foreign(Model):
    __module__ = "elsewhere"


class Random(Noise):
    """Takes random numbers, as crops do."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return super().__getitem__(index) | {"class_label": np.random.randint(1000)}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("it is looked at")


def checked(batch_size: int, model: Model | None = None, **datasets: Any) -> list[list[int]]:
    data = DataModuleFromConfig(batch_size, num_workers=0)
    data.datasets = datasets
    model = model or Model()
    check_first_items(data, model)
    return model.checked


def test_the_first_items_of_each_split_are_checked() -> None:
    splits = {"train": Noise(9), "validation": Noise(2), "test": Noise(0), "other": Stream()}
    assert checked(2, **splits) == [[0, 1, 2, 3], [0, 1]]
    assert checked(1, **splits) == [[0], [0]]
    assert checked(2, Foreign(), **splits) == []
    with pytest.raises(UserError, match="three"):
        checked(2, train=Noise(9), validation=Noise(3))


def test_random_numbers_are_those_of_training_and_go_on_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    seeded = SeededDataset(Random(9), 3).__getitems__(range(4))
    assert checked(2, train=Random(9)) == [[int(item["class_label"]) for item in seeded]]
    state = np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    assert checked(2, train=Random(9)) == checked(2, train=Random(9))
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index,union-attr]


def test_streams_are_checked_at_their_first_batch_alone() -> None:
    data = DataModuleFromConfig(2, num_workers=0)
    data.datasets = {"train": Stream(), "validation": Noise(3)}
    model, batch = Model(), {"image": torch.zeros(2), "class_label": torch.tensor([5, 6])}
    trainer: Any = SimpleNamespace(datamodule=data, lightning_module=model)
    callback = FirstBatches()
    with pytest.raises(UserError, match="data.params.train gives no items"):
        callback.on_train_epoch_end(trainer, model)
    callback.on_validation_batch_start(trainer, model, batch)
    assert model.checked == []  # it is no stream, and was looked at before
    for number in range(2):
        callback.on_train_batch_start(trainer, model, batch, number)
        callback.on_train_epoch_end(trainer, model)
    assert model.checked == [[5, 6]]
    data.datasets = {"train": Noise(3), "validation": Stream()}
    callback = FirstBatches()
    callback.on_train_epoch_end(trainer, model)
    for number in range(2):
        callback.on_train_batch_start(trainer, model, batch, number)
        callback.on_validation_batch_start(trainer, model, batch)
    assert model.checked == [[5, 6]] * 2
    trainer.datamodule = None
    FirstBatches().on_train_batch_start(trainer, model, batch, 0)
    assert model.checked == [[5, 6]] * 2


class Damaged(Noise):
    """Its third item is."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 2:
            raise DamagedImage("cut off")
        return super().__getitem__(index)


def test_damaged_images_are_left_to_the_loader_but_not_errors_of_code() -> None:
    assert checked(2, train=Damaged(9), validation=Noise(1)) == [[0]]
    with pytest.raises(UserError, match="item 3 cannot be read"):
        checked(2, train=Noise(9, fail_at=3))


def test_images_of_two_sizes_are_refused_whosever_the_model_is() -> None:
    class Sizes(Noise):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"image": torch.zeros(4 + index, 4, 3)}

    with pytest.raises(UserError, match="several shapes"):
        checked(2, Foreign(), train=Sizes(9))
