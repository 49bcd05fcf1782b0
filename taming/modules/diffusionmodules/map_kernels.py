"""Triton kernels of feature maps with channels last: adding, summing up, twice the size.

Feature maps are (B, C, H, W) with their channels side by side in memory, P = H * W pixels of them.
A program takes a tile of an image: some pixels, and all of their channels.

Import it where `taming.modules.gpu_kernels` says that it runs.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(first, end, CHANNELS: tl.constexpr, PIXELS_2: tl.constexpr, CHANNELS_2: tl.constexpr):
    """Places (PIXELS_2, CHANNELS_2) in an image of some pixels, and which of them there are."""
    pixels, channels = first + tl.arange(0, PIXELS_2), tl.arange(0, CHANNELS_2)
    there = (pixels < end)[:, None] & (channels < CHANNELS)[None]
    return pixels[:, None] * CHANNELS + channels[None], there


@triton.jit
def _before(pixels, CHANNELS: tl.constexpr):
    """How many values there are before this program's image."""
    return tl.program_id(1).to(tl.int64) * pixels * CHANNELS


@triton.jit
def _add(
    x_ptr,
    bias_ptr,
    other_ptr,
    y_ptr,
    pixels,
    CHANNELS: tl.constexpr,
    HAS_OTHER: tl.constexpr,
    PIXELS_2: tl.constexpr,
    CHANNELS_2: tl.constexpr,
):
    """y = x + bias, and the other, of a tile of an image."""
    before = _before(pixels, CHANNELS)
    first, channels = tl.program_id(0) * PIXELS_2, tl.arange(0, CHANNELS_2)
    places, there = _tile(first, pixels, CHANNELS, PIXELS_2, CHANNELS_2)
    bias = tl.load(bias_ptr + channels, mask=channels < CHANNELS, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + before + places, mask=there, other=0.0).to(tl.float32) + bias[None]
    if HAS_OTHER:
        x += tl.load(other_ptr + before + places, mask=there, other=0.0).to(tl.float32)
    tl.store(y_ptr + before + places, x.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _sums(
    x_ptr,
    parts_ptr,
    pixels,
    pixels_a_part,
    CHANNELS: tl.constexpr,
    PIXELS_2: tl.constexpr,
    CHANNELS_2: tl.constexpr,
):
    """The sum of each channel of a part of an image."""
    part, image = tl.program_id(0), tl.program_id(1)
    x_ptr += _before(pixels, CHANNELS)
    start, channels = part * pixels_a_part, tl.arange(0, CHANNELS_2)
    end = tl.minimum(start + pixels_a_part, pixels)
    total = tl.zeros((PIXELS_2, CHANNELS_2), tl.float32)
    for first in tl.range(start, end, PIXELS_2, num_stages=3):
        places, there = _tile(first, end, CHANNELS, PIXELS_2, CHANNELS_2)
        total += tl.load(x_ptr + places, mask=there, other=0.0).to(tl.float32)
    place = (image * tl.num_programs(0) + part) * CHANNELS + channels
    tl.store(parts_ptr + place, tl.sum(total, 0), mask=channels < CHANNELS)


@triton.jit
def _corners(
    first, pixels, width, CHANNELS: tl.constexpr, PIXELS_2: tl.constexpr, CHANNELS_2: tl.constexpr
):
    """Of a tile of a small image: its places, the first of the four in the image twice as large
    that belong to each, and which there are."""
    pixel, channels = first + tl.arange(0, PIXELS_2), tl.arange(0, CHANNELS_2)
    there = (pixel < pixels)[:, None] & (channels < CHANNELS)[None]
    corner = (pixel // width) * (4 * width) + (pixel % width) * 2
    small = pixel[:, None] * CHANNELS + channels[None]
    return small, corner[:, None] * CHANNELS + channels[None], there


@triton.jit
def _double(
    x_ptr,
    y_ptr,
    pixels,
    width,
    CHANNELS: tl.constexpr,
    PIXELS_2: tl.constexpr,
    CHANNELS_2: tl.constexpr,
):
    """Every pixel of a tile of an image of some width, four times."""
    before = _before(pixels, CHANNELS)
    first = tl.program_id(0) * PIXELS_2
    small, large, there = _corners(
        first, pixels, width, CHANNELS=CHANNELS, PIXELS_2=PIXELS_2, CHANNELS_2=CHANNELS_2
    )
    x = tl.load(x_ptr + before + small, mask=there, other=0.0)
    y_ptr += 4 * before
    for corner in tl.static_range(4):
        step = ((corner // 2) * 2 * width + corner % 2) * CHANNELS
        tl.store(y_ptr + large + step, x, mask=there)


@triton.jit
def _sum_of_four(
    dy_ptr,
    dx_ptr,
    pixels,
    width,
    CHANNELS: tl.constexpr,
    PIXELS_2: tl.constexpr,
    CHANNELS_2: tl.constexpr,
):
    """The backward pass of `_double`."""
    before = _before(pixels, CHANNELS)
    first = tl.program_id(0) * PIXELS_2
    small, large, there = _corners(
        first, pixels, width, CHANNELS=CHANNELS, PIXELS_2=PIXELS_2, CHANNELS_2=CHANNELS_2
    )
    dy_ptr += 4 * before
    total = tl.zeros((PIXELS_2, CHANNELS_2), tl.float32)
    for corner in tl.static_range(4):
        step = ((corner // 2) * 2 * width + corner % 2) * CHANNELS
        total += tl.load(dy_ptr + large + step, mask=there, other=0.0).to(tl.float32)
    tl.store(dx_ptr + before + small, total.to(dx_ptr.dtype.element_ty), mask=there)
