"""A few items of the data are compared with what the model reads, before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
from torch.utils.data import IterableDataset

from taming.data.seeding import SeededDataset
from taming.data.utils import custom_collate
from taming.training.data_module import DataModuleFromConfig

_FIRST = 4  # items of each split; one where batches are of one


@runtime_checkable
class ChecksBatches(Protocol):
    """A model that knows what it cannot read."""

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Raises UserError."""


def check_first_items(data: pl.LightningDataModule, model: pl.LightningModule) -> None:
    """Look at items of each split, without effect on random numbers.

    Raises:
        UserError: for images of several sizes, if batches have several items; for what a model of
            this project cannot read. Subclasses elsewhere may read other things.
    """
    if not isinstance(data, DataModuleFromConfig):
        return
    ours = type(model).__module__.startswith("taming.")
    for dataset in data.datasets.values():
        if isinstance(dataset, IterableDataset) or not len(dataset):
            continue
        count = min(len(dataset), _FIRST) if data.batch_size > 1 else 1
        try:
            items = SeededDataset(dataset, data.seed).__getitems__(range(count))
        except Exception:  # the loader will say which item cannot be read, and in training
            continue
        batch = custom_collate(items)
        if ours and isinstance(model, ChecksBatches) and isinstance(batch, Mapping):
            model.check_batch(batch)
