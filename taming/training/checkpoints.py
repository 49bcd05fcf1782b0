"""When checkpoints are saved: epochs, steps, minutes, signals, the end, and what breaks it off."""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path
from typing import Any
from weakref import proxy

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor

from taming.checkpoint import CheckpointWriter, check_savable
from taming.config_values import CountOrZero, NonNegative
from taming.errors import NonFiniteError, Stopped, UserError, is_full
from taming.lightning_internals import (
    batches_begun,
    dump_checkpoint,
    has_checkpoints_of_one_file,
    requeues_on_slurm,
)
from taming.shipped import script
from taming.training.position import between_steps, stop_between_steps
from taming.training.slurm import queue_again
from taming.training.stopping import NOTHING, SAVE, SAVE_NOW, requests, signal_of
from taming.training.strategies import ShardedStrategy

log = logging.getLogger(__name__)

_RETRY = 60.0  # seconds after a write that failed
_WIDE = re.compile(r"[:!][^}]*\d{3}|\{[^}]*\{")  # would make a name of many gigabytes
# Options of `ModelCheckpoint` that would be read and not heeded.
_WITHOUT_EFFECT = {
    "save_weights_only": "a run goes on from its checkpoints, which hold all of it (weights alone: "
    f"{script('export')} safetensors)",
    "save_on_exception": "last.ckpt is written whenever training breaks off between two steps",
}


