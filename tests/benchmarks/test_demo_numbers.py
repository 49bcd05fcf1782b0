"""The numbers of the demo that README.md gives are those that were measured."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from taming.program import load
from tests.support import ROOT


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return load(ROOT / "benchmarks" / "demo.py")


def test_the_readmes_ranges_are_those_of_the_committed_runs(demo: ModuleType) -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    missing = [
        row for row in demo.readme_table(json.loads(demo.PATH.read_text())) if row not in lines
    ]
    assert not missing, "put what `python benchmarks/demo.py --table` prints into README.md"


def test_a_span_holds_all_values(demo: ModuleType) -> None:
    assert demo.span([0.649, 1.301, 0.7], 1) == "0.6 to 1.4"
    assert demo.span([96.875, 100.0], 0) == "96 to 100"
