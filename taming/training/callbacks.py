"""Callbacks of training: the run's folders, and pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from taming import trust
from taming.atomic_files import atomic_path, remove_leftovers, write_text
from taming.checkpoint.headers import header_of
from taming.config import without_checkpoint_paths
from taming.config_values import Count, CountOrZero
from taming.data.annotated_objects_dataset import AnnotatedObjectsDataset
from taming.devices import own_random_states
from taming.errors import UserError, reason_of
from taming.models.cond_transformer import Net2NetTransformer
from taming.pictures import Cell, grid
from taming.sharding import is_sharded
from taming.signatures import signature_of
from taming.training.data_module import DataModuleFromConfig, WrappedDataset
from taming.training.logged_pictures import pictures_of
from taming.user_code import name_of

__all__ = ["ImageLogger", "LearningRateMonitor", "SetupCallback"]

SIDE = 256  # pixels of images that stand side by side

log = logging.getLogger(__name__)


class SetupCallback(Callback):
    """Makes the run's folders and writes its configs when training starts."""

    def __init__(
        self,
        resume: str | Path | None,
        now: str,
        logdir: str | Path,
        ckptdir: str | Path,
        cfgdir: str | Path,
        config: DictConfig,
        lightning_config: DictConfig,
    ) -> None:
        super().__init__()
        self.resume = resume
        self.now = now
        self.logdir, self.ckptdir, self.cfgdir = Path(logdir), Path(ckptdir), Path(cfgdir)
        self.config, self.lightning_config = config, lightning_config

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_pretrain_routine_start(trainer, pl_module)

    @rank_zero_only
    def on_pretrain_routine_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The published name of what happens, which subclasses may override."""
        try:
            for folder in (self.logdir, self.ckptdir, self.cfgdir):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the run folder {self.logdir} cannot be made ({error})") from None
        remove_leftovers(self.logdir)
        lightning = OmegaConf.create({"lightning": self.lightning_config})
        parts = {"project": self.config, "lightning": lightning}
        paths = {name: self.cfgdir / f"{self.now}-{name}.yaml" for name in parts}
        for name, path in paths.items():
            write_text(path, OmegaConf.to_yaml(parts[name]))
        trust.remember(list(paths.values()))


class NamedModel(Callback):
    """Writes into every checkpoint which model it is of, so that one that was copied away from its
    run's config is loaded without."""

    def __init__(self, model: DictConfig) -> None:
        self._header = header_of(without_checkpoint_paths(model))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint.update(self._header)


@runtime_checkable
class LogsImages(Protocol):
    """A model that shows what it does."""

    training: bool

    def eval(self) -> Any: ...

    def train(self, mode: bool = ...) -> Any: ...

    def log_images(self, batch: Any, **options: Any) -> Mapping[str, Tensor]:
        """Pictures by name, each [B, 1 or 3, H, W] in [-1, 1].

        Of `max_images`, `split` and `pl_module`, those are given that the signature takes.
        """


class ImageLogger(Callback):
    """Writes what the model's `log_images` shows, as PNG files and to the loggers: each kind by
    itself in rows of four, and all of a batch side by side.

    In training every `batch_frequency` steps, each of a batch or of those that are accumulated, and
    at powers of two before that while `increase_log_steps`; in validation for the first batch;
    never if `batch_frequency` is 0. At most `max_images` of each kind; `clamp` cuts values to
    [-1, 1]. None of a model in shards.
    """

    def __init__(
        self,
        batch_frequency: CountOrZero,
        max_images: Count,
        clamp: bool = True,
        increase_log_steps: bool = True,
    ) -> None:
        super().__init__()
        self.batch_freq = batch_frequency
        self.max_images = max_images
        self.clamp = clamp
        self.increase_log_steps = increase_log_steps
        self.log_steps = [2**n for n in range(batch_frequency.bit_length())]
        self._trainer: pl.Trainer | None = None
        self._step = 0  # before the batch, of which it may not be the end
        # By the class of a logger: called with (pl_module, images, batch_idx, split), as published.
        self.logger_log_images: dict[type, Callable[..., Any]] = {}

    def check_frequency(self, step: int) -> bool:
        """Whether pictures are due after `step` steps."""
        if not self.batch_freq:
            return False
        early = self.increase_log_steps and step in self.log_steps
        return early or step % self.batch_freq == 0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._trainer = trainer
        if trainer.global_step > self._step and self.check_frequency(trainer.global_step):
            self.log_img(pl_module, batch, batch_idx, "train")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._trainer = trainer
        if batch_idx == 0 and self.batch_freq and not trainer.sanity_checking:
            self.log_img(pl_module, batch, batch_idx, "val")

    @rank_zero_only
    def log_img(
        self, pl_module: pl.LightningModule, batch: Any, batch_idx: int, split: str = "train"
    ) -> None:
        """Show what the model makes of `batch`; `split` is "train" or "val"."""
        if not isinstance(pl_module, LogsImages) or any(map(is_sharded, pl_module.parameters())):
            return  # of shards, no process could make pictures alone
        trainer = self._trainer or pl_module.trainer
        batch = _first(batch, self.max_images)
        pictures = self._pictures(pl_module, batch, split)
        if isinstance(pl_module, Net2NetTransformer) and "inputs" in pictures:
            height, width = pictures["inputs"].shape[-2:]
            dataset = _dataset(trainer, split)
            pictures |= scene_pictures(dataset, batch, pl_module.cond_stage_key, (height, width))
        place = (trainer.global_step, trainer.current_epoch, batch_idx)
        composed = {key: _in_rows_of_four(images) for key, images in pictures.items()}
        try:
            self.log_local(trainer.default_root_dir, split, pictures, *place)
            if len(pictures) > 1:
                composed["side_by_side"] = side_by_side(pictures, class_names(batch))
                folder = Path(trainer.default_root_dir, "images", split)
                _save(composed["side_by_side"], _path(folder, "side_by_side", place))
            for key, picture in composed.items():
                _send_to_loggers(trainer, f"{split}/{key}", picture)
            for logger in trainer.loggers:
                if (own := self.logger_log_images.get(type(logger))) is not None:
                    own(pl_module, pictures, batch_idx, split)
        except OSError as error:
            path = error.filename or trainer.default_root_dir
            log.warning("%s cannot be written (%s): training goes on", path, reason_of(error))
        except UserError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            log.warning("%s: training goes on", error)

    def log_local(
        self,
        save_dir: str | Path,
        split: str,
        images: Mapping[str, Tensor],
        global_step: int,
        current_epoch: int,
        batch_idx: int,
    ) -> None:
        """Write pictures by name, each [B, 1 or 3, H, W] in [-1, 1], to `save_dir/images/split`."""
        folder, place = Path(save_dir, "images", split), (global_step, current_epoch, batch_idx)
        for key, pictures in images.items():
            _save(_in_rows_of_four(pictures), _path(folder, key, place))

    def _pictures(self, model: LogsImages, batch: Any, split: str) -> dict[str, Tensor]:
        offered = {"max_images": self.max_images, "split": split, "pl_module": model}
        training = model.training
        model.eval()
        # Pictures must not change what is trained: their random numbers are their own.
        with torch.no_grad(), own_random_states():
            pictures = model.log_images(batch, **_accepted(model.log_images, offered))
        model.train(training)
        name = f"{name_of(type(model))}.log_images"
        images = pictures_of(pictures, name, self.max_images)
        return {key: value.clamp(-1, 1) if self.clamp else value for key, value in images.items()}


