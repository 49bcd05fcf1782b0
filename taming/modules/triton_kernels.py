"""Triton kernels for sampling: a few rows times a matrix, and the attention of one token.

With few rows, a step of a transformer reads its weights and does little else: each linear layer is
one pass over its weight that takes the normalization before it along, and what is added after it.
Attention reads as much of the cache as is filled, which a recorded graph of torch's cannot, and
adds the token's own keys and values to it.

Import it where `taming.modules.gpu_kernels` says that it runs.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from taming.devices import current_device_of

Norm = tuple[Tensor, Tensor]  # gain and shift of a LayerNorm, (in,) each

# Outputs and inputs that a program of `few_rows` reads at once, and its warps, as measured on an
# H100: of layers with no more outputs than inputs, with more, and with very many.
PARTS = ((2, 2048, 4), (8, 512, 4), (8, 512, 4))
TILES = (8192, 2048)  # keys that one program of attention reads at once: of few, and of many


@triton.jit
def _few_rows(
    x_ptr,
    weight_ptr,
    bias_ptr,
    gain_ptr,
    shift_ptr,
    other_ptr,
    y_ptr,
    epsilon,
    ROWS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_OTHER: tl.constexpr,
    GELU: tl.constexpr,
    EARLY: tl.constexpr,
    ROWS_2: tl.constexpr,
    INPUTS_2: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """BLOCK_OUT columns of y (ROWS, OUTPUTS) from x (ROWS, INPUTS); those in _2 are powers of 2."""
    rows = tl.arange(0, ROWS_2)
    outputs = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    x_rows = x_ptr + rows[:, None] * INPUTS
    is_row, is_output = rows < ROWS, outputs < OUTPUTS
    weight_rows = weight_ptr + outputs.to(tl.int64)[:, None] * INPUTS
    first = tl.arange(0, BLOCK_IN)
    first_here = is_output[:, None] & (first < INPUTS)[None]
    # Weights are what they are: they can be read while the kernel before computes x.
    weight = tl.load(weight_rows + first[None], mask=first_here, other=0.0)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    if HAS_NORM:  # every program computes the few means and deviations anew
        every = tl.arange(0, INPUTS_2)
        is_input = every < INPUTS
        x = tl.load(x_rows + every[None], mask=is_row[:, None] & is_input[None], other=0.0)
        mean = tl.sum(x.to(tl.float32), 1) / INPUTS
        centered = tl.where(is_input[None], x.to(tl.float32) - mean[:, None], 0.0)
        scale = 1 / tl.sqrt(tl.sum(centered * centered, 1) / INPUTS + epsilon)
    products = tl.zeros((ROWS_2, BLOCK_OUT, BLOCK_IN), tl.float32)
    for start in tl.static_range(0, INPUTS, BLOCK_IN):
        inputs = start + tl.arange(0, BLOCK_IN)
        is_input = inputs < INPUTS
        if start > 0:
            here = is_output[:, None] & is_input[None]
            weight = tl.load(weight_rows + inputs[None], mask=here, other=0.0)
        x = tl.load(x_rows + inputs[None], mask=is_row[:, None] & is_input[None], other=0.0)
        x = x.to(tl.float32)
        if HAS_NORM:
            gain = tl.load(gain_ptr + inputs, mask=is_input, other=0.0).to(tl.float32)
            shift = tl.load(shift_ptr + inputs, mask=is_input, other=0.0).to(tl.float32)
            x = (x - mean[:, None]) * scale[:, None] * gain[None] + shift[None]
            x = x.to(weight.dtype).to(tl.float32)  # as if it had been written down
        products += x[:, None, :] * weight.to(tl.float32)[None]
    y = tl.sum(products, 2)  # (ROWS_2, BLOCK_OUT)
    if HAS_BIAS:
        y += tl.load(bias_ptr + outputs, mask=is_output, other=0.0).to(tl.float32)[None]
    if GELU:
        y = 0.5 * y * (1 + tl.erf(y * 0.7071067811865476))
    places = rows[:, None] * OUTPUTS + outputs[None]
    written = is_row[:, None] & is_output[None]
    if HAS_OTHER:
        y += tl.load(other_ptr + places, mask=written, other=0.0).to(tl.float32)
    tl.store(y_ptr + places, y.to(y_ptr.dtype.element_ty), mask=written)


@triton.jit
def _read(rows_ptr, columns, position, there, SIZE: tl.constexpr):
    """Rows (BLOCK, SIZE_2) of keys or values, 0 from `position` on."""
    seen = (columns < position)[:, None] & there[None]
    return tl.load(rows_ptr[None] + columns[:, None] * SIZE, mask=seen, other=0.0)


@triton.jit
def _attend_to_cache(
    qkv_ptr,
    cache_ptr,
    position_ptr,
    y_ptr,
    scale,
    values_after,
    LENGTH: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    EARLY: tl.constexpr,
    SIZE_2: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head of one sequence: softmax(q k) v over the cache up to `position`, and the new token.

    The softmax is a running one, which starts from the new token's own key.
    """
    program = tl.program_id(0).to(tl.int64)
    sequence, head = program // HEADS, program % HEADS
    position = tl.load(position_ptr)
    channels = tl.arange(0, SIZE_2)
    there = channels < SIZE
    keys = cache_ptr + program * LENGTH * SIZE + channels  # of this head, a row each position
    values = keys + values_after
    # What earlier steps have kept can be read while the kernel before computes qkv.
    first = tl.arange(0, BLOCK)
    past_keys = _read(keys, first, position, there, SIZE)
    past_values = _read(values, first, position, there, SIZE)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    qkv = qkv_ptr + (3 * sequence * HEADS + head) * SIZE + channels
    query = tl.load(qkv, mask=there, other=0.0).to(tl.float32) * scale
    key = tl.load(qkv + HEADS * SIZE, mask=there, other=0.0)
    value = tl.load(qkv + 2 * HEADS * SIZE, mask=there, other=0.0)
    tl.store(keys + position * SIZE, key, mask=there)
    tl.store(values + position * SIZE, value, mask=there)
    most = tl.sum(query * key.to(tl.float32), 0)
    total = most * 0 + 1
    mean = value.to(tl.float32)
    for start in range(0, position, BLOCK):
        columns = start + first
        if start > 0:
            past_keys = _read(keys, columns, position, there, SIZE)
            past_values = _read(values, columns, position, there, SIZE)
        scores = tl.sum(query[None] * past_keys.to(tl.float32), 1)
        scores = tl.where(columns < position, scores, float("-inf"))
        larger = tl.maximum(most, tl.max(scores, 0))
        shrink, weights = tl.exp(most - larger), tl.exp(scores - larger)
        total = total * shrink + tl.sum(weights, 0)
        mean = mean * shrink + tl.sum(weights[:, None] * past_values.to(tl.float32), 0)
        most = larger
    y = y_ptr + (sequence * HEADS + head) * SIZE + channels
    tl.store(y, (mean / total).to(y_ptr.dtype.element_ty), mask=there)


