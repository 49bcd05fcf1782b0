"""First stages side by side: a table, a picture of the same images through each, their codes."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from taming.errors import UserError
from taming.evaluation.plots import plot_codes
from taming.evaluation.sources.folder import ImageSource
from taming.evaluation.tasks.first_stage import FirstStageEvaluator, StageResult
from taming.evaluation.tasks.loaded_first_stages import Stage

# Metrics, what they are called in a table's head, and how they are written.
COLUMNS = {
    "l1": ("L1", "{:.4f}"),
    "psnr": ("PSNR", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "ms_ssim": ("MS-SSIM", "{:.4f}"),
    "lpips_vgg": ("LPIPS (VGG)", "{:.4f}"),
    "lpips_alex": ("LPIPS (AlexNet)", "{:.4f}"),
    "rfid": ("rFID", "{:.2f}"),
    "pixel_accuracy": ("pixel accuracy", "{:.2%}"),
    "mean_iou": ("mean IoU", "{:.4f}"),
    "codebook_usage": ("codes used", "{:.1%}"),
    "codebook_perplexity": ("perplexity", "{:.1f}"),
}
SIDE = 256  # pixels of the larger side of a cell: small images are enlarged, large ones reduced
HEAD, GAP = 22, 4

log = logging.getLogger(__name__)


def table_rows(results: Sequence[StageResult]) -> list[dict[str, Any]]:
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


def _cell(result: StageResult, name: str) -> str:
    return COLUMNS[name][1].format(result.metrics[name]) if name in result.metrics else "-"


def reasons(results: Sequence[StageResult]) -> list[str]:
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


def spread(images: int, rows: int) -> list[int]:
    """Indices of `rows` images, evenly spaced."""
    return np.unique(np.linspace(0, images - 1, min(rows, images)).round().astype(int)).tolist()


def comparison_picture(
    evaluator: FirstStageEvaluator, stages: Sequence[Stage], images: ImageSource, rows: int
) -> Image.Image:
    """A row per image: the image, then its reconstruction by every first stage, under its name."""
    chosen = spread(len(images), rows)
    columns: dict[str, list[np.ndarray]] = {}
    for stage in stages:
        pairs = evaluator.pictures(stage, images, chosen)
        columns.setdefault("original", [pairs[index][0] for index in chosen])
        columns[stage.name] = [pairs[index][1] for index in chosen]
    return tiles(columns)


def tiles(columns: Mapping[str, Sequence[np.ndarray]]) -> Image.Image:
    """Columns of pictures, each uint8 (H, W, 3), under their names; a row's pictures are alike."""
    rows = [_cell_size(picture) for picture in next(iter(columns.values()))]
    width = max(w for w, _ in rows) + GAP
    height = sum(h + GAP for _, h in rows)
    grid = Image.new("RGB", (width * len(columns) - GAP, HEAD + height - GAP), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(size=14)
    for column, (name, pictures) in enumerate(columns.items()):
        draw.text((column * width + 2, 3), _shortened(name, width - GAP, font), "black", font)
        y = HEAD
        for picture, size in zip(pictures, rows, strict=True):
            resampling = Image.Resampling.NEAREST if size[0] > picture.shape[1] else None
            cell = Image.fromarray(picture).resize(size, resampling)
            grid.paste(cell, (column * width, y))
            y += size[1] + GAP
    return grid


def _cell_size(picture: np.ndarray) -> tuple[int, int]:
    """(width, height)"""
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    scale = max(int(scale), 1) if scale >= 1 else scale
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _shortened(name: str, width: float, font: Any) -> str:
    """The name, with its middle left out where it is longer than its column."""
    keep = len(name)
    text = name
    while keep > 2 and font.getlength(text) > width:
        keep -= 1
        text = f"{name[: (keep + 1) // 2]}…{name[len(name) - keep // 2 :]}"
    return text


def write_pairs(values: Mapping[str, np.ndarray], path: Path) -> None:
    """A CSV with a line per image: its index, its label (-1: none) and its metrics."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(values)
        writer.writerows(zip(*(column.tolist() for column in values.values()), strict=True))


def write_codes(results: Sequence[StageResult], folder: Path) -> None:
    """`codes-<first stage>.csv`, how often each code occurs, and all of them as `codes.png`."""
    for result in results:
        lines = [f"{code},{count}" for code, count in enumerate(result.counts.tolist())]
        path = folder / f"codes-{file_name(result.name)}.csv"
        path.write_text("\n".join(["code,count", *lines]) + "\n")
    try:
        plot_codes({result.name: result.counts for result in results}, folder / "codes.png")
    except UserError as error:  # hours of work are not lost for a picture
        log.warning("the plot of the codes is left out: %s", error)


def file_name(name: str) -> str:
    """A first stage's name as part of a file's."""
    return "".join(c if c.isalnum() or c in "-_.()" else "_" for c in name)
