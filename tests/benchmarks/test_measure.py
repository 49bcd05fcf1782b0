"""What benchmarks measure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COMMAND = """
import torch
from measure import peak_memory
print(peak_memory(lambda: torch.ones(2**25), torch.device("cpu")))
"""


@pytest.mark.slow
def test_the_peak_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    """As `benchmarks/training.py` starts a process for each peak, after large ones of its own."""
    large = torch.ones(2**28)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], cwd=BENCHMARKS, check=True, stdout=subprocess.PIPE
    )
    assert 2**27 <= int(done.stdout) < 2**28 < large.nbytes
