"""Every use of Lightning that goes beyond its public interface, in one place.

`pyproject.toml` bounds Lightning's version from above because of this file;
tests/test_lightning_internals.py names each attribute, so that a new version that lacks one fails
there first.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import ParallelStrategy
from torch import nn
from torch.optim import Optimizer


def batches_begun(trainer: pl.Trainer) -> int:
    """How many batches of the current epoch have been taken from the loader."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def batches_done(trainer: pl.Trainer) -> int:
    """How many batches of the current epoch have been trained on, also right after a resume."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return progress.processed


def save_without_barrier(trainer: pl.Trainer, path: str | Path) -> None:
    """`trainer.save_checkpoint`, without waiting for the other processes.

    After a crash of one of them the others never come.
    """
    content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    trainer.strategy.save_checkpoint(content, path)


def without_gradient_sync(trainer: pl.Trainer) -> AbstractContextManager[Any]:
    """A context in which backward passes add up gradients without averaging them over processes."""
    strategy = trainer.strategy
    return (
        strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()
    )


def leave_out_of_ddp(module: nn.Module, parameters: Sequence[str]) -> None:
    """Have DistributedDataParallel ignore the parameters of these names."""
    # torch's own name for it, which has no public setter.
    module._ddp_params_and_buffers_to_ignore = list(parameters)  # type: ignore[assignment]


def uncounted_step(trainer: pl.Trainer, optimizer: Any, module: pl.LightningModule) -> None:
    """Step one of Lightning's wrapped optimizers without adding to `trainer.global_step`."""
    inner: Optimizer = optimizer.optimizer
    trainer.strategy.optimizer_step(inner, lambda: None, model=module)
