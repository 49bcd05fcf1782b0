"""A first stage's `training_step` as subclasses for the original define it.

There it returns a loss, of which the Trainer takes the step: `training_step(batch, batch_idx,
optimizer_idx)` that of the autoencoder (0) or the discriminator (1), `training_step(batch,
batch_idx)` that of a model without discriminator. Here a step trains both sides in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from taming.models.own_hooks import KeptHooks
from taming.models.result_checks import loss_of_step, name_of_method
from taming.signatures import signature_of
from taming.user_code import is_ours

Step = Callable[..., Any]


class TwoSided(Protocol):
    """What the steps need of `AutoencoderTraining`."""

    @property
    def global_step(self) -> int: ...

    @property
    def automatic_optimization(self) -> bool: ...

    def train_both(self, batch_idx: int, loss_of: Callable[[int], Tensor]) -> None: ...

    def train_alone(self, batch_idx: int, loss: Tensor) -> None: ...


class PublishedSteps(KeptHooks):
    """A first stage, of which subclasses may define the step as for the original."""

    _gives_one_loss = False  # whether `training_step` is a subclass's, for one optimizer

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if (step := vars(cls).get("training_step")) is not None:
            cls.training_step = adapted(step)  # type: ignore[method-assign]
            cls._gives_one_loss = gives_one_loss(step)

    @property
    def automatic_optimization(self) -> bool:
        """As set, in a subclass whose step and `configure_optimizers` are for one optimizer; False
        where one step trains two sides."""
        own = not is_ours(type(self).configure_optimizers)
        return own and self._gives_one_loss and self._automatic_optimization

    @automatic_optimization.setter
    def automatic_optimization(self, automatic: bool) -> None:
        self._automatic_optimization = automatic


def gives_one_loss(step: Step) -> bool:
    """Whether a subclass's step is written for one optimizer, of whichever kind."""
    parameters = signature_of(step).parameters
    varied = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    return "optimizer_idx" not in parameters and not varied


def gives_losses(step: Step) -> bool:
    """Whether a subclass's step is asked for the loss of one optimizer after the other."""
    index = signature_of(step).parameters.get("optimizer_idx")
    return index is not None and index.default is not None


def adapted(step: Step) -> Step:
    """A subclass's `training_step`, such that what it returns is what is trained with."""
    if gives_one_loss(step):
        return _one(step)
    return _two(step) if gives_losses(step) else step


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
    count = len(signature_of(step).parameters) - 1  # the number of the batch may be left out

    def training_step(self: TwoSided, batch: Mapping[str, Any], batch_idx: int) -> Any:
        before = self.global_step
        result = step(self, *(batch, batch_idx)[:count])
        # One that optimizes by itself, as Lightning asks today, has counted a step.
        if self.automatic_optimization or self.global_step != before:
            return result
        loss = loss_of_step(result, name_of_method(self, "training_step"))
        if loss is not None and loss.requires_grad:
            self.train_alone(batch_idx, loss)
            return loss.detach()
        return loss

    training_step.__doc__ = step.__doc__
    return training_step
