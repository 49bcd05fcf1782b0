"""Items as pictures with their names: what a model will be fed, to look at before training."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from taming.config import instantiate_from_config
from taming.data.base import Item
from taming.data.seeding import PositionSampler, SeededDataset
from taming.errors import UserError

CELL = 192  # pixels of a picture's longer side
TITLE = 16
GAP = 8
TEXT_WIDTH = 30  # letters


def first_items(
    config: Mapping[str, Any], split: str, count: int, seed: int
) -> tuple[Any, list[Item]]:
    """The dataset of `data.params.<split>`, and the `count` items that training sees first.

    Raises `UserError` if there is no such dataset, and whatever is wrong with its files.
    """
    sections = config.get("data", {}).get("params", {})
    if not sections.get(split):
        raise UserError(f"the config has no data.params.{split}; give --split train or validation")
    dataset = instantiate_from_config(sections[split], key=f"data.params.{split}")
    order = PositionSampler(len(dataset), seed, shuffle=split == "train")
    seeded = SeededDataset(dataset, seed)
    return dataset, [seeded[position] for position in islice(order, count)]


def pictures(item: Item, dataset: Any = None) -> dict[str, Image.Image]:
    """What of an item can be seen, by entry."""
    builders = getattr(dataset, "conditional_builders", {})
    shown: dict[str, Image.Image] = {}
    for key, value in item.items():
        if key in builders:
            names = dataset.get_textual_label_for_category_no
            plot = builders[key].plot(value, names, (2 * CELL, 2 * CELL), line_width=2)
            shown[key] = _picture(plot.permute(1, 2, 0).numpy())
        elif isinstance(value, np.ndarray | torch.Tensor) and np.ndim(value) in (2, 3):
            shown[key] = _picture(np.asarray(value))
    return shown


def _picture(values: np.ndarray) -> Image.Image:
    """(H, W), (H, W, 1) or (H, W, 3) in [-1, 1], or one-hot labels (H, W, n)."""
    if values.ndim == 3 and values.shape[2] > 1 and _is_one_hot(values):
        return Image.fromarray(label_colors(values.shape[2])[values.argmax(axis=2)])
    pixels = ((values.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).convert("RGB")


def _is_one_hot(values: np.ndarray) -> bool:
    return bool(values.min() == 0 and values.max() == 1 and (values.sum(axis=2) == 1).all())


def label_colors(count: int) -> np.ndarray:
    """(count, 3) uint8: fixed colors, far apart for neighboring labels; 0 is black."""
    colors = np.random.RandomState(0).randint(40, 256, size=(count, 3))
    colors[0] = 0
    return colors.astype(np.uint8)


def texts(item: Item) -> list[str]:
    """What of an item can be read: `entry: value`, wrapped."""
    lines: list[str] = []
    for key, value in item.items():
        if isinstance(value, np.ndarray | torch.Tensor):
            continue
        if isinstance(value, list):
            value = f"{len(value)} entries"
        if isinstance(value, tuple):
            value = tuple(round(part, 3) for part in value)
        lines += textwrap.wrap(f"{key}: {value}", TEXT_WIDTH, subsequent_indent="  ")
    return lines


def _cell(title: str, picture: Image.Image) -> Image.Image:
    scale = CELL / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    cell = Image.new("RGB", (CELL, CELL + TITLE), "white")
    cell.paste(picture.resize(size), (0, TITLE))
    ImageDraw.Draw(cell).text((0, 1), title, fill="black", font=ImageFont.load_default(12))
    return cell


def _text_cell(lines: list[str]) -> Image.Image:
    cell = Image.new("RGB", (CELL, CELL + TITLE), "white")
    fitting = lines[: (CELL + TITLE) // 13]
    ImageDraw.Draw(cell).text((0, 1), "\n".join(fitting), "black", font=ImageFont.load_default(10))
    return cell


def _rows(items: list[Item], dataset: Any) -> Iterator[list[Image.Image]]:
    for item in items:
        cells = []
        for key, picture in pictures(item, dataset).items():
            cells.append(_cell(f"{key} {' x '.join(map(str, np.shape(item[key])))}", picture))
        yield [*cells, _text_cell(texts(item))]


def grid(items: list[Item], dataset: Any = None) -> Image.Image:
    """One row per item: its pictures under their names and shapes, then its texts."""
    rows = list(_rows(items, dataset))
    width = max(map(len, rows)) * (CELL + GAP) + GAP
    height = len(rows) * (CELL + TITLE + GAP) + GAP
    canvas = Image.new("RGB", (width, height), "white")
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            canvas.paste(cell, (GAP + j * (CELL + GAP), GAP + i * (CELL + TITLE + GAP)))
    return canvas


def write_preview(
    config: Mapping[str, Any], split: str, count: int, seed: int, output: str | Path
) -> str:
    """Write the grid of a config's data; returns a line that says what is in it."""
    dataset, items = first_items(config, split, count, seed)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    grid(items, dataset).save(output)
    return f"{output}: {len(items)} of the {len(dataset)} items of {type(dataset).__name__}"
