"""COCO 2017: things and stuff as objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from taming.data.annotated_objects_dataset import AnnotatedObjectsDataset
from taming.data.annotation_files import fields, read_json
from taming.data.helper_types import Category
from taming.data.scene_table import SceneCollector
from taming.errors import UserError

SPLITS = {"train": "train2017", "validation": "val2017"}
LEFT_OUT = "other"  # the stuff category of everything else


class AnnotatedObjectsCoco(AnnotatedObjectsDataset):
    """`annotations/{instances,stuff}_{train,val}2017.json` with `train2017/` and `val2017/`.

    Args:
        use_things: use the objects of `instances_*.json`.
        use_stuff: use the regions of `stuff_*.json`.
        (the others: see `AnnotatedObjectsDataset`)
    """

    flags_known = ("is_group_of",)

    def __init__(self, use_things: bool = True, use_stuff: bool = True, **kwargs: Any) -> None:
        kinds = ["instances"] * use_things + ["stuff"] * use_stuff
        if not kinds:
            raise UserError("AnnotatedObjectsCoco: use_things and use_stuff are both false")
        split = SPLITS.get(kwargs.get("split", ""))
        if kwargs.get("split") == "test":
            raise UserError("AnnotatedObjectsCoco: COCO has no annotations of test; use validation")
        self._files = [
            Path(kwargs["data_path"], "annotations", f"{kind}_{split}.json") for kind in kinds
        ]
        self._contents: list[dict[str, Any]] | None = None
        super().__init__(**kwargs)
        self._contents = None  # half a gigabyte that the table now holds

    @property
    def image_folder(self) -> Path:
        return self.data_path / SPLITS[self.split]

    def _read(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        if self._contents is None:
            keys = ("images", "annotations", "categories")
            self._contents = [read_json(file, keys, self._name) for file in self._files]
        return zip(self._files, self._contents, strict=True)

    def load_categories(self) -> list[Category]:
        categories = []
        for file, content in self._read():
            for number, record in enumerate(content["categories"]):
                names = ("id", "name", "supercategory")
                identity, name, parent = fields(
                    record, names, file, f"entry {number} of categories"
                )
                if name != LEFT_OUT:
                    categories.append(Category(str(identity), parent, name))
        return categories

    def collect(
        self, collector: SceneCollector, mapping: Mapping[str, str]
    ) -> tuple[Sequence[str], Sequence[str]]:
        images: dict[Any, tuple[int, int, int]] = {}
        names: list[str] = []
        for file, content in self._read():
            for number, record in enumerate(content["images"]):
                keys = ("id", "file_name", "width", "height")
                place = f"entry {number} of images"
                identity, name, width, height = fields(record, keys, file, place)
                if identity not in images:
                    images[identity] = len(names), width, height
                    names.append(name)
        for file, content in self._read():
            for number, record in enumerate(content["annotations"]):
                place = f"entry {number} of annotations in {file}"
                self._collect_one(collector, record, images, mapping, file, place)
        return names, [str(identity) for identity in images]

    def _collect_one(
        self,
        collector: SceneCollector,
        record: Any,
        images: Mapping[Any, tuple[int, int, int]],
        mapping: Mapping[str, str],
        file: Path,
        place: str,
    ) -> None:
        keys = ("image_id", "category_id", "bbox", "id", "iscrowd")
        image, category, box, identity, crowd = fields(record, keys, file, place)
        if image not in images:
            collector.reject(f"{place} is for image {image}, which is not among its images")
            return
        category_no = self.category_numbers.get(mapping.get(str(category), str(category)))
        if category_no is None:
            return
        number, width, height = images[image]
        try:
            x0, y0, w, h = (float(value) for value in box)
        except (TypeError, ValueError):
            collector.reject(f"{place} has the box {box!r}, which is not four numbers")
            return
        relative = (x0 / width, y0 / height, w / width, h / height)
        flags = int(bool(crowd))
        collector.add(number, relative, category_no, identity, lambda: place, flags=flags)
