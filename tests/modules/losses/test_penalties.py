"""Penalties of the discriminator against their formulas, by themselves and within the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taming.modules.losses import penalties
from taming.modules.losses.penalties import Penalties
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator

REAL = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
FAKE = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
OPTIONS = {"perceptual_weight": 0.0, "disc_num_layers": 1, "disc_ndf": 4, "disc_in_channels": 2}
CODES = torch.zeros(())


def squares(images: Tensor) -> Tensor:
    """A discriminator of two patches per image, whose gradient at x is 2 x."""
    return images.square().sum(dim=(1, 2)).reshape(len(images), 1, 2, 2)


def test_r1_is_half_the_squared_gradient_and_every_few_steps_as_much_more() -> None:
    penalty = Penalties(r1_weight=3.0, r1_every=4)
    images = REAL.clone().requires_grad_()
    expected = 4 * 3.0 / 2 * (2 * REAL).square().sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(penalty.r1(images, squares(images)), expected)
    assert [penalty.takes_r1(step) for step in range(5)] == [True, False, False, False, True]
    assert not Penalties().takes_r1(0)


def test_the_gradient_penalty_is_taken_between_images() -> None:
    torch.manual_seed(5)
    share = torch.rand(3, 1, 1, 1)
    lengths = (2 * (share * REAL + (1 - share) * FAKE)).square().sum(dim=(1, 2, 3)).sqrt()
    torch.manual_seed(5)
    actual = Penalties(gradient_penalty_weight=10.0).between(squares, REAL, FAKE)
    torch.testing.assert_close(actual, 10 * (lengths - 1).square().mean())


def test_lecam_follows_the_logits_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    penalty = Penalties(lecam_weight=0.3, lecam_decay=0.9)
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-4.0, -2.0])
    penalty.lecam(real, fake)
    actual = penalty.lecam(real, fake)
    of_real, of_fake = 2 * (1 - 0.9**2), -3 * (1 - 0.9**2)  # averages after two batches
    expected = 0.3 * ((real - of_fake).square().mean() + (fake - of_real).square().mean())
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(penalty.lecam_means, torch.tensor([of_real, of_fake]))
    other = torch.tensor([8.0, 6])  # of the other of two processes
    monkeypatch.setattr(penalties, "mean_over_ranks", lambda means: (means + other) / 2)
    shared = Penalties(lecam_weight=0.3, lecam_decay=0.0)
    shared.lecam(real, fake)
    assert shared.lecam_means.tolist() == [5.0, 1.5]


def loss_with(**options: Any) -> VQLPIPSWithDiscriminator:
    torch.manual_seed(0)
    return VQLPIPSWithDiscriminator(**{"disc_start": 0, **OPTIONS, **options}).train()


@pytest.mark.parametrize(
    ("option", "term"),
    [
        ("lecam_weight", "lecam_loss"),
        ("r1_weight", "r1_loss"),
        ("gradient_penalty_weight", "gradient_penalty"),
    ],
)
def test_each_is_added_to_the_loss_once_the_discriminator_counts(option: str, term: str) -> None:
    plain, on = (
        loss_with(disc_factor=0.5, disc_loss_weight=0.25, **more) for more in ({}, {option: 2.0})
    )
    images = torch.nn.functional.interpolate(REAL, 16), torch.nn.functional.interpolate(FAKE, 16)
    (without, _), (loss, terms) = (one.discriminator_loss(*images, 1) for one in (plain, on))
    assert terms[term] > 0 and term in on.discriminator_terms
    torch.testing.assert_close(loss, without + 0.5 * terms[term])
    loss.backward()
    without.backward()
    gradients = [
        [p.grad for p in one.discriminator.parameters() if p.grad is not None]
        for one in (plain, on)
    ]
    assert any(not torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert not images[0].requires_grad
    before = loss_with(disc_start=5, **{option: 2.0})
    loss, terms = before.discriminator_loss(*images, 1)
    assert loss == terms[term] == 0
    loss, terms = on.eval().discriminator_loss(*images, 1)
    assert terms[term] == 0 and loss == terms["disc_loss"]


def test_state_is_there_only_where_it_is_needed() -> None:
    names = set(loss_with().state_dict())
    assert not any("penalties" in name or "start" in name for name in names)
    assert set(loss_with(lecam_weight=1.0).state_dict()) - names == {"penalties.lecam_means"}
    assert set(loss_with(disc_start=0.5).state_dict()) - names == {
        *("start.known", "start.share_of_known")
    }
    assert isinstance(loss_with().discriminator, nn.Module)
