"""Datasets from a config, as loaders whose order is a function of (seed, epoch, index)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from taming.config import instantiate_from_config
from taming.data.base import set_loading
from taming.data.seeding import PositionSampler, SeededDataset
from taming.data.shards import Shards
from taming.devices import available_cpus
from taming.distributed import rank, world_size
from taming.errors import UserError
from taming.lightning_internals import batches_done

SPLITS = ("train", "validation", "test")


class WrappedDataset(Dataset[Any]):
    """Any object with a length and items, as a map-style dataset."""

    def __init__(self, dataset: Any) -> None:
        self.data = dataset

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


class PositionedLoader(DataLoader[Any]):
    """A loader that the data module starts at the right place of a resumed epoch.

    Lightning recognizes loaders that can be resumed by these methods; the place itself is in the
    Trainer's own counters.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class DataModuleFromConfig(pl.LightningDataModule):
    """Datasets named by `target:` and `params:`, one per split.

    Args:
        batch_size: items per batch and process.
        train, validation, test: configs of the datasets; any may be left out.
        wrap: put a `WrappedDataset` around them, for objects that are no torch datasets.
        num_workers: loader processes; None is twice the batch size, at most the CPUs there are.
        fast_decode: decode JPEGs faster, those that are to be half their size or less with a part
            of the work (and slightly other pixels).
        image_bytes: hand images over as bytes, which the models scale to [-1, 1] on their device.
    """

    def __init__(
        self,
        batch_size: int,
        train: Mapping[str, Any] | None = None,
        validation: Mapping[str, Any] | None = None,
        test: Mapping[str, Any] | None = None,
        wrap: bool = False,
        num_workers: int | None = None,
        fast_decode: bool = False,
        image_bytes: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.params.batch_size is {batch_size}; it must be at least 1")
        configs = zip(SPLITS, (train, validation, test), strict=True)
        self.dataset_configs = {split: config for split, config in configs if config}
        self.batch_size = batch_size
        self.wrap = wrap
        self.loading = {"fast_decode": fast_decode, "image_bytes": image_bytes}
        self.num_workers = _default_workers(batch_size) if num_workers is None else num_workers
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.datasets: dict[str, Any] = {}

    def prepare_data(self) -> None:
        """Build the datasets, which may unpack or index files: on one process of each machine."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        for split, config in self.dataset_configs.items():
            if split not in self.datasets:
                dataset = instantiate_from_config(config, key=f"data.params.{split}")
                self._set_loading(dataset)
                self.datasets[split] = WrappedDataset(dataset) if self.wrap else dataset
        self._check_size()

    def _set_loading(self, dataset: Any) -> None:
        wanted = [f"data.params.{name}" for name, value in self.loading.items() if value]
        if wanted and not set_loading(dataset, **self.loading):
            raise UserError(
                f"{' and '.join(wanted)}: {type(dataset).__name__} reads no image files; leave "
                "this out"
            )

    def _check_size(self) -> None:
        train = self.datasets.get("train")
        if train is None or isinstance(train, IterableDataset):
            return
        if len(train) < self.batch_size:
            name = type(train).__name__
            raise UserError(
                f"data.params.batch_size is {self.batch_size}, but {name} has only {len(train)} "
                "items; make it smaller or give more data"
            )

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return self._loader("validation") if "validation" in self.datasets else []

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        return self._loader("test") if "test" in self.datasets else []

    def _loader(self, split: str, shuffle: bool = False) -> DataLoader[Any]:
        if split not in self.datasets:
            raise UserError(f"data.params.{split}: there is no such dataset in the config")
        dataset = self.datasets[split]
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
        if isinstance(dataset, IterableDataset):
            return DataLoader(dataset, **options)
        sampler = self._sampler(dataset, shuffle)
        return PositionedLoader(SeededDataset(dataset, self.seed), sampler=sampler, **options)

    def _sampler(self, dataset: Any, shuffle: bool) -> PositionSampler:
        blocks = dataset.shard_lengths if isinstance(dataset, Shards) else None
        sampler = PositionSampler(
            len(dataset), self.seed, shuffle, rank(), world_size(), blocks=blocks
        )
        if shuffle and self.trainer is not None:
            # A resumed run has part of its epoch behind it. If it was all of it, Lightning goes on
            # to the next epoch, which the sampler then begins at its start.
            done = batches_done(self.trainer) * self.batch_size
            sampler.set_position(self.trainer.current_epoch, done)
        return sampler


def _default_workers(batch_size: int) -> int:
    return min(2 * batch_size, available_cpus())
