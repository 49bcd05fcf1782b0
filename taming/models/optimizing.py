"""Steps of two optimisers that take turns on a batch, which Lightning leaves to the module."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
from torch import Tensor


class TwoOptimizers(pl.LightningModule):
    """Backward passes and updates with accumulation and clipping, counted once per batch.

    `accumulate_grad_batches` and `gradient_clip_val` are set by whoever builds the Trainer, which
    refuses them itself under manual optimisation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.accumulate_grad_batches = 1
        self.gradient_clip_val: float | None = None

    def _is_update(self, batch_idx: int) -> bool:
        full = (batch_idx + 1) % self.accumulate_grad_batches == 0
        return full or self.trainer.is_last_batch

    def _gradient_sync(self, boundary: bool) -> AbstractContextManager[Any]:
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return nullcontext() if boundary or block is None else block()

    def _backward(self, loss: Tensor) -> None:
        self.manual_backward(loss / self.accumulate_grad_batches)

    def _torch_optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _update(self, optimizer: Any, *, counted: bool) -> None:
        """Clip and step. Lightning counts the steps of its own wrappers of optimisers: only the
        autoencoder's is one, so that `global_step` counts batches."""
        if self.gradient_clip_val:
            self.clip_gradients(optimizer, self.gradient_clip_val, gradient_clip_algorithm="norm")
        if counted:
            optimizer.step()
        else:
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None, model=self)
        optimizer.zero_grad()
