"""Encoder and decoder of MaskGIT's VQGAN (arXiv 2202.04200, section 3.1; there in JAX).

They have no attention, convolutions of residual blocks have no bias, and levels are halved by
averaging. Inside, images are in [0, 1]; in and out, in [-1, 1] as those of all first stages here.
The names of their parts are those of the published checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from taming.config_values import Count, FractionBelowOne, Pixels, Range
from taming.modules.diffusionmodules.layers import normalized
from taming.modules.diffusionmodules.levels import (
    GROUPS,
    check_blocks,
    conv,
    level_widths,
    regroup,
    runner,
)
from taming.modules.diffusionmodules.model import Multipliers, Normalize


class Block(nn.Module):
    """Two pre-activated 3x3 convolutions without bias, and what takes a shortcut's place.

    Where the widths differ there is no way around the convolutions: their output h becomes
    h + W h with a 1x1 convolution W, and the block's input is dropped. So the published weights
    were trained.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = Normalize(in_channels), conv(in_channels, out_channels)
        self.norm2, self.conv2 = Normalize(out_channels), conv(out_channels, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.nin_shortcut = None
        if in_channels != out_channels:
            self.nin_shortcut = conv(out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, x = normalized(self.norm1, x)  # swished
        h, _ = normalized(self.norm2, self.conv1(h))  # (B, out, H, W)
        h = self.conv2(self.dropout(h))
        out: Tensor = h + (x if self.nin_shortcut is None else self.nin_shortcut(h))
        return out


def blocks(widths: Sequence[int], dropout: float) -> nn.ModuleList:
    """One from each width to the next."""
    return nn.ModuleList(Block(before, after, dropout) for before, after in pairwise(widths))


class Level(nn.Module):
    """The blocks of one resolution; the decoder's double it then, by repeating pixels."""

    checkpoints = False  # whether blocks keep their inputs alone for the backward pass

    def __init__(self, widths: Sequence[int], dropout: float, upsample: bool = False) -> None:
        super().__init__()
        self.block = blocks(widths, dropout)
        self.upsample_conv = conv(widths[-1], widths[-1], bias=True) if upsample else None

    def forward(self, h: Tensor) -> Tensor:
        run = runner(self.checkpoints)
        for block in self.block:
            h = run(block, h)
        if self.upsample_conv is not None:
            h = self.upsample_conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return h


class MaskGitEncoder(nn.Module):
    """Images [B, in_channels, H, W] in [-1, 1] -> latents [B, z_channels, h, w].

    `resolution` is that of the training images. Keys it does not know (the decoder's) are ignored.
    """

    def __init__(
        self,
        *,
        ch: Count,
        ch_mult: Multipliers = (1, 1, 2, 2, 4),
        num_res_blocks: Annotated[int, Range(1, 1000)],
        in_channels: Pixels,
        resolution: Pixels,
        z_channels: Count,
        dropout: FractionBelowOne = 0.0,
        norm_groups: Count = GROUPS,
        **ignored: Any,
    ) -> None:
        super().__init__()
        widths = level_widths(ch, ch_mult, norm_groups)
        check_blocks(ch, num_res_blocks, widths)
        self.resolution, self.num_resolutions = resolution, len(widths)
        self.conv_in = conv(in_channels, ch)
        self.down = nn.ModuleList(
            Level([before] + [width] * num_res_blocks, dropout)
            for before, width in pairwise([ch, *widths])
        )
        self.mid = blocks([widths[-1]] * (num_res_blocks + 1), dropout)
        self.norm_out = Normalize(widths[-1])
        self.conv_out = conv(widths[-1], z_channels, 1, bias=True)
        regroup(self, norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in((x + 1) / 2)  # (B, ch, H, W)
        for number, level in enumerate(self.down):
            h = level(F.avg_pool2d(h, 2) if number else h)
        for block in self.mid:
            h = block(h)
        latents: Tensor = self.conv_out(normalized(self.norm_out, h)[0])
        return latents


class MaskGitDecoder(nn.Module):
    """Codes [B, z_channels, h, w] -> images [B, out_ch, H, W], nearly in [-1, 1].

    Keys it does not know are ignored.
    """

    def __init__(
        self,
        *,
        ch: Count,
        out_ch: Pixels,
        ch_mult: Multipliers = (1, 1, 2, 2, 4),
        num_res_blocks: Annotated[int, Range(1, 1000)],
        resolution: Pixels,
        z_channels: Count,
        dropout: FractionBelowOne = 0.0,
        norm_groups: Count = GROUPS,
        **ignored: Any,
    ) -> None:
        super().__init__()
        widths = level_widths(ch, ch_mult, norm_groups)
        self.resolution, self.num_resolutions = resolution, len(widths)
        lowest = resolution // 2 ** (len(widths) - 1)
        self.z_shape = (1, z_channels, lowest, lowest)
        self.conv_in = conv(z_channels, widths[-1], bias=True)
        self.mid = blocks([widths[-1]] * (num_res_blocks + 1), dropout)
        self.up = nn.ModuleList(  # from the highest resolution to the lowest
            Level([before] + [width] * num_res_blocks, dropout, upsample=i > 0)
            for i, (width, before) in enumerate(pairwise([*widths, widths[-1]]))
        )
        self.norm_out = Normalize(widths[0])
        self.conv_out = conv(widths[0], out_ch, bias=True)
        regroup(self, norm_groups)

    def forward(self, z: Tensor) -> Tensor:
        h: Tensor = self.conv_in(z)  # (B, ch * ch_mult[-1], h, w)
        for part in (*self.mid, *reversed(self.up)):
            h = part(h)
        images: Tensor = self.conv_out(normalized(self.norm_out, h)[0])
        return 2 * images - 1
