"""Exact resume: where training is, kept in checkpoints, and how a run goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn, TrainerStatus
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_only
from torch import Tensor

from taming.lightning_internals import (
    Place,
    continue_from_place,
    end_restart,
    hide_logged_from,
    is_at_epoch_end,
    is_in_step,
    monitored_values,
    next_row,
    place_of,
    read_place,
    restore_monitored_values,
    unlogged_values,
    write_place,
)
from taming.lr_scheduler import Rates, apply_rates, base_rates, leave_rules_out
from taming.models.autoencoder_training import AutoencoderTraining
from taming.training.data_module import DataModuleFromConfig
from taming.training.logged_rows import count_rows, cut_rows

KEY = "position"  # in checkpoints


def accumulated_batches(trainer: pl.Trainer) -> int:
    """How many batches the gradient of a step is added up over."""
    model = trainer.lightning_module
    if isinstance(model, AutoencoderTraining):  # which may step its optimizers itself
        return model.accumulated_batches
    return trainer.accumulate_grad_batches


def between_steps(trainer: pl.Trainer) -> bool:
    """Whether a checkpoint that is saved now can be resumed exactly.

    Not within a step, and not while gradients of several batches are being added up, as these are
    not saved. After an exception, not before the hooks that follow a step are through either: what
    they write could not be made up for.
    """
    failed = trainer.state.status == TrainerStatus.INTERRUPTED
    if is_in_step(trainer, with_hooks=failed):
        return False
    place = place_of(trainer)
    return place.complete or place.batches % accumulated_batches(trainer) == 0


def stop_between_steps(trainer: pl.Trainer, asked: bool) -> bool:
    """Have a run that callbacks end, as --max_time does, complete its step of several batches
    first; whether it has been `asked` to end, and goes on for that."""
    asked |= trainer.should_stop
    trainer.should_stop = asked and between_steps(trainer)
    return asked and not trainer.should_stop


@dataclass(frozen=True)
class Position:
    """What a checkpoint says of its place in training, besides Lightning's counters.

    Attributes:
        samples: items of the epoch that have been trained on, by all processes together.
        batch_size, devices, accumulate: what made these steps.
        validated: a validation that was due after the last batch has been done.
        epoch_ends: the epoch is complete, and the hooks of its end have not all been called.
        rows: logged rows of each start of the run, see `logged_rows`.
        unlogged: what the last batch has yet to log.
        monitored: the latest values of what callbacks monitor.
        rates: the learning rates that the optimizers were made with.
    """

    samples: int
    batch_size: int
    devices: int
    accumulate: int
    validated: bool
    epoch_ends: bool
    rows: dict[str, int]
    unlogged: dict[str, float] | None
    monitored: dict[str, Tensor]
    rates: Rates

    @classmethod
    def read(cls, checkpoint: Mapping[str, Any]) -> Position | None:
        """That of a checkpoint; None for those of versions that kept none."""
        values = checkpoint.get(KEY)
        return cls(**{field.name: values[field.name] for field in fields(cls)}) if values else None


class ExactResume(Callback):
    """Keeps the `Position` in every checkpoint, and has a resumed run go on exactly there.

    It comes before other callbacks, so that it knows of an exception before they save.

    Args:
        tables: the folder of the tables of logged values.
        label: names what is cut off these tables.
    """

    def __init__(self, tables: Path, label: str) -> None:
        super().__init__()
        self.tables, self.label = tables, label
        self._resumed: Position | None = None
        self._is_resumed = self._failed = self._validated = False
        self._start = Place(0, 0)
        self._samples = 0  # of the epoch, at the start
        self._rows: dict[str, int] = {}  # at the beginning of what has to be repeated
        self._rates: Rates = []
        self._schedules = 0  # in the checkpoint

    # ------------------------------------------------------------------ saving

    def on_train_batch_start(self, *_: Any) -> None:
        self._validated = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note_rows(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        end_restart(trainer, self._validated)
        self._note_rows(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._failed = True

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        place = read_place(checkpoint["loops"]["fit_loop"])
        # Others' hooks may be what failed, and are called again.
        repeats_validation = self._failed and trainer.validating
        repeats_end = self._failed and is_at_epoch_end(trainer)
        if not (repeats_validation or repeats_end):
            self._note_rows(trainer)
        position = Position(
            samples=self._seen(trainer, place),
            batch_size=_batch_size(trainer),
            devices=trainer.world_size,
            accumulate=accumulated_batches(trainer),
            validated=self._validated and not repeats_validation,
            epoch_ends=repeats_end,
            rows=self._rows,
            unlogged=unlogged_values(trainer),
            monitored=monitored_values(trainer),
            rates=self._rates,
        )
        checkpoint[KEY] = asdict(position)

    @rank_zero_only
    def _note_rows(self, trainer: pl.Trainer) -> None:
        if trainer.sanity_checking:
            return
        for logger in trainer.loggers:
            logger.save()
        self._rows = count_rows(self.tables)

    def _seen(self, trainer: pl.Trainer, place: Place) -> int:
        resumed = place.epoch == self._start.epoch
        before = self._samples if resumed else 0
        batches = place.batches - (self._start.batches if resumed else 0)
        return before + batches * _batch_size(trainer) * trainer.world_size

    # ------------------------------------------------------------------ going on

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._is_resumed = True
        self._resumed = position = Position.read(checkpoint)
        fit_loop = checkpoint["loops"]["fit_loop"]
        place = read_place(fit_loop)
        if position is not None and position.epoch_ends:
            batches = fit_loop["epoch_loop.batch_progress"]["current"]["processed"]
            place = Place(place.epoch - 1, batches, complete=True)
        self._samples = self._samples_at(place, trainer)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, DataModuleFromConfig):
            place = _with_new_batches(place, self._samples, data)
        self._start = place
        write_place(fit_loop, place, checkpoint["global_step"])
        self._schedules = len(checkpoint["lr_schedulers"])
        leave_rules_out(checkpoint["lr_schedulers"])

    def _samples_at(self, place: Place, trainer: pl.Trainer) -> int:
        if self._resumed is not None:
            return self._resumed.samples if place.batches else 0
        return place.batches * _batch_size(trainer) * trainer.world_size

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._rates = base_rates(trainer.optimizers)  # before a checkpoint's are restored

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._is_resumed:
            # Other starts of this run were stopped before their first save.
            self._hide_rows(trainer, {}, next_row=0)
            return
        position = self._resumed
        self._validated = position is not None and position.validated
        continue_from_place(trainer, self._validated)
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        for schedule in schedules[self._schedules :]:  # new ones
            schedule.last_epoch = trainer.global_step
        before = position.rates if position else None
        apply_rates(self._rates, trainer.optimizers, schedules, before)
        if position is not None:
            restore_monitored_values(trainer, position.monitored)
            self._say_changes(trainer, position)
        self._go_on_logging(trainer, position)

    def _go_on_logging(self, trainer: pl.Trainer, position: Position | None) -> None:
        row = next_row(trainer)
        unlogged = position.unlogged if position else None
        self._hide_rows(trainer, position.rows if position else None, row)
        if unlogged:
            for logger in trainer.loggers:
                logger.log_metrics(unlogged, step=row - 1)
        self._note_rows(trainer)

    def _hide_rows(
        self, trainer: pl.Trainer, kept: Mapping[str, int] | None, next_row: int
    ) -> None:
        """Cut what was logged after the checkpoint."""
        if not trainer.is_global_zero or not count_rows(self.tables):
            return
        cut_rows(self.tables, kept, next_row, self.label)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                hide_logged_from(logger, next_row)

    def _say_changes(self, trainer: pl.Trainer, position: Position) -> None:
        pairs = {
            "data.params.batch_size": (position.batch_size, _batch_size(trainer)),
            "devices": (position.devices, trainer.world_size),
            "accumulate_grad_batches": (position.accumulate, accumulated_batches(trainer)),
        }
        changes = [f"{name} was {a} and is now {b}" for name, (a, b) in pairs.items() if a != b]
        if changes:
            rank_zero_info(
                f"{', '.join(changes)}: {self._samples} items of epoch {self._start.epoch} have "
                "been trained on, the rest of it follows"
            )


def _batch_size(trainer: pl.Trainer) -> int:
    """Items of a batch and process; 1 of other data modules than ours."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    return data.batch_size if isinstance(data, DataModuleFromConfig) else 1


def _with_new_batches(place: Place, samples: int, data: DataModuleFromConfig) -> Place:
    """The same place, where the batch size or the number of processes may be another."""
    if place.complete:
        data.start_at(place.epoch + 1, 0)
        return place
    batches = data.start_at(place.epoch, samples)
    if batches is None:
        rank_zero_info(
            "data.params.train is a stream without places: it starts over, and the rest of this "
            "epoch is other items than without the stop"
        )
        return place
    return replace(place, batches=batches)
