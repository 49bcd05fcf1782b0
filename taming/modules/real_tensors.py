"""Tensors that are there, and those that only pretend to be."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taming.modules.packed_weight import PackedWeight

# Others only pretend to be there (FakeTensor), or are parts of one (DTensor).
REAL = (Tensor, nn.Parameter, PackedWeight)


def is_traced(*tensors: Tensor) -> bool:
    """Whether a graph is made for torch.compile or a file, or tensors only pretend to be there."""
    real = all(type(tensor) in REAL for tensor in tensors)
    return not real or torch.compiler.is_compiling() or torch.jit.is_tracing()
