"""Small scene datasets in COCO's and Open Images' formats, and runs that sample scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.data.examples.datasets import ExampleWriter
from taming.data.examples.datasets import write_coco as write_example_coco
from taming.data.seeding import SeededDataset
from taming.evaluation.sources.scenes import Layouts
from tests.kit.images import write_image
from tests.kit.models import scene_config, transformer_config
from tests.kit.runs import tiny_run

OPTIONS: dict[str, Any] = {
    "split": "train",
    "keys": ["image", "objects_bbox", "annotations"],
    "target_image_size": 32,
    "min_object_area": 0.001,
    "min_objects_per_image": 1,
    "max_objects_per_image": 3,
    "crop_method": "center",
    "random_flip": False,
    "no_tokens": 1024,
    "use_group_parameter": True,
    "encode_crop": True,
}

CLASSES = "/m/01s55n,Suitcase\n/m/0a,Man\n/m/0b,Tree\n/m/0c,Sofa bed\n"
HEAD = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
BOXES = [
    "aa,xclick,/m/01s55n,1,0.0,0.5,0.0,0.25,0,1,0,0,0",
    "aa,activemil,/m/0a,0.5,0.25,0.75,0.5,1.0,-1,-1,-1,-1,-1",
    "bb,xclick,/m/0b,1,0.5,1.0,0.5,1.0,0,0,1,0,0",
]


def coco_content() -> dict[str, Any]:
    """Images 5 (48 x 32) with two objects, one of them a crowd, and 7 with a speck."""
    images = [
        {"id": 5, "file_name": "5.jpg", "width": 48, "height": 32},
        {"id": 7, "file_name": "7.jpg", "width": 48, "height": 32},
    ]
    things = [
        {"image_id": 5, "category_id": 1, "bbox": [12, 8, 24, 16], "id": 1, "iscrowd": 0},
        {"image_id": 5, "category_id": 10, "bbox": [0, 0, 12, 32], "id": 2, "iscrowd": 1},
        {"image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1], "id": 3, "iscrowd": 0},
    ]
    names = {1: "person", 2: "bicycle", 10: "light"}
    categories = [{"id": i, "name": n, "supercategory": "thing"} for i, n in names.items()]
    return {"images": images, "annotations": things, "categories": categories}


def write_coco(root: Path, content: dict[str, Any] | None = None) -> Path:
    """Training split; stuff adds a region of `sky` and one of `other` to image 5."""
    content = content or coco_content()
    stuff = [
        {"image_id": 5, "category_id": 92, "bbox": [0, 0, 48, 8], "id": 9, "iscrowd": 0},
        {"image_id": 5, "category_id": 183, "bbox": [0, 0, 48, 32], "id": 10, "iscrowd": 0},
    ]
    kinds = [
        {"id": 92, "name": "sky", "supercategory": "outdoor"},
        {"id": 183, "name": "other", "supercategory": "other"},
    ]
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for image in coco_content()["images"]:
        write_image(root / "train2017" / image["file_name"], 32, 48, seed=image["id"])
    for name, data in (
        ("instances", content),
        ("stuff", coco_content() | {"annotations": stuff, "categories": kinds}),
    ):
        (root / f"annotations/{name}_train2017.json").write_text(json.dumps(data))
    return root


def write_open_images(root: Path, boxes: list[str] | None = None, head: str = HEAD) -> Path:
    """Training split with images aa and bb."""
    for seed, name in enumerate(("aa", "bb")):
        write_image(root / f"train/{name}.jpg", 32, 48, seed=seed)
    (root / "class-descriptions-boxable.csv").write_text(CLASSES)
    rows = [head, *(BOXES if boxes is None else boxes)]
    (root / "oidv6-train-annotations-bbox.csv").write_text("\n".join(rows) + "\n")
    (root / "train-images-boxable.csv").write_text("image_name,image_url\naa.jpg,u\nbb.jpg,u\n")
    return root


# ---------------------------------------------------------------------- runs of scenes

SCENES = scene_config(block_size=64)
# Rendered scenes have up to 3 things, sky and grass.
SMALL = {"no_tokens": 64, "target_image_size": 8, "max_objects_per_image": 8}


def options(root: Path, **changes: Any) -> dict[str, Any]:
    """The params of the dataset in `root`."""
    path = {"data_path": str(root / "data" / "coco_annotations"), "split": "validation"}
    return OPTIONS | SMALL | path | changes


def write_scenes(root: Path, count: int = 6) -> Path:
    """Example data with `count` scenes of validation."""
    write_example_coco(ExampleWriter(root, train=2, validation=count))
    return root


def layouts(root: Path, count: int | None = None, seed: int = 0, **changes: Any) -> Layouts:
    """The layouts of data that `write_scenes` wrote."""
    data = AnnotatedObjectsCoco(**options(root, **changes))
    return Layouts(SeededDataset(data, seed), count, "objects_bbox")


def scene_run(root: Path) -> Path:
    """A run with the data's section in its config."""
    target = "taming.data.annotated_objects_coco.AnnotatedObjectsCoco"
    validation = {"target": target, "params": options(root)}
    return tiny_run(root / "run", transformer_config(**SCENES), validation=validation)
