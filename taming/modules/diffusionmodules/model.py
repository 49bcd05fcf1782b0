"""Encoder and decoder of the first stage (arXiv 2012.09841, section 3.1 and table 7).

Residual blocks at `len(ch_mult)` resolutions, each half the one before, with self-attention at the
resolutions in `attn_resolutions` and in the middle. `resolution` only says at which levels that is:
images of any height and width divisible by 2 ** (len(ch_mult) - 1) pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming import published_names
from taming.config_values import Count, FractionBelowOne, Length, Pixels, Range
from taming.modules.diffusionmodules import levels
from taming.modules.diffusionmodules.layers import added, convolution, convolved, normalized
from taming.modules.diffusionmodules.levels import GROUPS, attends, level_widths, runner
from taming.modules.diffusionmodules.resampling import Downsample, Upsample

__getattr__ = published_names.served_by(__name__)
Multipliers = Annotated[Sequence[Count], Length(1, 16)]


def nonlinearity(x: Tensor) -> Tensor:
    """Swish, x * sigmoid(x)."""
    return F.silu(x)


def Normalize(in_channels: int) -> nn.GroupNorm:
    """Group normalization over 32 groups; `Encoder` and `Decoder` set `norm_groups` afterwards."""
    return nn.GroupNorm(math.gcd(GROUPS, in_channels), in_channels, eps=1e-6, affine=True)


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


def _conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=1)


class ResnetBlock(nn.Module):
    """Two pre-activated 3x3 convolutions and a shortcut.

    `temb_channels` > 0 adds a projected embedding [B, temb_channels] in between, for diffusion
    models that borrow the block; `conv_shortcut` makes the shortcut 3x3 where widths differ.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        conv_shortcut: bool = False,
        dropout: float = 0.0,
        temb_channels: int = 0,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.in_channels, self.out_channels = in_channels, out_channels
        self.use_conv_shortcut = conv_shortcut
        self.norm1 = Normalize(in_channels)
        self.conv1 = _conv3x3(in_channels, out_channels)
        self.temb_proj = nn.Linear(temb_channels, out_channels) if temb_channels else None
        self.norm2 = Normalize(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.conv_shortcut = self.nin_shortcut = None
        if in_channels != out_channels and conv_shortcut:
            self.conv_shortcut = _conv3x3(in_channels, out_channels)
        elif in_channels != out_channels:
            self.nin_shortcut = _conv1x1(in_channels, out_channels)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h, x = normalized(self.norm1, x)  # swished
        h, bias = convolved(self.conv1, h)  # (B, out, H, W)
        if self.temb_proj is not None and temb is not None:
            h = h + self.temb_proj(nonlinearity(temb))[:, :, None, None]
        h, bias = convolved(self.conv2, self.dropout(normalized(self.norm2, h, bias)[0]))
        shortcut = self.conv_shortcut or self.nin_shortcut
        return added(h, bias, *((x,) if shortcut is None else convolved(shortcut, x)))


# Up to this many positions the matrix of scores is small beside the activations, and writing the
# attention out follows the published training runs to the last digit; fused kernels round
# differently, which a codebook's hard decisions amplify within a few steps.
WRITTEN_OUT = 1024


class AttnBlock(nn.Module):
    """Self-attention of a single head over all positions, with a residual connection."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.norm = Normalize(in_channels)
        self.q = _conv1x1(in_channels, in_channels)
        self.k = _conv1x1(in_channels, in_channels)
        self.v = _conv1x1(in_channels, in_channels)
        self.proj_out = _conv1x1(in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        h, x = normalized(self.norm, x, swish=False)
        q, k, v = (conv(h).flatten(2) for conv in (self.q, self.k, self.v))  # (B, C, HW)
        attend = _attend_written_out if q.shape[2] <= WRITTEN_OUT else _attend_fused
        out: Tensor = x + self.proj_out(attend(q, k, v).reshape(x.shape))
        return out


def _attend_written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # (B, HW, C) @ (B, C, HW): rows are queries, columns are keys
    scores = torch.bmm(q.transpose(1, 2), k) * q.shape[1] ** -0.5
    weights = scores.softmax(dim=2)
    if v.stride(1) == 1:  # channels last, as the result is then
        return torch.bmm(weights, v.transpose(1, 2)).transpose(1, 2)  # (B, C, HW)
    return torch.bmm(v, weights.transpose(1, 2))


def _attend_fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # (B, C, HW) -> (B, 1, HW, C), a single head; fused kernels want its channels side by side
    q, k, v = (part.transpose(1, 2).unsqueeze(1).contiguous() for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)  # (B, C, HW)


class Level(nn.Module):
    """The residual blocks of one resolution, then the way to the next resolution, if any.

    `widths` are the channels before, between and after the blocks; with `attention`, a block of it
    follows each. The way to the next resolution has the name that it has in checkpoints.
    """

    checkpoints = False  # whether blocks keep their inputs alone for the backward pass

    def __init__(
        self,
        widths: Sequence[int],
        attention: bool,
        dropout: float,
        *,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels=before, out_channels=after, dropout=dropout)
            for before, after in pairwise(widths)
        )
        self.attn = nn.ModuleList(AttnBlock(width) for width in widths[1:] if attention)
        self.downsample, self.upsample = downsample, upsample

    def forward(self, h: Tensor) -> Tensor:
        run = runner(self.checkpoints)
        for number, block in enumerate(self.block):
            h = run(block, h)  # (B, widths[number + 1], H, W)
            if len(self.attn) > 0:
                h = run(self.attn[number], h)
        if self.downsample is not None:
            h = self.downsample(h)  # (B, C, H / 2, W / 2)
        if self.upsample is not None:
            h = self.upsample(h)  # (B, C, 2H, 2W)
        return h


class Middle(nn.Module):
    """The lowest resolution's block, attention (if any), block."""

    checkpoints = False  # as in `Level`

    def __init__(self, width: int, dropout: float, attention: bool = True) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(in_channels=width, dropout=dropout)
        self.attn_1 = AttnBlock(width) if attention else nn.Identity()
        self.block_2 = ResnetBlock(in_channels=width, dropout=dropout)

    def forward(self, h: Tensor) -> Tensor:
        run = runner(self.checkpoints)
        for part in (self.block_1, self.attn_1, self.block_2):
            h = run(part, h)
        return h


class _Ended(nn.Module):
    """A network that ends with a normalization `norm_out`, swish and a convolution."""

    norm_out: nn.GroupNorm

    def activated(self, h: Tensor) -> Tensor:
        """What the last convolution sees, from the features before it."""
        return normalized(self.norm_out, h)[0]


class Encoder(_Ended):
    """Images [B, in_channels, H, W] -> latents [B, z_channels, h, w] (twice that if `double_z`).

    Takes a whole ddconfig; keys it does not know (the decoder's, other forks') are ignored.
    """

    def __init__(
        self,
        *,
        ch: Count,
        out_ch: Pixels,
        ch_mult: Multipliers = (1, 2, 4, 8),
        num_res_blocks: Annotated[int, Range(0, 1000)],
        attn_resolutions: Sequence[Pixels],
        dropout: FractionBelowOne = 0.0,
        resamp_with_conv: bool = True,
        in_channels: Pixels,
        resolution: Pixels,
        z_channels: Count,
        double_z: bool = True,
        attn_type: str = "vanilla",
        norm_groups: Count = GROUPS,
        initial_weights: levels.InitialWeights = "torch",
        **ignored: Any,
    ) -> None:
        super().__init__()
        widths, anywhere = level_widths(ch, ch_mult, norm_groups), attends(attn_type)
        levels.check_blocks(ch, num_res_blocks, widths)
        self.ch, self.num_resolutions, self.num_res_blocks = ch, len(widths), num_res_blocks
        self.resolution, self.in_channels, self.temb_ch = resolution, in_channels, 0  # no time

        levels.warn_of_unused(attn_resolutions, [resolution // 2**i for i in range(len(widths))])

        self.conv_in = _conv3x3(in_channels, ch)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(pairwise([ch, *widths])):
            blocks = [before] + [width] * num_res_blocks
            attention = anywhere and resolution // 2**i in attn_resolutions
            last = i == self.num_resolutions - 1
            # Made before the level's blocks: the order in which weights take random numbers is that
            # of earlier versions, so that a seed gives the same start.
            downsample = None if last else Downsample(width, resamp_with_conv)
            self.down.append(Level(blocks, attention, dropout, downsample=downsample))
        self.mid = Middle(widths[-1], dropout, anywhere)
        self.norm_out = Normalize(widths[-1])
        self.conv_out = _conv3x3(widths[-1], 2 * z_channels if double_z else z_channels)
        levels.finish(self, norm_groups, initial_weights)

    def forward(self, x: Tensor) -> Tensor:
        h = convolution(self.conv_in, x)  # (B, ch, H, W)
        for level in self.down:
            h = level(h)
        h = self.mid(h)  # (B, ch * ch_mult[-1], h, w)
        latents: Tensor = self.conv_out(self.activated(h))
        return latents


class Decoder(_Ended):
    """Latents [B, z_channels, h, w] -> images [B, out_ch, H, W].

    `give_pre_end` returns features before the last normalization. `z_shape` is that of a latent at
    the training size, `last_z_shape` that of the last ones decoded. With `decoder_ch_mult` its
    widths are not the encoder's. Keys it does not know are ignored.
    """

    last_z_shape: torch.Size

    def __init__(
        self,
        *,
        ch: Count,
        out_ch: Pixels,
        ch_mult: Multipliers = (1, 2, 4, 8),
        decoder_ch_mult: Multipliers | None = None,
        num_res_blocks: Annotated[int, Range(0, 1000)],
        attn_resolutions: Sequence[Pixels],
        dropout: FractionBelowOne = 0.0,
        resamp_with_conv: bool = True,
        in_channels: Pixels,
        resolution: Pixels,
        z_channels: Count,
        give_pre_end: bool = False,
        attn_type: str = "vanilla",
        norm_groups: Count = GROUPS,
        initial_weights: levels.InitialWeights = "torch",
        **ignored: Any,
    ) -> None:
        super().__init__()
        widths = level_widths(ch, levels.own_multipliers(ch_mult, decoder_ch_mult), norm_groups)
        anywhere = attends(attn_type)
        self.ch, self.num_resolutions, self.num_res_blocks = ch, len(widths), num_res_blocks
        self.resolution, self.in_channels, self.temb_ch = resolution, in_channels, 0  # no time
        self.give_pre_end, lowest = give_pre_end, resolution // 2 ** (self.num_resolutions - 1)
        self.z_shape = (1, z_channels, lowest, lowest)
        self.conv_in = _conv3x3(z_channels, widths[-1])
        self.mid = Middle(widths[-1], dropout, anywhere)
        self.up = nn.ModuleList()  # from the highest resolution to the lowest
        for i, (width, before) in enumerate(pairwise([*widths, widths[-1]])):
            upsample = None if i == 0 else Upsample(width, resamp_with_conv)
            blocks = [before] + [width] * (num_res_blocks + 1)
            attention = anywhere and lowest * 2 ** (len(widths) - 1 - i) in attn_resolutions
            self.up.append(Level(blocks, attention, dropout, upsample=upsample))
        self.norm_out = Normalize(widths[0])
        self.conv_out = _conv3x3(widths[0], out_ch)
        levels.finish(self, norm_groups, initial_weights)

    def forward(self, z: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.last_z_shape = z.shape
        h: Tensor = self.mid(self.conv_in(z))  # (B, ch * ch_mult[-1], h, w)
        for level in reversed(self.up):
            h = level(h)
        if self.give_pre_end:
            return h  # (B, ch * ch_mult[0], H, W)
        images: Tensor = self.conv_out(self.activated(h))
        return images
