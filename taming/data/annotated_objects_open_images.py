"""Open Images (V6's boxes)."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from taming.data.annotated_objects_dataset import AnnotatedObjectsDataset
from taming.data.annotation_files import read_csv
from taming.data.files import find_images
from taming.data.helper_types import Category
from taming.data.scene_table import FLAGS, SceneCollector
from taming.errors import UserError

log = logging.getLogger(__name__)
SUITCASE = "/m/01s55n"  # numbered last: it joined when the others' numbers were in use
BOX_COLUMNS = ("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax")
FLAG_COLUMNS = ("IsGroupOf", "IsTruncated", "IsOccluded", "IsDepiction", "IsInside")  # as FLAGS


@dataclass(frozen=True)
class _Files:
    boxes: str
    images: str


FILES = {
    "train": _Files("oidv6-train-annotations-bbox.csv", "train-images-boxable.csv"),
    "validation": _Files("validation-annotations-bbox.csv", "validation-images.csv"),
    "test": _Files("test-annotations-bbox.csv", "test-images.csv"),
}


class AnnotatedObjectsOpenImages(AnnotatedObjectsDataset):
    """Boxes and image lists as CSVs, `class-descriptions-boxable.csv`, and the folders `train/`,
    `validation/`, `test/`.

    Where the image list is empty, the images in the folder take its place.

    Args:
        use_additional_parameters: class tokens say whether objects are occluded, depicted, inside.
        (the others: see `AnnotatedObjectsDataset`)
    """

    flags_known = FLAGS

    def __init__(self, use_additional_parameters: bool, **kwargs: Any) -> None:
        super().__init__(use_additional_parameters=use_additional_parameters, **kwargs)

    @property
    def image_folder(self) -> Path:
        return self.data_path / self.split

    def load_categories(self) -> list[Category]:
        file = self.data_path / "class-descriptions-boxable.csv"
        rows = read_csv(file, ("id", "name"), self._name, header=False)
        return [Category(identity, None, name) for _, (identity, name) in rows]

    def category_order(self, identity: str) -> Any:
        return identity == SUITCASE, identity

    def _image_names(self) -> list[str]:
        file = self.data_path / FILES[self.split].images
        column = "ImageID" if _header(file)[:1] == ["ImageID"] else "image_name"
        names = [name for _, (name,) in read_csv(file, (column,), self._name)]
        if not names:
            log.warning("%s: %s lists no images; using those there are", self._name, file)
            names = [os.path.basename(path) for path in find_images(self.image_folder)]
        return [name if "." in name else f"{name}.jpg" for name in names]

    def collect(
        self, collector: SceneCollector, mapping: Mapping[str, str]
    ) -> tuple[Sequence[str], Sequence[str]]:
        names = self._image_names()
        ids = [os.path.splitext(name)[0] for name in names]
        numbers = {identity: number for number, identity in enumerate(ids)}
        file = self.data_path / FILES[self.split].boxes
        rows = read_csv(file, BOX_COLUMNS + FLAG_COLUMNS, self._name)
        for line, row in tqdm(rows, f"reading {file.name}", unit=" boxes", delay=2, disable=None):
            if row[0] not in numbers:
                collector.reject(f"line {line} of {file} is for {row[0]}, which is no listed image")
                continue
            category_no = self.category_numbers.get(mapping.get(row[2], row[2]))
            if category_no is not None:
                self._collect_one(collector, row, numbers[row[0]], category_no, line, file)
        return names, ids

    def _collect_one(
        self,
        collector: SceneCollector,
        row: Sequence[str],
        image: int,
        category_no: int,
        line: int,
        file: Path,
    ) -> None:
        def place() -> str:
            return f"line {line} of {file}"

        try:
            confidence, x0, x1, y0, y1 = map(float, row[3:8])
            # -1 stands for "not known", and counted as true when published models were trained.
            group, truncated, occluded, depiction, inside = map(bool, map(int, row[8:]))
        except ValueError as error:
            collector.reject(f"{place()} cannot be read ({error})")
            return
        flags = group | truncated << 1 | occluded << 2 | depiction << 3 | inside << 4
        box = (x0, y0, x1 - x0, y1 - y0)
        collector.add(image, box, category_no, line, place, row[1], confidence, flags)


def _header(file: Path) -> list[str]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            return next(csv.reader(text), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}); put Open Images' list there") from None
