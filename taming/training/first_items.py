"""A few items of the data are compared with what the model reads, before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch.utils.data import IterableDataset

from taming.data.seeding import SeededDataset
from taming.data.utils import custom_collate
from taming.devices import own_random_states
from taming.errors import DamagedImage, UserError
from taming.lightning_internals import batches_begun
from taming.training.data_module import DataModuleFromConfig
from taming.user_code import is_ours, name_of

_FIRST = 4  # items of each split; one where batches are of one


@runtime_checkable
class ChecksBatches(Protocol):
    """A model that knows what it cannot read."""

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Raises UserError."""


def check_first_items(data: pl.LightningDataModule, model: pl.LightningModule) -> None:
    """Look at items of each split, without effect on random numbers.

    Raises:
        UserError: for images of several sizes, if batches have several items; for what code of the
            user's raises; for what a model of this project cannot read. Subclasses elsewhere may
            read other things.
    """
    if not isinstance(data, DataModuleFromConfig):
        return
    for dataset in data.datasets.values():
        if isinstance(dataset, IterableDataset) or not len(dataset):
            continue
        count = min(len(dataset), _FIRST) if data.batch_size > 1 else 1
        try:
            items = SeededDataset(dataset, data.seed).__getitems__(range(count))
        except UserError as error:
            if isinstance(error, DamagedImage):
                continue
            raise
        except Exception:  # the loader will say which item cannot be read, and in training
            continue
        _check(custom_collate(items), model)


def _check(batch: Any, model: pl.LightningModule) -> None:
    if is_ours(type(model)) and isinstance(model, ChecksBatches):
        model.check_batch(batch)


class FirstBatches(Callback):
    """Checks the first batch of what is not looked at before training: of iterable datasets, whose
    items may come only once, and of data modules of the user's; and that there is one."""

    def __init__(self) -> None:
        super().__init__()
        self._checked: set[str] = set()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._check("train", trainer, batch)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any
    ) -> None:
        self._check("validation", trainer, batch)

    def _check(self, split: str, trainer: pl.Trainer, batch: Any) -> None:
        if split not in self._checked and _is_unseen(trainer, split):
            with own_random_states():
                _check(batch, trainer.lightning_module)
        self._checked.add(split)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ours = isinstance(trainer.datamodule, DataModuleFromConfig)  # type: ignore[attr-defined]
        if ours or not batches_begun(trainer):  # a resumed run may have had them before
            self._require("train", trainer)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._require("validation", trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loaders = trainer.num_val_batches
        if trainer.enable_validation and loaders and not sum(loaders):
            self._require("validation", trainer)

    def _require(self, split: str, trainer: pl.Trainer) -> None:
        if split not in self._checked and _is_unseen(trainer, split):
            data = trainer.datamodule  # type: ignore[attr-defined]
            ours = isinstance(data, DataModuleFromConfig)
            place = (
                f"data.params.{split}" if ours else f"data: the {split} of {name_of(type(data))}"
            )
            use = "trained on" if split == "train" else "validated"
            raise UserError(f"{place} gives no items: nothing can be {use}")


def _is_unseen(trainer: pl.Trainer, split: str) -> bool:
    data = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, DataModuleFromConfig):
        return isinstance(data.datasets.get(split), IterableDataset)
    return data is not None
