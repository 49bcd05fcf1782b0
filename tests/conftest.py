"""What all tests share: configs may name our own classes, and the user's files stay untouched."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from taming.atomic_files import user_cache
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
    """For programs that tests start, too: state and caches are not the user's.

    All processes of a session share one cache, so that a choice of kernels is measured once.
    """
    before = dict(os.environ)
    base = tmp_path_factory.getbasetemp()
    session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ.setdefault("MPLCONFIGDIR", str(user_cache() / "matplotlib"))  # a list of fonts
    os.environ |= {"TAMING_TRUST": "tests", "XDG_STATE_HOME": str(tmp_path_factory.mktemp("state"))}
    os.environ["XDG_CACHE_HOME"] = str(session / "cache")
    os.environ.pop("TAMING_KERNEL", None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def files_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages call scripts as in the clone's folder, whichever one a test is in."""
    monkeypatch.setattr("taming.shipped.in_clone", lambda: True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, with nothing in it yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
