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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taming.devices import dtype_name
from taming.kernel_choice import KERNELS, ONEDNN, PACKED, TORCH, Ways, fastest, named_kernel
from taming.modules.packed_weight import (
    Packed,
    PackedWeight,
    Quantized,
    packed_in_place,
    quantized,
    unpack_in_place,
)

# Smaller weights and fewer rows of a training step take torch's kernel: what starting any kernel
# takes decides there.
LEAST_WEIGHTS, LEAST_ROWS = 2**19, 64
# A measurement is to take milliseconds, and more rows do not change the order of the kernels.
MOST_ROWS_SAMPLED, MOST_ROWS_TRAINED = 32, 256

MEASURED_BYTES = 2**26

# How many rows of x a CPU multiplies faster with the weights as the left factor. Outside of these
# ranges, the usual order is as fast or faster.
WEIGHTS_FIRST = {torch.float32: range(4, 65), torch.bfloat16: range(2, 129)}


def _is_open(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether there is a choice for products of a weight of this shape and place."""
    if weight.device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return False
    large = weight.numel() >= LEAST_WEIGHTS or bool(named_kernel())
    return large and torch.backends.mkldnn.is_available()


def _measured_rows(rows: int, most: int) -> int:
    """A power of two, so that batches of similar sizes share a measurement."""
    return min(most, 1 << (rows.bit_length() - 1))


def _task(use: str, weight: Tensor, dtype: torch.dtype, rows: int) -> str:
    out, width = weight.shape
    return f"{use}, {dtype_name(dtype)}, {out} x {width}, {rows} rows"


# ---------------------------------------------------------------------- sampling


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` (N, in) @ `weight` (out, in).T + `bias` (out,) -> (N, out), the faster factor first.

    With few rows, a CPU's BLAS reads the weights up to twice as fast if they are the left factor:
    (x @ W.T).T = W @ x.T, of shape (out, N), so that the result is a transposed view. For one row
    in bfloat16, starting from the bias takes longer than adding it at the end.
    """
    if x.device.type != "cpu" or len(x) not in WEIGHTS_FIRST.get(x.dtype, ()):
        if bias is not None and _one_row(x) and x.dtype == torch.bfloat16:
            return F.linear(x, weight).add_(bias)
        return F.linear(x, weight, bias)
    if bias is None:
        return torch.mm(weight, x.t()).t()
    return torch.addmm(bias[:, None], weight, x.t()).t()


def gelu(x: Tensor) -> Tensor:
    """GELU of `x` (N, C).

    For contiguous inputs, a CPU starts oneDNN's threads, which takes longer than computing a row.
    A single row is thus expanded to two without a copy (a stride of 0, not contiguous), and one of
    the two equal results is kept.
    """
    return F.gelu(x.expand(2, -1))[:1] if _one_row(x) else F.gelu(x)


def _one_row(x: Tensor) -> bool:
    return len(x) == 1 and x.device.type == "cpu"


class TorchLinear(NamedTuple):
    """A linear layer by torch's own kernels."""

    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out,)

    def __call__(self, x: Tensor) -> Tensor:
        """`x` (N, in) -> (N, out)."""
        return linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of the layer's output."""
        return gelu(self(x))

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer's output and `other` (N, out) together."""
        return self(x).add_(other)  # in place: nothing else holds the product


