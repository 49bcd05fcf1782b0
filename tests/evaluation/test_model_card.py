"""Results as the hub's metadata."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from taming.checkpoint import HubName, model_hashes
from taming.evaluation.checkpoints import OwnWeights
from taming.evaluation.model_card import Card, described_set, own_part, results_of
from taming.weight_choice import WeightChoice

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


def written(folder: Path, hashes: dict[str, Any], metrics: dict[str, Any], **sets: Any) -> None:
    """A result of several first stages, whose names are the keys of `hashes`."""
    kind = {"kind": "reconstructions"}
    described = {name: {**kind, "checkpoint_hash": value} for name, value in hashes.items()}
    result = {"metrics": metrics, "protocol": {}, "sets": {"images": {}, **described, **sets}}
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    (folder / "evaluation" / "a.json").write_text(json.dumps(result | NONE))


def values(card: Card) -> list[tuple[str, str, float]]:
    """Task, metric and value of all numbers that the hub reads."""
    return [
        (entry["task"]["type"], each["type"], each["value"])
        for index in card.metadata().get("model-index", [])
        for entry in index["results"]
        for each in entry["metrics"]
    ]


@pytest.mark.parametrize("run", ["X", "renamed"])
def test_results_of_several_checkpoints_are_the_own_ones(run: str, tmp_path: Path) -> None:
    """Whatever the folder is called, and whichever checkpoint of it was evaluated first."""
    numbers = {"X": {"l1": 0.75}, "X last": {"l1": 0.5, "images": 4}, "Y": {"l1": 0.25}}
    written(tmp_path, {"X": "epoch 3", "X last": "last", "Y": "other"}, numbers)
    found, others = results_of(tmp_path, OwnWeights("last", WeightChoice()))
    card = Card(HubName("me/x"), {"model": {"params": {}}}, run, 7, found)
    assert not others and values(card) == [("image-to-image", "l1", 0.5)]
    assert "l1" in card.text() and "0.75" not in card.text() and "0.25" not in card.text()
    assert "license" not in card.metadata() and "base_config" not in card.metadata()
    assert results_of(tmp_path, OwnWeights("first", WeightChoice())) == ({}, ["evaluation/a.json"])


def test_tasks_are_those_of_the_results(tmp_path: Path) -> None:
    """A transformer's run may have numbers of its first stage; a result may have no number."""
    written(tmp_path, {"X": "1"}, {"X": {"rfid": 2.5}})
    for name, metrics in (("b", {"fid": 4.5}), ("c", {"fid": "nan"})):
        result = {"metrics": metrics, "protocol": {}, "sets": {"samples": {"kind": "run"}}, **NONE}
        (tmp_path / "evaluation" / f"{name}.json").write_text(json.dumps(result))
    found, _ = results_of(tmp_path, OwnWeights("1", WeightChoice()))
    card = Card(HubName("me/x"), {"model": {"params": {"transformer_config": {}}}}, "X", 7, found)
    own = ("unconditional-image-generation", "fid", 4.5)
    assert len(found) == 3 and values(card) == [("image-to-image", "rfid", 2.5), own]
    assert len(card.metadata()["model-index"][0]["results"]) == 2


def test_numbers_of_a_report_are_of_the_images_that_they_were_measured_on(tmp_path: Path) -> None:
    """Both stages on those of validation, samples against those of training; of real images, which
    stand beside the samples, none is the model's."""
    by = {"samples": {"fid": 3.5}, "validation_images": {"fid": 0.25}}
    metrics = {"first_stage": {"l1": 0.5}, "transformer": {"top_1": 0.75}, "by_groups": by}
    sets = {
        "samples": {"kind": "folder"},
        "validation_images": {"dataset": {"target": "a.Val"}, "split": "validation"},
        "reference": {"dataset": {"target": "a.Train"}, "split": "train"},
    }
    result = {"metrics": metrics, "protocol": {}, "sets": sets, **NONE}
    (tmp_path / "report.json").write_text(json.dumps(result))
    found, _ = results_of(tmp_path, OwnWeights("1", WeightChoice()))
    card = Card(HubName("me/x"), {"model": {"params": {"transformer_config": {}}}}, "X", 7, found)
    [index] = card.metadata()["model-index"]
    entries = [
        (entry["task"]["type"], entry["dataset"]["name"], entry["dataset"]["split"], numbers)
        for entry in index["results"]
        for numbers in [{each["type"]: each["value"] for each in entry["metrics"]}]
    ]
    assert entries == [
        ("image-to-image", "Val", "validation", {"first_stage.l1": 0.5}),
        ("unconditional-image-generation", "Val", "validation", {"transformer.top_1": 0.75}),
        ("unconditional-image-generation", "Train", "train", {"by_groups.samples.fid": 3.5}),
    ]
    rows = [line.split("|")[1:4] for line in card.text().splitlines() if line.startswith("| ")]
    named = {tuple(cell.strip() for cell in row)[::2] for row in rows}
    assert {("first_stage.l1", "Val"), ("by_groups.samples.fid", "Train")} <= named
    assert "0.25" not in card.text()


