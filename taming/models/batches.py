"""From what data loaders give to what networks take."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_first(x: Tensor) -> Tensor:
    """Images [B, H, W, C] or [B, H, W] -> float32 [B, C, H, W].

    Bytes are pixels of 0 to 255 and become [-1, 1], here and not in the loader: a quarter of the
    memory is copied between processes and to the device.
    """
    x = x[..., None] if x.dim() == 3 else x
    x = x.permute(0, 3, 1, 2)
    return _scaled(x) if x.dtype == torch.uint8 else x.contiguous().float()


def _scaled(x: Tensor) -> Tensor:
    scaled = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    # One image fits into a CPU's cache, through which a whole batch would go three times.
    parts = zip(x, scaled, strict=True) if x.device.type == "cpu" else [(x, scaled)]
    for pixels, part in parts:
        part.copy_(pixels).div_(127.5).sub_(1)
    return scaled
