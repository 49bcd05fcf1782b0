"""Hooks of Lightning that users' subclasses of our models define, without losing ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytorch_lightning as pl
from torch.optim import Optimizer

from taming.lightning_internals import clip_gradients
from taming.user_code import is_ours

Hook = Callable[..., Any]


class KeptHooks(pl.LightningModule):
    """A model whose hooks also run where a subclass's do not call them.

    Lightning's own hooks do nothing, and neither did those of the published models: code written
    for them has no `super().on_train_start()`. Where it has one, it may give arguments of its time.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, own in list(vars(cls).items()) if not is_ours(cls) else ():
            if not inspect.isfunction(own) or not (name == "setup" or name.startswith("on_")):
                continue
            defined = (vars(base)[name] for base in cls.__mro__[1:] if name in vars(base))
            ours = next(defined, None)
            if ours is not None and is_ours(ours) and not _mentions(own, name):
                setattr(cls, name, _after(ours, own))

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, *former: Any, **named: Any
    ) -> None:
        """Step by the closure: the argument behind the optimizer, or, as in Lightning 1, behind its
        number."""
        closure = next((a for a in (*former, *named.values()) if callable(a)), None)
        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def optimizer_zero_grad(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_idx: int = 0
    ) -> None:
        super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        *former: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by "norm" (also if it is None) or "value", without the scale of float16, also for
        optimizers in one kernel (`fused_optimizer`), which Lightning refuses there.

        Both may be given in their order, as in Lightning 1 behind the optimizer's number.
        """
        if former:
            *_, gradient_clip_val, gradient_clip_algorithm = (None, *former)[-3:]
        if gradient_clip_val:
            how = gradient_clip_algorithm or "norm"
            clip_gradients(self.trainer, optimizer, gradient_clip_val, how)

    def lr_scheduler_step(self, scheduler: Any, *former: Any) -> None:
        """Step by the metric, the last argument."""
        super().lr_scheduler_step(scheduler, former[-1] if former else None)


def _mentions(own: Hook, name: str) -> bool:
    """Whether a function calls a method of that name, as `super().name()` does."""
    return name in inspect.unwrap(own).__code__.co_names


def _after(ours: Hook, own: Hook) -> Hook:
    @wraps(own)
    def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
        ours(self, *args, **kwargs)
        return own(self, *args, **kwargs)

    return hook
