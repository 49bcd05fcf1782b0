"""Datasets from a config, as loaders whose order is a function of (seed, epoch, index)."""

from __future__ import annotations

import os
from collections.abc import Sequence, Sized
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, IterableDataset

from taming.atomic_files import first_alone, machine_lock
from taming.config import instantiate_from_config, plain
from taming.config_values import Count, CountOrZero, DatasetConfig, FilePath, NonNegative
from taming.data.codes import code_datasets
from taming.data.custom import CustomBase
from taming.data.loading import set_loading
from taming.data.readings import Readings
from taming.data.seeding import NamedStream, PositionSampler, SeededDataset, length_of
from taming.data.shards import Shards
from taming.data.utils import custom_collate, start_method
from taming.data.wrapping import changed_by, handed_on
from taming.devices import available_cpus
from taming.distributed import rank, world_size
from taming.errors import UserError
from taming.lightning_internals import place_of
from taming.limits import check_sizes
from taming.training.stopping import start_worker
from taming.user_code import calling, name_of

SPLITS = ("train", "validation", "test")


class WrappedDataset(CustomBase):
    """Any object with a length and items, as a map-style dataset."""

    def __init__(self, dataset: Any) -> None:
        self.data = dataset


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
        timeout: seconds that an item may take, before the run ends and names its file; 0: for ever.
        image_bytes: hand images over as bytes, which the models scale to [-1, 1] on their device.
        codes: a folder that `scripts/encode_dataset.py` has written; transformers are trained on
            its codes, in place of the images of the same splits.
    """

    def __init__(
        self,
        batch_size: Count,
        train: DatasetConfig | None = None,
        validation: DatasetConfig | None = None,
        test: DatasetConfig | None = None,
        wrap: bool = False,
        num_workers: CountOrZero | None = None,
        fast_decode: bool = False,
        image_bytes: bool = False,
        timeout: NonNegative = 600.0,
        codes: FilePath | None = None,
    ) -> None:
        super().__init__()
        check_sizes("data.params", batch_size=batch_size)  # from Python, too
        most = max(64, 8 * available_cpus())
        check_sizes("data.params", least=0, most=most, num_workers=num_workers or 0)
        configs = zip(SPLITS, (train, validation, test), strict=True)
        self.dataset_configs = {split: config for split, config in configs if config}
        if codes is not None:
            self.dataset_configs = code_datasets(codes, self.dataset_configs)
            wrap = fast_decode = image_bytes = False  # these are about the images
        self.batch_size = batch_size
        self.wrap = wrap
        self.loading = {"fast_decode": fast_decode, "image_bytes": image_bytes}
        self.num_workers = _default_workers(batch_size) if num_workers is None else num_workers
        self.timeout = timeout
        self.readings: dict[str, Readings] = {}
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.datasets: dict[str, Any] = {}
        self._start: tuple[int, int] | None = None

    def prepare_data(self) -> None:
        """Build the datasets, which may unpack or index files: on one process of each machine,
        before the others do so."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        for split, config in self.dataset_configs.items():
            if split not in self.datasets:
                dataset = instantiate_from_config(config, f"data.params.{split}", "dataset")
                self._set_loading(dataset)
                _check_length(dataset, f"data.params.{split}")
                self.datasets[split] = WrappedDataset(dataset) if self.wrap else dataset
        self._check_size()
        self._check_sizes_of_images()

    def _set_loading(self, dataset: Any) -> None:
        wanted = [f"data.params.{name}" for name, value in self.loading.items() if value]
        if wanted and not set_loading(dataset, **self.loading):
            raise UserError(
                f"{' and '.join(wanted)}: {type(dataset).__name__} reads no image files; leave "
                "this out"
            )
        if self.loading["image_bytes"] and (own := changed_by(dataset)):
            raise UserError(
                f"data.params.image_bytes: {own} is made for images in [-1, 1], and would get "
                "bytes; leave this out"
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

    def _check_sizes_of_images(self) -> None:
        """Refuse batches of images of several sizes, as far as the files' headers tell."""
        for split, dataset in self.datasets.items():
            found = [files.item_sizes for files in handed_on(dataset)]
            sizes = {size: path for of_part in found for size, path in of_part.items()}
            if self.batch_size > 1 and len(sizes) > 1:
                two = list(sizes.items())[:2]
                named = " and ".join(f"{w} x {h} ({path})" for (h, w), path in two)
                raise UserError(
                    f"data.params.{split}: images have several sizes, {named}, which do not fit "
                    "into a batch; give a size and let them be cropped, or "
                    "data.params.batch_size=1"
                )

    def train_dataloader(self) -> Any:
        return self._train_dataloader()

    def val_dataloader(self) -> Any:
        return self._val_dataloader()

    def test_dataloader(self) -> Any:
        return self._test_dataloader()

    # Subclasses may override these or those above: the published class had both.
    def _train_dataloader(self) -> Any:
        return self._loader("train", shuffle=True)

    def _val_dataloader(self) -> Any:
        return self._loader("validation") if "validation" in self.datasets else []

    def _test_dataloader(self) -> Any:
        return self._loader("test") if "test" in self.datasets else []

    def _loader(self, split: str, shuffle: bool = False) -> DataLoader[Any]:
        if split not in self.datasets:
            raise UserError(f"data.params.{split}: there is no such dataset in the config")
        dataset = self.datasets[split]
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "multiprocessing_context": start_method(self.num_workers),
            "timeout": self.timeout if self.num_workers else 0,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": self._feeds_a_gpu(),
            "worker_init_fn": start_worker,
            "collate_fn": custom_collate,
        }
        if isinstance(dataset, IterableDataset):
            return DataLoader(NamedStream(dataset), **options)
        sampler = self._sampler(split, shuffle)
        if shuffle and self.trainer is not None:
            sampler.set_position(*self._position(sampler.world_size))
        self.readings[split] = Readings(self.num_workers)
        seeded = SeededDataset(dataset, self.seed, self.readings[split])
        return PositionedLoader(seeded, sampler=sampler, **options)

    def _feeds_a_gpu(self) -> bool:
        # Pinning for a run on the CPU would start CUDA, and keep memory of a GPU, for nothing.
        trainer = self.trainer
        return isinstance(trainer, pl.Trainer) and trainer.strategy.root_device.type == "cuda"

    def batches_per_epoch(self, processes: int) -> int | None:
        """Of training, in each process; None if the dataset has no length."""
        train = self.datasets.get("train")
        if train is None or isinstance(train, IterableDataset):
            return None
        share = -(-len(train) // processes)
        return -(-share // self.batch_size)

    def check_lengths(self, processes: int, also: Sequence[str] = ()) -> None:
        """Refuse (`UserError`) datasets with less than an item for each process, for training and
        validation, and the splits that are used `also`."""
        for split in ("train", "validation", *also):
            dataset = self.datasets.get(split)
            if isinstance(dataset, Sized) and len(dataset) < processes:
                raise UserError(
                    f"data.params.{split} has {len(dataset)} items for {processes} devices; give "
                    "it at least one item per device, or leave it out"
                )

    def slowest_item(self) -> tuple[float, str]:
        """Seconds that the slowest of the items has taken that are being loaded, and its file."""
        items = [readings.longest() for readings in self.readings.values()]
        return max((item for item in items if item is not None), default=(0.0, "a batch"))

    def _sampler(self, split: str, shuffle: bool = False) -> PositionSampler:
        dataset = self.datasets[split]
        blocks = dataset.shard_lengths if isinstance(dataset, Shards) else None
        return PositionSampler(
            len(dataset), self.seed, shuffle, rank(), world_size(), blocks=blocks
        )

    def start_at(self, epoch: int, seen: int) -> int | None:
        """Begin training after the first `seen` items of an epoch, counted over all processes.

        Returns the number of the epoch's batches, of the size they have now, that count as done;
        None if the dataset has no length.
        """
        self._start = epoch, seen
        if isinstance(self.datasets["train"], IterableDataset):
            return None
        sampler = self._sampler("train")
        left = -(-sampler.share(seen) // self.batch_size)
        return -(-len(sampler) // self.batch_size) - left

    def _position(self, processes: int) -> tuple[int, int]:
        """Epoch and items of it that training begins after, in a resumed run."""
        if self._start is not None:
            return self._start
        place = place_of(self.trainer)  # type: ignore[arg-type]
        if place.complete:
            return place.epoch + 1, 0
        return place.epoch, place.batches * self.batch_size * processes


@runtime_checkable
class HasBatchSize(Protocol):
    """A data module that says how large its batches are, as Lightning's own tuner expects."""

    batch_size: int


def build_data(config: Any) -> pl.LightningDataModule:
    """The data module of a config, its datasets made; it may be a class of the user's."""
    data: pl.LightningDataModule = instantiate_from_config(config, "data", "data module")
    kind = type(data)
    with calling(kind, f"data: {name_of(kind)}"):
        # torchrun and SLURM start all processes of a machine at once.
        with first_alone(machine_lock(f"{os.getcwd()}\0{plain(config)}")) as first:
            if first:
                data.prepare_data()
        data.setup("fit")
    return data


def batch_size_of(data: pl.LightningDataModule) -> int:
    """Items of a batch and process, by which the learning rate is scaled."""
    if isinstance(data, HasBatchSize) and isinstance(data.batch_size, int):
        return data.batch_size
    raise UserError(
        f"data: {name_of(type(data))} has no batch_size, by which the learning rate is scaled; set "
        "self.batch_size in it, or give --scale_lr False"
    )


def splits_of(data: pl.LightningDataModule) -> set[str]:
    """Which of `SPLITS` there are data for."""
    hooks = {"train": "train_dataloader", "validation": "val_dataloader", "test": "test_dataloader"}
    if not isinstance(data, DataModuleFromConfig):
        return {split for split, hook in hooks.items() if is_overridden(hook, data)}
    own = [cls for cls in type(data).__mro__ if issubclass(cls, DataModuleFromConfig)][:-1]
    defined = {name.removeprefix("_") for cls in own for name in vars(cls)}
    return {*data.datasets, *(split for split, hook in hooks.items() if hook in defined)}


def _check_length(dataset: object, place: str) -> None:
    if not isinstance(dataset, IterableDataset):
        try:
            length_of(dataset)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error


def _default_workers(batch_size: int) -> int:
    return min(2 * batch_size, available_cpus())
