"""Hooks of users' callbacks: Lightning calls them, or a sentence says that it does not."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from pytorch_lightning.callbacks import Callback

from taming.errors import UserError
from taming.training.callbacks import SetupCallback
from taming.user_code import name_of

log = logging.getLogger(__name__)

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


def check_hooks(key: str, callback: Any) -> None:
    """Refuse (`UserError`) what is no callback, and hooks that Lightning cannot call."""
    name = name_of(type(callback))
    if not isinstance(callback, Callback):
        raise UserError(f"{key}: {name} is no pytorch_lightning.callbacks.Callback")
    for hook, now in _FORMER_HOOKS.items() if not isinstance(callback, SetupCallback) else ():
        if any(hook in vars(cls) for cls in type(callback).__mro__):
            log.warning("%s: Lightning calls no %s.%s; rename it to %s", key, name, hook, now)
    for hook, original in vars(Callback).items():
        if not hook.startswith("on_") or not callable(own := vars(type(callback)).get(hook)):
            continue
        arguments = inspect.signature(original).parameters
        try:
            inspect.signature(own).bind(*arguments)
        except TypeError:
            raise UserError(
                f"{key}: {name}.{hook} must take ({', '.join(arguments)}), as Lightning calls it"
            ) from None
