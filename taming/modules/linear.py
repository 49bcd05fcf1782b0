"""How linear layers are computed on a processor: with which kernel, and where that is decided.

torch's own `F.linear` calls MKL, which on many processors of AMD reaches a quarter to a half of
what oneDNN does, and on others as much. `taming.kernel_choice` finds out which is faster here. In
float64, for layers too small to matter, and while a graph is compiled or exported, torch's own is
taken.

In comments, N is the number of rows of x, and (out, in) the shape of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taming.kernel_choice import fastest
from taming.modules.packed_weight import Packed, PackedWeight, packed_in_place

TORCH, ONEDNN = "torch", "onednn"

# Smaller weights and fewer rows of a training step take torch's kernel: what starting any kernel
# takes decides there.
LEAST_WEIGHTS, LEAST_ROWS = 2**19, 64
# A measurement is to take milliseconds, and more rows do not change the order of the kernels.
MOST_ROWS_MEASURED = 256

# How many rows of x a CPU multiplies faster with the weights as the left factor. Outside of these
# ranges, the usual order is as fast or faster.
WEIGHTS_FIRST = {torch.float32: range(4, 65), torch.bfloat16: range(2, 129)}


def _may_choose(weight: Tensor, dtype: torch.dtype) -> bool:
    measured = dtype in (torch.float32, torch.bfloat16) and weight.numel() >= LEAST_WEIGHTS
    return measured and weight.device.type == "cpu" and torch.backends.mkldnn.is_available()


def _task(use: str, weight: Tensor, dtype: torch.dtype) -> str:
    out, width = weight.shape
    return f"{use}, {str(dtype).removeprefix('torch.')} {out} x {width}"


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


class PackedLinear(NamedTuple):
    """A linear layer by oneDNN, which does in one pass what `TorchLinear` does in two.

    Each row of its results is the same to the bit, however many others there are.
    """

    weight: Packed
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return _onednn(x, self.weight.tensor, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        return _onednn(x, self.weight.tensor, self.bias, "gelu")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        op = torch.ops.mkldnn._linear_pointwise.binary
        added: Tensor = op(x, other, self.weight.tensor, self.bias, "add")
        return added


SamplingLinear = TorchLinear | PackedLinear


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """oneDNN's linear layer, followed by an activation ("gelu")."""
    op = torch.ops.mkldnn._linear_pointwise
    y: Tensor = op(x, weight, bias, activation, scalars=[], algorithm="none")
    return y


def sampling_kernel(weight: Tensor, dtype: torch.dtype) -> str:
    """The kernel for products of a weight of this shape with the rows that sampling has at hand.

    These are one or some tokens of each sequence of a batch. One kernel serves all numbers of them,
    so that an image does not depend on how many others there are: 1, 8 and 32 rows count alike.
    """
    if not _may_choose(weight, dtype) or torch.is_autocast_enabled("cpu"):
        return TORCH
    matrix, bias = torch.ones(weight.shape, dtype=dtype), torch.ones(len(weight), dtype=dtype)
    inputs = [torch.ones(rows, weight.shape[1], dtype=dtype) for rows in (1, 1, 1, 1, 8, 8, 32)]
    packed: list[PackedLinear] = []

    def by_torch() -> None:
        for x in inputs:
            TorchLinear(matrix, bias)(x)

    def by_onednn() -> None:
        packed[:] = packed or [PackedLinear(Packed(matrix), bias)]
        for x in inputs:
            packed[0](x)

    with torch.inference_mode():
        ways = {TORCH: by_torch, ONEDNN: by_onednn}
        return fastest(_task("sampling", weight, dtype), ways, TORCH)


def sampling_linear(layers: Sequence[nn.Linear], dtype: torch.dtype, kernel: str) -> SamplingLinear:
    """The layers, which read the same input, as one; their outputs are below one another.

    In the layers' own dtype the weights are not copied: the layers' parameters become views of the
    new ones (see `stacked_in_place`) or `PackedWeight`s, so they must not be trained.
    """
    own = layers[0].weight.dtype == dtype
    biases = [layer.bias for layer in layers if layer.bias is not None]
    bias = (stacked_in_place(biases) if own else _stacked(biases, dtype)) if biases else None
    if kernel == ONEDNN:
        copied = None if own else Packed(_stacked([layer.weight for layer in layers], dtype))
        return PackedLinear(copied or packed_in_place(layers), bias)
    weights = [layer.weight for layer in layers]
    if own and not isinstance(weights[0], PackedWeight):
        return TorchLinear(stacked_in_place(weights), bias)
    return TorchLinear(_stacked(weights, dtype), bias)


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
            self.weight = nn.Parameter(self.weight.unpacked(), requires_grad=False)
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
    y: Tensor = OneDNNLinear.apply(x.to(dtype), weight.to(dtype), bias)
    return y


def _is_traced(x: Tensor, weight: Tensor) -> bool:
    """Whether a graph is made for torch.compile or a file, or tensors only pretend to be there."""
    real = type(x) in (Tensor, nn.Parameter) and type(weight) in (Tensor, nn.Parameter)
    return not real or torch.compiler.is_compiling() or torch.jit.is_tracing()


def training_kernel(weight: Tensor, dtype: torch.dtype, rows: int) -> str:
    """The kernel for a training step with so many rows and a weight of this shape."""
    if rows < LEAST_ROWS or not _may_choose(weight, dtype):
        return TORCH
    rows = min(MOST_ROWS_MEASURED, 2 ** (rows.bit_length() - 1))
    x, grad = (torch.ones(rows, size, dtype=dtype) for size in reversed(weight.shape))
    w, bias = torch.ones(weight.shape, dtype=dtype), torch.ones(len(weight), dtype=dtype)

    def step(product: Callable[..., Tensor]) -> Callable[[], Any]:
        return lambda: (product(x, w, bias), *_gradients(product, grad, x, w))

    # Without autograd, as activation checkpointing counts what is kept for a backward pass.
    with torch.no_grad():
        task = f"{_task('training', weight, dtype)}, {rows} rows"
        return fastest(task, {TORCH: step(F.linear), ONEDNN: step(_onednn)}, TORCH)


def _gradients(
    product: Callable[..., Tensor], grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Of x (N, in) and the weight (out, in), from that of the output (N, out)."""
    return product(grad, weight.t(), None), product(grad.t(), x.t(), None)


class OneDNNLinear(torch.autograd.Function):
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
