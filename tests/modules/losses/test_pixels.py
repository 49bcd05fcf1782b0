"""Pixel losses against their formulas, and the decoder's outputs they need."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from taming.errors import UserError
from taming.modules.losses.pixels import PIXEL_LOSSES, images_of
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
Y = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_density_of_the_logit_laplace_distribution() -> None:
    """Written out as in DALL-E's equation, and it integrates to 1."""
    x = torch.linspace(-1.2499, 1.2499, 200_001)  # what maps to nearly all of 0 to 1
    mapped = 0.8 * (x + 1) / 2 + 0.1
    mu, log_b = 0.3, -0.7
    outputs = torch.tensor([mu, log_b]).view(1, 2, 1, 1).expand(1, 2, 1, len(x))
    b = torch.tensor(log_b).exp()
    density = (-(mapped.logit() - mu).abs() / b).exp() / (2 * b * mapped * (1 - mapped))
    loss = PIXEL_LOSSES["logit_laplace"]()
    torch.testing.assert_close(loss(x.view(1, 1, 1, -1), outputs), -density.log().mean())
    assert torch.trapezoid(density, mapped) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("log_b", [-60.0, 120.0])
def test_scales_that_are_no_number_of_fp32s_are_finite(log_b: float) -> None:
    """Whose logarithm is: where the median is the pixel, no error divides by them."""
    mu = (0.8 * (X + 1) / 2 + 0.1).logit()
    outputs = torch.cat([mu, torch.full_like(X, log_b)], dim=1).requires_grad_()
    loss = PIXEL_LOSSES["logit_laplace"]()(X, outputs)
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert loss.isfinite() and gradient.isfinite().all()


def test_differences() -> None:
    torch.testing.assert_close(PIXEL_LOSSES["l1"]()(X, Y), (X - Y).abs().mean())
    torch.testing.assert_close(PIXEL_LOSSES["l2"]()(X, Y), ((X - Y) ** 2).mean())


def test_images_of_a_distribution_are_its_medians() -> None:
    logits = (0.8 * (X + 1) / 2 + 0.1).logit()
    torch.testing.assert_close(images_of(torch.cat([logits, Y], dim=1), 3), X)
    assert images_of(X, 3) is X


def loss_with(**options: Any) -> VQLPIPSWithDiscriminator:
    torch.manual_seed(0)
    common = {"disc_start": 0, "perceptual_weight": 0.0, "disc_num_layers": 1, "disc_ndf": 4}
    return VQLPIPSWithDiscriminator(**{**common, **options}).train()


def test_the_loss_takes_a_distribution_and_judges_its_images() -> None:
    loss, seen = loss_with(pixel_loss="logit_laplace"), []
    loss.discriminator.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    scale = torch.ones(6, 1, 1, requires_grad=True)
    outputs = torch.cat([X, Y], dim=1) * scale
    total, terms = loss.generator_loss(X, outputs, torch.zeros(()), 0, last_layer=scale)
    torch.testing.assert_close(terms["rec_loss"], PIXEL_LOSSES["logit_laplace"]()(X, outputs))
    loss.discriminator_loss(X, outputs, 0)
    fakes = images_of(torch.cat([X, Y], dim=1), 3)
    torch.testing.assert_close(seen[0], fakes)
    torch.testing.assert_close(seen[2], fakes)
    # The sum's gradient, at mean and scale, is that of the written-out loss.
    (gradient,) = torch.autograd.grad(total, scale)
    weight = terms["d_weight"]
    again = torch.ones(6, 1, 1, requires_grad=True)
    raw = torch.cat([X, Y], dim=1) * again
    written = PIXEL_LOSSES["logit_laplace"]()(X, raw)
    written = written - weight * loss.discriminator(images_of(raw, 3)).mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(written, again)[0])
    assert gradient[3:].abs().min() > 0
    with pytest.raises(UserError, match="out_ch must be 6"):
        loss.generator_loss(X, Y, torch.zeros(()), 0, last_layer=scale)
    with pytest.raises(UserError, match="out_ch must be 3"):
        loss_with().generator_loss(X, outputs, torch.zeros(()), 0, last_layer=scale)
