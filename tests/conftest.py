"""What all tests share: configs may name our own classes, and the user's state stays untouched."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from taming.trust import trusted
from tests.kit.launch import Launcher
from tests.support import exact_products


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected stays to the end: nobody needs to look through it for garbage.

    That would take a third of the time of collecting, and go on while tests run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True, scope="session")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For programs that tests start, too."""
    before = dict(os.environ)
    os.environ |= {"TAMING_TRUST": "tests", "XDG_STATE_HOME": str(tmp_path_factory.mktemp("state"))}
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """Starts programs, as forks of a process in which everything is imported already."""
    with Launcher() as one:
        yield one


@pytest.fixture(autouse=True)
def exact_on_gpus(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests on a GPU assert what full precision gives."""
    with exact_products() if request.node.get_closest_marker("gpu") else nullcontext():
        yield


@pytest.fixture(autouse=True)
def outside_of_programs() -> None:
    """A test that parsed a command line leaves its `--trust` to no other one."""
    trusted.set(None)
