"""Triton kernels of group normalization with swish, for channels last.

Outside of convolutions, encoder and decoder are bound by reading and writing feature maps. Forward,
normalization reads its input for the moments, reads it again, and writes what the convolution
multiplies: in half precision, and swished. Backward, it reads gradient and input for the sums that
the gradients need, reads both again, adds the shortcut's gradient, and writes. The bias of the
convolution before is added on the way, and its gradient follows from the sums.

Feature maps are (B, C, H, W) with their channels side by side in memory, P = H * W pixels of them.
What is computed per image and channel is float32.

Import it where `taming.modules.gpu_kernels` says that it runs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from taming.modules.diffusionmodules.map_kernels import _before, _tile


@triton.jit
def _swish_slope(t):
    """The derivative of t * sigmoid(t)."""
    sigmoid = 1 / (1 + tl.exp(-t))
    return sigmoid * (1 + t * (1 - sigmoid))


@triton.jit
def _moments(
    x_ptr,
    parts_ptr,
    pixels,
    pixels_a_part,
    CHANNELS: tl.constexpr,
    PIXELS_2: tl.constexpr,
    CHANNELS_2: tl.constexpr,
):
    """Mean, and sum of squares around it, of each channel of a part of an image.

    Both are summed up around the mean of the first few pixels, so that no digits are lost.
    """
    part, image = tl.program_id(0), tl.program_id(1)
    x_ptr += _before(pixels, CHANNELS)
    start, channels = part * pixels_a_part, tl.arange(0, CHANNELS_2)
    end = tl.minimum(start + pixels_a_part, pixels)
    places, there = _tile(start, end, CHANNELS, PIXELS_2, CHANNELS_2)
    x = tl.load(x_ptr + places, mask=there, other=0.0).to(tl.float32)
    center = tl.sum(x, 0) / tl.minimum(end - start, PIXELS_2)
    total = tl.zeros((PIXELS_2, CHANNELS_2), tl.float32)
    squares = tl.zeros((PIXELS_2, CHANNELS_2), tl.float32)
    for first in tl.range(start, end, PIXELS_2, num_stages=3):
        places, there = _tile(first, end, CHANNELS, PIXELS_2, CHANNELS_2)
        x = tl.load(x_ptr + places, mask=there, other=0.0).to(tl.float32)
        x = tl.where(there, x - center[None], 0.0)
        total += x
        squares += x * x
    off = tl.sum(total, 0) / (end - start)
    around = tl.sum(squares, 0) - off * off * (end - start)
    place = (image * tl.num_programs(0) + part) * CHANNELS + channels
    of_all = tl.num_programs(1) * tl.num_programs(0) * CHANNELS
    tl.store(parts_ptr + place, center + off, mask=channels < CHANNELS)
    tl.store(parts_ptr + of_all + place, around, mask=channels < CHANNELS)


@triton.jit
def _scales(
    parts_ptr,
    bias_ptr,
    gain_ptr,
    shift_ptr,
    scales_ptr,
    pixels,
    pixels_a_part,
    parts,
    epsilon,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PARTS_2: tl.constexpr,
    WIDTH_2: tl.constexpr,
):
    """Of a group of WIDTH channels of an image: what its channels are multiplied by, and so on.

    With the normalized x * r + q, before gain and shift, and x * a + o, with them: a, o, r, q and
    the mean of x, without bias, of each channel.
    """
    group, image = tl.program_id(0), tl.program_id(1)
    inside, rows = tl.arange(0, WIDTH_2), tl.arange(0, PARTS_2)
    channels, is_channel = group * WIDTH + inside, inside < WIDTH
    place = (image * parts + rows)[:, None] * CHANNELS + channels[None]
    of_all = tl.num_programs(1) * parts * CHANNELS
    there = (rows < parts)[:, None] & is_channel[None]
    means = tl.load(parts_ptr + place, mask=there, other=0.0)
    around = tl.load(parts_ptr + of_all + place, mask=there, other=0.0)
    counts = tl.minimum(pixels_a_part, pixels - rows * pixels_a_part)
    counts = tl.where(rows < parts, counts, 0).to(tl.float32)[:, None]
    mean = tl.sum(means * counts, 0) / pixels  # (WIDTH_2,)
    away = tl.where(there, means - mean[None], 0.0)
    variance = (tl.sum(around, 0) + tl.sum(away * away * counts, 0)) / pixels
    bias = tl.zeros((WIDTH_2,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channels, mask=is_channel, other=0.0).to(tl.float32)
    center = tl.sum(mean + bias, 0) / WIDTH
    away = tl.where(is_channel, mean + bias - center, 0.0)
    deviation = tl.sum(variance + away * away, 0) / WIDTH
    r = 1 / tl.sqrt(deviation + epsilon)
    q = (bias - center) * r
    gain = tl.load(gain_ptr + channels, mask=is_channel, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + channels, mask=is_channel, other=0.0).to(tl.float32)
    step = tl.num_programs(1) * CHANNELS
    written = scales_ptr + image * CHANNELS + channels
    tl.store(written, r * gain, mask=is_channel)
    tl.store(written + step, q * gain + shift, mask=is_channel)
    tl.store(written + 2 * step, r + q * 0, mask=is_channel)
    tl.store(written + 3 * step, q, mask=is_channel)
    tl.store(written + 4 * step, mean, mask=is_channel)


@triton.jit
def _of_channels(table_ptr, row, CHANNELS: tl.constexpr, CHANNELS_2: tl.constexpr):
    """A row (1, CHANNELS_2) of a table of `_scales` or `_slopes`, for this program's image."""
    channels = tl.arange(0, CHANNELS_2)
    place = (row * tl.num_programs(1) + tl.program_id(1)) * CHANNELS + channels
    return tl.load(table_ptr + place, mask=channels < CHANNELS, other=0.0)[None]


