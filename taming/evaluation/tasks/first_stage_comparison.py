"""First stages side by side: a table, a picture of the same images through each, their codes."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from taming.atomic_files import atomic_path, write_text
from taming.errors import UserError
from taming.evaluation.metrics.reconstruction import PAIR_METRICS
from taming.evaluation.plots import plot_codes, spread
from taming.evaluation.sources.images import ImageSource
from taming.evaluation.tasks.first_stage import (
    FirstStageEvaluator,
    FirstStageResult,
    LoadedFirstStage,
)
from taming.modules.vqvae.two_level import LEVELS
from taming.pictures import grid

# Titles of columns, and how values are written in them, by metric.
COLUMNS = {
    "l1": ("L1", "{:.4f}"),
    "psnr": ("PSNR", "{:.2f}"),
    **{name: (metric.title, metric.style) for name, metric in PAIR_METRICS.items()},
    "rfid": ("rFID", "{:.2f}"),
    "pixel_accuracy": ("pixel accuracy", "{:.2%}"),
    "mean_iou": ("mean IoU", "{:.4f}"),
    "codebook_usage": ("codes used", "{:.1%}"),
    "codebook_perplexity": ("perplexity", "{:.1f}"),
    **{f"codebook_usage_{level}": (f"{level} codes used", "{:.1%}") for level in LEVELS},
    **{f"codebook_perplexity_{level}": (f"perplexity, {level}", "{:.1f}") for level in LEVELS},
}
SIDE, GAP = 256, 4  # pixels of the larger side of an image in the picture, and between images

log = logging.getLogger(__name__)


def table_rows(results: Sequence[FirstStageResult]) -> list[dict[str, Any]]:
    """A row per first stage; columns that none has are not there."""
    there = [name for name in COLUMNS if any(name in result.metrics for result in results)]
    return [
        {
            "first stage": result.name,
            "f": result.reconstructions["f"],
            "codes": result.reconstructions["codes"],
            "images": result.metrics["images"],
            **{COLUMNS[name][0]: _cell(result, name) for name in there},
        }
        for result in results
    ]


def _cell(result: FirstStageResult, name: str) -> str:
    return COLUMNS[name][1].format(result.metrics[name]) if name in result.metrics else "-"


def reasons(results: Sequence[FirstStageResult]) -> list[str]:
    """A sentence per metric that is not there; first stages with the same reason share it."""
    names: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for metric, reason in result.left_out.items():
            names.setdefault((metric, reason), []).append(result.name)
    return [
        f"{COLUMNS[metric][0]} is left out"
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
    with atomic_path(path) as partial, partial.open("w", newline="") as file:
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
