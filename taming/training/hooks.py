"""Hooks of users' callbacks and models: Lightning calls them, or a sentence says why it cannot.

Hooks with the arguments of Lightning 1, for which the published code was written, are called with
these.
"""

from __future__ import annotations

import dis
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.core.optimizer import LightningOptimizer

from taming.errors import UserError
from taming.signatures import signature_of
from taming.training.callbacks import SetupCallback
from taming.user_code import is_ours, name_of

log = logging.getLogger(__name__)
Hook = Callable[..., Any]

# Hooks that Lightning has called before version 2, and what is called at that time now.
_FORMER_HOOKS = {
    "on_batch_end": "on_train_batch_end",
    "on_batch_start": "on_train_batch_start",
    "on_epoch_end": "on_train_epoch_end",
    "on_epoch_start": "on_train_epoch_start",
    "on_init_end": "setup",
    "on_init_start": "setup",
    "on_keyboard_interrupt": "on_exception",
    "on_pretrain_routine_end": "on_train_start",
    "on_pretrain_routine_start": "on_fit_start",
}
# Methods of models whose result decided what was trained or logged: without them, a model is
# another one.
_FORMER_STEPS = {
    **{f"{split}_epoch_end": f"on_{split}_epoch_end" for split in ("validation", "test")},
    "training_epoch_end": "on_train_epoch_end",
    **{f"{split}_step_end": f"{split}_step" for split in ("training", "validation", "test")},
}
_STEPS = ("validation_step", "test_step")
_BATCH = ("batch", "batch_idx", "dataloader_idx")
# The arguments that hooks had then, where they were others; callbacks have two before these.
_FORMER_ARGUMENTS = {
    "on_train_batch_start": _BATCH,
    "on_train_batch_end": ("outputs", *_BATCH),
    "on_train_epoch_end": ("outputs",),
    "on_validation_epoch_end": ("outputs",),
    "on_before_optimizer_step": ("optimizer", "optimizer_idx"),
    "optimizer_step": (
        *("epoch", "batch_idx", "optimizer", "optimizer_idx", "optimizer_closure"),
        *("on_tpu", "using_native_amp", "using_lbfgs"),
    ),
    "optimizer_zero_grad": ("epoch", "batch_idx", "optimizer", "optimizer_idx"),
    "configure_gradient_clipping": (
        *("optimizer", "optimizer_idx", "gradient_clip_val", "gradient_clip_algorithm"),
    ),
    "lr_scheduler_step": ("scheduler", "optimizer_idx", "metric"),
    "backward": ("loss", "optimizer", "optimizer_idx"),
    "transfer_batch_to_device": ("batch", "device"),
    **{f"on_{split}_batch_start": _BATCH for split in ("validation", "test")},
    **{f"on_{split}_batch_end": ("outputs", *_BATCH) for split in ("validation", "test")},
    **dict.fromkeys(_STEPS, _BATCH),
}
_NOT_COUNTED = ("self", "args", "kwargs")
_CONSTANTS = {"dataloader_idx": 0, "on_tpu": False, "using_native_amp": False, "using_lbfgs": False}


def check_hooks(key: str, callback: Any) -> None:
    """Make a callback's hooks ready; `UserError` for what is none, or cannot be called."""
    if not isinstance(callback, Callback):
        name = name_of(type(callback))
        raise UserError(f"{key}: {name} is no pytorch_lightning.callbacks.Callback")
    if not isinstance(callback, SetupCallback):  # which calls a former hook itself
        _warn_of_former(key, type(callback))
    _make_ready(key, type(callback), Callback, ("trainer", "pl_module"))


def check_model_hooks(key: str, model: pl.LightningModule) -> None:
    """Make a model's hooks ready; `UserError` for those that Lightning cannot call."""
    kind = type(model)
    for step, now in _FORMER_STEPS.items():
        if any(step in vars(cls) for cls in _users(kind)):
            raise UserError(
                f"{key}: {name_of(kind)}.{step} is of Lightning 1, and is called no more; do its "
                f"work in {now}"
            )
    _warn_of_former(key, kind)
    _make_ready(key, kind, pl.LightningModule, ())


def _users(kind: type) -> Iterator[type]:
    """The classes of the user's among `kind` and its bases."""
    libraries = ("pytorch_lightning", "lightning", "lightning_fabric", "torch", "builtins")
    for cls in kind.__mro__:
        if not is_ours(cls) and cls.__module__.partition(".")[0] not in libraries:
            yield cls


