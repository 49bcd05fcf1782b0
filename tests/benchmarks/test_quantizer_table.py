"""Tables and sentences of the documents about quantizers and orders are those of the results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import quantizer_tables as tables

sys.path.pop(0)


def text_of(name: str) -> str:
    """A document in one line."""
    return " ".join((ROOT / "docs" / name).read_text().split())


@pytest.mark.parametrize(("document", "of"), tables.tables())
def test_tables_are_those_of_the_results(document: Path, of: str) -> None:
    text = (ROOT / document).read_text()
    assert tables.within(text, of)[0] == tables.tables()[document, of]


@pytest.mark.parametrize("recipe", tables.RECIPES)
def test_every_scale_uses_more_than_half_of_the_codes(recipe: str) -> None:
    name = f"{recipe}_multi_scale"
    own, before = (tables.metrics_in(p)[name] for p in (tables.result_of(recipe), tables.WITHOUT))
    levels = [key for key in own if key.startswith("codebook_usage_")]
    assert len(levels) > 2 and own != before
    for key in levels:
        assert min(own[key]["values"]) > 0.5, key


def runs_of(recipe: str, number: str) -> dict[str, list[float]]:
    """The values of each quantizer, by seed."""
    metrics = tables.metrics_in(tables.result_of(recipe))
    return {name.removeprefix(f"{recipe}_"): m[number]["values"] for name, m in metrics.items()}


def order_with(seed: int, runs: dict[str, list[float]]) -> list[str]:
    return sorted(runs, key=lambda name: runs[name][seed])


def test_what_is_said_of_digits() -> None:
    text, fid, used = (
        text_of("quantizers.md"),
        *(runs_of("digits", number) for number in ("rfid", "codebook_usage")),
    )
    first = sorted(fid, key=lambda name: mean(fid[name]))[:8]
    low, high = (mean(fid[name]) for name in (first[0], first[-1]))
    assert f"Means of the first eight lie between {low:.2f} and {high:.2f}" in text
    spans = [max(fid[name]) - min(fid[name]) for name in first]
    assert min(spans) > 0.8 * (high - low)  # "seeds of one quantizer are as far apart"
    ahead = sum(one < other for one, other in zip(fid["fsq"], fid["vq"], strict=True))
    assert first[0] == "fsq" and ahead == 3 and "with three of the five seeds" in text
    all_used = {name for name, values in used.items() if min(values) == 1}
    assert all_used == {"fsq", "simvq", "residual", "multi_scale", "bsq", "lfq"}
    for name, words in (("ema", "EMA uses {} to {} %"), ("gumbel", "Gumbel's uses {} to {} %")):
        least, most = (round(100 * end(used[name])) for end in (min, max))
        assert words.format(least, most) in text
    assert sorted(round(one) for one in fid["ibq"]) == [1, 1, 1, 30, 31]


def test_what_is_said_of_photographs() -> None:
    fid, used, l1, psnr = (
        runs_of("photographs", number) for number in ("rfid", "codebook_usage", "l1", "psnr")
    )
    behind = [order_with(seed, fid)[-3:] for seed in (0, 1)]
    assert behind[0] == ["vq", "residual", "gumbel"] and behind[1][1:] == ["vq", "gumbel"]
    for seed in (0, 1):
        assert {*order_with(seed, l1)[-2:]} == {*order_with(seed, psnr)[:2]} == {"vq", "gumbel"}
        assert order_with(seed, l1)[0] == order_with(seed, psnr)[-1] == "cosine"
        assert all(abs(used[name][seed] - 1 / 6) < 0.02 for name in ("vq", "gumbel"))
        assert abs(used["ema"][seed] - 1 / 12) < 0.02
    for name in ("residual", "lfq", "cosine", "bsq"):
        assert min(fid[name]) < 0.55 * max(fid[name])


def test_seconds_of_the_recipes() -> None:
    text = text_of("choosing-a-tokenizer.md")
    speeds = [v for values in runs_of("photographs", "steps_a_second").values() for v in values]
    assert "1,000 steps of photographs took three to fifteen minutes" in text
    assert round(1000 / max(speeds) / 60) == 3 and 14 < 1000 / min(speeds) / 60 < 15
    speeds = [v for values in runs_of("digits", "steps_a_second").values() for v in values]
    assert "the 1,100 of digits three in the median" in text
    assert round(1100 / median(speeds) / 60) == 3
    means = [mean(v) for v in runs_of("photographs", "psnr").values()]
    assert f"{max(means):.1f} dB" in text


def test_numbers_of_orders() -> None:
    """Every share in the tables and sentences of docs/concepts/orders.md."""
    path = ROOT / "benchmarks/results/any_order-cpu.json"
    entry = next(e for e in json.loads(path.read_text()) if (e["seed"], e["steps"]) == (23, 1500))
    text = text_of("concepts/orders.md")

    def share(key: str) -> str:
        deviation = entry.get(f"{key}, deviation")
        shown = f"{100 * entry[key]:.1f}"
        return f"{shown} %" if deviation is None else f"{shown} ± {100 * deviation:.1f} %"

    def nats(key: str) -> str:
        return f"{entry[key]:.2f}"

    both, hole = ("annealed", "random orders"), "inpainted right with the class"
    of_both: dict[str, str] = {
        "samples named right, row by row": "samples right, by rows",
        "in random orders (`--order random`)": "samples right, random orders",
        "in 8 steps, by rows": "samples right, 8 steps by rows",
        "in 8 steps, in random orders": "samples right, 8 steps in random orders",
        "upper left quarter sampled anew, inwards": f"{hole}, inwards",
        "by rows, what is kept read first": f"{hole}, by rows",
        "by rows, what is kept read at its place": f"{hole}, read at its place",
    }
    rows: list[tuple[str, Callable[[str], str], list[str]]] = [
        (title, share, [f"{name}, {key}" for name in both]) for title, key in of_both.items()
    ]
    token = "nats per token"
    keys = ("by rows", "by rows, of random orders", "by rows, annealed")
    rows.append(
        (
            f"{token} of validation digits, read by rows",
            nats,
            [f"{token}, {keys[0]}", *(f"{token} {key}" for key in keys[1:])],
        )
    )
    named = "samples that the demo's classifier names right, code by code"
    samples = ["samples right, by rows", "samples right, random orders, 16 codes"]
    rows.append((named, share, samples))
    quarter = "inpainted right"
    for title, end in (
        ("named right with the upper left quarter sampled anew, three kept, no class given", ""),
        ("the same at temperature 0.5", ", temperature 0.5"),
    ):
        rows.append((title, share, [f"{quarter}, {o}{end}" for o in ("by rows", "random orders")]))
    for title, style, of_row in rows:
        assert f"| {title} | {' | '.join(map(style, of_row))} |" in text, title
    hidden = [nats(f"annealed, nats per hidden code, {way}") for way in ("inwards", "by rows")]
    assert f"{hidden[0]} nats each inwards" in text and f"{hidden[1]} by rows" in text
    assert nats("annealed, nats per hidden code, read at its place") + " with it read" in text
    rows_first = share("inpainted right, random orders, row by row")
    assert (
        f"row by row it is {rows_first}, in place of {share(f'{quarter}, random orders')}" in text
    )
    longer: list[Any] = [nats(f"{token}, by rows, as many steps")]
    longer.append(share(f"{quarter}, by rows, as many steps"))
    assert f"{longer[0]} nats, and without the class {longer[1]}" in text


def test_what_random_orders_win_and_cost() -> None:
    config = OmegaConf.load(ROOT / "configs/digits_any_order_transformer.yaml")
    steps = config.lightning.trainer.max_steps
    dropout = config.model.params.transformer_config.params.resid_pdrop
    of_config = tables.trained_orders()[steps, dropout]
    won = mean(tables.points(one) for one in of_config.values())
    said = f"has {steps:,} steps and dropout {dropout}, with which holes gain {won:.1f} points"
    assert said in text_of("concepts/orders.md")
    rows, random = tables.nats(of_config)
    assert random < 1.03 * rows
    assert all(len(seeds) >= 2 for seeds in tables.trained_orders().values())
