"""Encoder and decoder of Open-MAGVIT2 (arXiv 2409.04410, section 3.1), which SimVQ uses as well.

They have no attention. Convolutions of residual blocks have no bias, the way down is a convolution
of stride 2, the way up one to four times the channels, which become a square of 2 x 2 pixels. The
names of their parts are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

from torch import Tensor, nn

from taming.config_values import Count, Pixels, Range
from taming.errors import UserError
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

EPS = 1e-6  # of normalizations


class Block(nn.Module):
    """Two pre-activated 3x3 convolutions without bias, and a shortcut, 1x1 where widths differ."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Normalize(in_channels), conv(in_channels, out_channels)
        self.norm2, self.conv2 = Normalize(out_channels), conv(out_channels, out_channels)
        self.nin_shortcut = None
        if in_channels != out_channels:
            self.nin_shortcut = conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, x = normalized(self.norm1, x)  # swished
        h, _ = normalized(self.norm2, self.conv1(h))  # (B, out, H, W)
        h = self.conv2(h)
        out: Tensor = h + (x if self.nin_shortcut is None else self.nin_shortcut(x))
        return out


def blocks(widths: Sequence[int]) -> nn.ModuleList:
    """One from each width to the next."""
    return nn.ModuleList(Block(before, after) for before, after in pairwise(widths))


def depth_to_space(x: Tensor) -> Tensor:
    """[B, 4 * C, H, W] -> [B, C, 2H, 2W]: channel (2 * row + column) * C + c is c's pixel there.

    `torch.nn.functional.pixel_shuffle` counts the other way round, the pixels within c.
    """
    batch, channels, height, width = x.shape
    x = x.unflatten(1, (2, 2, channels // 4))  # (B, row, column, C, H, W)
    x = x.permute((0, 3, 4, 1, 5, 2))  # (B, C, H, row, W, column)
    return x.reshape(batch, channels // 4, 2 * height, 2 * width)


class Upsample(nn.Module):
    """[B, C, H, W] -> [B, C, 2H, 2W] by a convolution to 4 * C channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, 4 * channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return depth_to_space(self.conv1(x))


class Level(nn.Module):
    """The blocks of one resolution, then the way to the next one, if any."""

    checkpoints = False  # whether blocks keep their inputs alone for the backward pass

    def __init__(
        self,
        widths: Sequence[int],
        *,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.block = blocks(widths)
        self.downsample, self.upsample = downsample, upsample

    def forward(self, h: Tensor) -> Tensor:
        run = runner(self.checkpoints)
        for block in self.block:
            h = run(block, h)
        for way in (self.downsample, self.upsample):
            h = h if way is None else way(h)
        return h


class AdaptiveNorm(nn.Module):
    """Group normalization whose scale and shift follow from the codes of the whole image.

    The scale is a linear map of the codes' standard deviation over space, the shift one of their
    mean: images of another size have other statistics.
    """

    def __init__(self, z_channels: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=EPS, affine=False)
        self.gamma, self.beta = nn.Linear(z_channels, channels), nn.Linear(z_channels, channels)

    def forward(self, h: Tensor, codes: Tensor) -> Tensor:
        """h [B, C, H, W] by codes [B, z_channels, h, w]."""
        flat = codes.flatten(2)  # (B, z_channels, h * w)
        scale = self.gamma((flat.var(dim=2) + EPS).sqrt())[:, :, None, None]
        shift = self.beta(flat.mean(dim=2))[:, :, None, None]
        out: Tensor = scale * self.norm(h) + shift
        return out


class Magvit2Encoder(nn.Module):
    """Images [B, in_channels, H, W] -> latents [B, z_channels, h, w].

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
        norm_groups: Count = GROUPS,
        **ignored: Any,
    ) -> None:
        super().__init__()
        widths = level_widths(ch, ch_mult, norm_groups)
        check_blocks(ch, num_res_blocks, widths)
        self.resolution, self.num_resolutions = resolution, len(widths)
        self.conv_in = conv(in_channels, ch)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(pairwise([ch, *widths])):
            last = i == len(widths) - 1
            way = None if last else nn.Conv2d(width, width, 3, stride=2, padding=1)
            self.down.append(Level([before] + [width] * num_res_blocks, downsample=way))
        self.mid_block = blocks([widths[-1]] * (num_res_blocks + 1))
        self.norm_out = Normalize(widths[-1])
        self.conv_out = conv(widths[-1], z_channels, 1, bias=True)
        regroup(self, norm_groups)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)  # (B, ch, H, W)
        for part in (*self.down, *self.mid_block):
            h = part(h)
        latents: Tensor = self.conv_out(normalized(self.norm_out, h)[0])
        return latents


class Magvit2Decoder(nn.Module):
    """Codes [B, z_channels, h, w] -> images [B, out_ch, H, W].

    With `adaptive` an `AdaptiveNorm` is before each level. Keys it does not know are ignored.
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
        adaptive: bool = True,
        norm_groups: Count = GROUPS,
        **ignored: Any,
    ) -> None:
        super().__init__()
        widths = level_widths(ch, ch_mult, norm_groups)
        self.resolution, self.num_resolutions = resolution, len(widths)
        lowest = resolution // 2 ** (len(widths) - 1)
        self.z_shape = (1, z_channels, lowest, lowest)
        self.conv_in = conv(z_channels, widths[-1], bias=True)
        self.mid_block = blocks([widths[-1]] * (num_res_blocks + 1))
        self.up, self.adaptive = nn.ModuleList(), nn.ModuleList()  # from the highest resolution on
        for i, (width, before) in enumerate(pairwise([*widths, widths[-1]])):
            way = Upsample(width) if i > 0 else None
            self.up.append(Level([before] + [width] * num_res_blocks, upsample=way))
            if adaptive:
                self.adaptive.append(AdaptiveNorm(z_channels, before))
        self.norm_out = Normalize(widths[0])
        self.conv_out = conv(widths[0], out_ch, bias=True)
        regroup(self, norm_groups)

    def forward(self, z: Tensor) -> Tensor:
        """Raises `UserError` for a single position, of which there is no standard deviation."""
        if len(self.adaptive) and z.shape[2:].numel() < 2:
            raise UserError("the decoder's adaptive norm needs codes of more than one position")
        h: Tensor = self.conv_in(z)  # (B, ch * ch_mult[-1], h, w)
        for block in self.mid_block:
            h = block(h)
        for i in reversed(range(self.num_resolutions)):
            if len(self.adaptive):
                h = self.adaptive[i](h, z)
            h = self.up[i](h)
        images: Tensor = self.conv_out(normalized(self.norm_out, h)[0])
        return images