def _warn_of_former(key: str, kind: type) -> None:
    for hook, now in _FORMER_HOOKS.items():
        if any(hook in vars(cls) for cls in _users(kind)):
            name = f"{name_of(kind)}.{hook}"
            log.warning("%s: Lightning calls no %s; rename it to %s", key, name, now)


def _make_ready(key: str, kind: type, base: type, first: tuple[str, ...]) -> None:
    for cls in _users(kind):
        for name, own in list(vars(cls).items()):
            called = getattr(base, name, None)
            known = name.startswith("on_") or name in _FORMER_ARGUMENTS
            adaptable = inspect.isfunction(own) and not is_ours(own)  # not one of an earlier call
            if known and callable(called) and adaptable:
                former = (*first, *_FORMER_ARGUMENTS.get(name, ()))
                setattr(cls, name, _fitted(f"{key}: {name_of(cls)}.{name}", own, called, former))


def _fitted(name: str, own: Hook, called: Hook, former: tuple[str, ...]) -> Hook:
    """`own`, or what calls it with its arguments of Lightning 1, made of those of today."""
    now = _given_today(called)
    arguments = [p for p in signature_of(own).parameters if p != "self"]
    count = next((n for n in range(len(former), 0, -1) if _takes(own, n)), 0)
    # An argument that was among the others, and not behind them: more are then meant as before.
    moved = former[: len(now)] != now and count > len(now)
    former_names = set(arguments[: len(now)]) & (set(former) - set(now))
    if _takes(own, len(now)) and not moved and not former_names:
        return own
    if not count or former == now:
        raise UserError(f"{name} must take ({', '.join(now)}), as Lightning calls it")
    for argument, place in zip(arguments, former[:count], strict=False):
        if place not in (*now, *_CONSTANTS, "optimizer_idx") and _reads(own, argument):
            raise UserError(
                f"{name} reads '{argument}', which Lightning keeps no more; it must take "
                f"({', '.join(now)})"
            )
    return _in_former_manner(own, called, former[:count])


def _given_today(called: Hook) -> tuple[str, ...]:
    """What Lightning gives a hook; of batches, no loader's number where there is one loader."""
    loader = signature_of(called).parameters.get("dataloader_idx")
    names = _names_today(called)
    by_default = called.__name__ in _STEPS or (loader is not None and loader.default == 0)
    return names[:-1] if by_default else names


def _names_today(called: Hook) -> tuple[str, ...]:
    names = tuple(p for p in signature_of(called).parameters if p not in _NOT_COUNTED)
    return _BATCH if called.__name__ in _STEPS else names


def _takes(own: Hook, count: int) -> bool:
    """Whether a method can be called with so many arguments."""
    try:
        signature_of(own).bind(None, *range(count))
    except TypeError:
        return False
    return True


def _reads(own: Hook, argument: str) -> bool:
    """Whether a function does anything with one of its arguments."""
    for line in dis.get_instructions(inspect.unwrap(own)):
        names = line.argval if isinstance(line.argval, tuple) else (line.argval,)
        if line.opname.startswith("LOAD") and argument in names:
            return True
    return False


def _in_former_manner(own: Hook, called: Hook, former: tuple[str, ...]) -> Hook:
    names = ("self", *_names_today(called))
    defaults = {name: p.default for name, p in signature_of(called).parameters.items()}

    def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, (self, *args), strict=False)), **kwargs}
        values = {**_CONSTANTS, **defaults, **given}
        if "optimizer_idx" in former:
            values["optimizer_idx"] = _number_of_optimizer(values)
        return own(self, *(values.get(name) for name in former))

    hook.__name__, hook.__qualname__, hook.__doc__ = own.__name__, own.__qualname__, own.__doc__
    return hook


def _number_of_optimizer(values: Mapping[str, Any]) -> int:
    """Which of the model's optimizers a hook is called for, as Lightning 1 counted them."""
    model: pl.LightningModule = values.get("pl_module") or values["self"]
    asked = values["scheduler"].optimizer if "scheduler" in values else values.get("optimizer")
    asked = asked.optimizer if isinstance(asked, LightningOptimizer) else asked
    return next((n for n, one in enumerate(model.trainer.optimizers) if one is asked), 0)
