"""A first stage's `training_step` as subclasses for the original define it.

There it returns a loss, of which the Trainer takes the step: `training_step(batch, batch_idx,
optimizer_idx)` that of the autoencoder (0) or the discriminator (1), `training_step(batch,
batch_idx)` that of a model without discriminator. Here a step trains both sides in one call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

Step = Callable[..., Any]


class TwoSided(Protocol):
    """What the steps need of `AutoencoderTraining`."""

    @property
    def global_step(self) -> int: ...

    def train_both(self, batch_idx: int, loss_of: Callable[[int], Tensor]) -> None: ...

    def train_generator(self, batch_idx: int, loss_of: Callable[[int], Tensor]) -> None: ...


def adapted(step: Step) -> Step:
    """A subclass's `training_step`, such that what it returns is what is trained with."""
    parameters = inspect.signature(step).parameters
    index = parameters.get("optimizer_idx")
    if index is None:
        return step if any(p.kind is p.VAR_POSITIONAL for p in parameters.values()) else _one(step)
    return _two(step) if index.default is index.empty else step


def _two(step: Step) -> Step:
    def training_step(
        self: TwoSided,
        batch: Mapping[str, Any],
        batch_idx: int,
        *side: int,
        optimizer_idx: int | None = None,
    ) -> Any:
        number = side[0] if side else optimizer_idx
        if number is not None:
            return step(self, batch, batch_idx, number)
        return self.train_both(batch_idx, lambda number: step(self, batch, batch_idx, number))

    training_step.__doc__ = step.__doc__
    return training_step


def _one(step: Step) -> Step:
    def training_step(self: TwoSided, batch: Mapping[str, Any], batch_idx: int) -> Any:
        before = self.global_step
        loss = step(self, batch, batch_idx)
        # One that optimizes by itself, as Lightning asks today, has counted a step.
        if isinstance(loss, Tensor) and loss.requires_grad and self.global_step == before:
            self.train_generator(batch_idx, lambda _: loss)
            return loss.detach()
        return loss

    training_step.__doc__ = step.__doc__
    return training_step
