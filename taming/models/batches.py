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
    x = x.permute(0, 3, 1, 2).contiguous()
    return x / 127.5 - 1 if x.dtype == torch.uint8 else x.float()