class Checkpoints(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, whose files are written in the background, and more of them.

    `last.ckpt` is written besides, by minutes and steps, on SIGUSR1, at the end, and when training
    breaks off between two steps: an exception within a step leaves the checkpoint before. A signal
    to stop takes effect here. An epoch that `max_steps` cuts short, which Lightning counts as done,
    has no file of its own.

    All names that are due after a step share one write. If it fails, as on a full disk, the files
    stay as they were, training goes on, and `last.ckpt` is written once there is room.

    Args:
        last_every_n_minutes: how often `last.ckpt` is written between those of epochs; 0: never.
        last_every_n_steps: likewise, in optimizer steps.
        in_background: needs memory for a copy of the training state, but hardly stops training.
        options: `ModelCheckpoint`'s; `UserError` for those that have no effect here.
    """

    def __init__(
        self,
        *,
        last_every_n_minutes: NonNegative = 10.0,
        last_every_n_steps: CountOrZero = 0,
        in_background: bool = True,
        **options: Any,
    ) -> None:
        if _WIDE.search(str(options.get("filename") or "")):
            raise UserError(
                "lightning.modelcheckpoint.params.filename: a width has one or two digits"
            )
        for name, why in _WITHOUT_EFFECT.items():
            if options.get(name):
                raise UserError(f"lightning.modelcheckpoint.params.{name}: {why}; leave it out")
        super().__init__(**{**options, "save_last": bool(options.get("save_last", True))})
        self.interval = 60 * last_every_n_minutes or float("inf")
        self.every_n_steps = last_every_n_steps
        self.writer = CheckpointWriter(in_background)
        self._due: list[Path] = []
        self._outdated: list[Path] = []
        self._saved_step = -1
        self._next_time = float("inf")
        self._last_is_due = self._unannounced = self._failing = False
        self._training = self._reserved = self._is_to_stop = False

    @property
    def state_key(self) -> str:
        """As in checkpoints of versions in which the class had another name."""
        return super().state_key.replace(type(self).__qualname__, "WholeEpochCheckpoint", 1)

    @property
    def last_path(self) -> Path:
        """The checkpoint that a run goes on from."""
        assert self.dirpath is not None
        return Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"

    # ------------------------------------------------------------------ when

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        requests.take_over()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        requests.take_over()
        self._saved_step = trainer.global_step
        self._next_time = time.monotonic() + self.interval
        self._training = not trainer.fast_dev_run  # type: ignore[attr-defined]
        self._stop_if_asked(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._stop_if_asked(trainer)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._stop_if_asked(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._is_to_stop = stop_between_steps(trainer, self._is_to_stop)
        if not between_steps(trainer):  # a file would have the name of the step before
            return
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self._training:
            return
        self._reserve(trainer)
        self._report(trainer)
        wanted = requests.agreed(self._own_wish(trainer))
        # Here, not at the end of training, Lightning's counters say where in the epoch it was.
        is_last = 0 <= trainer.max_steps <= trainer.global_step
        if wanted != NOTHING or is_last:
            self._add_last(trainer)
        self._write(trainer)
        if wanted == SAVE_NOW and requeues_on_slurm(trainer):
            self._queue_again(trainer)
        if (number := signal_of(wanted)) is not None:
            failure = self._finish(trainer)
            requests.wait_for_all()
            raise Stopped(number, f"{failure}: the last steps are not saved" if failure else "")

    def _queue_again(self, trainer: pl.Trainer) -> None:
        """Have SLURM do so, which ends this job, once all is on the disk."""
        self._finish(trainer)
        requests.wait_for_all()
        if trainer.is_global_zero:
            queue_again()

    def _own_wish(self, trainer: pl.Trainer) -> int:
        """What the first process, which writes, wants besides signals."""
        if not trainer.is_global_zero:
            return NOTHING
        step = trainer.global_step
        by_steps = self.every_n_steps > 0 and step > 0 and step % self.every_n_steps == 0
        self._last_is_due |= (by_steps and step != self._saved_step) or self._is_time()
        return SAVE if self._last_is_due and not self.writer.busy else NOTHING

    def _is_time(self) -> bool:
        return time.monotonic() >= self._next_time

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        """Stop where there is no other process to wait for; `on_exception` saves."""
        if requests.stop is not None and trainer.world_size == 1 and between_steps(trainer):
            raise Stopped(requests.stop)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Of a stream, whose length nobody knows, the last batch says that it is the last.
        if trainer.is_last_batch or batches_begun(trainer) >= trainer.num_training_batches:
            super().on_train_epoch_end(trainer, pl_module)
            if self.save_last:  # also of an epoch that is none of the best
                self._add_last(trainer)
            self._write(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._is_to_stop = stop_between_steps(trainer, self._is_to_stop)
        # Gradients of a part of a step's batches are not saved: it is written with the step.
        if between_steps(trainer):
            self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._training:
            self._add_last(trainer)
            self._write(trainer)
            failure = self._finish(trainer)
            self._training = False
            if failure is not None:
                raise UserError(f"{failure}: the last steps are not saved; make room, and go on")
        requests.gentle = False

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        spoiled = isinstance(exception, NonFiniteError)
        trained = self._training and trainer.global_step > 0 and not spoiled
        self._due.clear()
        # Others take all processes to write, and the others may not come.
        if trained and has_checkpoints_of_one_file(trainer) and between_steps(trainer):
            self._add_last(trainer)
            try:
                self._write(trainer)
            except Exception as error:  # such as a GPU that no longer answers
                log.warning("the steps since the last checkpoint cannot be saved (%s)", error)
        self._report(trainer, wait=True)
        self._training = requests.gentle = False

    # ------------------------------------------------------------------ which files

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Called by `ModelCheckpoint` for each file; they are written together afterwards."""
        self._due.append(Path(filepath))
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath

    def _update_best_and_save(
        self, current: Tensor, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        """Called by `ModelCheckpoint` for one of the best. Validations within an epoch share a
        file, and a place among the best: the best one's."""
        path = self.format_checkpoint_name(monitor_candidates)
        if (before := self.best_k_models.get(path)) is not None:
            if not (current < before if self.mode == "min" else current > before):
                return
            del self.best_k_models[path]
        super()._update_best_and_save(current, trainer, monitor_candidates)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `ModelCheckpoint`'s, which forgets the files of a run that was moved."""
        before = str(state_dict.get("dirpath"))

        def now(path: str) -> str:
            inside = os.path.relpath(path, before) if path.startswith(before) else Path(path).name
            return os.path.join(str(self.dirpath), inside) if path else path

        paths = {name: now(path) for name, path in state_dict.items() if name.endswith("_path")}
        best = {now(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        moved = {"dirpath": self.dirpath, "best_k_models": best, **paths}
        super().load_state_dict({**state_dict, **moved})

    def _remove_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Called by `ModelCheckpoint`; the file goes once its successor is there."""
        self._outdated.append(Path(filepath))

    def _add_last(self, trainer: pl.Trainer) -> None:
        if self._saved_step != trainer.global_step:
            self._due.append(self.last_path)

    # ------------------------------------------------------------------ writing

    def _reserve(self, trainer: pl.Trainer) -> None:
        """After the first step, when optimizers have their state."""
        if not self._reserved and trainer.is_global_zero and has_checkpoints_of_one_file(trainer):
            content = dump_checkpoint(trainer)
            check_savable(content)
            self.writer.reserve(content)
        self._reserved = True

    def _write(self, trainer: pl.Trainer) -> None:
        """Save what is due; all processes take part."""
        if not self._due:
            return
        # The one that a run goes on from comes last: until then, it is the one before.
        paths, self._due = sorted(set(self._due), key=lambda path: path == self.last_path), []
        outdated, self._outdated = self._outdated, []
        content = dump_checkpoint(trainer)
        check_savable(content)
        if isinstance(trainer.strategy, ShardedStrategy):
            trainer.strategy.save_as(content, paths, outdated)
        elif not has_checkpoints_of_one_file(trainer):
            for path in paths:
                trainer.strategy.save_checkpoint(content, path)
            for path in outdated:
                trainer.strategy.remove_checkpoint(path)
        elif trainer.is_global_zero:
            self.writer.save(content, paths, outdated)
        self._saved_step = trainer.global_step
        self._next_time = time.monotonic() + self.interval
        self._last_is_due, self._unannounced = False, True
        names = " and ".join(path.name for path in paths)
        rank_zero_info(f"saving {names} at step {self._saved_step}")

    def _report(self, trainer: pl.Trainer, wait: bool = False) -> Exception | None:
        """Say how the writes in the background went; returns a failure that was not known."""
        if wait:
            self.writer.wait()
        failure = self.writer.failure()
        if failure is not None:
            if not isinstance(failure, UserError):
                raise failure
            self._saved_step = -1
            self._next_time = time.monotonic() + min(self.interval, _RETRY)
            if not self._failing:
                room = "there is room" if is_full(failure.__cause__) else "that is possible"
                log.warning("%s: training goes on, and saves again when %s", failure, room)
            self._failing = True
        elif self._unannounced and not self.writer.busy and not self.writer.failed:
            self._unannounced = False
            if self._failing:
                log.warning("checkpoints can be written again")
            self._failing = False
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))
        return failure

    def _finish(self, trainer: pl.Trainer) -> Exception | None:
        """Wait for what is being written, and try once more if it fails; why that failed, too."""
        if self._report(trainer, wait=True) is None:
            return None
        self._add_last(trainer)
        self._write(trainer)
        return self._report(trainer, wait=True)
