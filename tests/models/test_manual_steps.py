"""Optimizers and schedules of models that step them by themselves."""

# mypy: disable-error-code="override, no-untyped-def"

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch

from taming.errors import UserError
from taming.models import own_hooks
from taming.models.vqgan import VQModel
from taming.modules.discriminator.model import NLayerDiscriminator
from taming.modules.losses.base import FirstStageLoss
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator
from taming.training.hooks import check_model_hooks
from tests.kit.first_stages import assert_equal, batches, made, train
from tests.kit.models import GAN_LOSS
from tests.kit.training import tiny_trainer


def test_gradients_are_clipped_if_there_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, clip = made(VQModel), Mock(), Mock()
    monkeypatch.setattr(own_hooks, "clip_gradients", clip)
    model._trainer = SimpleNamespace()
    model.on_before_optimizer_step(optimizer)
    clip.assert_not_called()
    model.gradient_clip_val = 0.5
    model.on_before_optimizer_step(optimizer)
    clip.assert_called_once_with(model.trainer, optimizer, 0.5, "norm")


class Schedule(VQModel):
    def lr_scheduler_step(self, scheduler, optimizer_idx, metric):
        self.seen = [*getattr(self, "seen", []), (optimizer_idx, metric)]
        scheduler.step()


def test_schedules_are_stepped_by_the_hook(tmp_path: Path) -> None:
    model = made(Schedule, scheduler_config={"target": f"{__name__}.Halving", "params": {}})
    check_model_hooks("model", model)
    train(model, tmp_path)
    assert model.seen == [(0, None), (1, None)] * 2


class Halving:
    def __call__(self, n: int) -> float:
        return 0.5**n


def counted_schedules(model: VQModel) -> list[float]:
    """The learning rates after two epochs of three batches."""
    model.learning_rate = 1e-3
    check_model_hooks("model", model)
    trainer = tiny_trainer(Path("."), max_epochs=2)
    trainer.fit(model, batches(3))
    return [round(group["lr"], 9) for one in trainer.optimizers for group in one.param_groups]


class OwnSchedules(VQModel):
    interval: dict[str, Any] = {}  # noqa: RUF012

    def configure_optimizers(self):
        optimizers, _ = super().configure_optimizers()
        made = [torch.optim.lr_scheduler.StepLR(one, 1, gamma=0.5) for one in optimizers]
        return optimizers, [{"scheduler": one, **self.interval} for one in made]


@pytest.mark.parametrize(
    ("interval", "steps"),
    [
        ({}, 2),  # of epochs, as Lightning has it
        ({"interval": "epoch", "frequency": 2}, 1),
        ({"interval": "step"}, 6),
        ({"interval": "step", "frequency": 2}, 2),
    ],
)
def test_schedules_of_ones_own_keep_their_interval(interval: dict[str, Any], steps: int) -> None:
    model = made(OwnSchedules)
    model.interval = interval
    assert counted_schedules(model) == [round(1e-3 * 0.5**steps, 9)] * 2


class ThreeSides(VQModel):
    """A loss of its own for each of three optimizers, as Lightning 1 asked for it."""

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.critic = torch.nn.Linear(3, 1)

    def training_step(self, batch, batch_idx, optimizer_idx):
        x = self.get_input(batch, self.image_key)
        made, codebook_loss = self(x)
        if optimizer_idx == 0:
            return (made - x).abs().mean() + codebook_loss
        if optimizer_idx == 1:  # not detached: only the discriminator may get gradients
            return self.loss.discriminator(made).mean()
        return self.critic(made.mean((2, 3))).mean()

    def configure_optimizers(self):
        parts = (self.encoder, self.loss.discriminator, self.critic)
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts], []


class FirstOfThree(ThreeSides):
    def training_step(self, batch, batch_idx, optimizer_idx):
        return super().training_step(batch, batch_idx, 0) if optimizer_idx == 0 else None


def test_every_optimizer_trains_its_own_parameters_alone(tmp_path: Path) -> None:
    start = made(ThreeSides).state_dict()
    three, first = train(made(ThreeSides), tmp_path, 3), train(made(FirstOfThree), tmp_path, 3)
    for name in ("critic.weight", "loss.discriminator.main.0.weight"):
        assert not torch.equal(three[name], start[name])
        assert torch.equal(first[name], start[name])
    assert_equal({n: v for n, v in first.items() if n.startswith("encoder.")}, three)


class MoreThanSides(VQModel):
    def configure_optimizers(self):
        optimizers, schedules = super().configure_optimizers()
        return [*optimizers, torch.optim.SGD(self.encoder.parameters(), lr=0.1)], schedules


class Plateau(VQModel):
    def configure_optimizers(self):
        optimizers, _ = super().configure_optimizers()
        rule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizers[0])
        return optimizers, [{"scheduler": rule, "monitor": "train/aeloss"}]


class TakesTurns(VQModel):
    """Gives dicts with frequencies, as Lightning 1 took turns by them."""

    def configure_optimizers(self):
        optimizers, _ = super().configure_optimizers()
        return [{"optimizer": one, "frequency": 1 + n} for n, one in enumerate(optimizers)]


class Dicts(VQModel):
    def configure_optimizers(self):
        optimizers, _ = super().configure_optimizers()
        return tuple({"optimizer": one} for one in optimizers)


