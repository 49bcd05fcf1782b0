"""A launcher, and the uninterrupted runs, for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.kills import Injection
from tests.faults.launch import Launcher
from tests.faults.sandbox import Sandbox


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    with Launcher() as one:
        yield one


@pytest.fixture(scope="session")
def injection(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Injection:
    return Injection(launcher, tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one
