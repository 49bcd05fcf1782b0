"""Names that callbacks watch: which are refused, and when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint

from taming.errors import UserError
from taming.training import monitors
from taming.training.data_module import DataModuleFromConfig
from taming.training.monitors import LoggedNames, check_monitors


class Model(pl.LightningModule):
    __module__ = "taming.models.ours"

    def logged_names(self) -> list[str]:
        return ["train/loss", "val/loss"]


class Foreign(Model):
    __module__ = "elsewhere"


class LogsLater(pl.LightningModule):
    def on_train_epoch_end(self) -> None: ...


WATCHING = (ModelCheckpoint, EarlyStopping)


def check(callback: Callback, model: pl.LightningModule, *splits: str) -> None:
    data = DataModuleFromConfig(1, num_workers=0)
    data.datasets = dict.fromkeys(splits)
    check_monitors([Callback(), callback], model, data)


@pytest.mark.parametrize("watching", WATCHING)
def test_names_are_compared_with_what_is_logged(watching: Any) -> None:
    splits = ("train", "validation")
    for name in ("val/loss", "train/loss", "lr-Adam", "epoch", "step"):
        check(watching(monitor=name), Model(), *splits)
    with pytest.raises(UserError, match="monitor is val/los, which nothing .*'val/loss'"):
        check(watching(monitor="val/los"), Model(), *splits)
    check(watching(monitor="val/los"), Foreign(), *splits)
    for model in (Model(), Foreign()):
        with pytest.raises(UserError, match="monitor is val/loss, but nothing is validated"):
            check(watching(monitor="val/loss"), model, "train")
        with pytest.raises(UserError, match="monitor is val_ema/loss, but nothing is validated"):
            check(watching(monitor="val_ema/loss"), model, "train")
    check(ModelCheckpoint(monitor=None), Model(), "train")


@pytest.mark.parametrize("watching", WATCHING)
def test_what_a_foreign_model_logs_is_known_after_its_first_batch(
    watching: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: set[str] = set()
    monkeypatch.setattr(monitors, "names_logged", lambda _: set(named))
    trainer: Any = SimpleNamespace(callbacks=[watching(monitor="val/own")])

    def first_batch(names: str, model: pl.LightningModule, validated: bool = True) -> None:
        callback = LoggedNames()
        for hook, name in zip(("batch", ""), names.split(), strict=True):
            named.clear()
            named.add(name)
            if hook:
                callback.on_validation_batch_end(trainer)
            elif validated:
                callback.on_validation_end(trainer, model)
        named.clear()
        callback.on_train_batch_end(trainer, model, None, None, 0)
        if validated:  # later batches cost nothing
            monkeypatch.setattr(monitors, "names_logged", None)
            callback.on_train_batch_end(trainer, model, None, None, 1)
            callback.on_validation_batch_end(trainer)
            callback.on_validation_end(trainer, model)
            monkeypatch.setattr(monitors, "names_logged", lambda _: set(named))
        assert callback._known == validated

    for names in ("val/own x", "x val/own"):
        first_batch(names, Foreign())
    with pytest.raises(UserError, match="monitor is val/own, which nothing logs"):
        first_batch("x y", Foreign())
    first_batch("x y", Foreign(), validated=False)  # a validation may yet log it
    first_batch("x y", LogsLater())
