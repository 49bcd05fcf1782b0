"""Group normalization on a processor, of half precision with channels last.

torch's backward pass for that takes 5 to 25 times as long as for other layouts (measured on an AMD
EPYC with torch 2.14). This one goes over parts that stay in the processor's caches: once for the
sums that gradients need, and once to write them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from taming.modules.real_tensors import is_traced

PART = 1 << 19  # values that are gone over together
DTYPES = (torch.bfloat16, torch.float16)


def takes(x: Tensor) -> bool:
    """Whether torch's backward pass would be slow for feature maps (B, C, H, W)."""
    trained = torch.is_grad_enabled() and x.requires_grad and not is_traced(x)
    slow = x.device.type == "cpu" and x.dtype in DTYPES and x.ndim == 4
    return trained and slow and x.is_contiguous(memory_format=torch.channels_last)


def normalized(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """`norm` of `x`, of which `takes` is true; the backward pass computes in float32."""
    y: Tensor = _RowsNorm.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
    return y


class _RowsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, groups: int, epsilon: float
    ) -> Tensor:
        batch, channels, height, width = x.shape
        sizes = batch, channels, height * width, groups
        y, mean, rate = torch.native_group_norm(x, gain, shift, *sizes, epsilon)
        ctx.save_for_backward(x, gain, mean, rate)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """With the normalized n = (x - mean) * rate: dx = rate * (gain * dy - the mean over a group
        of gain * dy - n * the mean over a group of gain * dy * n)."""
        x, gain, mean, rate = ctx.saved_tensors
        dy, dx, width = grad_outputs[0], torch.empty_like(x), x.shape[1] // mean.shape[1]
        mean, rate = (part.float().repeat_interleave(width, 1) for part in (mean, rate))  # (B, C)
        total, along = torch.zeros_like(mean), torch.zeros_like(mean)
        for image, _, (one, other) in _parts(dy, x):
            total[image] += one.sum(0)
            along[image] += (one * other).sum(0)
        along = (along - mean * total) * rate  # of dy * n
        values, of_gain = width * x.shape[2] * x.shape[3], gain.float()
        means = (
            (of_gain * sums).unflatten(1, (-1, width)).sum(2).repeat_interleave(width, 1) / values
            for sums in (total, along)
        )
        first, second = means
        slope = -rate * rate * second
        offset = -rate * first - slope * mean
        written = _rows(dx)
        for image, part, (one, other) in _parts(dy, x):
            of_part = torch.addcmul(offset[image], one, (rate * of_gain)[image])
            written[image, part] = of_part.addcmul_(other, slope[image])
        return dx, along.sum(0).to(gain.dtype), total.sum(0).to(gain.dtype), None, None


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _parts(*maps: Tensor) -> Iterator[tuple[int, slice, list[Tensor]]]:
    """Parts of each image: which one, which pixels, and these rows of all maps in float32."""
    rows = [_rows(one) for one in maps]
    length = max(1, PART // rows[0].shape[2])
    for image in range(len(rows[0])):
        for start in range(0, rows[0].shape[1], length):
            part = slice(start, start + length)
            yield image, part, [one[image, part].float() for one in rows]
