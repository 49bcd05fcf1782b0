"""Page faults of large tensors, in processes of their own: the allocator is the whole process's."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from taming.freed_memory import VARIABLE, _has_glibc
from tests.support import ROOT

pytestmark = pytest.mark.skipif(not _has_glibc(), reason="another C library than glibc")
PAGES = 100 * 2**20 // os.sysconf("SC_PAGE_SIZE")  # of the tensors below
MEASURE = """
import json, os, resource, sys, torch
from taming.devices import choose_device, device_of_command
def step():
    for megabytes in (64, 36):
        torch.ones(megabytes * 2**18)
def faults(choose, environment):
    os.environ.update(environment)
    choose("cpu")
    for _ in range(15):  # small objects take their places between the large ones
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for name, environment in json.loads(sys.argv[1]):
    if os.fork() == 0:  # each has an allocator of its own
        print(faults(globals()[name], environment), flush=True)
        os._exit(0)
    os.wait()
"""
CHOICES: list[tuple[str, dict[str, str]]] = [
    ("device_of_command", {}),
    ("choose_device", {}),
    ("device_of_command", {VARIABLE: "return"}),
    ("device_of_command", {"MALLOC_MMAP_THRESHOLD_": "131072"}),
]


@pytest.fixture(scope="module")
def faults() -> list[int]:
    """For each choice, page faults of 100 MiB of tensors, when as many have been freed before."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "TAMING_"))}
    kept.pop("GLIBC_TUNABLES", None)
    kept |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    code = [sys.executable, "-c", MEASURE, json.dumps(CHOICES)]
    done = subprocess.run(code, env=kept, check=True, capture_output=True, text=True)
    return list(map(int, done.stdout.split()))


def test_commands_reuse_what_they_freed_and_a_library_leaves_the_allocator_alone(
    faults: list[int],
) -> None:
    of_command, of_library, *_ = faults
    assert of_command < PAGES / 20
    assert of_library > PAGES / 2


@pytest.mark.parametrize("place", [2, 3], ids=lambda place: str(CHOICES[place][1]))
def test_the_environment_decides(faults: list[int], place: int) -> None:
    assert faults[place] > PAGES / 2