def test_a_reference_is_not_what_was_evaluated(tmp_path: Path) -> None:
    sets = {"samples": {"checkpoint_hash": "other"}, "reference": {"checkpoint_hash": "own"}}
    result = {"metrics": {"fid": 1.5}, "protocol": {}, "sets": sets, **NONE}
    assert own_part(result, OwnWeights("own", WeightChoice())) is None
    assert own_part(result, OwnWeights("other", WeightChoice())) == result


@pytest.mark.parametrize(
    ("measured", "pushed", "own"),
    [
        (None, None, True),
        (None, "raw", False),
        ("raw", None, False),
        ("raw", "raw", True),
        ("ema", None, True),  # without the flag, the average is taken where there is one
        (None, "ema", True),
        ("raw", "ema", False),
        ("raw,int8", "raw", False),
        ("int8", None, False),
    ],
)
def test_numbers_of_other_weights_of_the_same_file(
    measured: str | None, pushed: str | None, own: bool
) -> None:
    about = {"checkpoint_hash": "1", **WeightChoice.parse(measured).describe()}
    result = {"metrics": {"l1": 0.5}, "protocol": about, "sets": {}, **NONE}
    assert (own_part(result, OwnWeights("1", WeightChoice.parse(pushed))) is not None) is own
    part = result | {"protocol": about | WeightChoice.parse(measured, ["encoder"]).describe()}
    assert own_part(part, OwnWeights("1", WeightChoice.parse(pushed))) is None


def test_images_of_a_folder_are_of_the_model_that_their_records_name() -> None:
    """Also where the rest of a report is of these weights; others say nothing of them."""
    parts = {"transformer": torch.nn.Linear(2, 3), "first_stage_model": torch.nn.Linear(3, 2)}
    model = torch.nn.ModuleDict(parts)
    weights = OwnWeights("1", WeightChoice(), model, {"target": "x"})
    own = model_hashes(model, {"target": "x"})
    lower = deepcopy(model)
    lower["transformer"].to(torch.bfloat16)
    halves = model_hashes(lower, {"target": "x"})
    metrics = {
        "l1": 0.5,
        "samples": {"named": 1},
        "by": {"samples": {"fid": 2}, "real": {"fid": 1}},
    }
    rest = {"l1": 0.5, "by": {"real": {"fid": 1}}}
    made: Any
    for made, is_own in (
        ({**own, "dtype": "torch.float32"}, True),
        ({**halves, "dtype": "torch.bfloat16"}, True),
        ({**own, "weights": "0"}, False),
        ({**own, "config": "0"}, False),
        ({**own, "weights": "several"}, False),
        (None, False),
    ):
        about = {"kind": "folder"} | ({"made_with": made} if made else {})
        sets = {"samples": about, "reference": {"kind": "folder"}, "real": {"kind": "dataset"}}
        report = {"metrics": metrics, "protocol": {"checkpoint_hash": "1"}, "sets": sets, **NONE}
        part = own_part(report, weights)
        assert part is not None and part["metrics"] == (metrics if is_own else rest)
        of_images = {"metrics": {"fid": 1.5}, "protocol": {}, "sets": sets, **NONE}
        assert (own_part(of_images, weights) == of_images) is (is_own or made is None)


def test_what_is_no_result_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    result = {"metrics": {}, "protocol": {}, "sets": {"a": {"checkpoint_hash": "1"}}, **NONE}
    (tmp_path / "report" / "report.json").write_text(json.dumps(result))
    (tmp_path / "report.json").write_text("[1]")
    assert results_of(tmp_path, OwnWeights("1", WeightChoice()))[0].keys() == {"report/report.json"}
    assert results_of(tmp_path, OwnWeights("2", WeightChoice())) == ({}, ["report/report.json"])