class OneDNNLinear(NamedTuple):
    """A linear layer by oneDNN, which does in one pass what `TorchLinear` does in two.

    From two rows on, a row of the result is the same to the bit whatever the number of rows, and
    for weights as they are and packed; a single row has kernels of its own.
    """

    weight: Tensor | Packed
    bias: Tensor | None

    @property
    def _weight(self) -> Tensor:
        return self.weight.tensor if isinstance(self.weight, Packed) else self.weight

    def __call__(self, x: Tensor) -> Tensor:
        return _onednn(x, self._weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        return _onednn(x, self._weight, self.bias, "gelu")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        op = torch.ops.mkldnn._linear_pointwise.binary
        added: Tensor = op(x, other, self._weight, self.bias, "add")
        return added


class Int8Linear(NamedTuple):
    """A linear layer from weights in int8, by torch's kernel, which is fast in bfloat16 alone."""

    weight: Quantized
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        values, scales = self.weight.values, self.weight.scales
        y = torch._weight_int8pack_mm(x.bfloat16(), values, scales).to(x.dtype)
        return y if self.bias is None else y.add_(self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        return gelu(self(x))

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x).add_(other)


SamplingLinear = TorchLinear | OneDNNLinear | Int8Linear


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """oneDNN's linear layer, followed by an activation ("gelu")."""
    op = torch.ops.mkldnn._linear_pointwise
    y: Tensor = op(x, weight, bias, activation, scalars=[], algorithm="none")
    return y


def sampling_kernel(weight: Tensor, dtype: torch.dtype, rows: int) -> str:
    """The kernel for products of so many rows, one of each sequence, with a weight of this shape.

    It is measured in tens of milliseconds, by the first process that needs it.
    """
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


def sampling_linear(layers: Sequence[nn.Linear], dtype: torch.dtype, kernel: str) -> SamplingLinear:
    """The layers, which read the same input, as one; their outputs are beside one another.

    In the layers' own dtype the weights are not copied: the layers' parameters become views of the
    new ones (see `stacked_in_place`) or `PackedWeight`s, so they must not be trained.
    """
    own = layers[0].weight.dtype == dtype
    biases = [layer.bias for layer in layers if layer.bias is not None]
    bias = (stacked_in_place(biases) if own else _stacked(biases, dtype)) if biases else None
    if (whole := quantized(layers)) is not None:
        return Int8Linear(whole, bias)
    if own and kernel == PACKED:
        return OneDNNLinear(packed_in_place(layers), bias)
    if own:
        unpack_in_place(layers)
    weights = [layer.weight for layer in layers]
    weight = stacked_in_place(weights) if own else _stacked(weights, dtype)
    if kernel == PACKED:
        return OneDNNLinear(Packed(weight), bias)
    return TorchLinear(weight, bias) if kernel == TORCH else OneDNNLinear(weight, bias)


def _stacked(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([part.detach().to(dtype) for part in parts])


def stacked_in_place(parts: Sequence[Tensor]) -> Tensor:
    """The parts (n, ...) below one another, (k * n, ...), in memory that they become views of.

    So the memory is that of one set of weights. Only for parameters that are not trained: an
    optimizer, a reducer or a compiled step may hold on to where they were.

    Parts that are stacked already, by an earlier decoder, lie one after the other in one storage:
    the whole is then a longer view from the start of the first. Moving a model to another device or
    dtype gives each part a storage of its own again, so that they are stacked anew.
    """
    first = parts[0].detach()
    storage, offset, length = first.untyped_storage(), first.storage_offset(), first.numel()
    in_place = all(
        part.untyped_storage().data_ptr() == storage.data_ptr()
        and part.storage_offset() == offset + n * length
        for n, part in enumerate(parts)
    )
    if in_place:
        return first.as_strided((len(parts) * len(first), *first.shape[1:]), first.stride())
    whole = torch.cat([part.detach() for part in parts])
    for part, view in zip(parts, torch.split(whole, len(first)), strict=True):
        part.data = view
    return whole


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
    if not (torch.is_grad_enabled() and weight.requires_grad) or _is_traced(x, weight):
        return F.linear(x, weight, bias)
    autocast = torch.is_autocast_enabled("cpu") and x.device.type == "cpu"
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    rows = x.numel() // max(1, x.shape[-1])
    if training_kernel(weight, dtype, rows) == TORCH or not (autocast or weight.dtype == dtype):
        return F.linear(x, weight, bias)
    bias = None if bias is None else bias.to(dtype)
    y: Tensor = _OneDNNFunction.apply(x.to(dtype), weight.to(dtype), bias)
    return y


def _is_traced(x: Tensor, weight: Tensor) -> bool:
    """Whether a graph is made for torch.compile or a file, or tensors only pretend to be there."""
    real = type(x) in (Tensor, nn.Parameter) and type(weight) in (Tensor, nn.Parameter)
    return not real or torch.compiler.is_compiling() or torch.jit.is_tracing()


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

    return {TORCH: lambda: step(F.linear), ONEDNN: lambda: step(_onednn)}


def _gradients(
    product: Callable[..., Tensor], grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Of x (N, in) and the weight (out, in), from that of the output (N, out)."""
    return product(grad, weight.t(), None), product(grad.t(), x.t(), None)


class _OneDNNFunction(torch.autograd.Function):
    """A linear layer whose three products, one forward and two backward, are oneDNN's."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _onednn(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad_rows = grad.flatten(0, -2)  # (N, out)
        # The graph of a second derivative is made of operations that have one.
        product = F.linear if torch.is_grad_enabled() else _onednn
        by_x, by_weight = _gradients(product, grad_rows, x.flatten(0, -2), weight)
        return by_x.view_as(x), by_weight, grad_rows.sum(0) if ctx.needs_input_grad[2] else None
