"""Half and twice the height and width, by which encoder and decoder go from level to level."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Upsample(nn.Module):
    """Nearest-neighbor x2, then (optionally) a 3x3 convolution."""

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.with_conv = with_conv
        if with_conv:
            self.conv = nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = _upsampled(x)  # (B, C, 2H, 2W)
        out: Tensor = self.conv(x) if self.with_conv else x
        return out


class Downsample(nn.Module):
    """Halve height and width: by a 3x3 convolution of stride 2, or by averaging."""

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.with_conv = with_conv
        if with_conv:
            self.conv = nn.Conv2d(in_channels, in_channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.with_conv:
            return F.avg_pool2d(x, kernel_size=2)
        # Padding on the right and bottom alone is what published weights were trained with.
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))  # (B, C, H / 2, W / 2)
        return out


def _upsampled(x: Tensor) -> Tensor:
    """Every pixel of `x` (B, C, H, W) four times: (B, C, 2H, 2W)."""
    if torch.compiler.is_compiling() and x.is_cuda:
        return doubled(x)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def doubled(x: Tensor) -> Tensor:
    """`_upsampled` for compilers, which make slow backward passes of interpolation."""
    rows = x[:, :, :, None, :, None].expand((-1, -1, -1, 2, -1, 2))
    return rows.flatten(4, 5).flatten(2, 3)
