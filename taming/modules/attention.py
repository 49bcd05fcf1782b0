"""Attention of transformers in training: which of two ways, and where that is decided.

torch's fused kernel keeps no scores. On some processors its passes take up to three times as long
as products of matrices do, as long as sequences are short; `taming.kernel_choice` finds out. On
GPUs, in half precision, without gradients, and while a graph is made, it is torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from taming.devices import dtype_name
from taming.kernel_choice import TORCH, Ways, fastest
from taming.modules.real_tensors import is_traced

WRITTEN_OUT = "written out"
# Shorter sequences are too small to matter. Of longer ones, scores take more than all else.
POSITIONS = range(64, 513)
DTYPES = (torch.float32, torch.bfloat16)
MEASURED_HEADS = 8
# Queries of causal attention that are computed together: the scores of later keys are left out.
ROWS = 256


def attention(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Queries, keys and values (B, heads, T, size) -> (B, heads, T, size).

    `allowed` is bool, broadcastable to (B, heads, T, T); without it, attention is causal.
    """
    if training_kernel(q) == TORCH:
        causal = allowed is None
        return F.scaled_dot_product_attention(q, k, v, allowed, dropout, is_causal=causal)
    return written_out(q, k, v, allowed, dropout)


def written_out(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """As `attention`, by products of matrices (arXiv 1706.03762, equation 1)."""
    q = q * q.shape[3] ** -0.5
    if allowed is not None:
        return _attend(q, k, v, allowed, dropout)
    length, parts = q.shape[2], []
    allowed = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    for start in range(0, length, ROWS):
        end = min(start + ROWS, length)
        rows, seen = slice(start, end), slice(end)
        part = (q[:, :, rows], k[:, :, seen], v[:, :, seen])
        parts.append(_attend(*part, allowed[rows, seen], dropout))
    return torch.cat(parts, dim=2)


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, dropout: float) -> Tensor:
    """Of scaled queries (B, heads, R, size), for K keys and values; `allowed` is (..., R, K)."""
    hidden = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device)
    hidden = hidden.masked_fill(~allowed, -math.inf)  # small: of one head
    scores = q @ k.mT + hidden  # (B, heads, R, K)
    return F.dropout(scores.softmax(-1), dropout) @ v


def training_kernel(q: Tensor) -> str:
    """`TORCH` or `WRITTEN_OUT`, for queries (B, heads, T, size) of as many keys."""
    trained = torch.is_grad_enabled() and q.requires_grad
    if not trained or q.device.type != "cpu" or q.dtype not in DTYPES or is_traced(q):
        return TORCH
    if q.shape[2] not in POSITIONS:
        return TORCH
    length, size = 1 << (q.shape[2] - 1).bit_length(), q.shape[3]
    name = dtype_name(q.dtype)
    task = f"attention, training, {name}, {length} positions, {size} channels a head"
    return fastest(task, (TORCH, WRITTEN_OUT), lambda: _ways(length, size, q.dtype))


def _ways(length: int, size: int, dtype: torch.dtype) -> Ways:
    shape = (1, MEASURED_HEADS, length, size)
    q, k, v = (torch.ones(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    grad = torch.ones(shape, dtype=dtype)

    def step(attend: Callable[[], Tensor]) -> None:
        # Hooks of its own, as activation checkpointing counts what is kept for a backward pass.
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            torch.autograd.grad(attend(), (q, k, v), grad)

    def fused() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return {TORCH: lambda: step(fused), WRITTEN_OUT: lambda: step(lambda: written_out(q, k, v))}
