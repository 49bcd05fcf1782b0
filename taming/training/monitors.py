"""Names that callbacks watch and nothing logs are refused as early as they can be known."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint

from taming.config import did_you_mean
from taming.errors import UserError
from taming.lightning_internals import names_logged
from taming.models.autoencoder_losses import AVERAGED
from taming.training.data_module import splits_of
from taming.user_code import is_ours


@runtime_checkable
class Monitored(Protocol):
    """A model that says which logged value is to be the best."""

    monitor: str | None


_ALWAYS = {"epoch", "step"}


def is_of_validation(monitor: str) -> bool:
    """Whether a logged value is one of validation, be it of averaged weights."""
    return monitor.startswith(("val/", f"{AVERAGED}/"))


@runtime_checkable
class KnowsLogged(Protocol):
    """A model that knows what it logs."""

    def logged_names(self) -> Collection[str] | None:
        """In training and validation; None if that depends on others' code."""


def check_monitors(
    callbacks: Iterable[Callback], model: pl.LightningModule, data: pl.LightningDataModule
) -> None:
    """Refuse, before training, names to watch that a model of this project does not log.

    Subclasses elsewhere may log more: see `LoggedNames`.

    Raises:
        UserError: also for values of a validation that there are no data for.
    """
    ours = is_ours(type(model)) and isinstance(model, KnowsLogged)
    names = model.logged_names() if ours else None  # type: ignore[operator]
    validates = "validation" in splits_of(data)
    for monitor in _monitors(callbacks):
        if not validates and is_of_validation(monitor):
            raise UserError(
                f"monitor is {monitor}, but nothing is validated: add data.params.validation, or "
                "leave monitor out"
            )
        if names is not None:
            _require(monitor, set(names))
    if names is not None:
        for monitor in _own_monitor(model):
            _require(monitor, set(names))


def _own_monitor(model: pl.LightningModule) -> list[str]:
    """The model's, of which a callback's may have taken the place."""
    return [model.monitor] if isinstance(model, Monitored) and model.monitor is not None else []


def _monitors(callbacks: Iterable[Callback]) -> list[str]:
    watching = (one for one in callbacks if isinstance(one, ModelCheckpoint | EarlyStopping))
    return [one.monitor for one in watching if one.monitor is not None]


def _require(monitor: str, names: set[str]) -> None:
    if monitor not in names | _ALWAYS and not monitor.startswith("lr-"):
        raise UserError(f"monitor is {monitor}, which nothing logs{did_you_mean(monitor, names)}")


class LoggedNames(Callback):
    """Refuses names to watch that neither the sanity validation nor the first batch has logged."""

    def __init__(self) -> None:
        super().__init__()
        self._names: set[str] = set()
        self._known = self._validated = False

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if not self._known:
            self._names |= names_logged(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._known:
            self._names |= names_logged(trainer)
            self._validated = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        if self._known or not self._validated:
            return
        self._known = True
        self._names |= names_logged(trainer)
        at_end = type(pl_module).on_train_epoch_end  # one of the user's may log others
        if at_end is pl.LightningModule.on_train_epoch_end or is_ours(at_end):
            for monitor in _monitors(trainer.callbacks) + _own_monitor(pl_module):  # type: ignore[attr-defined]
                _require(monitor, self._names)
