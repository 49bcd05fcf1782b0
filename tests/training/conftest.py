"""Runs that many tests compare theirs with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.kit.resuming import write_uninterrupted


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`write_uninterrupted` of a case, which is trained when it is first asked for; read only."""
    return cache(lambda case: write_uninterrupted(case, tmp_path_factory.mktemp(case)))
