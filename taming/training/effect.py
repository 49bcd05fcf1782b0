"""Training that has no effect is refused: without gradients, losses, optimizers or batches."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from taming.errors import UserError
from taming.lightning_internals import monitored_values
from taming.models.result_checks import name_of_method, nothing_to_train

log = logging.getLogger(__name__)

PATIENCE = 1000  # batches without any effect, where an epoch is longer


class TrainsSomething(Callback):
    """Raises `UserError` where nothing would change the weights."""

    def __init__(self) -> None:
        super().__init__()
        self._batches = self._losses = self._version = 0  # of an epoch
        self._epochs = 0  # that were gone through here
        self._seen: set[int] = set()  # optimizers

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not any(group["params"] for one in trainer.optimizers for group in one.param_groups):
            name = name_of_method(pl_module, "configure_optimizers")
            raise UserError(f"{name} returns no optimizer: nothing can be trained")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batches, self._losses, self._version = 0, 0, _version_of(pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0 and not any(weight.requires_grad for weight in pl_module.parameters()):
            raise nothing_to_train(pl_module)

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        self._losses += 1
        if loss.requires_grad and loss.numel() == 1:
            return
        if not any(weight.requires_grad for weight in pl_module.parameters()):
            raise nothing_to_train(pl_module)
        raise UserError(
            f"{name_of_method(pl_module, 'training_step')} must return a loss, a tensor of one "
            "number with a gradient for the weights: what it is made of must not be detached"
        )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if id(optimizer) in self._seen:
            return
        self._seen.add(id(optimizer))
        if parts := _left_out(pl_module, optimizer):
            log.warning("%s: no gradient comes there, it stays as it is", ", ".join(parts))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        self._batches += 1
        if self._batches == PATIENCE:
            self._check(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._batches:
            self._check(pl_module)
        elif self._epochs and trainer.limit_train_batches:
            raise UserError(
                f"data: after {self._epochs} epochs there are no more batches: a loader must give "
                "them anew each time that it is gone through, which an iterator does not"
            )
        self._epochs += 1

    def _check(self, model: pl.LightningModule) -> None:
        """Refuse batches without a loss, but for a model that steps all by itself."""
        if not self._losses and _version_of(model) == self._version:
            raise UserError(
                f"nothing is trained: in {self._batches} batches there was no loss, as the data or "
                f"{name_of_method(model, 'training_step')} gave None each time"
            )


def _left_out(model: pl.LightningModule, optimizer: Optimizer) -> list[str]:
    """The parts of a model that an optimizer is to train, and that have no gradient at all."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    idle = {id(weight) for weight in weights if weight.requires_grad and weight.grad is None}
    parts = {
        name: {id(weight) for weight in part.parameters() if weight.requires_grad}
        for name, part in model.named_children()
    }
    return [name for name, ids in parts.items() if ids and ids <= idle]


def _version_of(model: pl.LightningModule) -> int:
    """A number that grows with every change of a weight."""
    return sum(weight._version for weight in model.parameters())


class FiniteValidation(Callback):
    """Warns of values of validation and test that are not finite; training goes on."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _warn_of_nonfinite(trainer, "validation", "; training goes on")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _warn_of_nonfinite(trainer, "test")


def _warn_of_nonfinite(trainer: pl.Trainer, split: str, ending: str = "") -> None:
    if not trainer.is_global_zero:
        return
    values = {name: float(value) for name, value in monitored_values(trainer).items()}
    texts = [
        f"{name} is {value}"
        for name, value in values.items()
        if not math.isfinite(value) and not name.startswith("train/")
    ]
    if texts:
        step = trainer.global_step
        log.warning("%s at step %d: %s%s", split, step, ", ".join(texts), ending)
