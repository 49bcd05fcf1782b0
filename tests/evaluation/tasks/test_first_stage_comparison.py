"""Tables and files of first stages side by side, of numbers made up by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from taming.evaluation.latex import DOWN, UP
from taming.evaluation.tasks.first_stage import FirstStageResult
from taming.evaluation.tasks.first_stage_comparison import (
    better_ends,
    file_name,
    level_rows,
    notes,
    reasons,
    table_rows,
    use_of_codes,
    write_codes,
    write_pairs,
)
from taming.evaluation.tasks.first_stage_cost import Speed
from taming.models.code_use import code_count, codebook_uses, counted_codes
from taming.modules.vqvae.grouped import GroupedQuantizer
from tests.support import GOLDEN

COUNTS = np.array([3, 0, 7, 1])


def result(
    name: str, metrics: dict[str, Any], left_out: dict[str, str], **more: Any
) -> FirstStageResult:
    values = {"index": np.arange(2), "label": np.array([-1, 4]), "l1": np.array([0.5, 0.25])}
    return FirstStageResult(
        name,
        {"images": 2, **metrics},
        left_out=left_out,
        classes={},
        counts=COUNTS,
        values=values,
        images={},
        reconstructions={"f": 8, "codes": 4},
        **more,
    )


COLORS = {"l1": 0.12344, "psnr": 21.456, "rfid": 3.456, "codebook_usage": 0.75}
LABELS = {"pixel_accuracy": 0.98765, "mean_iou": 0.43216, "codebook_perplexity": 2.345}


def test_columns_are_those_that_any_of_them_has() -> None:
    first, second = table_rows([result("a", COLORS, {}), result("b", LABELS, {})])
    assert list(first.items()) == [
        *(("first stage", "a"), ("f", 8), ("codes", 4), ("images", 2)),
        *(("L1", "0.1234"), ("PSNR", "21.46"), ("rFID", "3.46"), ("pixel accuracy", "-")),
        *(("mean IoU", "-"), ("codes used", "75.0%"), ("perplexity", "-")),
    ]
    assert [second[name] for name in ("L1", "pixel accuracy", "mean IoU", "perplexity")] == [
        *("-", "98.77%", "0.4322", "2.3")
    ]


def test_parameters_and_speed_have_columns_of_their_own() -> None:
    speed = Speed(
        encode=12.345678, decode=7.0, both=4.5, batch_size=2, height=8, width=16, rounds=3
    )
    parts = {"encoder": 2_500_000, "quantizer": 64, "decoder": 10**7, "total": 12_500_064}
    results = [result("a", COLORS, {}, parameters=parts, speed=speed), result("b", COLORS, {})]
    first, second = table_rows(results)
    names = ("encoder (M)", "quantizer (M)", "total (M)", "encode/s", "both/s")
    assert [first[name] for name in names] == ["2.5", "6.4e-05", "12.5", "12.35", "4.5"]
    assert second["encode/s"] == "-"
    assert notes(results) == [
        "Images a second: the median of 3 warm rounds with one batch of 2 images of 16 x 8 pixels."
    ]
    assert use_of_codes(results).startswith("Codes in use: a 3 of 4 (75.0%), b 3 of 4 (75.0%). ")


@pytest.mark.parametrize("unknown", ["random", "extra"])
def test_codes_of_levels_that_share_them_and_of_remapped_groups(unknown: str) -> None:
    """Counts are apart by level; codes are those of all tables that there are indices for."""
    shared = {"n_codes": 4, "e_dim": 1, "levels": 2, "shared": True}
    remapped = {"n_e": 40, "e_dim": 1, "beta": 0.25, "remap": str(GOLDEN / "used.npy")}
    remapped["unknown_index"] = unknown
    count = 28 if unknown == "extra" else 26  # of two groups
    for target, params, codes, used in (
        ("residual.ResidualQuantizer", shared, 8, 2),
        ("nearest.VectorQuantizer2", remapped, count, 3),
    ):
        inner = {"target": f"taming.modules.vqvae.{target}", "params": params}
        quantizer = GroupedQuantizer(2, inner)
        counts = torch.zeros(counted_codes(quantizer), dtype=torch.long)
        counts[[0, 4, -1]] = 5  # the shared table's first code in both levels, or two codes
        uses = codebook_uses(quantizer, counts)
        levels = replace(
            result("a", uses, {}),
            counts=counts.numpy(),
            reconstructions={"f": 8, "codes": code_count(quantizer)},
        )
        share = f"{used} of {codes} ({used / codes:.1%})"
        assert use_of_codes([levels]).startswith(f"Codes in use: a {share}. ")


def test_levels_have_a_table_of_their_own() -> None:
    """A row each, beside first stages of another number of them, or of none."""
    of_levels = {"codebook_usage_1x1": 0.5, "codebook_perplexity_1x1": 2.0}
    of_levels |= {"codebook_usage_2x2": 1.0, "codebook_perplexity_2x2": 3.14}
    results = [
        result("a", COLORS | of_levels, {}),
        result("b", COLORS, {}),
        result("c", {"codebook_usage_top": 0.25, "codebook_perplexity_top": 1.0}, {}),
    ]
    assert level_rows(results) == [
        {"first stage": name, "level": level, "codes used": used, "perplexity": perplexity}
        for name, level, used, perplexity in (
            ("a", "1x1", "50.0%", "2.0"),
            ("a", "2x2", "100.0%", "3.1"),
            ("c", "top", "25.0%", "1.0"),
        )
    ]
    assert not level_rows(results[1:2])
    assert table_rows(results)[0].keys() == table_rows(results[1:2])[0].keys()


def test_numbers_of_several_resizes_have_their_names() -> None:
    metrics = COLORS | {"rfid_by_resize": {"opencv": 3.456, "torch-antialias": 2.5}}
    rows = table_rows([result("a", metrics, {})])
    assert rows[0]["rFID (opencv)"] == "3.46" and rows[0]["rFID (torch-antialias)"] == "2.50"
    assert "rFID" not in rows[0]
    ends = better_ends(rows)
    assert ends["rFID (opencv)"] == ends["L1"] == DOWN and ends["PSNR"] == UP
    assert ends["codes used"] == "" and ends["codes"] == ""


def test_reasons_name_those_that_they_are_of() -> None:
    small = {"ssim": "too small"}
    stages = [
        result("a", {}, small),
        result("b", {}, small | {"rfid": "no colors"}),
        result("c", {}, small),
    ]
    assert reasons(stages) == [
        "SSIM is left out: too small.",
        "rFID is left out for b: no colors.",
    ]


def test_what_is_written_of_codes_and_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).touch())
    made = result("a run/2", {}, {})
    write_codes([made], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes-a_run_2.csv", "codes.png"]
    lines = (tmp_path / "codes-a_run_2.csv").read_text().splitlines()
    assert lines == ["code,count", "0,3", "1,0", "2,7", "3,1"]
    write_pairs(made.values, tmp_path / "pairs.csv")
    assert (tmp_path / "pairs.csv").read_text().splitlines() == [
        *("index,label,l1", "0,-1,0.5", "1,4,0.25")
    ]
    assert file_name("a-b_c.d (2)/é") == "a-b_c.d_(2)_é"
