from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taming.errors import UserError
from taming.evaluation.results import (
    PACKAGES,
    Result,
    command_line,
    differences,
    make_result,
    markdown_table,
    read_result,
    write_result,
)

SETS = {"samples": {"kind": "folder", "fingerprint": "ab"}, "reference": {"fingerprint": "cd"}}


def result(**metrics: Any) -> Result:
    command = ["scripts/evaluate_fid.py", "A", "B"]
    return make_result(
        metrics, {"isc_splits": 10}, SETS, seconds=1.23, device=torch.device("cpu"), command=command
    )


def test_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    kid = {"mean": torch.tensor(0.25), "std": 0.002}
    numbers = {"fid": np.float64(9.6), "kid": kid, "psnr": float("inf")}
    path = write_result(result(**numbers), tmp_path / "out" / "fid.json", ["More."])
    found = read_result(path)
    assert found["metrics"] == {"fid": 9.6, "kid": {"mean": 0.25, "std": 0.002}, "psnr": "inf"}
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"].keys() >= {"python", "taming", *PACKAGES}
    assert found["hardware"]["processes"] == 3 and found["time"].endswith("+00:00")
    assert found["hardware"]["device"] == "cpu"
    assert found["seconds"] == 1.2
    assert found["sets"] == SETS
    text = path.with_suffix(".md").read_text()
    assert "fid" in text.splitlines()[4]
    assert "scripts/evaluate_fid.py A B" in text
    assert text.startswith("More.\n\n|")
    assert sorted(p.name for p in path.parent.iterdir()) == ["fid.json", "fid.md"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("not JSON", "is no JSON"),
        ("[1]", "has no 'metrics'"),
        (json.dumps({"metrics": {}}), "has no 'protocol'"),
    ],
)
def test_no_result(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_result(tmp_path / "x.json")


def test_a_result_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        write_result(result(fid=1.0), tmp_path / "file" / "x.json")


def test_tables() -> None:
    rows = [{"name": "a|b", "fid": 9.5999999}, {"name": "c", "fid": 12}]
    assert markdown_table(rows).splitlines() == [
        "| name | fid |",
        "| ---- | --: |",
        "| a\\|b | 9.6 |",
        "| c    |  12 |",
    ]
    assert markdown_table([]) == ""
    mixed = markdown_table([{"n": 1}, {"n": "none"}]).splitlines()
    assert mixed == ["| n    |", "| ---- |", "| 1    |", "| none |"]  # no number, not on the right


def test_a_command_is_that_of_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/evaluate.py", "A", "-n", "3"])
    assert command_line(None, "report") == ["scripts/report.py", "A", "-n", "3"]
    assert command_line(["B"], "report") == ["scripts/report.py", "B"]


def test_what_differs() -> None:
    old = result(fid=10.0, isc={"mean": 3.0})
    same = result(fid=10.0000001, isc={"mean": 3.0})
    assert differences(old, same, 1e-3) == []
    assert differences(result(fid=1e-12), result(fid=3e-9), 1e-3) == []  # a set and itself
    assert differences(result(kid=0.0), result(kid=1e-5), 1e-3) == ["kid was 0 and is 1e-05"]
    new = copy.deepcopy(result(fid=10.5, isc={"mean": 3.0}, kid=1.0))
    new["sets"]["samples"]["fingerprint"] = "ef"
    new["versions"]["torch"] = "3.0"
    new["protocol"]["isc_splits"] = 5
    new["hardware"]["threads"] = 999
    assert differences(old, new, 1e-3) == [
        "fid was 10 and is 10.5",
        "kid was not there and is 1",
        "the samples are other images",
        "isc_splits was 10 and is 5",
        f"torch was {torch.__version__} and is 3.0",
        f"threads was {torch.get_num_threads()} and is 999",
    ]
    assert differences(old, result(fid=10.5, isc={"mean": 3.0}), 0.1) == []
