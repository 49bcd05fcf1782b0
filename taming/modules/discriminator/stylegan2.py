"""StyleGAN2's residual discriminator (arXiv 1912.04958, section 4 and figure 7)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.config_values import Count, Pixels
from taming.errors import UserError
from taming.modules.discriminator.base import Discriminator

SMALLEST = 4  # side of the last features


class EqualizedConv(nn.Conv2d):
    """A convolution whose weights have unit variance, and are scaled when they are used.

    All of them learn at the same speed so (arXiv 1710.10196, section 4.1). With stride 2, the
    features are blurred first by [1, 3, 3, 1] (arXiv 1912.04958, appendix B).
    """

    blur: Tensor

    def __init__(
        self, n_in: int, n_out: int, size: int, *, down: bool = False, bias: bool = True
    ) -> None:
        super().__init__(n_in, n_out, size, stride=2 if down else 1, bias=bias)
        self.gain = 1 / math.sqrt(n_in * size**2)
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("blur", row.outer(row).view(1, 1, 4, 4), persistent=False)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight, side = self.weight * self.gain, self.kernel_size[0]
        if self.stride[0] == 1:
            return F.conv2d(x, weight, self.bias, padding=side // 2)
        # Of H pixels, the blur leaves 2 p - 3 more, so that H / 2 remain after the convolution.
        kernel = self.blur.to(x).expand(x.shape[1], -1, -1, -1)
        x = F.conv2d(x, kernel, padding=side // 2 + 1, groups=x.shape[1])
        return F.conv2d(x, weight, self.bias, stride=2)


class EqualizedLinear(nn.Linear):
    """`EqualizedConv`'s way for a linear layer."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / math.sqrt(self.in_features), self.bias)


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


class ResidualBlock(nn.Module):
    """[B, n_in, H, W] -> [B, n_out, H / 2, W / 2]."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = EqualizedConv(n_in, n_in, 3)
        self.conv2 = EqualizedConv(n_in, n_out, 3, down=True)
        self.skip = EqualizedConv(n_in, n_out, 1, down=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(activate(self.conv1(x)))
        skipped: Tensor = self.skip(x)
        return (activate(y) + skipped) / math.sqrt(2)


def with_spread(x: Tensor, group: int) -> Tensor:
    """Features with one more channel: their standard deviation over groups of images.

    [B, C, H, W] -> [B, C + 1, H, W] (arXiv 1710.10196, section 3). Groups are the largest, up to
    `group` images, that divide the batch.
    """
    batch, _, height, width = x.shape
    size = next(size for size in range(min(group, batch), 0, -1) if batch % size == 0)
    groups = x.reshape(size, batch // size, *x.shape[1:])
    deviations = (groups.var(dim=0, correction=0) + 1e-8).sqrt()  # (B / size, C, H, W)
    spread = deviations.mean(dim=(1, 2, 3)).repeat(size)  # (B,)
    return torch.cat([x, spread.view(-1, 1, 1, 1).expand(-1, 1, height, width)], dim=1)


class StyleGAN2Discriminator(Discriminator):
    """Images [B, input_nc, resolution, resolution] -> one logit each, [B, 1].

    Features of side s have min(`base` / s, `widest`) channels. `resolution` is a power of two.
    """

    def __init__(
        self,
        resolution: Pixels,
        input_nc: Pixels = 3,
        base: Count = 16384,
        widest: Count = 512,
        group: Count = 4,
    ) -> None:
        super().__init__()
        if resolution < 2 * SMALLEST or resolution & (resolution - 1):
            raise UserError(
                f"resolution is {resolution}; StyleGAN2's discriminator takes powers of two from "
                f"{2 * SMALLEST} on"
            )
        self.resolution, self.input_nc, self.group = resolution, input_nc, group
        halvings = (resolution // SMALLEST).bit_length() - 1
        sides = [resolution >> number for number in range(halvings + 1)]
        widths = [max(1, min(base // side, widest)) for side in sides]
        self.from_rgb = EqualizedConv(input_nc, widths[0], 1)
        self.blocks = nn.Sequential(
            *(ResidualBlock(n_in, n_out) for n_in, n_out in pairwise(widths))
        )
        last = widths[-1]
        self.conv = EqualizedConv(last + 1, last, 3)
        self.hidden = EqualizedLinear(last * SMALLEST**2, last)
        self.out = EqualizedLinear(last, 1)

    def check_size(self, height: int, width: int) -> None:
        if (height, width) != (self.resolution, self.resolution):
            raise UserError(
                f"disc_config.params.resolution is {self.resolution}, but the images have "
                f"{height}x{width} pixels; they must be equal"
            )

    def forward(self, x: Tensor) -> Tensor:
        self.check_size(x.shape[-2], x.shape[-1])
        x = self.blocks(activate(self.from_rgb(x)))  # (B, C, 4, 4)
        x = activate(self.conv(with_spread(x, self.group)))
        logits: Tensor = self.out(activate(self.hidden(x.flatten(1))))
        return logits
