"""Where networks compute and how precisely: devices, dtypes, autocast, processor cores.

Also which share of a script's work `torchrun` gave to this process.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taming.errors import UserError
from taming.freed_memory import keep_freed_memory


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" is the first available of CUDA, MPS and CPU.

    Of several GPUs, processes that `torchrun` started take one each, unless one is named by its
    number. It becomes the current one, on which streams, events and pinned memory are made that
    name none; otherwise each process would also take memory of the first.

    Raises:
        UserError: for a device that does not exist on this machine.
    """
    has_mps = torch.backends.mps.is_available()
    available = {"cuda": torch.cuda.is_available(), "mps": has_mps, "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in available.items() if present)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device takes auto, cuda, cuda:1, mps or cpu, not '{name}'") from None
    known = available.get(device.type, False)
    if not known or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"there is no device '{name}' here; use --device auto")
    if device.type != "cuda":
        return device
    if device.index is None:
        device = torch.device("cuda", local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def device_of_command(name: str) -> torch.device:
    """`choose_device` for a process that does nothing else: on a CPU it keeps freed memory."""
    device = choose_device(name)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of "fp32", "bf16", or "auto" (bf16 if the hardware multiplies it).

    Raises:
        UserError: for any other name.
    """
    if precision not in ("fp32", "bf16", "auto"):
        raise UserError(f"--precision takes fp32, bf16 or auto, not '{precision}'")
    fast = precision == "bf16" or (precision == "auto" and _multiplies_bf16(device))
    return torch.bfloat16 if fast else torch.float32


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype's name for results and records: "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def without_autocast(device: torch.device) -> torch.autocast:
    """A context in which operations on `device` keep the dtype of their inputs."""
    return torch.autocast(device.type, enabled=False)


def multiplying_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """A context in which products are computed in `dtype`, if that is not float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@contextmanager
def computing_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Autocast to `dtype`; with float32, convolutions keep the 13 bits that TF32 would drop."""
    cudnn = torch.backends.cudnn
    kept = {"benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    exact = cudnn.flags(cudnn.enabled, **kept, allow_tf32=False)
    with exact, multiplying_in(dtype, device):
        yield


def keep_precise(module: nn.Module, names: Sequence[str]) -> None:
    """Have a module's parts of these names, and its batch normalizations, run in float32 for good.

    Scales of normalizations are near 1, where bfloat16 is off by up to 0.4 %, and always so.
    """

    def precise(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        @functools.wraps(forward)
        def run(x: Tensor) -> Tensor:
            with without_autocast(x.device):
                return forward(x.float())

        return run

    parts: list[Any] = [module.get_submodule(name) for name in names]
    parts += [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in parts:
        part.forward = precise(part.forward)


def current_device_of(x: Tensor) -> Any:
    """A context in which the device of `x` is the current one, on which Triton starts kernels."""
    elsewhere = x.is_cuda and x.device.index != torch.cuda.current_device()
    return torch.cuda.device(x.device) if elsewhere else nullcontext()


def available_cpus() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: containers may allow fewer than there are
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def own_random_states() -> Iterator[None]:
    """What draws random numbers here leaves those of training alone: on the CPU and on the current
    GPU. Those that other processes train on are not touched."""
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=gpus):
        yield


@functools.cache
def processor_name() -> str:
    """The processor's name as the system gives it: "AMD EPYC 9634 84-Core Processor"."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def own_share() -> tuple[int, int]:
    """(rank, processes) as `torchrun` set them for a script; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Which of the processes on this machine `torchrun` made this one; 0 without it."""
    return int(os.environ.get("LOCAL_RANK", 0))
