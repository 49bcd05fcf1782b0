"""How many steps a Trainer is going to make."""

from __future__ import annotations

import math

import pytorch_lightning as pl

from taming.run_length import RunLength


def run_length(trainer: pl.Trainer | None, accumulated: int | None = None) -> RunLength:
    """The length of a run in steps, each of so many `accumulated` batches.

    By default they are accumulated as the Trainer does. The data are loaded for it where epochs end
    the run. Without a Trainer nothing is known.
    """
    if trainer is None:
        return RunLength()
    most = None if trainer.max_steps < 0 else trainer.max_steps
    if trainer.max_epochs in (None, -1):
        epochs = None
    else:
        epochs = trainer.max_epochs
        _ = trainer.estimated_stepping_batches  # loads the data
    batches = trainer.num_training_batches
    if math.isinf(batches):
        return RunLength(most)
    per_epoch = math.ceil(batches / (accumulated or trainer.accumulate_grad_batches))
    if epochs is None:
        return RunLength(most, per_epoch)
    steps = per_epoch * epochs
    return RunLength(steps if most is None else min(steps, most), per_epoch)
