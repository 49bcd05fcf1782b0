"""How far a run is, how long it takes, and how much memory: a bar, and a line after a few steps."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelSummary, TQDMProgressBar
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from taming.limits import peak_memory, readable_size, readable_time
from taming.models.run_length import known_length
from taming.training.position import accumulated_batches
from taming.words import counted

# Whichever ends first; the seconds count from the end of the first batch, which may compile.
BATCHES_TIMED, SECONDS_TIMED = 10, 20.0
LEAST_BATCHES = 3  # the first one, and two by which that of a picture or a compilation is told
LONG_ON_A_CPU = 12 * 3600.0  # seconds
SMALLER = (
    "configs/small/vqgan.yaml and the transformers beside it are sized for a CPU, see "
    "docs/first-hours.md"
)


def steps_of_run(trainer: pl.Trainer) -> int | None:
    """The global step at which training ends; None if it is not known."""
    return known_length(trainer, accumulated_batches(trainer)).steps


class RunProgress(TQDMProgressBar):
    """A bar over the steps of the whole run, of which a resumed one has done some already.

    The time that it shows as remaining is the run's, validation included as it was until now.
    """

    # As Lightning's, but for steps that take longer than a second: `25s/it`, not `0.04it/s`.
    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        step = trainer.global_step
        bar = self.init_train_tqdm()
        bar.total, bar.initial, bar.n = steps_of_run(trainer), step, step
        bar.unit = "step"
        bar.set_description(f"Epoch {trainer.current_epoch}")
        self.train_progress_bar = bar

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch}")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        bar, done = self.train_progress_bar, trainer.global_step
        if bar.disable or done == bar.n:
            return
        if done % max(1, self.refresh_rate) == 0 or done == bar.total:
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            bar.update(done - bar.n)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What is shown behind the bar; not its loggers' version, which is the run's time here."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}


class Summary(ModelSummary):
    """A table of a model's parts. Lightning's has FLOPs, which are 0 for all models here."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,  # in MB
        *_: Any,
        **__: Any,
    ) -> None:
        columns = [[name, *map(str, column)] for name, column in summary_data if name != "FLOPs"]
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in zip(*columns, strict=True)
        ]
        rest = total_parameters - trainable_parameters
        lines.append(
            f"{total_parameters:,} weights, {readable_size(int(model_size * 1e6))}: "
            f"{trainable_parameters:,} are trained, {rest:,} are not"
        )
        rank_zero_info("\n".join(lines))


class Pace(Callback):
    """Says once, after a few batches, how long a step takes, how long the run, and its memory."""

    def __init__(self) -> None:
        self._durations: list[float] = []  # of batches, in seconds
        self._first = self._before = 0.0
        self._said = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first = self._before = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._said:
            return
        now = time.monotonic()
        self._durations.append(now - self._before)
        self._before = now
        timed = len(self._durations)
        self._first = now if timed == 1 else self._first
        enough = timed >= LEAST_BATCHES and now - self._first >= SECONDS_TIMED
        if timed >= BATCHES_TIMED or enough:
            self._said = True
            self._say(trainer, pl_module.device)

    def _say(self, trainer: pl.Trainer, device: torch.device) -> None:
        # The first batch warms up, and pictures are logged after many of the others.
        fastest = sorted(self._durations[1:] or self._durations)[: len(self._durations) // 2 or 1]
        seconds, end = median(fastest) * accumulated_batches(trainer), steps_of_run(trainer)
        text = f"a step takes about {readable_time(seconds)}"
        left = 0 if end is None else end - trainer.global_step
        if left > 0:
            text += (
                f", the {counted(left, 'step')} to come {readable_time(left * seconds)} without "
                "validation"
            )
        text += f"; memory: {memory_in_use(device)}"
        if device.type == "cpu" and left * seconds > LONG_ON_A_CPU:
            text += f"; {SMALLER}"
        rank_zero_info(text)


def memory_in_use(device: torch.device) -> str:
    """The most memory that training has taken until now: the GPU's, or of this process."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        used = torch.cuda.max_memory_allocated(device)
        return f"{readable_size(used)} of the GPU's {readable_size(total)}"
    most = peak_memory()
    return "unknown" if most is None else readable_size(most)
