"""Hooks of users' callbacks and models, as of Lightning 1 and without `super()`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger

from taming.config_values import parameters_of
from taming.errors import UserError
from taming.models.vqgan import VQModel
from taming.modules.losses.base import require_published_arguments
from taming.training.callbacks import ImageLogger, _accepted
from taming.training.hooks import check_hooks, check_model_hooks
from tests.kit.first_stages import assert_equal, batches, made, train
from tests.kit.models import build, transformer_config
from tests.kit.training import tiny_trainer

# mypy: disable-error-code="override, no-untyped-def"
Calls = list[tuple[Any, ...]]


class FormerModel(VQModel):
    """What code for the published models overrides, with the arguments of its time."""

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.calls: Calls = []

    def optimizer_step(
        self, epoch, batch_idx, optimizer, optimizer_idx, optimizer_closure=None, on_tpu=None
    ):
        self.calls.append(("step", epoch, batch_idx, optimizer_idx, on_tpu))
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer, number):
        self.calls.append(("zero", number))
        optimizer.zero_grad()

    def configure_gradient_clipping(self, optimizer, optimizer_idx, value, how):
        self.calls.append(("clip", optimizer_idx, value, how))

    def on_train_batch_end(self, outputs, batch, batch_idx, dataloader_idx):
        super().on_train_batch_end(outputs, batch, batch_idx, dataloader_idx)
        self.calls.append(("end", batch_idx, dataloader_idx))

    def transfer_batch_to_device(self, batch, device):
        return {"image": batch["image"].to(device)}


def test_hooks_of_a_first_stage_are_called_as_they_were(tmp_path: Path) -> None:
    model = made(FormerModel)
    check_model_hooks("model", model)
    model.gradient_clip_val = 0.5
    trained, calls = train(model, tmp_path), model.calls
    assert [c for c in calls if c[0] == "step"] == [
        ("step", 0, batch, side, False) for batch in (0, 1) for side in (0, 1)
    ]
    assert [c for c in calls if c[0] in ("zero", "clip")] == [
        *(("clip", 0, 0.5, "norm"), ("zero", 0), ("clip", 1, 0.5, "norm"), ("zero", 1)),
        *(("clip", 0, 0.5, "norm"), ("zero", 0), ("clip", 1, 0.5, "norm"), ("zero", 1)),
    ]
    assert [c for c in calls if c[0] == "end"] == [("end", 0, 0), ("end", 1, 0)]
    assert model.trainer.global_step == 2
    plain = train(made(VQModel), tmp_path)  # the override leaves the clipping out
    assert_equal({name: trained[name] for name in plain}, plain)
    once = FormerModel.optimizer_step
    check_model_hooks("model", model)
    assert FormerModel.optimizer_step is once


class Silent(VQModel):
    """Hooks that do not call those of `VQModel`, as there were none."""

    def setup(self, stage=None):
        self.stage = stage

    def on_train_start(self):
        self.begun = True

    def on_before_optimizer_step(self, optimizer, optimizer_idx):
        self.sides = [*getattr(self, "sides", []), optimizer_idx]

    def on_train_batch_end(self, *args):
        self.ends = getattr(self, "ends", 0) + 1


def test_own_hooks_do_not_replace_those_of_the_model(tmp_path: Path) -> None:
    options = {"use_ema": True}
    silent, plain = made(Silent, **options), made(VQModel, **options)
    check_model_hooks("model", silent)
    silent.gradient_clip_val = plain.gradient_clip_val = 1e-3
    first, second = train(silent, tmp_path), train(plain, tmp_path)
    assert (silent.stage, silent.begun, silent.ends) == ("fit", True, 2)
    assert silent.sides == [0, 1, 0, 1]
    assert_equal(first, second)
    free = train(made(VQModel, **options), tmp_path)
    assert not torch.equal(free["encoder.conv_in.weight"], first["encoder.conv_in.weight"])


def test_annotations_may_name_what_only_type_checkers_import() -> None:
    """Python 3.14 evaluates them when they are asked for; before, `def` does without the import."""
    late = "" if sys.version_info >= (3, 14) else "from __future__ import annotations\n"
    code = f"""{late}
from pytorch_lightning import Callback
from torch import nn
from taming.models.vqgan import VQModel
class Own(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch: Missing, batch_idx, loader): ...
class Model(VQModel):
    def __init__(self, *args: Missing, extra: Missing = 3, **kwargs) -> None:
        super().__init__(*args, **kwargs)
    def training_step(self, batch: Missing, batch_idx, optimizer_idx) -> Missing: ...
    def on_train_batch_start(self, batch: Missing, batch_idx, loader): ...
class Loss(nn.Module):
    def forward(self, one: Missing) -> Missing: ...
