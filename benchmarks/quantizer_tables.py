"""The tables of docs/quantizers.md and docs/multi-scale.md, of the results of quantizers.

    python benchmarks/quantizer_tables.py           # shows them
    python benchmarks/quantizer_tables.py --write   # ... into the documents

The results are those of scripts/compare_quantizers.py, of which a new `quantizers.json` goes to
results/quantizers-<recipe>.json.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taming.evaluation.tasks.quantizers import COLUMNS, cell

ROOT = Path(__file__).parents[1]
RESULTS = Path("benchmarks/results")
RECIPES = ("digits", "photographs")
WITHOUT = RESULTS / "multi_scale-without_revival.json"  # of configs without `revive_after`
QUANTIZERS, SCALES = Path("docs/quantizers.md"), Path("docs/multi-scale.md")
SIDES = (1, 2, 4, 8)
OF_SCALES = ("codebook_usage", "l1", "rfid")  # beside the use of each scale
Metrics = Mapping[str, Mapping[str, Any]]


def result_of(recipe: str) -> Path:
    return RESULTS / f"quantizers-{recipe}.json"


def metrics_in(path: Path) -> Metrics:
    metrics: Metrics = json.loads((ROOT / path).read_text(encoding="utf-8"))["metrics"]
    return metrics


def quantizer_table(metrics: Metrics) -> str:
    """A row per quantizer, the lowest mean FID first."""
    titles = [title for title, _ in COLUMNS.values()]
    rows = [["quantizer", "bits", "seeds", *titles]]
    for name in sorted(metrics, key=lambda name: float(metrics[name]["rfid"]["mean"])):
        own = metrics[name]
        cells = [cell(own[key], style) for key, (_, style) in COLUMNS.items()]
        seeds = str(len(own["rfid"]["values"]))
        rows.append([name, f"{own['bits_an_image']:.4g}", seeds, *cells])
    return as_table(rows)


def scale_table() -> str:
    """A row per recipe and way: how many codes each scale uses, without revival and with it."""
    heads = [f"{side} x {side}" for side in SIDES]
    rows = [["", "seeds", *heads, "all", *(COLUMNS[key][0] for key in OF_SCALES[1:])]]
    without = metrics_in(WITHOUT)
    for recipe in RECIPES:
        before, now = (
            metrics[f"{recipe}_multi_scale"] for metrics in (without, metrics_in(result_of(recipe)))
        )
        rows.append(_scale_row(f"{recipe}, without revival", before))
        if now != before:
            rows.append(_scale_row(f"{recipe}, with it", now))
    return as_table(rows)


def _scale_row(name: str, own: Mapping[str, Any]) -> list[str]:
    style = COLUMNS["codebook_usage"][1]
    uses = [cell(own.get(f"codebook_usage_{side}x{side}"), style) for side in SIDES]
    others = [cell(own[key], COLUMNS[key][1]) for key in OF_SCALES]
    return [name, str(len(own["rfid"]["values"])), *uses, *others]


def as_table(rows: list[list[str]]) -> str:
    head, *body = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def tables() -> dict[tuple[Path, str], str]:
    """By document and what stands behind "table of" in the mark above it."""
    found = {
        (QUANTIZERS, str(result_of(r))): quantizer_table(metrics_in(result_of(r))) for r in RECIPES
    }
    return {**found, (SCALES, "scales"): scale_table()}


def within(text: str, of: str) -> re.Match[str]:
    """The place of a table in a document."""
    found = re.search(rf"(?<=<!-- table of {of} -->\n\n)(.*?)(?=\n\n<!-- end -->)", text, re.DOTALL)
    assert found is not None, f"there is no table of {of}"
    return found


def main() -> None:
    for (document, of), table in tables().items():
        if "--write" not in sys.argv[1:]:
            print(f"{document}, {of}\n\n{table}\n")
            continue
        text = (ROOT / document).read_text(encoding="utf-8")
        place = within(text, of)
        text = text[: place.start()] + table + text[place.end() :]
        (ROOT / document).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
