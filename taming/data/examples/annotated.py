"""Example datasets with captions and boxes: COCO and Open Images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taming.data.examples.rendering import GROUND, SHAPES, SKY, Scene, SceneObject
from taming.data.examples.writer import (
    COCO_LABELS,
    OPEN_IMAGES,
    SPLITS,
    STUFF,
    THINGS,
    ExampleWriter,
)

Box = tuple[int, int, int, int]


def write_coco(out: ExampleWriter) -> None:
    """Images with captions, instances, stuff, and both kinds of segmentation."""
    for split, name in SPLITS.items():
        scenes = out.scenes(split, 50_000)
        images = [_coco_image(number, scene) for number, scene in enumerate(scenes, 1)]
        captions = []
        for image, scene in zip(images, scenes, strict=True):
            stem = Path(image["file_name"]).stem
            for place in ("data/coco", "data/coco_annotations"):
                out.image(f"{place}/{name}/{stem}.jpg", scene.image)
            labels = COCO_LABELS[scene.labels]
            out.image(f"data/cocostuffthings/{name}/{stem}.png", labels)
            stuff = np.where(scene.labels >= SKY, labels + 1, 0).astype(np.uint8)
            out.image(f"data/coco/annotations/stuff_{name}_pixelmaps/{stem}.png", stuff)
            words = (scene.caption, f"a picture of {scene.caption}", f"{scene.caption}, sunny")
            captions += [{"image_id": image["id"], "caption": text} for text in words]
        for kind, boxes, table in (("instances", _things, THINGS), ("stuff", _stuff, STUFF)):
            content = {
                "images": images,
                "annotations": list(_coco_annotations(images, scenes, boxes)),
                "categories": [{"id": i, "name": n, "supercategory": kind} for i, n in table],
            }
            _json(out, f"data/coco_annotations/annotations/{kind}_{name}.json", content)
        content = {"images": images, "annotations": captions}
        _json(out, f"data/coco/annotations/captions_{name}.json", content)


def _json(out: ExampleWriter, name: str, content: dict[str, Any]) -> None:
    out.text(name, [json.dumps(content)])


def _coco_image(number: int, scene: Scene) -> dict[str, Any]:
    height, width = scene.labels.shape
    return {"id": number, "file_name": f"{number:012d}.jpg", "height": height, "width": width}


def _things(scene: Scene) -> Iterator[tuple[int, Box]]:
    for thing in scene.objects:
        yield THINGS[SHAPES.index(thing.shape)][0], thing.box


def _stuff(scene: Scene) -> Iterator[tuple[int, Box]]:
    for label, (category, _) in zip((SKY, GROUND), STUFF, strict=True):
        rows, columns = np.nonzero(scene.labels == label)
        x0, y0 = int(columns.min()), int(rows.min())
        yield category, (x0, y0, int(columns.max()) + 1 - x0, int(rows.max()) + 1 - y0)


def _coco_annotations(
    images: Sequence[dict[str, Any]],
    scenes: Sequence[Scene],
    boxes: Callable[[Scene], Iterator[tuple[int, Box]]],
) -> Iterator[dict[str, Any]]:
    for image, scene in zip(images, scenes, strict=True):
        for number, (category, box) in enumerate(boxes(scene)):
            yield {
                "id": 1000 * image["id"] + number,
                "image_id": image["id"],
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }


def write_open_images(out: ExampleWriter) -> None:
    """Boxes and lists as CSVs."""
    root = "data/open_images_annotations"
    out.text(f"{root}/class-descriptions-boxable.csv", [",".join(pair) for pair in OPEN_IMAGES])
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,"
    head += "IsGroupOf,IsDepiction,IsInside"
    for split, boxes, listing in (
        ("train", "oidv6-train-annotations-bbox.csv", "train-images-boxable.csv"),
        ("validation", "validation-annotations-bbox.csv", "validation-images.csv"),
    ):
        rows, names = [head], ["image_name,image_url"]
        for number, scene in enumerate(out.scenes(split, 60_000)):
            identity = f"{number:016x}"
            out.image(f"{root}/{split}/{identity}.jpg", scene.image)
            names.append(f"{identity}.jpg,")
            rows += [_open_images_row(identity, scene, thing) for thing in scene.objects]
        out.text(f"{root}/{boxes}", rows)
        out.text(f"{root}/{listing}", names)


def _open_images_row(identity: str, scene: Scene, thing: SceneObject) -> str:
    height, width = scene.labels.shape
    x0, y0, w, h = thing.box
    category = OPEN_IMAGES[SHAPES.index(thing.shape)][0]
    ends = [x0 / width, (x0 + w) / width, y0 / height, (y0 + h) / height]
    box = ",".join(f"{value:.6f}" for value in ends)
    return f"{identity},xclick,{category},1,{box},{int(thing.share < 0.95)},0,0,0,0"
