"""Freed memory of a process that computes on a processor: kept for the next tensors.

glibc maps the memory of every large tensor anew and gives it back when the tensor is freed, and the
kernel clears each page at its first use. A training step on two cores spends 3 to 14 % of its time
on that (docs/training.md). Kept memory is reused without a page fault. Results do not change, and
peaks of memory hardly do, but what was freed is not there for other programs while this one runs.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

VARIABLE = "TAMING_FREED_MEMORY"
KEEP, RETURN = "keep", "return"
# Parameters of glibc's mallopt(3), by their numbers in malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
NEVER, MOST = -1, 2**31 - 1


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees; whether it now does.

    Nothing is changed where another C library or allocator than glibc's is in use, where the
    environment sets the allocator itself (MALLOC_*, GLIBC_TUNABLES), or TAMING_FREED_MEMORY=return.
    """
    if os.environ.get(VARIABLE) == RETURN or _is_set_by_user() or not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = mallopt(M_MMAP_THRESHOLD, MOST)
    if not kept:  # glibc before 2.34 takes no more than 32 MiB, but can be kept from mapping at all
        kept = mallopt(M_MMAP_MAX, 0)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, NEVER))


def _is_set_by_user() -> bool:
    environment = os.environ
    return "GLIBC_TUNABLES" in environment or any(n.startswith("MALLOC_") for n in environment)


def _has_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
