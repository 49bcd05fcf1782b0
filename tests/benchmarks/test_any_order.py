"""The benchmark of orders keeps apart what differs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from taming.program import load
from tests.support import ROOT


@pytest.fixture
def any_order(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return load(ROOT / "benchmarks" / "any_order.py")


def test_runs_of_another_dropout_are_others(
    any_order: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = list[str]()

    def train(folder: Path, name: str, config: str, arguments: list[str]) -> Path:
        runs.append(name)
        return folder / name

    monkeypatch.setattr(any_order, "train", train)
    monkeypatch.setattr(any_order, "run_apart", lambda *call: None)
    monkeypatch.setattr(any_order, "load_transformer", lambda run, *more: (run, None))
    for dropout in (0.1, 0.2):
        models = any_order.Models(tmp_path, 0, 1500, dropout)
        for name in ("random, no class", "raster"):
            assert models[name] == str(tmp_path / runs[-1])
    assert len({name for name in runs if name.startswith("random")}) == 2
    assert len({name for name in runs if name.startswith("raster")}) == 1  # it has its config's
