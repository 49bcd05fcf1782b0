"""First stages side by side: a table, a picture of the same images through each, their codes."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from taming.atomic_files import atomic_path, write_text
from taming.errors import UserError
from taming.evaluation.latex import DOWN, UP
from taming.evaluation.metrics.reconstruction import PAIR_METRICS
from taming.evaluation.plots import plot_codes, spread
from taming.evaluation.sources.images import ImageSource
from taming.evaluation.tasks.first_stage import (
    FirstStageEvaluator,
    FirstStageResult,
    LoadedFirstStage,
)
from taming.pictures import grid


class Column(NamedTuple):
    """A number in tables."""

    title: str
    style: str  # how values are written, for `str.format`
    better: str = ""  # the better end, UP or DOWN; of the use of codes there is none


# By metric.
COLUMNS = {
    "l1": Column("L1", "{:.4f}", DOWN),
    "psnr": Column("PSNR", "{:.2f}", UP),
    **{name: Column(each.title, each.style, each.better) for name, each in PAIR_METRICS.items()},
    "rfid": Column("rFID", "{:.2f}", DOWN),
    "pixel_accuracy": Column("pixel accuracy", "{:.2%}", UP),
    "mean_iou": Column("mean IoU", "{:.4f}", UP),
    "codebook_usage": Column("codes used", "{:.1%}"),
    "codebook_perplexity": Column("perplexity", "{:.1f}"),
}
OF_LEVELS = ("codebook_usage", "codebook_perplexity")  # and with "_<level>" of each level
BY_RESIZE = "rfid_by_resize"
PARAMETER_COLUMNS = ("encoder", "quantizer", "decoder", "total")
SPEED_COLUMNS = {"encode": "encode/s", "decode": "decode/s", "both": "both/s"}
ANCHOR = (
    "For comparison: of the published model with 16,384 codes, 973 (5.9 %) are in use "
    "(arXiv 2012.09841, supplement). The share grows with the number of images."
)
SIDE, GAP = 256, 4  # pixels of the larger side of an image in the picture, and between images

log = logging.getLogger(__name__)


def table_rows(results: Sequence[FirstStageResult]) -> list[dict[str, Any]]:
    """A row per first stage; columns that none has are not there."""
    there = _columns(results)
    timed = any(result.speed for result in results)
    return [
        {
            "first stage": result.name,
            "f": result.reconstructions["f"],
            "codes": result.reconstructions["codes"],
            "images": result.metrics["images"],
            **_cells(result, there),
            **_parameters(result),
            **(_speed(result) if timed else {}),
        }
        for result in results
    ]


def _columns(results: Sequence[FirstStageResult]) -> dict[str, Column]:
    """The columns that any of them has a number for."""
    names = {name for result in results for name in result.metrics}
    return {name: column for name, column in COLUMNS.items() if name in names}


def level_rows(results: Sequence[FirstStageResult]) -> list[dict[str, str]]:
    """A row per level, or scale, of each first stage that has several: how its codes are used."""
    return [
        {
            "first stage": result.name,
            "level": level,
            **{
                COLUMNS[name].title: COLUMNS[name].style.format(result.metrics[f"{name}_{level}"])
                for name in OF_LEVELS
            },
        }
        for result in results
        for level in _levels(result)
    ]


def _levels(result: FirstStageResult) -> list[str]:
    start = f"{OF_LEVELS[0]}_"
    return [name.removeprefix(start) for name in result.metrics if name.startswith(start)]


def _cells(result: FirstStageResult, there: Mapping[str, Column]) -> dict[str, str]:
    """The metrics by their titles: the rFID once for each resize, under its name."""
    cells: dict[str, str] = {}
    for name, (title, style, _) in there.items():
        if name == "rfid" and BY_RESIZE in result.metrics:
            by_resize = result.metrics[BY_RESIZE]
            cells |= {f"{title} ({how})": style.format(by_resize[how]) for how in by_resize}
        else:
            cells[title] = style.format(result.metrics[name]) if name in result.metrics else "-"
    return cells


def _parameters(result: FirstStageResult) -> dict[str, str]:
    """Millions of each part: encoder, quantizer, decoder, and whatever else there is."""
    millions = {name: f"{count / 1e6:.4g}" for name, count in result.parameters.items()}
    return {f"{name} (M)": value for name, value in millions.items() if name in PARAMETER_COLUMNS}


def _speed(result: FirstStageResult) -> dict[str, str]:
    values = asdict(result.speed) if result.speed else {}
    return {
        title: f"{values[name]:.4g}" if name in values else "-"
        for name, title in SPEED_COLUMNS.items()
    }


def better_ends(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Which end of the columns of `table_rows` is the better one, of those that have one."""
    ends = {column.title: column.better for column in COLUMNS.values()}
    ends |= dict.fromkeys(SPEED_COLUMNS.values(), UP)
    rfid = COLUMNS["rfid"].title
    return {name: DOWN if name.startswith(f"{rfid} (") else ends.get(name, "") for name in rows[0]}