class OneOptimizer(VQModel):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_optimizers_in_dicts_train_both_sides(tmp_path: Path) -> None:
    assert_equal(train(made(VQModel), tmp_path), train(made(Dicts), tmp_path))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (TakesTurns, r"TakesTurns.configure_optimizers gives an optimizer a frequency, .* leave"),
        (OneOptimizer, r"OneOptimizer.configure_optimizers gives one optimizer, .* return one for"),
        (MoreThanSides, r"configure_optimizers gives 3 optimizers, and the model trains 2: define"),
        (Plateau, "which ReduceLROnPlateau is not made for"),
    ],
)
def test_what_cannot_be_stepped_is_refused_before_the_first(
    cls: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(made(cls), tmp_path)


class SetsAll(VQModel):
    """Makes everything itself, as code that was copied from the published class does."""

    def __init__(self, **params: Any) -> None:
        pl.LightningModule.__init__(self)
        whole = VQModel(**params)
        for name in ("encoder", "decoder", "loss", "quantize", "quant_conv", "post_quant_conv"):
            setattr(self, name, getattr(whole, name))
        self.image_key, self.image_channels, self.monitor = "image", 3, None


class ByProperty(VQModel):
    @property
    def automatic_optimization(self):
        return False


def test_a_model_that_sets_everything_itself_is_trained_alike(tmp_path: Path) -> None:
    plain = train(made(VQModel), tmp_path)
    for cls in (SetsAll, ByProperty):
        assert_equal(plain, train(made(cls), tmp_path))


def test_codes_are_counted_for_the_quantizer_that_there_is(tmp_path: Path) -> None:
    model = made(VQModel)
    model.quantize = type(model.quantize)(64, model.quantize.e_dim, beta=0.25)
    tiny_trainer(tmp_path).validate(model, batches(1))
    assert model.used_codes.n_codes == 64


class ByItself(VQModel):
    """Steps both optimizers, as Lightning 2 asks models with several of them to."""

    def training_step(self, batch, batch_idx):
        autoencoder, discriminator = self.optimizers()
        for number, optimizer in enumerate((autoencoder, discriminator)):
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx, number))
            optimizer.step()


def test_a_step_is_a_batch_for_a_model_that_steps_its_optimizers(tmp_path: Path) -> None:
    model = made(ByItself)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = train(model, tmp_path, 3)
    assert model.trainer.global_step == 3
    for name in ("encoder.conv_in.weight", "loss.discriminator.main.0.weight"):
        assert not torch.equal(after[name], before[name])


# ---------------------------------------------------------------------- losses of one's own


class OwnSides(FirstStageLoss):
    """A loss as CONTRIBUTING.md tells, with a discriminator."""

    def __init__(self):
        super().__init__()
        self.discriminator = NLayerDiscriminator(3, 8, 1)

    def generator_loss(
        self, inputs, reconstructions, codebook_loss, global_step, *, last_layer=None, cond=None
    ):
        played = self.discriminator(reconstructions).mean()
        loss = (inputs - reconstructions).abs().mean() + codebook_loss.mean() - played
        return loss, {"played": played.detach()}

    def discriminator_loss(self, inputs, reconstructions, global_step, *, cond=None):
        return (self.discriminator(reconstructions) - self.discriminator(inputs)).mean(), {}


class Published(torch.nn.Module):
    """A loss as the original's projects have it: `forward` alone."""

    def __init__(self):
        super().__init__()
        self.sides = [OwnSides()]
        self.discriminator = self.sides[0].discriminator

    def forward(
        self, codebook_loss, inputs, reconstructions, optimizer_idx, global_step, last_layer, split
    ):
        return self.sides[0](codebook_loss, inputs, reconstructions, optimizer_idx)


class OwnWeight(VQLPIPSWithDiscriminator):
    def calculate_adaptive_weight(self, nll_loss, g_loss, last_layer=None):
        return torch.tensor(0.5)


OWN_LOSSES = {
    OwnSides: {},
    Published: {},
    OwnWeight: {**GAN_LOSS["params"], "disc_start": 0},
    VQLPIPSWithDiscriminator: {**GAN_LOSS["params"], "disc_start": 0},
}


@pytest.mark.parametrize("cls", OWN_LOSSES)
def test_a_discriminator_learns_by_its_own_loss_alone(cls: Any, tmp_path: Path) -> None:
    """Also where the autoencoder's loss goes back through its weights, and over two batches."""
    model = made(VQModel)
    model.loss, model.accumulate_grad_batches = cls(**OWN_LOSSES[cls]), 2
    weights, expected, taken = list(model.loss.discriminator.parameters()), [], []

    def note(loss: torch.Tensor, side: int) -> torch.Tensor:
        if side == 1:
            expected.append(torch.autograd.grad(loss, weights, retain_graph=True))
        return loss

    loss_of = model._loss_of
    model._loss_of = lambda images, side, split: note(loss_of(images, side, split), side)

    class Takes(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            trainer.optimizers[1].register_step_pre_hook(
                lambda *_: taken.append([one.grad.clone() for one in weights])
            )

    tiny_trainer(tmp_path, max_epochs=1, callbacks=[Takes()]).fit(model, batches(4))
    assert len(taken) == 2 and len(expected) == 4
    for step, first, second in zip(taken, expected[::2], expected[1::2], strict=True):
        for gradient, one, other in zip(step, first, second, strict=True):
            torch.testing.assert_close(gradient, (one + other) / 2)
    assert all(one.requires_grad for one in model.parameters())
