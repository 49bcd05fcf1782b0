"""Half and twice the height and width, by which encoder and decoder go from level to level."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from taming.modules.diffusionmodules.layers import added, convolution, doubled, fuses


class Upsample(nn.Module):
    """Nearest-neighbor x2, then (optionally) a 3x3 convolution."""

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.with_conv = with_conv
        if with_conv:
            self.conv = nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = doubled(x)  # (B, C, 2H, 2W)
        return convolution(self.conv, x) if self.with_conv else x


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
        if fuses(x) and x.shape[2] % 2 == x.shape[3] % 2 == 0:
            return self._with_more_around(x)
        # Padding on the right and bottom alone is what published weights were trained with.
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))  # (B, C, H / 2, W / 2)
        return out

    def _with_more_around(self, x: Tensor) -> Tensor:
        """The same without a padded copy: of two pixels on all sides, which give a first row and
        column more than there should be."""
        y = F.conv2d(x, self.conv.weight, None, stride=2, padding=2)
        return added(F.pad(y, (-1, 0, -1, 0)), self.conv.bias)
