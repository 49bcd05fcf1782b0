"""The table of quantizers in the documents is that of the committed result."""

from __future__ import annotations

import json
import re

from taming.evaluation.tasks.quantizers import COLUMNS, _cell
from tests.support import ROOT

RESULT = ROOT / "benchmarks/results/quantizers-digits.json"
SHOWN = ("rfid", "l1", "codebook_usage", "codebook_perplexity")


def test_the_table_is_that_of_the_result() -> None:
    text = (ROOT / "docs/quantizers.md").read_text()
    [table] = re.findall(r"<!-- table of .*?-->\n(.*?)<!-- end -->", text, re.DOTALL)
    _, _, *rows = table.strip().splitlines()
    metrics = json.loads(RESULT.read_text())["metrics"]
    ordered = sorted(metrics, key=lambda name: metrics[name]["rfid"]["mean"])
    expected = []
    for name in ordered:
        cells = [_cell(metrics[name][key], COLUMNS[key][1]) for key in SHOWN]
        seeds = str(len(metrics[name]["rfid"]["values"]))
        expected.append(f"| {' | '.join([name, seeds, *cells])} |")
    assert rows == expected