def use_of_codes(results: Sequence[FirstStageResult]) -> str:
    """A paragraph: how many codes are in use, beside what the paper found."""
    phrases = []
    for result in results:
        codes = result.reconstructions["codes"]
        used = round(result.metrics["codebook_usage"] * codes)  # `counts` are apart by level
        phrases.append(f"{result.name} {used:,} of {codes:,} ({used / codes:.1%})")
    return f"Codes in use: {', '.join(phrases)}. {ANCHOR}"


def notes(results: Sequence[FirstStageResult]) -> list[str]:
    """What the columns of time are of, and what the filters of resizes are of."""
    sentences = []
    speeds = {result.speed for result in results if result.speed}
    for one in sorted({(s.batch_size, s.width, s.height, s.rounds) for s in speeds}):
        sentences.append(
            "Images a second: the median of {3} warm rounds with one batch of {0} images of "
            "{1} x {2} pixels.".format(*one)
        )
    if any(BY_RESIZE in result.metrics for result in results):
        sentences.append(
            "In brackets: the filter that brought the images to their size; originals and "
            "reconstructions are of the same pixels. All other numbers are of the first one."
        )
    return sentences


def reasons(results: Sequence[FirstStageResult]) -> list[str]:
    """A sentence per metric that is not there; first stages with the same reason share it."""
    names: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for metric, reason in result.left_out.items():
            names.setdefault((metric, reason), []).append(result.name)
    return [
        f"{COLUMNS[metric].title} is left out"
        + ("" if len(of) == len(results) else f" for {', '.join(of)}")
        + f": {reason}."
        for (metric, reason), of in names.items()
    ]


def comparison_picture(
    evaluator: FirstStageEvaluator,
    stages: Sequence[LoadedFirstStage],
    images: ImageSource,
    rows: int,
) -> Image.Image:
    """A row per image: the image, then its reconstruction by every first stage, under its name."""
    chosen = spread(len(images), rows)
    pairs = [evaluator.pictures(stage, images, chosen) for stage in stages]
    cells = [[pairs[0][index][0], *(pair[index][1] for pair in pairs)] for index in chosen]
    return grid(cells, ["original", *(stage.name for stage in stages)], side=SIDE, gap=GAP)


def write_pairs(values: Mapping[str, np.ndarray], path: Path) -> None:
    """A CSV with a line per image: its index, its label (-1: none) and its metrics."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(values)
        writer.writerows(zip(*(column.tolist() for column in values.values()), strict=True))


def write_codes(results: Sequence[FirstStageResult], folder: Path) -> None:
    """`codes-<first stage>.csv`, how often each code occurs, and all of them as `codes.png`."""
    for result in results:
        lines = [f"{code},{count}" for code, count in enumerate(result.counts.tolist())]
        path = folder / f"codes-{file_name(result.name)}.csv"
        write_text(path, "\n".join(["code,count", *lines]) + "\n")
    try:
        plot_codes({result.name: result.counts for result in results}, folder / "codes.png")
    except UserError as error:  # hours of work are not to be lost for a picture
        log.warning("the plot of the codes is left out: %s", error)


def file_name(name: str) -> str:
    """A first stage's name as part of a file's."""
    return "".join(c if c.isalnum() or c in "-_.()" else "_" for c in name)
