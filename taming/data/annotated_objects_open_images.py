"""Open Images (V6's boxes)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from taming.data.annotated_objects_dataset import AnnotatedObjectsDataset
from taming.data.columns import chunks
from taming.data.files.annotations import read_csv
from taming.data.files.find import find_images
from taming.data.helper_types import Category
from taming.data.scene_table import FLAGS, Objects, Row, SceneCollector

log = logging.getLogger(__name__)
SUITCASE = "/m/01s55n"  # numbered last: it joined when the others' numbers were in use
BOX_COLUMNS = ("ImageID", "LabelName", "Source", "Confidence", "XMin", "XMax", "YMin", "YMax")
CHUNK = 50_000  # rows that are turned into arrays together
FLAG_COLUMNS = ("IsGroupOf", "IsTruncated", "IsOccluded", "IsDepiction", "IsInside")  # as FLAGS
FILES = {  # of each split: boxes, and the list of images
    "train": ("oidv6-train-annotations-bbox.csv", "train-images-boxable.csv"),
    "validation": ("validation-annotations-bbox.csv", "validation-images.csv"),
    "test": ("test-annotations-bbox.csv", "test-images.csv"),
}


class AnnotatedObjectsOpenImages(AnnotatedObjectsDataset):
    """Boxes, classes and image lists as CSVs, and the folders `train/`, `validation/`, `test/`.

    Where the image list is empty, the images in the folder take its place. The arguments are those
    of `AnnotatedObjectsDataset`.
    """

    flags_known = FLAGS

    def __init__(self, use_additional_parameters: bool, **kwargs: Any) -> None:
        super().__init__(use_additional_parameters=use_additional_parameters, **kwargs)

    def get_path_structure(self) -> dict[str, str]:
        boxes, images = FILES[self.split]
        return {
            "top_level": "",
            "class_descriptions": "class-descriptions-boxable.csv",
            "annotations": boxes,
            "file_list": images,
            "files": self.split,
        }

    def get_image_description(self, image_id: str) -> dict[str, Any]:
        path = {"file_path": str(self.get_image_path(image_id))}
        return path | super().get_image_description(image_id)

    def load_categories(self) -> list[Category]:
        file = self.structure["class_descriptions"]
        rows = read_csv(file, ("id", "name"), self._name, header=False)
        return [Category(identity, None, name) for _, (identity, name) in rows]

    def category_order(self, identity: str) -> tuple[bool, str]:
        return identity == SUITCASE, identity

    def _image_names(self) -> list[str]:
        file = self.structure["file_list"]
        first_rows = read_csv(file, ("first",), self._name, header=False)
        _, (first,) = next(first_rows, (1, ("",)))
        column = "ImageID" if first == "ImageID" else "image_name"
        names = [name for _, (name,) in read_csv(file, (column,), self._name)]
        if not names:
            log.warning("%s: %s lists no images; using those there are", self._name, file)
            names = [os.path.basename(path) for path in find_images(self.structure["files"])]
        return [name if "." in name else f"{name}.jpg" for name in names]

    def collect(
        self, collector: SceneCollector, categories: Mapping[str, int]
    ) -> tuple[Sequence[str], Sequence[str]]:
        names = self._image_names()
        ids = [os.path.splitext(name)[0] for name in names]
        images = {identity: number for number, identity in enumerate(ids)}
        file = self.structure["annotations"]
        rows = read_csv(file, BOX_COLUMNS + FLAG_COLUMNS, self._name)
        with tqdm(desc=f"reading {file.name}", unit=" boxes", delay=2, disable=None) as bar:
            for chunk in chunks(rows, CHUNK):
                collector.add_rows(
                    chunk,
                    images=images,
                    categories=categories,
                    place=lambda line: f"line {line} of {file}",
                    convert=lambda rows: _objects(rows, images, categories, file),
                )
                bar.update(len(chunk))
        return names, ids


def _objects(
    rows: list[Row], images: Mapping[str, int], categories: Mapping[str, int], file: Path
) -> Objects:
    """Rows of `BOX_COLUMNS` and `FLAG_COLUMNS` as objects; raises ValueError."""
    boxes, confidences, flags = _values(rows)
    return Objects(
        images=[images[row[0]] for _, row in rows],
        boxes=boxes,
        categories=[categories[row[1]] for _, row in rows],
        ids=[line for line, _ in rows],
        confidences=confidences,
        flags=flags,
        sources=[row[2] for _, row in rows],
        place=lambda number: f"line {rows[number][0]} of {file}",
    )


def _values(rows: list[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes float (n, 4), confidences float (n,) and flags int (n,); raises ValueError."""
    count = 5 * len(rows)
    numbers = np.fromiter((float(v) for _, row in rows for v in row[3:8]), float, count)
    confidence, x0, x1, y0, y1 = numbers.reshape(-1, 5).T
    # -1 stands for "not known", and counted as true when published models were trained.
    flags = np.fromiter((int(v) != 0 for _, row in rows for v in row[8:]), bool, count)
    bits = (flags.reshape(-1, 5) << np.arange(5)).sum(axis=1)
    return np.stack((x0, y0, x1 - x0, y1 - y0), axis=1), confidence, bits
