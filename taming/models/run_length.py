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
    if limit(trainer.max_epochs) is not None:
        _ = trainer.estimated_stepping_batches  # loads the data
    return known_length(trainer, accumulated or trainer.accumulate_grad_batches)


def known_length(trainer: pl.Trainer, accumulated: int) -> RunLength:
    """The same of the data as far as they are loaded."""
    batches = trainer.num_training_batches
    known = None if math.isinf(batches) else int(batches)
    most, epochs = limit(trainer.max_steps), limit(trainer.max_epochs)
    return RunLength.of_limits(most, epochs, known, accumulated)


def limit(number: int | None) -> int | None:
    """A number of steps or epochs; None for what Lightning takes for none."""
    return None if number is None or number < 0 else number
