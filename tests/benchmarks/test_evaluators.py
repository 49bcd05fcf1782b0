"""What the benchmark of evaluators compares: the same numbers, in one pass and in several."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from taming.evaluation.metrics.evaluators import EVALUATORS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Programs = Mapping[str, tuple[str, Sequence[str]]]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "evaluators", raising=False)
    import evaluators

    return evaluators


def numbers(programs: Programs) -> list[tuple[str, str]]:
    return sorted((name, metric) for name, metrics in programs.values() for metric in metrics)


def test_both_ways_give_the_same_numbers(benchmark: Any) -> None:
    everything = sorted(
        (name, metric) for name, each in EVALUATORS.items() for metric in each.usual
    )
    assert numbers(benchmark.FIVE) == numbers(benchmark.EIGHT) == everything
    assert (len(benchmark.FIVE), len(benchmark.EIGHT)) == (5, 8)
    # A name stands for one program alone, since each is timed once.
    for name in set(benchmark.FIVE) & set(benchmark.EIGHT):
        assert benchmark.FIVE[name] == benchmark.EIGHT[name]


def test_shares_are_of_each_way_s_own_programs(benchmark: Any) -> None:
    times = {name: {"median": 1.0} for name in {**benchmark.FIVE, **benchmark.EIGHT}}
    times |= {"together": {"median": 3.0}, "torch-fidelity": {"median": 2.0}}
    assert benchmark.shares(times) == {"five evaluators": 3 / 6, "eight programs": 3 / 8}
