"""What a training says: which messages of libraries are shown, and how ours are shortened."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

from taming.training.loggers import silence_event_writers

# Warnings of Lightning about what is intended here.
_EXPECTED = (
    r".*treespec.*",  # its own use of torch
    r".*module\(s\) in eval mode.*",  # the frozen stages
    r"You have overridden `on_before_batch_transfer` in",  # transformers check their labels there
    r"Checkpoint directory .* exists and is not empty",  # a resumed run
    # Steps count on from epoch to epoch: values are logged in small sets, too.
    r"The number of training batches .* is smaller than the logging interval",
    r"This DataLoader will create .* worker processes",  # as many as the config says
    r"The '.*' does not have many workers",
    # First stages step their optimizers themselves; checkpoints are of what a whole step has made.
    r"Using ModelCheckpoint with manual optimization and every_n_train_steps",
    r"Precision .* is not supported by the model summary",  # whose sizes are ours
    # An idle discriminator's rate follows its schedule, too.
    r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`",
)


def set_up_messages() -> None:
    """Show what is said by logging, without what is expected or of no use."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Advertisements, what nobody waits for, and what is not there.
    silent = (
        *("💡", "Loading `train_dataloader`", "TPU available: False"),
        "Trainer already configured with model summary callbacks",  # the run's own table
    )
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: not record.getMessage().startswith(silent)
    )
    silence_event_writers()
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=message)


def few(changes: Sequence[str], most: int) -> str:
    """The first of many `key=value`, and how many more there are."""
    more = f" and {len(changes) - most} more" if len(changes) > most else ""
    return f"{', '.join(changes[:most])}{more}"
