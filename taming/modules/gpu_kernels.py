"""Whether Triton's kernels are there on a GPU: of sampling, and of the first stage's training."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from taming.kernel_choice import TORCH, TRITON, choices, named_kernel
from taming.modules.real_tensors import is_traced

log = logging.getLogger(__name__)

OLDEST = (8, 0)  # compute capability that multiplies bfloat16
FEW_ROWS = 2  # of products; with more, torch's are as fast
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Task = Literal["sampling", "normalization"]


def runs_triton(device: torch.device, kernel: str | None = None, task: Task = "sampling") -> bool:
    """Whether there are Triton's kernels of a task for a device, and no other `kernel` is asked
    for."""
    if device.type != "cuda":
        return False
    if not torch.cuda.is_initialized() and not torch.cuda.is_available():  # which takes longer
        return False
    if (kernel or named_kernel() or TRITON) != TRITON:
        return False
    return _works(torch.cuda.current_device() if device.index is None else device.index, task)


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
def _works(index: int, task: Task) -> bool:
    """Triton needs a compiler of C, and a GPU that is not too old: a task's kernels tell.

    They tell so once, with a backward pass, wherever the first call comes from: the first batch of
    a run is one of validation, without gradients.
    """
    device = torch.device("cuda", index)
    if torch.cuda.get_device_capability(device) < OLDEST:
        return False
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return TRIALS[task](device)
    except Exception as error:  # of many kinds: each leaves torch's kernels
        log.warning("%s goes on with torch's kernels, as Triton's do not run: %s", task, error)
        return False


def _try_sampling(device: torch.device) -> bool:
    from taming.modules.triton_kernels import attend_to_cache, few_rows

    ones = torch.ones(2, 48, device=device)
    cache, position = torch.zeros(2, 2, 1, 16, 16, device=device), torch.zeros_like(ones).long()
    attended = attend_to_cache(ones, cache, position)
    return bool((few_rows(ones, ones) == 48).all() & (attended == 1).all())


def _try_normalization(device: torch.device) -> bool:
    from taming.modules.diffusionmodules.fused import Settings, normalized

    ones = torch.ones(8, device=device, requires_grad=True)
    x = torch.arange(16.0, device=device).view(1, 8, 1, 2)
    y, _ = normalized(x, None, ones, ones, Settings(4, 1e-6, swish=False, dtype=x.dtype))
    y.sum().backward()
    return ones.grad is not None and bool((y.sum() - 16).abs() < 1e-3)


TRIALS: dict[Task, Callable[[torch.device], bool]] = {
    "sampling": _try_sampling,
    "normalization": _try_normalization,
}
