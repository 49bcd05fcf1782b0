"""Weights that a processor's kernels read fastest: packed by oneDNN, in blocks of its own order.

Packed weights cannot be read as a matrix, and holding them beside the matrix would double the
memory. So a parameter becomes a `PackedWeight`, which holds the packed form alone. What does not
know of it (a state_dict, a forward pass, an EMA) sees the same values, unpacked for each use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


class Packed:
    """A matrix (out, in) as oneDNN has it; `tensor` is opaque but for its shape."""

    def __init__(self, matrix: Tensor) -> None:
        self.pack(matrix)

    def pack(self, matrix: Tensor) -> None:
        self.tensor: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), None)

    def matrix(self) -> Tensor:
        """The matrix as it was before, to the bit."""
        return self.tensor.to_dense()


class PackedWeight(Tensor):
    """Rows of a `Packed` matrix as a tensor: reads unpack them, writes pack the whole anew."""

    whole: Packed
    rows: slice

    @staticmethod
    def __new__(cls, whole: Packed, rows: slice) -> PackedWeight:
        shape = (rows.stop - rows.start, whole.tensor.shape[1])
        made: PackedWeight = Tensor._make_wrapper_subclass(cls, shape, dtype=whole.tensor.dtype)
        made.whole, made.rows = whole, rows
        return made

    def __init__(self, whole: Packed, rows: slice) -> None: ...

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


@torch.inference_mode(False)
@torch.no_grad()
def packed_in_place(layers: Sequence[nn.Linear]) -> Packed:
    """The layers' weights below one another, packed; the layers' parameters become parts of that.

    Layers whose weights are packed already, by an earlier caller, are left as they are.
    """
    weights = [layer.weight for layer in layers]
    first = weights[0]
    if isinstance(first, PackedWeight):
        return first.whole
    whole, start = Packed(torch.cat([w.detach() for w in weights]) if weights[1:] else first), 0
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
