"""COCO 2017: things and stuff as objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from taming.data.annotated_objects_dataset import AnnotatedObjectsDataset
from taming.data.files.annotations import all_fields, identity_of, read_json, whole
from taming.data.files.images import BadImage, image_mode_and_size
from taming.data.helper_types import Category
from taming.data.scene_table import Objects, Row, SceneCollector
from taming.errors import UserError

FOLDERS = {"train": "train2017", "validation": "val2017"}
UNUSED = ("segmentation", "license", "coco_url", "flickr_url", "date_captured")
BOX_KEYS = ("image_id", "category_id", "bbox", "id", "iscrowd")
LEFT_OUT = "other"  # the stuff category of everything else


class AnnotatedObjectsCoco(AnnotatedObjectsDataset):
    """`annotations/{instances,stuff}_{train,val}2017.json` with `train2017/` and `val2017/`.

    `use_things` takes the objects of `instances_*.json`, `use_stuff` the regions of `stuff_*.json`.
    With `mark_crowds`, objects of a crowd have the class token of a group, if there is one
    (`use_group_parameter`). The published models have not seen it: there, a crowd's `is_group_of`
    is the number 1, and only `True` changes a token. The other arguments are those of
    `AnnotatedObjectsDataset`.
    """

    flags_known = ("is_group_of",)

    def __init__(
        self,
        use_things: bool = True,
        use_stuff: bool = True,
        mark_crowds: bool = False,
        **kwargs: Any,
    ) -> None:
        self._kinds = ["instances"] * use_things + ["stuff"] * use_stuff
        if not self._kinds:
            raise UserError("AnnotatedObjectsCoco: use_things and use_stuff are both false")
        self.flag_type = bool if mark_crowds else int
        self._contents: list[dict[str, Any]] | None = None
        super().__init__(**kwargs)
        self._contents = None  # half a gigabyte that the table now holds

    def check(self, index: int) -> tuple[int, int]:
        taken = super().check(index)
        path, declared = self.paths[index], self._declared_size(self.get_image_id(index))
        if declared == taken[::-1]:
            return taken
        with self.naming(path):
            _, other = image_mode_and_size(path, not self.reading.upright)
            if declared == other[::-1]:
                way = "ignore" if self.reading.upright else "apply"
                raise BadImage(
                    f"has an EXIF orientation, and its annotations are of {declared[0]} x "
                    f"{declared[1]} pixels: set exif: {way}"
                )
        return taken

    def get_path_structure(self) -> dict[str, str]:
        if self.split == "test":
            raise UserError("AnnotatedObjectsCoco: COCO has no annotations of test; use validation")
        folder = FOLDERS[self.split]
        return {
            "top_level": "",
            "instances_annotations": f"annotations/instances_{folder}.json",
            "stuff_annotations": f"annotations/stuff_{folder}.json",
            "files": folder,
        }

    def get_image_description(self, image_id: str) -> dict[str, Any]:
        size = self._declared_size(image_id)
        return super().get_image_description(image_id) | {"original_size": size}

    def _declared_size(self, image_id: str) -> tuple[int, int]:
        width, height = self._sizes[self.place_of(image_id)].tolist()
        return width, height

    def _read(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        files = [self.structure[f"{kind}_annotations"] for kind in self._kinds]
        if self._contents is None:
            keys = ("images", "annotations", "categories")
            self._contents = [read_json(file, keys, self._name, UNUSED) for file in files]
        return zip(files, self._contents, strict=True)

    def load_categories(self) -> list[Category]:
        categories = []
        for file, content in self._read():
            names = ("id", "name", "supercategory")
            for identity, name, parent in all_fields(
                content["categories"], names, file, "categories"
            ):
                categories.append(Category(str(identity_of(identity)), parent, name))
        self.categories_left_out = {one.id for one in categories if one.name == LEFT_OUT}
        return [one for one in categories if one.name != LEFT_OUT]

    def collect(
        self, collector: SceneCollector, categories: Mapping[str, int]
    ) -> tuple[Sequence[str], Sequence[str]]:
        images: dict[Any, tuple[int, int, int]] = {}  # number, width and height by id
        names: list[str] = []
        for file, content in self._read():
            keys = ("id", "file_name", "width", "height")
            for identity, name, width, height in all_fields(
                content["images"], keys, file, "images"
            ):
                identity = identity_of(identity)
                if identity not in images:
                    images[identity] = len(names), width, height
                    names.append(name)
        for file, content in self._read():
            rows = all_fields(content["annotations"], BOX_KEYS, file, "annotations")
            rows = [(identity_of(row[0]), whole(row[1]), *row[2:]) for row in rows]
            place = partial("entry {1} of annotations in {0}".format, file)
            collector.add_rows(
                list(enumerate(rows)),
                images=images,
                categories=categories,
                place=place,
                convert=partial(_objects, images=images, categories=categories, place=place),
            )
        self._sizes = np.array([size for _, *size in images.values()], dtype=np.int32)
        return names, [str(identity) for identity in images]


def _objects(
    rows: list[Row],
    images: Mapping[Any, tuple[int, int, int]],
    categories: Mapping[str, int],
    place: Callable[[int], str],
) -> Objects:
    """Rows of `BOX_KEYS` as objects; raises ValueError."""
    try:
        boxes = np.array([row[2] for _, row in rows], dtype=float).reshape(len(rows), 4)
    except (TypeError, ValueError):
        raise ValueError(f"its box is {rows[0][1][2]!r}, which is not four numbers") from None
    try:
        ids = np.array([int(row[3]) for _, row in rows], dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"its id is {rows[0][1][3]!r}, which is no whole number") from None
    numbers_and_sizes = np.array([images[row[0]] for _, row in rows]).reshape(-1, 3)
    return Objects(
        images=numbers_and_sizes[:, 0],
        boxes=boxes / np.tile(numbers_and_sizes[:, 1:], 2),
        categories=[categories[str(row[1])] for _, row in rows],
        ids=ids,
        confidences=np.ones(len(rows)),
        flags=[int(bool(row[4])) for _, row in rows],
        sources=[""] * len(rows),
        place=lambda number: place(rows[number][0]),
    )
