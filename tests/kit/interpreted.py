"""Triton's kernels without a GPU."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest


@contextmanager
def interpreted(*names: str) -> Iterator[list[ModuleType]]:
    """Copies of modules whose kernels are interpreted, in place of the modules of these names.

    Triton is told so when it is imported, so that it is a copy, too. Name modules before those that
    import them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in (*_imported_triton(), *names):
            patch.delitem(sys.modules, name, raising=False)
        places = [name.rpartition(".")[::2] for name in names]
        for package, module in places:
            patch.delattr(importlib.import_module(package), module, raising=False)
        yield [importlib.import_module(name) for name in names]
        for name in (*_imported_triton(), *names):
            del sys.modules[name]
        for package, module in places:
            delattr(sys.modules[package], module)


def _imported_triton() -> list[str]:
    """Without compiled code, which is there once."""
    triton = [name for name in sys.modules if name.partition(".")[0] == "triton"]
    return [name for name in triton if not name.startswith("triton._C")]
