"""Attention of transformers in training: which of two ways, and where that is decided.

torch's fused kernel keeps no scores. In bfloat16 its passes take up to twice as long on some
processors as products of matrices do, as long as sequences are short; `taming.kernel_choice` finds
out. On GPUs, in other precisions, without gradients, and while a graph is made, it is torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from taming.kernel_choice import TORCH, Ways, fastest
from taming.modules.linear import is_traced

WRITTEN_OUT = "written out"
# Shorter sequences are too small to matter. Of longer ones, scores take more than all else.
POSITIONS = range(64, 513)
MEASURED_HEADS = 8


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
    if allowed is None:
        allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    hidden = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device)
    hidden = hidden.masked_fill(~allowed, -math.inf)  # small: of one head
    scores = q * q.shape[3] ** -0.5 @ k.mT + hidden  # (B, heads, T, T)
    return F.dropout(scores.softmax(-1), dropout) @ v


def training_kernel(q: Tensor) -> str:
    """`TORCH` or `WRITTEN_OUT`, for queries (B, heads, T, size) of as many keys."""
    trained = torch.is_grad_enabled() and q.requires_grad
    if not trained or q.device.type != "cpu" or q.dtype != torch.bfloat16 or is_traced(q):
        return TORCH
    if q.shape[2] not in POSITIONS:
        return TORCH
    length, size = 1 << (q.shape[2] - 1).bit_length(), q.shape[3]
    task = f"attention, training, bfloat16, {length} positions, {size} channels a head"
    return fastest(task, (TORCH, WRITTEN_OUT), lambda: _ways(length, size))


def _ways(length: int, size: int) -> Ways:
    shape = (1, MEASURED_HEADS, length, size)
    q, k, v = (torch.ones(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    grad = torch.ones(shape, dtype=torch.bfloat16)

    def step(attend: Callable[[], Tensor]) -> None:
        # Hooks of its own, as activation checkpointing counts what is kept for a backward pass.
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            torch.autograd.grad(attend(), (q, k, v), grad)

    def fused() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return {TORCH: lambda: step(fused), WRITTEN_OUT: lambda: step(lambda: written_out(q, k, v))}
