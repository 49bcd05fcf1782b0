"""Interleaved timing: the machine's moods hit all candidates alike, so ratios can be trusted."""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from taming import limits
from taming.devices import processor_name

RESULTS = Path(__file__).parent / "results"


def hardware(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    facts: dict[str, Any] = {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Median, minimum and maximum seconds of each candidate, called in turn `rounds` times."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in tqdm(range(warmup + rounds), desc="rounds", leave=False):
        for name, call in candidates.items():
            seconds = timed(call, device)
            if number >= warmup:
                times[name].append(seconds)
    return summaries(times)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds that one call takes."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def summaries(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Median, minimum and maximum by name."""
    return {
        name: {"median": statistics.median(t), "min": min(t), "max": max(t)}
        for name, t in times.items()
    }


def peak_memory(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes that `run` takes at most, beyond what the process has before it.

    On a processor it is the process's, and it should have run nothing before.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    before = limits.peak_memory() or 0
    run()
    return (limits.peak_memory() or 0) - before


def resident_bytes(device: torch.device, peak: bool = False) -> int:
    """Memory in use, or at its peak since `reset_peak`."""
    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
        return used(device)
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far, and give back what is free: it would be used again, and not seen."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(AttributeError, OSError):  # of other libraries than GNU's
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def read_bandwidth(device: torch.device) -> float:
    """GB/s at which 1 GiB is read by summing it up."""
    source = torch.zeros(2**28, device=device)
    seconds = interleaved({"read": source.sum}, device, 10)["read"]["min"]
    return source.numel() * source.element_size() / seconds / 1e9


def copy_bandwidth(device: torch.device) -> float:
    """GB/s read and written by copying 1 GiB."""
    source = torch.zeros(2**28, device=device)
    target = torch.empty_like(source)
    seconds = interleaved({"copy": lambda: target.copy_(source)}, device, 10)["copy"]["median"]
    return 2 * source.numel() * source.element_size() / seconds / 1e9


def synchronise(device: torch.device) -> None:
    """Wait until what was begun on a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write_results(name: str, device: torch.device, results: Mapping[str, Any]) -> Path:
    """Write `results/<name>-<device>.json` with the hardware beside the figures.

    Raises:
        ValueError: if `results` do not say how many `rounds` were measured.
    """
    if not results.get("rounds"):
        raise ValueError(f"{name}: how many rounds were measured?")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{device.type}.json"
    path.write_text(json.dumps({"hardware": hardware(device), **results}, indent=2) + "\n")
    return path
