"""The uninterrupted runs and the sandbox, for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.kills import Injection
from tests.faults.sandbox import Sandbox
from tests.kit.launch import Launcher


@pytest.fixture(scope="session")
def injection(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Injection:
    return Injection(launcher, tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as one:
        yield one
