"""What networks compute in while they are evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def computing_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Autocast to `dtype`; float32 is so in full, which GPUs cut to TF32's 10 bits by default."""
    cudnn = torch.backends.cudnn
    full = cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=False, allow_tf32=False)
    with full, torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield
