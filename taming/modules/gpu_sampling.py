"""Whether Triton's kernels are there for sampling on a GPU."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from taming.kernel_choice import TORCH, TRITON, choices, named_kernel
from taming.modules.real_tensors import is_traced

log = logging.getLogger(__name__)

OLDEST = (8, 0)  # compute capability that multiplies bfloat16
FEW_ROWS = 2  # of products; with more, torch's are as fast
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def runs_triton(device: torch.device, kernel: str | None = None) -> bool:
    """Whether there are Triton's kernels for a device, and no other `kernel` is asked for."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    if (kernel or named_kernel() or TRITON) != TRITON:
        return False
    return _works(torch.cuda.current_device() if device.index is None else device.index)


def is_real(x: Tensor) -> bool:
    """Whether a tensor is on a GPU, not one that only pretends to be, or is traced."""
    return x.is_cuda and not is_traced(x)


def sampling_kernel_of_gpu(weight: Tensor, dtype: torch.dtype, rows: int) -> str:
    """`TRITON` or `TORCH`, for the linear layers of a decoder of so many sequences."""
    few = rows <= FEW_ROWS and dtype in DTYPES
    choice = TRITON if few and is_real(weight) and runs_triton(weight.device) else TORCH
    choices[f"sampling on a GPU, {rows} rows"] = choice
    return choice


@functools.cache
def _works(index: int) -> bool:
    """Triton needs a compiler of C, and a GPU that is not too old: both kernels tell."""
    device = torch.device("cuda", index)
    if torch.cuda.get_device_capability(device) < OLDEST:
        return False
    try:
        from taming.modules.triton_kernels import attend_to_cache, few_rows

        ones = torch.ones(2, 48, device=device)
        cache, position = torch.zeros(2, 2, 1, 16, 16, device=device), torch.zeros_like(ones).long()
        fine = (few_rows(ones, ones) == 48).all() & (
            attend_to_cache(ones, cache, position) == 1
        ).all()
        return bool(fine)
    except Exception as error:  # of many kinds: each leaves torch's kernels
        log.warning("sampling goes on with torch's kernels, as Triton's do not run: %s", error)
        return False
