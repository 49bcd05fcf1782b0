"""Page faults of large tensors, in processes of their own: the allocator is the whole process's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from taming.freed_memory import VARIABLE, _has_glibc
from tests.support import ROOT

pytestmark = pytest.mark.skipif(not _has_glibc(), reason="another C library than glibc")
PAGES = 100 * 2**20 // os.sysconf("SC_PAGE_SIZE")  # of the tensors below
MEASURE = """
import json, resource, sys, torch
from taming.devices import choose_device, device_of_command
{choose}
def step():
    for megabytes in (64, 36):
        torch.ones(megabytes * 2**18)
for _ in range(15):  # small objects take their places between the large ones
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
"""


def faults(choose: str, **environment: str) -> int:
    """Page faults of tensors of 100 MiB in all, when as many have been freed before."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "TAMING_"))}
    kept.pop("GLIBC_TUNABLES", None)
    kept |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    code = [sys.executable, "-c", MEASURE.format(choose=choose)]
    done: Any = subprocess.run(code, env=kept, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout))


def test_commands_reuse_what_they_freed_and_a_library_leaves_the_allocator_alone() -> None:
    assert faults("device_of_command('cpu')") < PAGES / 20
    assert faults("choose_device('cpu')") > PAGES / 2


@pytest.mark.parametrize(
    "environment", [{VARIABLE: "return"}, {"MALLOC_MMAP_THRESHOLD_": "131072"}], ids=str
)
def test_the_environment_decides(environment: dict[str, str]) -> None:
    assert faults("device_of_command('cpu')", **environment) > PAGES / 2
