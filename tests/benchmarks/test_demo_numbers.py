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


def test_runs_are_of_several_seeds_and_versions_of_torch(demo: ModuleType) -> None:
    """As README.md says: of the lowest that is supported among those tried, and of a new one."""
    seeds: dict[str, set[int]] = {}
    for run in json.loads(demo.PATH.read_text()):
        version = ".".join(run["torch"].split(".")[:2])
        seeds.setdefault(version, set()).add(run["seed"])
    assert len(seeds) >= 2 and all(len(found) >= 5 for found in seeds.values())
    text = " ".join((ROOT / "README.md").read_text().split())
    named = " and ".join(sorted(seeds, key=lambda v: [int(part) for part in v.split(".")]))
    assert f"at least five seeds with each of two versions of torch, {named}," in text


def test_a_span_holds_all_values(demo: ModuleType) -> None:
    assert demo.span([0.649, 1.301, 0.7], 1) == "0.6 to 1.4"
    assert demo.span([96.875, 100.0], 0) == "96 to 100"
