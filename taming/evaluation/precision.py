"""What networks compute in while they are evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def computing_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """fp32 in full, which GPUs by default cut to TF32's 10 bits in convolutions, or autocast."""
    if dtype != torch.float32:
        with torch.autocast(device.type, dtype):
            yield
        return
    cudnn = torch.backends.cudnn
    with cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=False, allow_tf32=False):
        yield
