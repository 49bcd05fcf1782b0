"""Weights as a processor's kernels read them: packed by oneDNN in blocks of its own, or in int8.

Such weights cannot be read as a matrix, and holding them beside the matrix would take more memory
than it alone. So a parameter becomes a `PackedWeight`, which holds that form alone. What does not
know of it (a state_dict, a forward pass, an EMA) sees ordinary values, unpacked for each use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

P = TypeVar("P", "Packed", "Quantized")


class Packed:
    """A matrix (out, in) as oneDNN has it; `tensor` is opaque but for its shape."""

    def __init__(self, matrix: Tensor) -> None:
        self.shape, self.dtype = matrix.shape, matrix.dtype
        self.pack(matrix)

    def pack(self, matrix: Tensor) -> None:
        self.tensor: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), None)

    def matrix(self) -> Tensor:
        """The matrix as it was before, to the bit."""
        return self.tensor.to_dense()


class Quantized:
    """A matrix (out, in) in int8, symmetric, with a scale for each row.

    Scales have the 8 bits of bfloat16, in which torch's kernel multiplies, so that their rounding
    is no further deviation: values are off by half a step at most, 1/254 of the row's largest.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.shape, self.dtype = matrix.shape, matrix.dtype
        self.pack(matrix)

    def pack(self, matrix: Tensor) -> None:
        """With scales a little above those at which the largest value is 127."""
        rows = matrix.float()
        steps = (rows.abs().amax(1) * (1 + 2**-8) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        self.scales = steps.bfloat16()  # (out,)
        self.values = (rows / self.scales[:, None].float()).round().clamp(-127, 127).to(torch.int8)

    def matrix(self) -> Tensor:
        """The matrix as it is computed with."""
        return (self.values * self.scales[:, None].float()).to(self.dtype)


class PackedWeight(Tensor):
    """Rows of a packed matrix as a tensor: reads unpack them, writes pack the whole anew."""

    whole: Packed | Quantized
    rows: slice

    @staticmethod
    def __new__(cls, whole: Packed | Quantized, rows: slice) -> PackedWeight:
        shape = (rows.stop - rows.start, whole.shape[1])
        made: PackedWeight = Tensor._make_wrapper_subclass(cls, shape, dtype=whole.dtype)
        made.whole, made.rows = whole, rows
        return made

    def __init__(self, whole: Packed | Quantized, rows: slice) -> None: ...

    def unpacked(self) -> Tensor:
        """An ordinary tensor of these values, in memory of its own."""
        return self.whole.matrix()[self.rows].clone()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PackedWeight({self.unpacked()!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Files hold ordinary tensors."""
        plain = self.unpacked()
        plain = nn.Parameter(plain, False) if isinstance(self, nn.Parameter) else plain
        return plain.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        plain = self.unpacked()
        copied = nn.Parameter(plain, False) if isinstance(self, nn.Parameter) else plain
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:  # the same memory by another name
            return cls(args[0].whole, args[0].rows)
        plain = [_unpacked(arg) for arg in args]
        result = func(*plain, **tree_map(_unpacked, kwargs or {}))
        if func._schema.is_mutable and isinstance(args[0], PackedWeight):
            args[0]._write(plain[0])
            return args[0]
        return result

    def _write(self, values: Tensor) -> None:
        matrix = self.whole.matrix()
        matrix[self.rows] = values
        self.whole.pack(matrix)


def _unpacked(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_unpacked, value))
    return value.unpacked() if isinstance(value, PackedWeight) else value


def packed_in_place(layers: Sequence[nn.Linear]) -> Packed:
    """The layers' weights below one another, packed; the layers' parameters become parts of that.

    Layers whose weights are packed already, by an earlier caller, are left as they are.
    """
    first = layers[0].weight
    if isinstance(first, PackedWeight) and isinstance(first.whole, Packed):
        return first.whole
    return _replaced(layers, Packed)


def quantized_in_place(layers: Sequence[nn.Linear]) -> Quantized:
    """As `packed_in_place`, in int8: other values than before."""
    return _replaced(layers, Quantized)


def quantized(layers: Sequence[nn.Linear]) -> Quantized | None:
    """What the layers' weights together are in int8, if they are that."""
    first = layers[0].weight
    whole = first.whole if isinstance(first, PackedWeight) else None
    return whole if isinstance(whole, Quantized) else None


@torch.inference_mode(False)
@torch.no_grad()
def _replaced(layers: Sequence[nn.Linear], kind: Callable[[Tensor], P]) -> P:
    weights, start = [layer.weight.detach() for layer in layers], 0
    whole = kind(torch.cat(weights) if weights[1:] else weights[0])
    for layer, weight in zip(layers, weights, strict=True):
        rows = slice(start, start + len(weight))
        layer.weight = nn.Parameter(PackedWeight(whole, rows), requires_grad=False)
        start = rows.stop
    return whole


def unpack_in_place(layers: Sequence[nn.Linear]) -> None:
    """Give the layers ordinary weights again, if they have packed ones."""
    for layer in layers:
        if isinstance(layer.weight, PackedWeight):
            layer.weight = nn.Parameter(layer.weight.unpacked(), requires_grad=False)
