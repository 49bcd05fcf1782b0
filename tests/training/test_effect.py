"""Training that has no effect, and values that are not finite."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from taming.errors import UserError
from taming.training import effect
from taming.training.effect import FiniteValidation, TrainsSomething
from tests.kit.first_stages import loader
from tests.kit.training import tiny_trainer

X = torch.ones(2, 3)


class Model(pl.LightningModule):
    """A layer; what it returns is given."""

    def __init__(self, loss: Any = "mean", optimizer: Any = "sgd", by_hand: bool = False) -> None:
        super().__init__()
        self.layer, self.loss, self.optimizer = nn.Linear(3, 1), loss, optimizer
        self.automatic_optimization = not by_hand
        self.losses = iter(())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.automatic_optimization:  # and by no method of Lightning's
            self.layer.weight.data.add_(1)
            self.layer.weight.grad = None
            with torch.no_grad():
                self.layer.weight += 1
            return None
        y: Tensor = self.layer(batch["x"])
        made = {"mean": y.mean(), "vector": y, "detached": y.mean().detach(), "none": None}
        return made[self.loss if isinstance(self.loss, str) else self.loss[batch_idx]]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/a", float("nan"))
        self.log("val/b", 1.0)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        sgd = torch.optim.SGD(self.parameters(), lr=0.1)
        return {"sgd": sgd, "none": None, "empty": []}[self.optimizer]


class Freezes(Callback):
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.requires_grad_(False)


class FreezesLate(Callback):
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        pl_module.requires_grad_(False)


def fit(folder: Path, model: pl.LightningModule, *callbacks: Callback, epochs: int = 1) -> None:
    trainer = tiny_trainer(folder, max_epochs=epochs, callbacks=[TrainsSomething(), *callbacks])
    trainer.fit(model, loader({"x": X}, 3))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Model("vector"), "Model.training_step must return a loss, a tensor of one number with a"),
        (Model("detached"), "Model.training_step must return a loss, .* must not be detached"),
        (Model("none"), "nothing is trained: in 3 batches there was no loss, .*training_step gave"),
        (Model(optimizer="none"), "Model.configure_optimizers returns no optimizer"),
        (Model(optimizer="empty"), "Model.configure_optimizers returns no optimizer"),
    ],
)
def test_what_trains_nothing(model: Model, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        fit(tmp_path, model)


@pytest.mark.parametrize("callback", [Freezes(), FreezesLate()])
def test_frozen_weights(callback: Callback, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all weights of .*Model are frozen"):
        fit(tmp_path, Model(), callback)


@pytest.mark.parametrize("loss", ["mean", ["none", "none", "mean"]])
def test_what_trains_something(loss: Any, tmp_path: Path) -> None:
    fit(tmp_path, Model(loss), epochs=2)
    fit(tmp_path, Model(by_hand=True))


def test_long_epochs_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effect, "PATIENCE", 2)
    with pytest.raises(UserError, match="in 2 batches"):
        fit(tmp_path, Model("none"))
    fit(tmp_path, Model(["mean", "none", "none"]))


def test_parts_without_a_gradient_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    model.left_out, model.frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    model.half = nn.ModuleList([model.layer, nn.Linear(2, 2)])
    fit(tmp_path, model)
    messages = [r.getMessage() for r in caplog.records if r.name == effect.__name__]
    assert messages == ["left_out: no gradient comes there, it stays as it is"]


def test_values_that_are_not_finite_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = tiny_trainer(tmp_path, max_epochs=1, callbacks=[FiniteValidation()])
    batches = loader({"x": X})
    trainer.fit(Model(), batches, batches)
    trainer.test(Model(), batches, verbose=False)
    records = [r for r in caplog.records if r.name == effect.__name__]
    assert {r.levelno for r in records} == {logging.WARNING}
    messages = [r.getMessage() for r in records]
    assert messages[-2:] == [
        "validation at step 1: val/a is nan; training goes on",
        "test at step 1: val/a is nan",
    ]
