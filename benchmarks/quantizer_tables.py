"""The tables of docs/quantizers.md, docs/multi-scale.md and docs/concepts/orders.md.

    python benchmarks/quantizer_tables.py           # shows them
    python benchmarks/quantizer_tables.py --write   # ... into the documents

The results are those of scripts/compare_quantizers.py, of which a new `quantizers.json` goes to
results/quantizers-<recipe>.json; those of orders are of any_order.py.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from taming.evaluation.tasks.quantizers import COLUMNS, cell

ROOT = Path(__file__).parents[1]
RESULTS = Path("benchmarks/results")
RECIPES = ("digits", "photographs")
WITHOUT = RESULTS / "multi_scale-without_revival.json"  # of configs without `revive_after`
QUANTIZERS, SCALES = Path("docs/quantizers.md"), Path("docs/multi-scale.md")
ORDERS, ORDERED = Path("docs/concepts/orders.md"), RESULTS / "any_order-cpu.json"
SIDES = (1, 2, 4, 8)
OF_SCALES = ("codebook_usage", "l1", "rfid")  # beside the use of each scale
COOL = ", temperature 0.5"
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


def trained_orders() -> dict[tuple[int, float], dict[int, Mapping[str, Any]]]:
    """What models of random orders reached, by steps and dropout, and then by seed."""
    found: dict[tuple[int, float], dict[int, Mapping[str, Any]]] = {}
    for one in json.loads((ROOT / ORDERED).read_text(encoding="utf-8")):
        found.setdefault((one["steps"], one.get("dropout", 0.1)), {})[one["seed"]] = one
    return dict(sorted(found.items()))


def filled(one: Mapping[str, Any], end: str = "") -> tuple[float, float]:
    """Percents of holes that are filled right, by rows and in random orders."""
    rows, random = (one[f"inpainted right, {name}{end}"] for name in ("by rows", "random orders"))
    return 100 * rows, 100 * random


def points(one: Mapping[str, Any], end: str = "") -> float:
    """By how many points random orders fill more holes right than rows."""
    rows, random = filled(one, end)
    return random - rows


def nats(seeds: Mapping[int, Mapping[str, Any]]) -> tuple[float, float]:
    """Per token by rows, of models of rows and of random orders: means of seeds with both."""
    names = ("nats per token, by rows", "nats per token by rows, of random orders")
    have = [one for one in seeds.values() if names[1] in one]
    rows, random = (mean(one[name] for one in have) for name in names)
    return rows, random


def order_table() -> str:
    """A row per length and dropout: holes that are filled right, by seed, and what rows cost."""
    trained = trained_orders()
    names = sorted({seed for seeds in trained.values() for seed in seeds})
    rows = [
        ["steps", "dropout", *(f"seed {name}" for name in names), "mean", "temperature 0.5", "nats"]
    ]
    for (steps, dropout), seeds in trained.items():
        cells = [_holes(seeds[name]) if name in seeds else "" for name in names]
        means = [mean(points(one, end) for one in seeds.values()) for end in ("", COOL)]
        by_rows, random = nats(seeds)
        last = f"{by_rows:.2f} → {random:.2f} ({random / by_rows - 1:+.1%})"
        rows.append([f"{steps:,}", str(dropout), *cells, *(f"{m:.1f}" for m in means), last])
    return as_table(rows)


def _holes(one: Mapping[str, Any]) -> str:
    rows, random = filled(one)
    return f"{rows:.1f} → {random:.1f} ({points(one):.1f})"


def as_table(rows: list[list[str]]) -> str:
    head, *body = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def tables() -> dict[tuple[Path, str], str]:
    """By document and what stands behind "table of" in the mark above it."""
    found = {
        (QUANTIZERS, str(result_of(r))): quantizer_table(metrics_in(result_of(r))) for r in RECIPES
    }
    return {**found, (SCALES, "scales"): scale_table(), (ORDERS, "holes"): order_table()}


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
