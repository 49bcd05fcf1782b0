"""What the committed results say of how they were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
# Of models that are trained and scored, not of speed; and where no model of ours computes.
SCORES = ("any_order-", "demo-", "quantizers-", "multi_scale-", "installation", "gallery")
NO_PRODUCTS = ("data-", "starting-", "evaluation-memory-", "evaluators-")
# Measured before results said so, on a GPU or in hours: to be replaced by the next that are.
EARLIER = (
    "codes-class_transformer-bf16-cuda",
    "evaluation-memory-cpu",
    "sampling-gpu-bf16-alone-steps-cuda",
    "throughput-first_stage-cuda",
    "throughput-transformer-cuda",
)
MEASURED = [
    path
    for path in sorted(RESULTS.glob("*.json"))
    if not path.name.startswith(SCORES) and path.stem not in EARLIER
]


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.name)
def test_a_result_says_on_what_and_how_it_was_measured(path: Path) -> None:
    facts = json.loads(path.read_text("utf-8"))
    assert facts["rounds"] >= 1
    assert facts["hardware"].keys() >= {"processor", "threads", "torch", "python"}
    assert ("gpu" in facts["hardware"]) == path.stem.endswith("-cuda")
    if not path.name.startswith(NO_PRODUCTS):
        timed = _timed(facts)
        assert "dtype" in facts or (timed and all(_says_dtype(name) for name in timed))


def test_memory_is_at_least_that_of_what_has_to_be_there() -> None:
    """Decoding takes its weights and its cache: a smaller peak was not one."""
    ratios = [
        row["peak_over_weights_and_cache"]
        for path in MEASURED
        for row in _parts(json.loads(path.read_text("utf-8")))
        if "peak_over_weights_and_cache" in row
    ]
    assert ratios and min(ratios) >= 1


def _timed(facts: dict[str, Any]) -> list[str]:
    """The names of candidates that were timed in turn, wherever they are."""
    return [
        name
        for part in _parts(facts)
        for name, row in part.items()
        if isinstance(row, dict) and "median" in row
    ]


def _parts(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What is nested in a result, and itself."""
    inside = [value for value in facts.values() if isinstance(value, dict)]
    return [facts, *(part for value in inside for part in _parts(value))]


def _says_dtype(name: str) -> bool:
    return any(dtype in name for dtype in ("fp32", "bf16", "int8"))
