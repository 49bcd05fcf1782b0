"""What training logs with several processes."""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

import pytorch_lightning as pl
import torch
from torch import Tensor

from taming.distributed import mean_over_ranks, world_size
from taming.lightning_internals import next_row


def means_where_written(
    trainer: pl.Trainer | None, values: Mapping[str, Tensor | float]
) -> dict[str, Tensor | float]:
    """Scalars of a batch of training by name; where loggers will write them, their means over all
    processes. Lightning's own (`sync_dist`) would make these wait for each other in every step.

    They stay each process's own if the processes have others, as a user's loss may.
    """
    if trainer is None or world_size() == 1:
        return dict(values)
    each: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its connector
    if each == 0 or (next_row(trainer) + 1) % each:
        return dict(values)
    device = trainer.strategy.root_device
    names = torch.tensor(crc32("\n".join(values).encode()), dtype=torch.float64, device=device)
    if mean_over_ranks(names) != names:
        return dict(values)
    own = [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values.values()]
    return dict(zip(values, mean_over_ranks(torch.stack(own).detach()).unbind(), strict=True))
