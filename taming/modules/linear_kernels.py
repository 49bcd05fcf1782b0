"""Linear layers as they are computed in sampling: by torch, by oneDNN, and from int8 weights.

Which of the kernels is taken, `taming.modules.linear` decides. In comments, N is the number of rows
of x, and (out, in) the shape of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taming.kernel_choice import PACKED, TORCH, TRITON
from taming.modules.gpu_kernels import FEW_ROWS, is_real
from taming.modules.packed_weight import (
    Packed,
    Quantized,
    packed_in_place,
    quantized,
    unpack_in_place,
)

Pair = tuple[Tensor, Tensor]  # weight and bias

# How many rows of x a CPU multiplies faster with the weights as the left factor. Outside of these
# ranges, the usual order is as fast or faster.
WEIGHTS_FIRST = {torch.float32: range(4, 65), torch.bfloat16: range(2, 129)}


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
        return onednn_linear(x, self._weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        return onednn_linear(x, self._weight, self.bias, "gelu")

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


class FewRowsLinear(NamedTuple):
    """A linear layer on a GPU, by a kernel that takes what is before and after it along, where
    there are few rows; else by torch, as in a prompt."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x) if self.takes(x) else self._plain(x)

    def gelu(self, x: Tensor) -> Tensor:
        return self._product(x, gelu=True) if self.takes(x) else self._plain.gelu(x)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self._product(x, other=other) if self.takes(x) else self._plain.plus(x, other)

    def behind_norm(self, x: Tensor, norm: Pair, epsilon: float, *, gelu: bool) -> Tensor:
        """Of few rows that go through a LayerNorm with the gain and shift `norm` first."""
        return self._product(x, norm=norm, epsilon=epsilon, gelu=gelu)

    def takes(self, x: Tensor) -> bool:
        """Whether `x` (N, in) has few rows."""
        return len(x) <= FEW_ROWS and is_real(x)

    @property
    def _plain(self) -> TorchLinear:
        return TorchLinear(self.weight, self.bias)

    def _product(self, x: Tensor, **options: Any) -> Tensor:
        from taming.modules.triton_kernels import few_rows

        return few_rows(x, self.weight, self.bias, **options)


SamplingLinear = TorchLinear | OneDNNLinear | Int8Linear | FewRowsLinear


def onednn_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none"
) -> Tensor:
    """oneDNN's linear layer, followed by an activation ("gelu")."""
    op = torch.ops.mkldnn._linear_pointwise
    y: Tensor = op(x, weight, bias, activation, scalars=[], algorithm="none")
    return y


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
    if kernel == TRITON:
        return FewRowsLinear(weight, bias)
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
