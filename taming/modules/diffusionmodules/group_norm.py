"""Group normalization, written otherwise where it is compiled for GPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """torch's (arXiv 1803.08494), which is compiled for GPUs as operations on channels.

    With the channels side by side in memory, a group is a few numbers of every pixel: kernels that
    are made for its mean read parts of each line of memory. Those of each channel read all of it.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, as the base class has it
        if torch.compiler.is_compiling() and _has_channels_last(input):
            return by_channels(input, self.num_groups, self.weight, self.bias, self.eps)
        return super().forward(input)


def _has_channels_last(x: Tensor) -> bool:
    return x.is_cuda and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def by_channels(x: Tensor, groups: int, gain: Tensor, shift: Tensor, epsilon: float) -> Tensor:
    """Group normalization of `x` (B, C, H, W), in float32, from means and variances of channels.

    The variance of a group is the mean of its channels' variances, and the variance of their means.
    """
    x = x.float()
    variances, means = torch.var_mean(x, (2, 3), correction=0)  # (B, C) each
    variances, means = (part.unflatten(1, (groups, -1)) for part in (variances, means))
    between, mean = torch.var_mean(means, 2, correction=0, keepdim=True)  # (B, groups, 1) each
    deviation = variances.mean(2, keepdim=True) + between
    scale = torch.rsqrt(deviation + epsilon) * gain.float().view(groups, -1)  # (B, groups, n)
    offset = shift.float().view(groups, -1) - mean * scale
    return x * scale.flatten(1)[..., None, None] + offset.flatten(1)[..., None, None]
