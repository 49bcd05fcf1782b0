"""Layers of encoder and decoder on a GPU, differentiable, by Triton's kernels.

`norm_kernels` and `map_kernels` are those; feature maps (B, C, H, W) have channels last. Import it
where `taming.modules.gpu_kernels` says that they run.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from taming.devices import current_device_of
from taming.modules.diffusionmodules import map_kernels, norm_kernels

TILE = 4096  # values that a program holds at once, of as many channels as there are
PROGRAMS = 1024  # of those that sum up pixels, at least as many as keep a GPU busy


class Settings(NamedTuple):
    """Of a normalization: groups, what is added to variances, and whether swish follows; `dtype` is
    the output's."""

    groups: int
    epsilon: float
    swish: bool
    dtype: torch.dtype


def normalized(
    x: Tensor, bias: Tensor | None, gain: Tensor, shift: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Group normalization (arXiv 1803.08494) of `x` plus `bias` (C,), and `x` once more.

    What uses `x` further takes the second output: its gradient is added where the normalization's
    is written. `gain` and `shift` are (C,).
    """
    y, x = _Normalized.apply(x, bias, gain, shift, settings)
    return y, x


def added(x: Tensor, bias: Tensor, other: Tensor | None = None) -> Tensor:
    """`x` plus `bias` (C,), and `other`, if any."""
    y: Tensor = _Added.apply(x, bias, other)
    return y


def doubled(x: Tensor) -> Tensor:
    """Every pixel four times: (B, C, 2H, 2W)."""
    y: Tensor = _Doubled.apply(x)
    return y


class _Normalized(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, gain: Tensor, shift: Tensor, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        scales = _scales(x, bias, gain, shift, settings)
        y = torch.empty_like(x, dtype=settings.dtype)
        with current_device_of(x):
            norm_kernels._normalize[_tiles(x)](
                *(x, scales, y, _pixels(x)), SWISH=settings.swish, **_sizes(x)
            )
        ctx.save_for_backward(x, gain, scales)
        ctx.settings, ctx.dtypes = settings, [bias if bias is None else bias.dtype, shift.dtype]
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        (dy, other), (x, gain, scales) = grad_outputs, ctx.saved_tensors
        if dy is None:
            return other, None, None, None, None
        dy, other = _laid_out(dy), None if other is None else _laid_out(other)
        slopes = _slopes(dy, x, gain, scales, ctx.settings)
        dx = torch.empty_like(x)
        flags = {"SWISH": ctx.settings.swish, "HAS_OTHER": other is not None}
        with current_device_of(x):
            norm_kernels._gradient[_tiles(x)](
                *(dy, x, x if other is None else other, scales, slopes, dx, _pixels(x)),
                **flags,
                **_sizes(x),
            )
        of_gain, of_shift, of_bias = slopes[2:].sum(1)  # (C,) each
        bias_dtype, shift_dtype = ctx.dtypes
        of_bias = None if bias_dtype is None else of_bias.to(bias_dtype)
        return dx, of_bias, of_gain.to(gain.dtype), of_shift.to(shift_dtype), None


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, other: Tensor | None) -> Tensor:
        dtypes = [x.dtype, bias.dtype, x.dtype if other is None else other.dtype]
        y = torch.empty_like(x, dtype=torch.promote_types(dtypes[0], dtypes[2]))
        with current_device_of(x):
            map_kernels._add[_tiles(x)](
                *(x, bias, x if other is None else other, y, _pixels(x)),
                HAS_OTHER=other is not None,
                **_sizes(x),
            )
        ctx.dtypes, ctx.has_other = dtypes, other is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dy, (of_x, of_bias, of_other) = _laid_out(grad_outputs[0]), ctx.dtypes
        of_all = _sums(dy).to(of_bias) if ctx.needs_input_grad[1] else None
        return dy.to(of_x), of_all, dy.to(of_other) if ctx.has_other else None


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = x.new_empty(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
        with current_device_of(x):
            map_kernels._double[_tiles(x)](x, y, _pixels(x), width, **_sizes(x))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        dy = _laid_out(grad_outputs[0])
        batch, channels, height, width = dy.shape
        dx = dy.new_empty(batch, height // 2, width // 2, channels).permute(0, 3, 1, 2)
        with current_device_of(dx):
            map_kernels._sum_of_four[_tiles(dx)](dy, dx, _pixels(dx), width // 2, **_sizes(dx))
        return dx


def _scales(
    x: Tensor, bias: Tensor | None, gain: Tensor, shift: Tensor, settings: Settings
) -> Tensor:
    """What `norm_kernels._scales` computes: float32 (5, B, C)."""
    batch, channels, *_ = x.shape
    parts, pixels_a_part = _parts(x)
    moments = x.new_empty(2, batch, parts, channels, dtype=torch.float32)
    scales = x.new_empty(5, batch, channels, dtype=torch.float32)
    with current_device_of(x):
        norm_kernels._moments[parts, batch](x, moments, _pixels(x), pixels_a_part, **_sizes(x))
        norm_kernels._scales[settings.groups, batch](
            *(moments, gain if bias is None else bias, gain, shift, scales),
            *(_pixels(x), pixels_a_part, parts, settings.epsilon),
            HAS_BIAS=bias is not None,
            **_groups(channels, settings.groups, parts),
        )
    return scales


def _slopes(dy: Tensor, x: Tensor, gain: Tensor, scales: Tensor, settings: Settings) -> Tensor:
    """What `norm_kernels._slopes` computes: float32 (5, B, C)."""
    batch, channels, *_ = x.shape
    parts, pixels_a_part = _parts(x)
    sums = x.new_empty(2, batch, parts, channels, dtype=torch.float32)
    slopes = torch.empty_like(scales)
    with current_device_of(x):
        norm_kernels._gradient_sums[parts, batch](
            *(dy, x, scales, sums, _pixels(x), pixels_a_part), SWISH=settings.swish, **_sizes(x)
        )
        norm_kernels._slopes[settings.groups, batch](
            *(sums, gain, scales, slopes, _pixels(x), parts),
            **_groups(channels, settings.groups, parts),
        )
    return slopes


def _sums(x: Tensor) -> Tensor:
    """Of each channel: float32 (C,)."""
    parts, pixels_a_part = _parts(x)
    sums = x.new_empty(len(x) * parts, x.shape[1], dtype=torch.float32)
    with current_device_of(x):
        map_kernels._sums[parts, len(x)](x, sums, _pixels(x), pixels_a_part, **_sizes(x))
    return sums.sum(0)


def _laid_out(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _pixels(x: Tensor) -> int:
    return x.shape[2] * x.shape[3]


def _sizes(x: Tensor) -> dict[str, int]:
    """Of images and tiles; those in _2 are powers of 2."""
    return _sizes_of(x.shape[1], TILE)


@functools.cache
def _sizes_of(channels: int, tile: int) -> dict[str, int]:
    channels_2 = triton.next_power_of_2(channels)
    pixels_2 = max(1, tile // channels_2)
    return {"CHANNELS": channels, "PIXELS_2": pixels_2, "CHANNELS_2": channels_2}


@functools.cache
def _groups(channels: int, groups: int, parts: int) -> dict[str, int]:
    width = channels // groups
    sizes = {"PARTS_2": triton.next_power_of_2(parts), "WIDTH_2": triton.next_power_of_2(width)}
    return {"CHANNELS": channels, "WIDTH": width, **sizes}


def _tiles(x: Tensor) -> tuple[int, int]:
    return -(-_pixels(x) // _sizes(x)["PIXELS_2"]), len(x)


def _parts(x: Tensor) -> tuple[int, int]:
    """Into how many parts each image is split where pixels are summed up, and their pixels."""
    tiles, batch = _tiles(x)
    parts = min(-(-PROGRAMS // batch), -(-tiles // 4))
    tiles_a_part = -(-tiles // parts)
    return -(-tiles // tiles_a_part), tiles_a_part * _sizes(x)["PIXELS_2"]