def few_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    epsilon: float = 1e-5,
    other: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """`x` (N, in) @ `weight` (out, in).T + `bias` (out,) -> (N, out), summed up in float32.

    Args:
        norm: of a LayerNorm that `x` goes through first.
        other: (N, out), added.
        gelu: GELU of the product and its bias.
    """
    x, (rows, inputs), outputs = x.contiguous(), x.shape, len(weight)
    y = x.new_empty(rows, outputs)
    gain, shift = norm or (x, x)  # pointers that are not used have to be some
    options = _few_rows_options(rows, inputs, outputs)
    with current_device_of(x):
        _few_rows[(triton.cdiv(outputs, options["BLOCK_OUT"]),)](
            *(x, weight, x if bias is None else bias, gain, shift),
            *(x if other is None else other.contiguous(), y, epsilon),
            ROWS=rows,
            INPUTS=inputs,
            OUTPUTS=outputs,
            HAS_BIAS=bias is not None,
            HAS_NORM=norm is not None,
            HAS_OTHER=other is not None,
            GELU=gelu,
            **_starts_early(x.device),
            ROWS_2=triton.next_power_of_2(rows),
            INPUTS_2=triton.next_power_of_2(inputs),
            **options,
        )
    return y


def _few_rows_options(rows: int, inputs: int, outputs: int) -> dict[str, Any]:
    """The size of a program's part, and its warps; see `PARTS`."""
    block_out, block_in, warps = PARTS[0 if outputs <= inputs else 2 if outputs > 8192 else 1]
    block_in = min(triton.next_power_of_2(inputs), block_in)
    return {"BLOCK_OUT": block_out, "BLOCK_IN": block_in, "num_warps": warps}


def attend_to_cache(qkv: Tensor, cache: Tensor, position: Tensor) -> Tensor:
    """Heads' outputs (B, C) of one new token a sequence, from its `qkv` (B, 3C).

    Args:
        cache: keys and values (2, >= B, heads, length, size), contiguous; the new ones are added at
            `position`, int64 (1,), and those before it are read.
    """
    _, _, heads, length, size = cache.shape
    batch = len(qkv)
    y = qkv.new_empty(batch, heads * size)
    size_2 = triton.next_power_of_2(size)
    with current_device_of(qkv):
        _attend_to_cache[(batch * heads,)](
            *(qkv.contiguous(), cache, position, y, size**-0.5, cache.stride(0)),
            LENGTH=length,
            HEADS=heads,
            SIZE=size,
            **_starts_early(qkv.device),
            SIZE_2=size_2,
            **_attention_options(batch * heads, length, size_2),
        )
    return y


def _attention_options(programs: int, length: int, size: int) -> dict[str, Any]:
    """Few programs read much at once, many little; as measured on an H100."""
    few = programs < 1024
    block = min(triton.next_power_of_2(length), TILES[not few] // size)
    return {"BLOCK": max(16, block), "num_warps": 8 if few else 1}


@functools.cache
def _starts_early(device: torch.device) -> dict[str, bool]:
    """Whether a kernel may start while the one before it still runs (from Hopper on)."""
    early = device.type == "cuda" and torch.version.hip is None
    early = early and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"EARLY": early, "launch_pdl": early} if early else {"EARLY": False}
