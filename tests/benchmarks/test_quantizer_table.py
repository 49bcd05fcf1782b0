"""The table of quantizers in the documents is that of the committed result."""

from __future__ import annotations

import json
import re

import pytest

from taming.evaluation.tasks.quantizers import COLUMNS, _cell
from tests.support import ROOT

RESULTS = ("quantizers-digits.json", "quantizers-photographs.json")
SHOWN = ("rfid", "l1", "codebook_usage", "codebook_perplexity")


@pytest.mark.parametrize("result", RESULTS)
def test_the_table_is_that_of_the_result(result: str) -> None:
    text, path = (ROOT / "docs/quantizers.md").read_text(), f"benchmarks/results/{result}"
    [table] = re.findall(rf"<!-- table of {path} -->\n(.*?)<!-- end -->", text, re.DOTALL)
    _, _, *rows = table.strip().splitlines()
    metrics = json.loads((ROOT / path).read_text())["metrics"]
    ordered = sorted(metrics, key=lambda name: metrics[name]["rfid"]["mean"])
    expected = []
    for name in ordered:
        cells = [_cell(metrics[name][key], COLUMNS[key][1]) for key in SHOWN]
        seeds = str(len(metrics[name]["rfid"]["values"]))
        expected.append(f"| {' | '.join([name, seeds, *cells])} |")
    assert rows == expected
