"""How linear layers are computed on a processor: with which kernel, and where that is decided.

torch's own `F.linear` calls MKL, which on many processors of AMD reaches a quarter to a half of
what oneDNN does, and on others as much. oneDNN takes weights as they are, or packed once, which
costs what reading them a few times does. `taming.kernel_choice` finds out which way is the fastest
here. In float64, for layers too small to matter, and while a graph is compiled or exported, torch's
is taken.

In comments, N is the number of rows of x, and (out, in) the shape of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taming.devices import dtype_name
from taming.kernel_choice import KERNELS, ONEDNN, PACKED, TORCH, Ways, fastest, named_kernel
from taming.modules.gpu_kernels import sampling_kernel_of_gpu
from taming.modules.linear_kernels import (
    OneDNNLinear,
    SamplingLinear,
    TorchLinear,
    onednn_linear,
)
from taming.modules.packed_weight import Packed, PackedWeight, unpack_in_place
from taming.modules.real_tensors import REAL, is_traced

# Smaller weights and fewer rows of a training step take torch's kernel: what starting any kernel
# takes decides there.
LEAST_WEIGHTS, LEAST_ROWS = 2**19, 64
# A measurement is to take milliseconds, and more rows do not change the order of the kernels.
MOST_ROWS_SAMPLED, MOST_ROWS_TRAINED = 32, 256

MEASURED_BYTES = 2**26


def onednn_takes(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies by weights of a dtype here: not all processors in bfloat16."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_open(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether there is a choice for products of a weight of this shape and place."""
    if weight.device.type != "cpu" or type(weight) not in REAL:
        return False
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    large = weight.numel() >= LEAST_WEIGHTS or bool(named_kernel())
    return large and onednn_takes(dtype)


def _measured_rows(rows: int, most: int) -> int:
    """A power of two, so that batches of similar sizes share a measurement."""
    return min(most, 1 << (rows.bit_length() - 1))


def _task(use: str, weight: Tensor, dtype: torch.dtype, rows: int) -> str:
    out, width = weight.shape
    return f"{use}, {dtype_name(dtype)}, {out} x {width}, {rows} rows"


# ---------------------------------------------------------------------- sampling


def sampling_kernel(weight: Tensor, dtype: torch.dtype, rows: int) -> str:
    """The kernel for products of so many rows, one of each sequence, with a weight of this shape.

    It is measured in tens of milliseconds, by the first process that needs it.
    """
    if weight.device.type == "cuda":
        return sampling_kernel_of_gpu(weight, dtype, rows)
    if not _is_open(weight, dtype) or torch.is_autocast_enabled("cpu"):
        return TORCH
    rows = _measured_rows(rows, MOST_ROWS_SAMPLED)
    task = _task("sampling", weight, dtype, rows)
    return fastest(task, KERNELS, lambda: _ways_of_sampling(weight.shape, dtype, rows))


@torch.inference_mode()
def _ways_of_sampling(shape: torch.Size, dtype: torch.dtype, rows: int) -> Ways:
    x, bias = torch.ones(rows, shape[1], dtype=dtype), torch.ones(shape[0], dtype=dtype)
    # As in a pass through a transformer, a weight that comes up again has left the caches.
    count = 1 + MEASURED_BYTES // (shape.numel() * dtype.itemsize)
    matrices = [torch.ones(shape, dtype=dtype) for _ in range(count)]
    packed: list[Packed] = []

    @torch.inference_mode()
    def by(kind: Callable[..., SamplingLinear], weights: Sequence[Tensor | Packed]) -> None:
        for one in weights:
            kind(one, bias)(x)

    def by_packed() -> None:
        packed[:] = packed or map(Packed, matrices)
        by(OneDNNLinear, packed)

    return {
        TORCH: lambda: by(TorchLinear, matrices),
        ONEDNN: lambda: by(OneDNNLinear, matrices),
        PACKED: by_packed,
    }


# ---------------------------------------------------------------------- training


class Linear(nn.Linear):
    """`nn.Linear`; training steps on a processor take the faster kernel, see `training_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return training_linear(x, self.weight, self.bias)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if isinstance(self.weight, PackedWeight) and not keep_vars:
            destination[f"{prefix}weight"] = self.weight.unpacked()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear:
        # Packed weights stay in the dtype and on the device that they were packed for.
        if isinstance(self.weight, PackedWeight):
            unpack_in_place([self])
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]


def training_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of `x` (..., in), by the kernel that is faster forward and backward.

    What asks for no gradients, such as an evaluation, is left to torch.
    """
    if not (torch.is_grad_enabled() and weight.requires_grad) or is_traced(x, weight):
        return F.linear(x, weight, bias)
    autocast = torch.is_autocast_enabled("cpu") and x.device.type == "cpu"
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    rows = x.numel() // max(1, x.shape[-1])
    if training_kernel(weight, dtype, rows) == TORCH or not (autocast or weight.dtype == dtype):
        return F.linear(x, weight, bias)
    bias = None if bias is None else bias.to(dtype)
    y: Tensor = _OneDNNFunction.apply(x.to(dtype), weight.to(dtype), bias)
    return y


def training_kernel(weight: Tensor, dtype: torch.dtype, rows: int) -> str:
    """The kernel for a training step with so many rows and a weight of this shape."""
    if rows < LEAST_ROWS or not _is_open(weight, dtype):
        return TORCH
    rows = _measured_rows(rows, MOST_ROWS_TRAINED)
    task = _task("training", weight, dtype, rows)
    return fastest(task, (TORCH, ONEDNN), lambda: _ways_of_training(weight.shape, dtype, rows))


def _ways_of_training(shape: torch.Size, dtype: torch.dtype, rows: int) -> Ways:
    x, grad = (torch.ones(rows, size, dtype=dtype) for size in reversed(shape))
    weight, bias = torch.ones(shape, dtype=dtype), torch.ones(shape[0], dtype=dtype)

    # Without autograd, as activation checkpointing counts what is kept for a backward pass.
    @torch.no_grad()
    def step(product: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return product(x, weight, bias), *_gradients(product, grad, x, weight)

    return {TORCH: lambda: step(F.linear), ONEDNN: lambda: step(onednn_linear)}


def _gradients(
    product: Callable[..., Tensor], grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Of x (N, in) and the weight (out, in), from that of the output (N, out)."""
    return product(grad, weight.t(), None), product(grad.t(), x.t(), None)


class _OneDNNFunction(torch.autograd.Function):
    """A linear layer whose three products, one forward and two backward, are oneDNN's."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return onednn_linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad_rows = grad.flatten(0, -2)  # (N, out)
        # The graph of a second derivative is made of operations that have one.
        product = F.linear if torch.is_grad_enabled() else onednn_linear
        by_x, by_weight = _gradients(product, grad_rows, x.flatten(0, -2), weight)
        return by_x.view_as(x), by_weight, grad_rows.sum(0) if ctx.needs_input_grad[2] else None
