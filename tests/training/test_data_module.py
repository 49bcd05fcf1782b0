"""Loaders from a config: their splits, batches, workers and refusals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, IterableDataset

from taming.data.seeding import NamedStream, SeededDataset
from taming.errors import UserError
from taming.lightning_internals import Place
from taming.training import data_module
from taming.training.data_module import (
    DataModuleFromConfig,
    WrappedDataset,
    batch_size_of,
    build_data,
    splits_of,
)
from taming.training.stopping import start_worker
from tests.kit.datasets import Noise
from tests.kit.images import write_images


def noise(length: int) -> dict[str, Any]:
    return {"target": "tests.kit.datasets.Noise", "params": {"length": length}}


def test_data_module_loads_each_split() -> None:
    data = DataModuleFromConfig(2, train=noise(5), validation=noise(3), wrap=True, num_workers=0)
    data.prepare_data()
    data.setup()
    assert isinstance(data.datasets["train"], WrappedDataset)
    assert [len(batch["image"]) for batch in data.train_dataloader()] == [2, 2, 1]
    labels = [batch["class_label"].tolist() for batch in data.val_dataloader()]
    assert labels == [[0, 1], [2]]
    assert data.test_dataloader() == []


def test_order_and_random_numbers_follow_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def order(seed: int) -> tuple[list[int], int]:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        data = DataModuleFromConfig(8, noise(40), noise(3), num_workers=0)
        data.setup()
        loader = data.train_dataloader()
        indices = [int(index) for index in loader.sampler]
        assert sorted(indices) == list(range(40))
        assert isinstance(loader.dataset, SeededDataset)
        return indices, loader.dataset.seed

    assert order(3) == order(3) and order(3)[1] == 3
    assert order(3)[0] != order(4)[0] and order(4)[1] == 4


class Blocks(Noise):
    shard_lengths = (6, 4)


def test_samplers_split_over_processes_and_read_shards_in_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data_module, "rank", lambda: 1)
    monkeypatch.setattr(data_module, "world_size", lambda: 2)
    monkeypatch.setattr(data_module, "Shards", Blocks)
    blocks = {"target": "tests.training.test_data_module.Blocks", "params": {"length": 10}}
    data = DataModuleFromConfig(2, noise(10), blocks, num_workers=0)
    data.setup()
    for split, expected in (("train", None), ("validation", (6, 4))):
        sampler = data._sampler(split)
        assert (sampler.rank, sampler.world_size, sampler.blocks) == (1, 2, expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_keep_their_workers(workers: int) -> None:
    data = DataModuleFromConfig(2, noise(5), noise(3), num_workers=workers)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert isinstance(loader, DataLoader)
        assert loader.persistent_workers == bool(workers)
        assert loader.worker_init_fn is start_worker and loader.num_workers == workers
        assert loader.timeout == (600 if workers else 0)
        assert not loader.pin_memory  # without a Trainer
    own = DataModuleFromConfig(2, noise(5), num_workers=workers, timeout=7)
    own.setup()
    assert own.train_dataloader().timeout == (7 if workers else 0)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_memory_is_pinned_for_training_on_a_gpu(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = DataModuleFromConfig(2, noise(5), noise(3), num_workers=0)
    data.setup()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device(device))
    data.trainer = trainer
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert isinstance(loader, DataLoader) and loader.pin_memory == (device != "cpu")


def test_batches_of_an_epoch_are_counted_in_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataModuleFromConfig(3, noise(11), num_workers=0)
    assert data.batches_per_epoch(1) is None
    data.setup()
    assert [data.batches_per_epoch(processes) for processes in (1, 2, 4)] == [4, 2, 1]
    # Of 11 items, 4 batches of 3: what is left decides how many of them are done.
    assert [data.start_at(0, seen) for seen in (0, 2, 3, 5, 6, 11)] == [0, 1, 1, 2, 2, 4]
    assert data._position(1) == (0, 11)
    other = DataModuleFromConfig(3, noise(11), num_workers=0)
    for place, start in ((Place(3, 2), (3, 12)), (Place(3, 2, complete=True), (4, 0))):
        monkeypatch.setattr(data_module, "place_of", lambda _, place=place: place)
        assert other._position(processes=2) == start


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(range(3))


def test_streams_are_loaded_by_name() -> None:
    data = DataModuleFromConfig(2, num_workers=0)
    data.datasets = {"train": Stream()}
    loader = data.train_dataloader()
    assert isinstance(loader.dataset, NamedStream) and loader.batch_size == 2
    assert [batch.tolist() for batch in loader] == [[0, 1], [2]]
    assert data.batches_per_epoch(1) is None and data.start_at(0, 4) is None


def test_training_alone_begins_at_a_place() -> None:
    data = DataModuleFromConfig(2, noise(6), noise(6), num_workers=0)
    data.setup()
    data.trainer = cast(Any, SimpleNamespace())
    data.start_at(0, 4)
    loaders = (data.train_dataloader(), data.val_dataloader())
    assert [len(list(loader.sampler)) for loader in loaders] == [2, 6]  # type: ignore[union-attr]


def test_the_slowest_item_of_all_loaders_is_named() -> None:
    data = DataModuleFromConfig(3, num_workers=0)
    assert data.slowest_item() == (0.0, "a batch")
    times = {"train": (1.0, "a.png"), "validation": (3.0, "b.png"), "test": None}
    data.readings = {n: SimpleNamespace(longest=lambda t=t: t) for n, t in times.items()}  # type: ignore[misc]
    assert data.slowest_item() == (3.0, "b.png")


def test_data_module_hands_bytes_over(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(write_images(tmp_path, 2)))
    params = {"size": 16, "training_images_list_file": str(tmp_path / "list.txt")}
    config = {"target": "taming.data.custom.CustomTrain", "params": params}
    data = DataModuleFromConfig(2, config, num_workers=0, fast_decode=True, image_bytes=True)
    data.setup()
    [batch] = data.train_dataloader()
    assert batch["image"].dtype == torch.uint8 and batch["image"].shape == (2, 16, 16, 3)
    with pytest.raises(UserError, match="data.params.image_bytes: Noise reads no image files"):
        DataModuleFromConfig(2, noise(5), image_bytes=True).setup()


def test_default_workers_are_bounded_by_batch_and_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "available_cpus", lambda: 16)
    assert [DataModuleFromConfig(size).num_workers for size in (1, 7, 8, 9)] == [2, 14, 16, 16]
    assert DataModuleFromConfig(8, num_workers=0).num_workers == 0
    for cpus, most in ((1, 64), (16, 128)):
        monkeypatch.setattr(data_module, "available_cpus", lambda cpus=cpus: cpus)
        assert DataModuleFromConfig(8, num_workers=most).num_workers == most
        with pytest.raises(UserError, match=f"num_workers is {most + 1}"):
            DataModuleFromConfig(8, num_workers=most + 1)


def test_splits_are_those_that_there_are_data_for() -> None:
    class Foreign(pl.LightningDataModule):
        batch_size = 3

        def train_dataloader(self) -> None: ...

        def test_dataloader(self) -> None: ...

    assert splits_of(Foreign()) == {"train", "test"} and batch_size_of(Foreign()) == 3
    data = DataModuleFromConfig(2, noise(5), noise(3), num_workers=0)
    assert splits_of(data) == set() and batch_size_of(data) == 2
    data.setup()
    assert splits_of(data) == {"train", "validation"}
    with pytest.raises(UserError, match="LightningDataModule has no batch_size"):
        batch_size_of(pl.LightningDataModule())


def test_data_that_cannot_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size is 8, but Noise has only 5 items"):
        DataModuleFromConfig(8, train=noise(5)).setup()
    with pytest.raises(UserError, match="batch_size is 0"):
        DataModuleFromConfig(0)
    with pytest.raises(UserError, match="data.params.train: there is no such dataset"):
        DataModuleFromConfig(1).train_dataloader()
    typo = OmegaConf.create({"target": "tests.kit.datasets.Noise", "params": {"lenght": 1}})
    with pytest.raises(UserError, match="data.params.train.params: .*did you mean 'length'"):
        DataModuleFromConfig(1, train=typo).setup()


@pytest.mark.parametrize("wrap", [False, True])
def test_images_of_several_sizes_are_refused_before_training(tmp_path: Path, wrap: bool) -> None:
    paths = [*write_images(tmp_path / "a", 3), *write_images(tmp_path / "b", 2, 24, 24)]
    (tmp_path / "list.txt").write_text("\n".join(paths))

    def data(batch_size: int, **params: Any) -> DataModuleFromConfig:
        params |= {"training_images_list_file": str(tmp_path / "list.txt")}
        config = {"target": "taming.data.custom.CustomTrain", "params": params}
        return DataModuleFromConfig(batch_size, config, wrap=wrap, num_workers=0)

    several = r"data.params.train: images have several sizes, 16 x 12 .*000.png\) and 12 x 12 "
    with pytest.raises(UserError, match=several):
        data(2, size=12, crop_size=0).setup()
    data(1, size=12, crop_size=0).setup()
    data(2, size=12).setup()
    with pytest.raises(UserError, match="images have several sizes, 32 x 24 .* and 24 x 24 "):
        data(5, size=-1).setup()
    data(5, size=None, crop_size=20).setup()


def test_batches_of_foreign_datasets_that_do_not_fit_are_explained() -> None:
    data = DataModuleFromConfig(2, noise(2), num_workers=1)
    data.setup()
    data.datasets["train"] = [{"image": torch.zeros(4, side, 3)} for side in (4, 5)]
    batches = iter(data.train_dataloader())
    with pytest.raises(UserError, match=r"'image' of a batch have several shapes, \(4, 4, 3\) and"):
        next(batches)
    batches._shutdown_workers()  # the collector would wait for them for seconds


def test_subclasses_are_asked_for_their_datasets() -> None:
    calls = []

    class Own(DataModuleFromConfig):
        def prepare_data(self) -> None:
            calls.append("prepare_data")
            super().prepare_data()

        def setup(self, stage: str | None = None) -> None:
            calls.append("setup")
            super().setup(stage)

    Own(2, noise(5), num_workers=0).prepare_data()
    assert calls == ["prepare_data", "setup"]


CALLS: list[str] = []


class Preparing(DataModuleFromConfig):
    """Data that take a moment to prepare, and say who does so."""

    def prepare_data(self) -> None:
        CALLS.append("begins")
        time.sleep(0.2)  # the other process comes meanwhile
        CALLS.append("has prepared")

    def setup(self, stage: str | None = None) -> None:
        CALLS.append("setup")


def test_processes_that_start_at_once_prepare_data_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target = "tests.training.test_data_module.Preparing"
    config = OmegaConf.create({"target": target, "params": {"batch_size": 1}})
    CALLS.clear()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(build_data, config) for _ in range(2)]
        assert all(isinstance(data.result(), pl.LightningDataModule) for data in both)
    assert CALLS == ["begins", "has prepared", "setup", "setup"]


class OwnLoaders(DataModuleFromConfig):
    """The published class's own methods, where its subclasses chose another sampler."""

    def _train_dataloader(self) -> Any:
        return ["train"]

    def _val_dataloader(self) -> Any:
        return ["validation"]

    def _test_dataloader(self) -> Any:
        return ["test"]


def test_loaders_of_subclasses_by_their_published_names() -> None:
    module = OwnLoaders(2, noise(4))
    loaders = (module.train_dataloader(), module.val_dataloader(), module.test_dataloader())
    assert loaders == (["train"], ["validation"], ["test"])
