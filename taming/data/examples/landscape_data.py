"""Rendered landscapes as datasets: classes, depth, parts with labels, boxes.

images/{train,val}/<place>/*.png         whole landscapes, in a folder per class
depth/{train,val}/<place>/*.png          16 bits: 65535 over the distance in camera heights
views/{images,segmentation}/{train,val}  whole ones, and cut from larger ones, with labels
boxes/{annotations,train2017,val2017}    whole ones and their boxes in COCO's format
{train,val}.txt                          lists of all images
palette.txt                              a color for each label, in which maps can be painted
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from taming.data.examples.landscapes import Thing, landscape
from taming.data.examples.places import LABELS, PALETTE, STUFF
from taming.data.files.list_files import write_lines

SIDE = 128  # pixels of all images
LARGE, CUTS = 256, 4  # side of those that are cut, and cuts of each
SPLITS = {"train": ("train2017", 0), "val": ("val2017", 1_000_000)}  # COCO's name, first seed


def write_landscapes(root: str | Path, train: int, validation: int) -> int:
    """Write `train` and `validation` landscapes below `root`, and as many cut from larger ones;
    returns the number of files."""
    root = Path(root)
    for split, count in (("train", train), ("val", validation)):
        names = list(_write_split(root, split, count))
        write_lines(root / f"{split}.txt", names)
    colors = [" ".join(map(str, c)) + f" {n}" for c, n in zip(PALETTE, LABELS, strict=True)]
    write_lines(root / "palette.txt", colors)
    return sum(path.is_file() for path in root.rglob("*"))


def _write_split(root: Path, split: str, count: int) -> Iterator[str]:
    """Write a split; yields the names of its images, relative to `root`."""
    folder, first = SPLITS[split]
    boxes: list[list[Thing]] = []
    for number in range(count):
        scene = landscape(first + number, SIDE, SIDE)
        name = f"{split}/{scene.place}/{number:06}.png"
        _save(root / "images" / name, scene.image)
        near = np.round(65535 / np.maximum(scene.depth, 1)).astype(np.uint16)
        _save(root / "depth" / name, near)
        _save(root / "boxes" / folder / f"{number:012}.png", scene.image)
        boxes.append([*scene.things, *scene.regions()])
        yield _view(root, f"{split}/{number:06}.png", scene.image, scene.labels)
    _write_boxes(root / "boxes" / "annotations", folder, boxes)
    for number in range(count):
        if number % CUTS == 0:
            scene = landscape(first + count + number // CUTS, LARGE, LARGE)
        random = np.random.RandomState(first + number)
        y, x = random.randint(0, LARGE - SIDE + 1, 2)
        part = np.s_[y : y + SIDE, x : x + SIDE]
        yield _view(root, f"{split}/part{number:06}.png", scene.image[part], scene.labels[part])


def _view(root: Path, name: str, image: np.ndarray, labels: np.ndarray) -> str:
    _save(root / "views" / "segmentation" / name, labels)
    _save(root / "views" / "images" / name, image)
    return f"views/images/{name}"


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def _write_boxes(folder: Path, split: str, boxes: list[list[Thing]]) -> None:
    """`instances_<split>.json` and `stuff_<split>.json`; a label's id is its number and 1."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": n, "file_name": f"{n:012}.png", "height": SIDE, "width": SIDE}
        for n in range(len(boxes))
    ]
    tables = {"stuff": LABELS[: len(STUFF)], "instances": LABELS[len(STUFF) :]}
    for kind, names in tables.items():
        content = {
            "images": images,
            "annotations": list(_annotations(boxes, names)),
            "categories": [
                {"id": LABELS.index(name) + 1, "name": name, "supercategory": kind}
                for name in names
            ],
        }
        write_lines(folder / f"{kind}_{split}.json", [json.dumps(content)])


def _annotations(boxes: list[list[Thing]], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for image, things in enumerate(boxes):
        for number, thing in enumerate(things):
            if thing.name in names:
                yield {
                    "id": 1000 * image + number,
                    "image_id": image,
                    "category_id": LABELS.index(thing.name) + 1,
                    "bbox": thing.box,
                    "area": thing.box[2] * thing.box[3],
                    "iscrowd": 0,
                }
