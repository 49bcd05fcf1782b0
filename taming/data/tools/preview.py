"""Items of a dataset on one page: what a model will be fed, to look at before training."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from taming.atomic_files import atomic_path
from taming.data.annotated_objects_dataset import AnnotatedObjectsDataset
from taming.data.base import Item
from taming.data.from_config import dataset_of
from taming.data.seeding import PositionSampler, SeededDataset
from taming.errors import UserError
from taming.pictures import Cell, grid, to_uint8_array

CELL = 192  # pixels of a picture's longer side
TEXT_WIDTH = 30  # letters


def first_items(
    config: Mapping[str, Any], split: str, count: int, seed: int
) -> tuple[Any, list[Item]]:
    """The dataset of `data.params.<split>`, and the `count` items that training sees first."""
    dataset = dataset_of(config, split)
    order = PositionSampler(len(dataset), seed, shuffle=split == "train")
    seeded = SeededDataset(dataset, seed)
    return dataset, [dict(seeded.entries(position)) for position in islice(order, count)]


def pictures(item: Item, dataset: object = None) -> dict[str, Image.Image]:
    """The entries of an item that can be shown, as pictures of their own size."""
    scenes = dataset if isinstance(dataset, AnnotatedObjectsDataset) else None
    shown: dict[str, Image.Image] = {}
    for key, value in item.items():
        if scenes is not None and (builder := scenes.conditional_builders.get(key)):
            names = scenes.get_textual_label_for_category_no
            plot = builder.plot(value, names, (2 * CELL, 2 * CELL), line_width=2)
            shown[key] = _picture(plot.permute(1, 2, 0).numpy())
        elif isinstance(value, np.ndarray | torch.Tensor) and np.ndim(value) in (2, 3):
            shown[key] = _picture(np.asarray(value))
    return shown


def _picture(values: np.ndarray) -> Image.Image:
    """(H, W), (H, W, 1) or (H, W, 3) in [-1, 1], or one-hot labels (H, W, n)."""
    if values.ndim == 3 and values.shape[2] > 1 and _is_one_hot(values):
        return Image.fromarray(label_colors(values.shape[2])[values.argmax(axis=2)])
    pixels = to_uint8_array(values)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).convert("RGB")


def _is_one_hot(values: np.ndarray) -> bool:
    return bool(values.min() == 0 and values.max() == 1 and (values.sum(axis=2) == 1).all())


def label_colors(count: int) -> np.ndarray:
    """Fixed colors of labels, uint8 (count, 3), unlike for neighboring labels; 0 is black."""
    colors = np.random.RandomState(0).randint(40, 256, size=(count, 3))
    colors[0] = 0
    return colors.astype(np.uint8)


def texts(item: Item) -> list[str]:
    """The other entries of an item, as lines `entry: value`, wrapped."""
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


def _row(item: Item, dataset: object) -> list[Cell | tuple[str, Cell]]:
    """The pictures of an item under their names and shapes, then its texts."""
    captioned = [
        (f"{key} {' x '.join(map(str, np.shape(item[key])))}", picture)
        for key, picture in pictures(item, dataset).items()
    ]
    return [*captioned, "\n".join(texts(item)) or None]


def write_preview(
    config: Mapping[str, Any], split: str, count: int, seed: int, output: str | Path
) -> str:
    """Write a page with a row per item of a config's data; returns a line that says what is on it.

    Raises:
        UserError: if the config has no such dataset, for what is wrong with its files, and for an
            `output` without the ending of an image format.
    """
    dataset, items = first_items(config, split, count, seed)
    page = grid([_row(item, dataset) for item in items], side=CELL)
    with atomic_path(output) as partial:
        page.save(partial, format=_format(output))
    return f"{output}: {len(items)} of the {len(dataset)} items of {type(dataset).__name__}"


def _format(output: str | Path) -> str:
    """Pillow's name of the format of a file's ending."""
    ending = Path(output).suffix.lower()
    if ending not in Image.registered_extensions():
        raise UserError(f"{output} has no ending of an image format; call it preview.png")
    return Image.registered_extensions()[ending]
