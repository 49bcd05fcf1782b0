"""Imports that take seconds: without looking for garbage, and only of what is needed."""

from __future__ import annotations

import ast
import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from taming.imports import many_imports
from tests.support import ROOT


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    """Garbage is collected, as outside of tests; what was frozen stays so."""
    was_on = gc.isenabled()
    gc.enable()
    yield
    if not was_on:
        gc.disable()


def test_no_garbage_is_looked_for_meanwhile() -> None:
    with many_imports():
        assert not gc.isenabled()
        with many_imports():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), many_imports():
        import taming.nothing  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()


def test_only_commands_keep_what_is_there_for_good() -> None:
    before = gc.get_freeze_count()
    with many_imports():
        pass
    assert gc.get_freeze_count() == before
    with many_imports(of_command=True):
        kept = [weakref.ref(type("Imported", (), {}))]
    gc.collect()
    assert gc.get_freeze_count() > before and kept[0]() is not None


def test_a_scripts_imports_are_kept_for_good() -> None:
    code = (
        "import gc\nfrom taming.errors import command\nbefore = gc.get_freeze_count()\n"
        "@command\ndef main():\n    print(gc.get_freeze_count() > before, gc.isenabled())\n"
    )
    for call, expected in (("main()", "True True"), ("main.__wrapped__()", "False True")):
        line = [sys.executable, "-c", code + call]
        made = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=True)
        assert made.stdout.strip() == expected


def test_what_few_runs_need_is_imported_where_it_is_used() -> None:
    """As torch.distributed.checkpoint, for shards."""
    rooms = ("checkpoint", "models", "sampling", "demo")
    for path in (path for room in rooms for path in (ROOT / "taming" / room).glob("*.py")):
        names = {node.module for node in ast.parse(path.read_text()).body if is_import(node)}
        assert not names & {"taming.sharding", "torchvision", "matplotlib", "sklearn"}, path


def is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom)