@triton.jit
def _normalize(
    x_ptr,
    scales_ptr,
    y_ptr,
    pixels,
    CHANNELS: tl.constexpr,
    SWISH: tl.constexpr,
    PIXELS_2: tl.constexpr,
    CHANNELS_2: tl.constexpr,
):
    """y = x * a + o, swished, of a tile of an image."""
    before = _before(pixels, CHANNELS)
    first = tl.program_id(0) * PIXELS_2
    places, there = _tile(first, pixels, CHANNELS, PIXELS_2, CHANNELS_2)
    x = tl.load(x_ptr + before + places, mask=there, other=0.0).to(tl.float32)
    a = _of_channels(scales_ptr, 0, CHANNELS, CHANNELS_2)
    t = x * a + _of_channels(scales_ptr, 1, CHANNELS, CHANNELS_2)
    if SWISH:
        t = t / (1 + tl.exp(-t))
    tl.store(y_ptr + before + places, t.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _gradient_sums(
    dy_ptr,
    x_ptr,
    scales_ptr,
    parts_ptr,
    pixels,
    pixels_a_part,
    CHANNELS: tl.constexpr,
    SWISH: tl.constexpr,
    PIXELS_2: tl.constexpr,
    CHANNELS_2: tl.constexpr,
):
    """Of the gradient dt at x * a + o: the sums of dt and dt * (x * r + q) over a part's pixels."""
    part, image = tl.program_id(0), tl.program_id(1)
    before = _before(pixels, CHANNELS)
    start, channels = part * pixels_a_part, tl.arange(0, CHANNELS_2)
    end = tl.minimum(start + pixels_a_part, pixels)
    a = _of_channels(scales_ptr, 0, CHANNELS, CHANNELS_2)
    o = _of_channels(scales_ptr, 1, CHANNELS, CHANNELS_2)
    r = _of_channels(scales_ptr, 2, CHANNELS, CHANNELS_2)
    q = _of_channels(scales_ptr, 3, CHANNELS, CHANNELS_2)
    total = tl.zeros((PIXELS_2, CHANNELS_2), tl.float32)
    along = tl.zeros((PIXELS_2, CHANNELS_2), tl.float32)
    for first in tl.range(start, end, PIXELS_2, num_stages=3):
        places, there = _tile(first, end, CHANNELS, PIXELS_2, CHANNELS_2)
        x = tl.load(x_ptr + before + places, mask=there, other=0.0).to(tl.float32)
        dt = tl.load(dy_ptr + before + places, mask=there, other=0.0).to(tl.float32)
        if SWISH:
            dt *= _swish_slope(x * a + o)
        total += dt
        along += dt * (x * r + q)
    place = (image * tl.num_programs(0) + part) * CHANNELS + channels
    of_all = tl.num_programs(1) * tl.num_programs(0) * CHANNELS
    tl.store(parts_ptr + place, tl.sum(total, 0), mask=channels < CHANNELS)
    tl.store(parts_ptr + of_all + place, tl.sum(along, 0), mask=channels < CHANNELS)


@triton.jit
def _slopes(
    parts_ptr,
    gain_ptr,
    scales_ptr,
    slopes_ptr,
    pixels,
    parts,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS_2: tl.constexpr,
    WIDTH_2: tl.constexpr,
):
    """Of a group of an image: d and e of its channels, where dx = dt * a + x * d + e, and what the
    image adds to the gradients of gain, shift and bias."""
    group, image = tl.program_id(0), tl.program_id(1)
    inside, rows = tl.arange(0, WIDTH_2), tl.arange(0, PARTS_2)
    channels, is_channel = group * WIDTH + inside, inside < WIDTH
    place = (image * parts + rows)[:, None] * CHANNELS + channels[None]
    of_all = tl.num_programs(1) * parts * CHANNELS
    there = (rows < parts)[:, None] & is_channel[None]
    total = tl.sum(tl.load(parts_ptr + place, mask=there, other=0.0), 0)  # (WIDTH_2,)
    along = tl.sum(tl.load(parts_ptr + of_all + place, mask=there, other=0.0), 0)
    step = tl.num_programs(1) * CHANNELS
    here = image * CHANNELS + channels
    gain = tl.load(gain_ptr + channels, mask=is_channel, other=0.0).to(tl.float32)
    a = tl.load(scales_ptr + here, mask=is_channel, other=0.0)
    r = tl.load(scales_ptr + 2 * step + here, mask=is_channel, other=0.0)
    q = tl.load(scales_ptr + 3 * step + here, mask=is_channel, other=0.0)
    mean = tl.load(scales_ptr + 4 * step + here, mask=is_channel, other=0.0)
    values = 1.0 * WIDTH * pixels
    d = -r * r * (tl.sum(gain * along, 0) / values)
    e = -r * (tl.sum(gain * total, 0) / values) + d * (q / tl.where(is_channel, r, 1.0))
    written = slopes_ptr + here
    tl.store(written, d, mask=is_channel)
    tl.store(written + step, e, mask=is_channel)
    tl.store(written + 2 * step, along, mask=is_channel)
    tl.store(written + 3 * step, total, mask=is_channel)
    tl.store(written + 4 * step, a * total + (d * mean + e) * pixels, mask=is_channel)


@triton.jit
def _gradient(
    dy_ptr,
    x_ptr,
    other_ptr,
    scales_ptr,
    slopes_ptr,
    dx_ptr,
    pixels,
    CHANNELS: tl.constexpr,
    SWISH: tl.constexpr,
    HAS_OTHER: tl.constexpr,
    PIXELS_2: tl.constexpr,
    CHANNELS_2: tl.constexpr,
):
    """dx = dt * a + x * d + e, and the other gradient, of a tile of an image."""
    before = _before(pixels, CHANNELS)
    first = tl.program_id(0) * PIXELS_2
    places, there = _tile(first, pixels, CHANNELS, PIXELS_2, CHANNELS_2)
    x = tl.load(x_ptr + before + places, mask=there, other=0.0).to(tl.float32)
    dt = tl.load(dy_ptr + before + places, mask=there, other=0.0).to(tl.float32)
    a = _of_channels(scales_ptr, 0, CHANNELS, CHANNELS_2)
    if SWISH:
        dt *= _swish_slope(x * a + _of_channels(scales_ptr, 1, CHANNELS, CHANNELS_2))
    dx = dt * a + x * _of_channels(slopes_ptr, 0, CHANNELS, CHANNELS_2)
    dx += _of_channels(slopes_ptr, 1, CHANNELS, CHANNELS_2)
    if HAS_OTHER:
        dx += tl.load(other_ptr + before + places, mask=there, other=0.0).to(tl.float32)
    tl.store(dx_ptr + before + places, dx.to(dx_ptr.dtype.element_ty), mask=there)