def _accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function takes by name."""
    parameters = signature_of(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in arguments.items() if takes_all or name in parameters}


def _path(folder: Path, key: str, place: tuple[int, int, int]) -> Path:
    """Where a picture of a step, epoch and batch is written."""
    step, epoch, batch = place
    return folder / f"{key}_gs-{step:06}_e-{epoch:06}_b-{batch:06}.png"


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_path(path) as partial:
        picture.save(partial, format="PNG")


def _in_rows_of_four(images: Tensor) -> Image.Image:
    """Images [B, C, H, W] in [-1, 1] as one picture; a single image has no border."""
    rows = [list(images[first : first + 4]) for first in range(0, len(images), 4)]
    return grid(rows, gap=2 if len(images) > 1 else 0, background="black")


def side_by_side(pictures: Mapping[str, Tensor], names: Sequence[str]) -> Image.Image:
    """A row per image of a batch under its class's name, a column per entry of `pictures`.

    Small images are enlarged, and large ones reduced.
    """
    columns = list(pictures.values())
    rows: list[list[Cell | tuple[str, Cell]]] = []
    for number, images in enumerate(zip(*columns, strict=False)):
        first, *others = images
        name = names[number] if number < len(names) else ""
        rows.append([(name, first), *(("", image) for image in others)] if names else [*images])
    return grid(rows, list(pictures), side=SIDE)


def class_names(batch: Any) -> list[str]:
    """Of the images of a batch, from its entries `human_label` or `class_label`, if it has them."""
    if not isinstance(batch, Mapping):
        return []
    names = batch.get("human_label")
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return list(names)
    labels = batch.get("class_label")
    return [f"class {int(label)}" for label in labels] if isinstance(labels, Tensor) else []


def _dataset(trainer: pl.Trainer, split: str) -> Any:
    """The dataset of a split, without its wrapper; None of other data modules than ours."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, DataModuleFromConfig):
        return None
    dataset = data.datasets.get({"train": "train", "val": "validation"}[split])
    return dataset.data if isinstance(dataset, WrappedDataset) else dataset


def scene_pictures(dataset: Any, batch: Any, key: Any, size: tuple[int, int]) -> dict[str, Tensor]:
    """`conditioning`, [B, 3, H, W] in [-1, 1]: the labeled boxes or points of `batch[key]`.

    Empty if that entry is no scene of `dataset`, which knows the names of the classes.
    """
    scenes = isinstance(dataset, AnnotatedObjectsDataset) and isinstance(batch, Mapping)
    if not scenes or key not in batch or key not in dataset.conditional_builders:
        return {}
    builder, name = dataset.conditional_builders[key], dataset.get_textual_label_for_category_no
    height, width = size
    line = max(1, min(size) // 100)
    plots = [builder.plot(tokens.cpu(), name, (width, height), line) for tokens in batch[key]]
    return {"conditioning": torch.stack(plots)}


def _first(batch: Any, count: int) -> Any:
    """The first `count` entries of every tensor or list in a batch, or in a list of tensors."""
    if isinstance(batch, Mapping):
        return {key: _first(value, count) for key, value in batch.items()}
    if isinstance(batch, list | tuple) and any(isinstance(part, Tensor) for part in batch):
        return [_first(part, count) for part in batch]
    return batch[:count] if isinstance(batch, Tensor | list | tuple) else batch


def _send_to_loggers(trainer: pl.Trainer, tag: str, picture: Image.Image) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(
                tag, np.asarray(picture), trainer.global_step, dataformats="HWC"
            )
        elif isinstance(logger, WandbLogger):
            logger.log_image(key=tag, images=[picture], step=trainer.global_step)
