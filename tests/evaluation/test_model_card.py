"""Results as the hub's metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taming.checkpoint import HubName
from taming.evaluation.model_card import Card, described_set, results_of

NONE: dict[str, Any] = {"versions": {}, "hardware": {}, "command": []}


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ({}, {"name": "images", "type": "images"}),
        ({"samples": {}, "reference": {"file": "/a/b.npz"}}, {"name": "npz", "type": "npz"}),
        (
            {"images": {"dataset": {"target": "taming.data.My_Set"}, "fingerprint": "f"}},
            {"name": "My_Set", "type": "my_set", "args": {"fingerprint": "f"}},
        ),
    ],
)
def test_names_of_datasets(sets: dict[str, Any], expected: dict[str, Any]) -> None:
    assert described_set(sets) == expected


def test_results_of_several_runs_are_the_own_ones() -> None:
    metrics = {"mine": {"l1": 0.5, "images": 4}, "another": {"l1": 0.75}}
    result = {"metrics": metrics, "protocol": {}, "sets": {}, **NONE}
    config = {"model": {"params": {"transformer_config": {}}}}
    card = Card(HubName("me/x"), config, "mine", 7, {"evaluation/a.json": result})
    (entry,) = card.metadata()["model-index"][0]["results"]
    assert [(each["type"], each["value"]) for each in entry["metrics"]] == [("l1", 0.5)]
    assert entry["task"]["type"] == "unconditional-image-generation"
    assert "license" not in card.metadata() and "base_config" not in card.metadata()


def test_what_is_no_result_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    result = {"metrics": {}, "protocol": {}, "sets": {"a": {"checkpoint_hash": "1"}}, **NONE}
    (tmp_path / "report" / "report.json").write_text(json.dumps(result))
    (tmp_path / "report.json").write_text("[1]")
    assert results_of(tmp_path, "1")[0].keys() == {"report/report.json"}
    assert results_of(tmp_path, "2") == ({}, ["report/report.json"])
