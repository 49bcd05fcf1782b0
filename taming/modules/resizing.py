"""Resizing with a gradient that is the same in every run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from taming.devices import without_autocast
from taming.modules.vqvae.products import fp32_products

Size = tuple[int, int]
"""(rows, columns)."""


def resized(x: Tensor, size: Size, mode: str, antialias: bool = False) -> Tensor:
    """Maps [B, C, h, w] as [B, C, *size], by `F.interpolate` of these arguments.

    On GPUs torch has no deterministic gradient of bicubic, area and anti-aliased resizes, and
    raises RuntimeError where only such are allowed (`--deterministic true`). These are linear maps
    of rows and of columns: there they are products with two matrices, of the same values but for
    rounding.
    """
    if not (x.requires_grad and torch.are_deterministic_algorithms_enabled()):
        return F.interpolate(x, size=size, mode=mode, antialias=antialias)
    with without_autocast(x.device):
        wide = x if x.dtype == torch.float64 else x.float()
        for side in (size[1], size[0]):  # columns, then rows
            weights = _weights(wide, side, mode, antialias)
            rows = fp32_products(wide.flatten(0, 2), weights)
            wide = rows.unflatten(0, wide.shape[:3]).transpose(2, 3)
    return wide.to(x.dtype)


@torch.no_grad()
def _weights(x: Tensor, side: int, mode: str, antialias: bool) -> Tensor:
    """Of the last side, of length n, of maps: what each of `side` pixels takes, [side, n]."""
    n = x.shape[-1]
    # Not as n maps of one column each: torch 2.14's anti-aliased resize is wrong for those.
    each = torch.eye(n, dtype=x.dtype, device=x.device)[None, None]
    return F.interpolate(each, size=(side, n), mode=mode, antialias=antialias)[0, 0]