"""
    own: dict[str, Any] = {"__name__": "own_names"}
    exec(compile(code, "own_names", "exec", dont_inherit=True), own)
    check_hooks("callback", own["Own"]())
    model = made(own["Model"], extra=4)
    check_model_hooks("model", model)
    assert parameters_of(own["Model"])[0]["extra"] is Any
    require_published_arguments(own["Loss"](), 1)
    assert _accepted(own["Loss"].forward, {"one": 1, "two": 2}) == {"one": 1}


class FormerCallback(Callback):
    def __init__(self) -> None:
        self.calls: Calls = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx, loader):
        self.calls.append(("start", batch_idx, loader))

    def on_train_epoch_end(self, trainer, pl_module, outputs):
        self.calls.append(("epoch",))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer, optimizer_idx):
        self.calls.append(("step", optimizer_idx))


class FormerPictures(ImageLogger):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self.last = batch_idx


class Derived(FormerPictures):
    """Of the user's class: the hook is its base's."""


def test_callbacks_with_arguments_of_lightning_1(tmp_path: Path) -> None:
    callback, pictures = FormerCallback(), Derived(batch_frequency=0, max_images=1)
    for own in (callback, pictures):
        check_hooks("lightning.callbacks.own", own)
    model = made(VQModel)
    model.learning_rate = 1e-3
    tiny_trainer(tmp_path, max_epochs=1, callbacks=[callback, pictures]).fit(model, batches())
    batch = [("start", 0, 0), ("step", 0), ("step", 1)]
    assert callback.calls == [*batch, ("start", 1, 0), *batch[1:], ("epoch",)]
    assert pictures.last == 1


def test_a_transformers_step_as_it_was(tmp_path: Path) -> None:
    class WarmUp(type(build(transformer_config()))):  # type: ignore[misc]
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_idx, closure, *rest):
            optimizer.step(closure=closure)
            self.seen = (epoch, batch_idx, optimizer_idx, rest)

    check_model_hooks("model", model := WarmUp(**transformer_config()["params"]))
    model.learning_rate = 1e-3
    batch = {"image": torch.zeros(2, 8, 8, 3), "class_label": torch.zeros(2, dtype=torch.long)}
    data = torch.utils.data.DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    tiny_trainer(tmp_path, max_epochs=1).fit(model, data)
    assert model.seen == (0, 0, 0, (False, False, False))


class Reads(Callback):
    def on_train_epoch_end(self, trainer, pl_module, outputs):
        print(len(outputs))


class Unknown(Callback):
    def on_train_end(self, trainer, pl_module, more):
        raise AssertionError


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Reads(), r"own: .*epoch_end reads 'outputs', which Lightning keeps no more; it "
         r"must take \(trainer, pl_module\)$"),
        (Unknown(), r"own: .*Unknown.on_train_end must take \(trainer, pl_module\), as Lightning"),
        (object(), r"own: builtins.object is no pytorch_lightning.callbacks.Callback"),
    ],
)  # fmt: skip
def test_hooks_that_cannot_be_called(callback: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_hooks("own", callback)


class EpochEnd(VQModel):
    def training_epoch_end(self, outputs):
        raise AssertionError


class StepEnd(VQModel):
    def validation_step_end(self, outputs):
        raise AssertionError


class Plain(pl.LightningModule):
    def backward(self, loss, optimizer, optimizer_idx):
        optimizer.step()


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (EpochEnd, "model: .*training_epoch_end is of Lightning 1, .* in on_train_epoch_end$"),
        (StepEnd, "model: .*validation_step_end is of Lightning 1, .* in validation_step$"),
    ],
)
def test_steps_that_lightning_has_no_more(cls: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_model_hooks("model", made(cls))


def test_a_backward_pass_that_needs_the_optimizer() -> None:
    with pytest.raises(UserError, match=r"Plain.backward reads 'optimizer'.* take \(loss\)"):
        check_model_hooks("model", Plain())


class WarmUp(VQModel):
    """As on the pages of Lightning 1 and 2, with calls of `super()` as it was then."""

    def optimizer_step(
        self, epoch, batch_nb, optimizer, optimizer_i, second_order_closure=None, **more
    ):
        if batch_nb % 2:
            second_order_closure()
        super().optimizer_step(
            epoch, batch_nb, optimizer, optimizer_i, second_order_closure, **more
        )

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer, optimizer_idx):
        super().optimizer_zero_grad(epoch, batch_idx, optimizer, optimizer_idx)

    def configure_gradient_clipping(self, optimizer, optimizer_idx, value, how):
        super().configure_gradient_clipping(optimizer, optimizer_idx, 2 * value, how)

    def validation_step(self, batch, batch_idx, dataloader_idx):
        assert dataloader_idx == 0
        return super().validation_step(batch, batch_idx)

    def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx):
        self.validated = dataloader_idx


def test_former_arguments_may_be_handed_on(tmp_path: Path) -> None:
    warm, plain = made(WarmUp), made(VQModel)
    check_model_hooks("model", warm)
    warm.gradient_clip_val, plain.gradient_clip_val = 0.05, 0.1
    assert_equal(train(plain, tmp_path), train(warm, tmp_path))
    tiny_trainer(tmp_path).validate(warm, batches(1))
    assert warm.validated == 0


class FormerValidation(ImageLogger):
    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx):
        self.started = dataloader_idx

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, loader):
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, loader)
        self.ended = loader


def test_hooks_of_validation_with_the_loaders_number(tmp_path: Path) -> None:
    pictures = FormerValidation(batch_frequency=1, max_images=1)
    check_hooks("own", pictures)
    seen = []
    pictures.logger_log_images = {CSVLogger: lambda *given: seen.append(given[2:])}
    logger = CSVLogger(tmp_path)
    tiny_trainer(tmp_path, callbacks=[pictures], logger=logger).validate(made(VQModel), batches(1))
    assert (pictures.started, pictures.ended, seen) == (0, 0, [(0, "val")])
