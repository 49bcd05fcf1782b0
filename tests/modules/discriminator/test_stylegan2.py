"""StyleGAN2's discriminator: its parts against formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from taming.errors import UserError
from taming.modules.discriminator.stylegan2 import (
    EqualizedConv,
    ResidualBlock,
    StyleGAN2Discriminator,
    with_spread,
)

TINY = {"resolution": 16, "base": 64, "widest": 8}


def test_weights_are_scaled_and_features_blurred_before_stride_two() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    plain, down = EqualizedConv(3, 5, 3), EqualizedConv(3, 5, 3, down=True)
    weight = plain.weight / math.sqrt(27)
    torch.testing.assert_close(plain(x), F.conv2d(x, weight, plain.bias, padding=1))
    row = torch.tensor([1.0, 3, 3, 1]) / 8
    kernel = torch.outer(row, row).expand(3, 1, 4, 4)
    blurred = F.conv2d(x, kernel, padding=2, groups=3)
    weight = down.weight / math.sqrt(27)
    torch.testing.assert_close(down(x), F.conv2d(blurred, weight, down.bias, stride=2))
    assert plain.weight.detach().std() == pytest.approx(1, abs=0.2)
    assert list(down.state_dict()) == ["weight", "bias"]


def test_a_block_halves_and_keeps_the_variance() -> None:
    torch.manual_seed(0)
    block, x = ResidualBlock(32, 64), torch.randn(4, 32, 16, 16)
    y = block(x)
    assert y.shape == (4, 64, 8, 8)
    path = F.leaky_relu(block.conv1(x), 0.2) * 2**0.5
    path = F.leaky_relu(block.conv2(path), 0.2) * 2**0.5
    torch.testing.assert_close(y, (path + block.skip(x)) / 2**0.5)


@pytest.mark.parametrize(("batch", "size"), [(6, 3), (8, 4), (5, 1), (2, 2)])
def test_the_spread_of_a_group(batch: int, size: int) -> None:
    x = torch.randn(batch, 2, 3, 3)
    out = with_spread(x, 4)
    assert torch.equal(out[:, :2], x)
    step = batch // size
    for image in range(batch):
        group = x[image % step :: step]
        assert len(group) == size
        expected = (group.var(dim=0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(out[image, 2], expected.expand(3, 3))


def test_one_logit_for_an_image() -> None:
    torch.manual_seed(0)
    network = StyleGAN2Discriminator(**TINY)
    assert [block.conv2.weight.shape[:2] for block in network.blocks] == [(8, 4), (8, 8)]
    logits = network(torch.randn(3, 3, 16, 16))
    assert logits.shape == (3, 1)
    (gradient,) = torch.autograd.grad(logits.sum(), network.from_rgb.weight)
    assert gradient.abs().sum() > 0


def test_other_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="resolution is 24; .*powers of two"):
        StyleGAN2Discriminator(24)
    with pytest.raises(UserError, match="resolution is 16, but the images have 16x32"):
        StyleGAN2Discriminator(**TINY).check_size(16, 32)
