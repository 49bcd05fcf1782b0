"""Which of several ways to compute the same is the fastest on this machine: measured, and kept.

Ways differ in the last digits of their results, so that the same command must take the same way
each time, however busy the machine is: what a measurement of milliseconds has chosen is kept in
`$XDG_CACHE_HOME/taming/kernels.json` (`~/.cache` without that variable), by processor, version of
torch, number of threads and task. Where nothing can be kept, the default is taken. The variable
TAMING_KERNEL chooses without measuring.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from taming.atomic_files import user_cache, write_text
from taming.devices import processor_name
from taming.errors import UserError

VARIABLE = "TAMING_KERNEL"
TORCH, ONEDNN, PACKED = KERNELS = ("torch", "onednn", "packed")  # of processors
TRITON = "triton"  # of GPUs
# Each way is run so many times, and no more than three times once the seconds are over.
ROUNDS, LEAST_ROUNDS, SECONDS = 9, 3, 0.2
# Another way than the default has to take less than this share of its time: for less, results that
# are those of other machines to the last digit are worth more.
SHARE = 0.9

Ways = Mapping[str, Callable[[], Any]]

# The choices of this process, by task, for the records of benchmarks.
choices: dict[str, str] = {}


def fastest(task: str, kernels: Sequence[str], ways: Callable[[], Ways]) -> str:
    """The fastest of `kernels`, measured unless that was done on this machine before.

    Args:
        task: what is computed, with dtype and shapes.
        kernels: those that there are; the first is the default, which always works.
        ways: makes a function without arguments for each of them, which computes the task by it. A
            build of torch may lack what one of them needs: one that raises is never chosen.

    Raises:
        UserError: if the variable TAMING_KERNEL is no kernel.
    """
    name = named_kernel()
    if name in kernels:
        choices[task] = name
    elif task not in choices:
        choices[task] = _kept(task, kernels, ways)
    return choices[task]


def named_kernel() -> str:
    """The kernel that the environment asks for; empty if it leaves that open."""
    name = os.environ.get(VARIABLE, "")
    if name and name not in (*KERNELS, TRITON):
        raise UserError(f"{VARIABLE} takes {', '.join((*KERNELS, TRITON))}, not '{name}'")
    return name


def choices_file() -> Path:
    """Where the choices of earlier processes are kept."""
    return user_cache() / "taming" / "kernels.json"


def _kept(task: str, kernels: Sequence[str], ways: Callable[[], Ways]) -> str:
    key = f"{machine()}, {task}"
    kept = _read()
    if kept.get(key) not in kernels:
        with torch.inference_mode(False), torch.enable_grad():  # wherever the call comes from
            choice = _measure(ways(), kernels[0])
        # Beside this process another one may have measured: the one that was first has chosen.
        first = _read()
        kept = first if first.get(key) in kernels else first | {key: choice}
        try:
            write_text(choices_file(), json.dumps(kept, indent=2) + "\n")
        except UserError:  # a home that cannot be written to
            return kernels[0]
    return kept[key]


def machine() -> str:
    """What a choice is kept for: "AMD EPYC, torch 2.14.1, 2 threads"."""
    return f"{processor_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def _read() -> dict[str, str]:
    """All kept choices; none if the file is damaged."""
    try:
        kept = json.loads(choices_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _measure(ways: Ways, default: str) -> str:
    """Called in turn, so that what else the machine does hits all alike; the shortest time counts,
    as nothing makes a computation faster than it is."""
    seconds = {name: _seconds(way) for name, way in ways.items()}  # warms up
    able = [name for name in ways if seconds[name] is not None]
    best = dict.fromkeys(able, float("inf"))
    start = time.perf_counter()
    for number in range(ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() - start > SECONDS:
            break
        for name in able:
            best[name] = min(best[name], _seconds(ways[name]) or float("inf"))
    first = min(able, key=lambda name: best[name], default=default)
    return first if best.get(first, 0.0) < SHARE * best.get(default, 0.0) else default


def _seconds(way: Callable[[], Any]) -> float | None:
    start = time.perf_counter()
    try:
        way()
    except (AttributeError, RuntimeError):  # an operator that this build of torch does not have
        return None
    return time.perf_counter() - start
