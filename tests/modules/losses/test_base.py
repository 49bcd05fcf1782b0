"""The two entry points of losses, the published way to call them, and which of them is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taming.errors import UserError
from taming.modules.losses.base import (
    DummyLoss,
    FirstStageLoss,
    Logged,
    MissingLoss,
    checked_result,
    has_entry_points,
    names_of_terms,
    require_loss,
)
from taming.modules.losses.segmentation import BCELossWithQuant
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator
from tests.support import defaults

GAN = {"perceptual_weight": 0.0, "disc_num_layers": 1, "disc_ndf": 8}


def images() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, reconstructions that need a gradient, and the weight that they come from."""
    torch.manual_seed(0)
    inputs = torch.rand(2, 3, 16, 16)
    layer = nn.Conv2d(3, 3, 1).weight
    return inputs, torch.nn.functional.conv2d(inputs, layer), layer


@pytest.mark.parametrize("step", [0, 1])  # before and after the discriminator starts
def test_the_published_call_is_either_entry_point(step: int) -> None:
    torch.manual_seed(0)
    loss = VQLPIPSWithDiscriminator(disc_start=1, **GAN).train()
    inputs, outputs, layer = images()
    codebook_loss = torch.tensor(0.5)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    entry = loss.generator_loss(inputs, outputs, codebook_loss, step, last_layer=layer)
    published = loss(codebook_loss, inputs, outputs, 0, step, last_layer=layer, split="val")
    assert_same(entry, published, "val")
    assert ("d_weight" in entry[1]) and (entry[1]["disc_factor"] == step)
    loss.load_state_dict(state)
    entry = loss.discriminator_loss(inputs, outputs, step)
    published = loss(codebook_loss, inputs, outputs, 1, step)
    assert_same(entry, published, "train")
    assert bool(entry[0] > 0) == (step == 1)


def assert_same(entry: tuple[Tensor, Logged], published: tuple[Tensor, Logged], split: str) -> None:
    assert torch.equal(entry[0], published[0])
    assert {f"{split}/{name}" for name in entry[1]} == published[1].keys()
    for name, term in entry[1].items():
        assert torch.equal(term, published[1][f"{split}/{name}"]), name


def test_losses_of_ours_say_what_they_log() -> None:
    loss = VQLPIPSWithDiscriminator(disc_start=0, **GAN)
    inputs, outputs, layer = images()
    of_generator = loss.generator_loss(inputs, outputs, torch.ones(()), 0, last_layer=layer)[1]
    of_discriminator = loss.discriminator_loss(inputs, outputs, 0)[1]
    names = {"aeloss", "discloss", *of_generator, *of_discriminator}
    assert names_of_terms(loss) == names
    assert names_of_terms(BCELossWithQuant()) == {"aeloss", *BCELossWithQuant.generator_terms}
    assert names_of_terms(DummyLoss()) is None


def test_what_stands_for_a_loss_is_not_trained_with() -> None:
    with pytest.raises(UserError, match=r"lossconfig: a.Loss is not installed here"):
        require_loss(MissingLoss("a.Loss"))
    with pytest.raises(UserError, match="lossconfig: set a loss"):
        require_loss(DummyLoss())
    require_loss(BCELossWithQuant())


def test_segmentations_have_the_original_call() -> None:
    inputs, outputs, _ = images()
    loss, codebook_loss = BCELossWithQuant(2.0), torch.tensor([0.1, 0.3])
    entry = loss.generator_loss(inputs.round(), outputs, codebook_loss, 0)
    published = loss(codebook_loss, inputs.round(), outputs, split="train")
    assert_same(entry, published, "train")


def test_a_new_loss_has_the_published_call_as_well() -> None:
    class Squares(FirstStageLoss):
        def generator_loss(
            self, inputs: Tensor, reconstructions: Tensor, *args: Any, **options: Any
        ) -> tuple[Tensor, Logged]:
            loss = (inputs - reconstructions).square().mean()
            return loss, {"squares": loss.detach()}

    published = {"optimizer_idx": 0, "global_step": 0, "split": "train"}
    assert defaults(FirstStageLoss.forward) == {**published, "last_layer": None, "cond": None}
    inputs, outputs, _ = images()
    for call in (
        Squares()(torch.zeros(()), inputs, outputs, 0, 3, split="val"),
        Squares()(torch.zeros(()), inputs, outputs, split="val"),  # of models without optimizers
    ):
        assert_same(((inputs - outputs).square().mean(), {"squares": call[0]}), call, "val")


class Extended(VQLPIPSWithDiscriminator):
    def forward(self, *args: Any, **options: Any) -> Any:
        return super().forward(*args, **options)


class Reweighted(Extended):
    def generator_loss(self, *args: Any, **options: Any) -> Any:
        return super().generator_loss(*args, **options)


class Judging(Extended):
    def discriminator_loss(self, *args: Any, **options: Any) -> Any:
        return super().discriminator_loss(*args, **options)


class Renamed(BCELossWithQuant):
    """Changes nothing."""


class Published(nn.Module):
    def forward(self, *args: Any) -> None: ...


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (VQLPIPSWithDiscriminator, True),
        (BCELossWithQuant, True),
        (Renamed, True),
        (Extended, False),  # what it adds to `forward` would be lost
        (Reweighted, True),
        (Judging, True),
        (Published, False),
        (DummyLoss, False),
    ],
)
def test_the_most_derived_class_says_how_it_is_called(loss: type, expected: bool) -> None:
    assert has_entry_points(loss.__new__(loss)) == expected


@pytest.mark.parametrize(
    ("result", "returned"),
    [
        (None, "None"),
        (torch.ones(()), r"a tensor \[\] of float32"),
        ((torch.ones(2), {}), r"\(a tensor \[2\] of float32, a dict of nothing\)"),
        ((1.0, {"a": 1}), r"\(an object of type float, a dict of 'a'\)"),
        ((torch.ones(()), [1]), r"\(a tensor \[\] of float32, \(an object of type int\)\)"),
    ],
)
def test_what_a_loss_returns_is_checked(result: Any, returned: str) -> None:
    loss = nn.MSELoss()
    with pytest.raises(UserError, match=rf"MSELoss must return \(loss, terms\).* {returned}$"):
        checked_result(loss, result, trained=False)
    value = torch.ones(())
    assert checked_result(loss, (value, {"a": 1}), trained=False) == (value, {"a": 1})
    with pytest.raises(UserError, match="has no gradient"):
        checked_result(loss, (value, {}), trained=True)
