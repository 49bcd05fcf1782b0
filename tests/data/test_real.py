"""Real files against what a few lines of other code make of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from taming.data import ade20k, coco, sflckr
from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.data.annotated_objects_open_images import AnnotatedObjectsOpenImages
from taming.data.imagenet import DRINExamples
from tests.kit.real import FOLDER, link_real_data, needs_real_data
from tests.kit.scenes import OPTIONS

pytestmark = needs_real_data
ALL = OPTIONS | {"min_object_area": 0.0, "max_objects_per_image": 500, "target_image_size": 64}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link_real_data(tmp_path)
    monkeypatch.chdir(tmp_path)


def middle(pixels: np.ndarray, size: int, interpolation: int) -> np.ndarray:
    """Smallest side to `size`, and the square in the middle."""
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    small = cv2.resize(
        pixels, (round(width * scale), round(height * scale)), interpolation=interpolation
    )
    top, left = (small.shape[0] - size) // 2, (small.shape[1] - size) // 2
    return small[top : top + size, left : left + size]


@pytest.mark.parametrize(("module", "shift"), [(coco, 1), (ade20k, 0), (sflckr, 0)])
def test_segmentations(module: Any, shift: int) -> None:
    for item in module.Examples(size=64):
        picture = np.asarray(Image.open(item["file_path_"]).convert("RGB"))
        expected = middle(picture, 64, cv2.INTER_CUBIC) / np.float32(127.5) - 1
        np.testing.assert_array_equal(item["image"], expected)
        labels = np.asarray(Image.open(item["segmentation_path_"])).astype(np.uint8)
        stored = middle(labels + np.uint8(shift), 64, cv2.INTER_NEAREST)  # 255 + 1 is 0
        np.testing.assert_array_equal(item["segmentation"].argmax(axis=2), stored)


def test_depth() -> None:
    for item in DRINExamples():
        name = Path(item["file_path_"]).relative_to("data/drin_images").with_suffix(".png")
        stored = np.asarray(Image.open("data/drin_depth" / name)).copy().view("<f4")[..., 0]
        scaled = (stored - stored.min()) / (stored.max() - stored.min()) * 2 - 1
        expected = middle(scaled, 256, cv2.INTER_LINEAR)
        np.testing.assert_allclose(item["depth"], expected, atol=1e-5)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_coco_boxes(split: str) -> None:
    root = FOLDER / "coco_annotations"
    year = {"train": "train2017", "validation": "val2017"}[split]
    contents = [
        json.loads((root / f"annotations/{kind}_{year}.json").read_text())
        for kind in ("instances", "stuff")
    ]
    names = {c["id"]: c["name"] for content in contents for c in content["categories"]}
    images = {image["id"]: image for content in contents for image in content["images"]}
    data = AnnotatedObjectsCoco(data_path=root, **ALL | {"split": split})
    found = {one.id: one for item in data for one in item["annotations"]}
    stored = [one for content in contents for one in content["annotations"]]
    stored = [one for one in stored if names[one["category_id"]] != "other"]
    assert len(found) == len(stored) > 100
    for one in stored:
        image, ours = images[one["image_id"]], found[one["id"]]
        sides = np.array([image["width"], image["height"]] * 2)
        np.testing.assert_allclose(np.array(ours.bbox) * sides, one["bbox"], atol=0.011)
        assert ours.is_group_of == bool(one["iscrowd"]) and ours.image_id == str(one["image_id"])
        assert (
            data.get_textual_label_for_category_no(ours.category_no) == names[int(ours.category_id)]
        )
        assert int(ours.category_id) == one["category_id"]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_open_images_boxes(split: str) -> None:
    root = FOLDER / "open_images_annotations"
    name = "oidv6-train" if split == "train" else split
    with open(root / f"{name}-annotations-bbox.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    options = ALL | {"split": split, "use_additional_parameters": True, "no_tokens": 16384}
    data = AnnotatedObjectsOpenImages(data_path=root, **options)
    found = {one.id: one for item in data for one in item["annotations"]}
    assert len(found) == len(rows) > 50
    for line, row in enumerate(rows, 2):
        ours = found[line]
        x0, x1, y0, y1 = (float(row[key]) for key in ("XMin", "XMax", "YMin", "YMax"))
        np.testing.assert_allclose(ours.bbox, (x0, y0, x1 - x0, y1 - y0), atol=1e-9)
        assert (ours.image_id, ours.category_id) == (row["ImageID"], row["LabelName"])
        assert (ours.source, ours.confidence) == (row["Source"], float(row["Confidence"]))
        flags = ("IsGroupOf", "IsTruncated", "IsOccluded", "IsDepiction", "IsInside")
        assert ours[8:13] == tuple(row[flag] != "0" for flag in flags)


@pytest.mark.parametrize("method", ["center", "random-1d"])
def test_scenes_are_cut_where_they_say(method: str) -> None:
    options = ALL | {"crop_method": method, "random_flip": True, "no_tokens": 8192}
    options |= {"keys": ["image", "image_path", "crop_bbox", "flipped", "objects_bbox"]}
    data = AnnotatedObjectsCoco(data_path=FOLDER / "coco_annotations", **options)
    builder = data.conditional_builders["objects_bbox"]
    for item in data:
        with Image.open(item["image_path"]) as picture:
            x0, y0, w, h = np.array(item["crop_bbox"]) * np.tile(picture.size, 2)
            cut = (x0, y0, x0 + w, y0 + h)
            expected = picture.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR, box=cut)
        pixels = np.asarray(expected)[:, :: -1 if item["flipped"] else 1]
        shown = np.round((item["image"] + 1) * 127.5)
        assert np.abs(shown - pixels).max() <= 1  # the place is rounded
        x0, y0, width, height = item["crop_bbox"]
        told = (1 - x0 - width if item["flipped"] else x0, y0, width, height)
        crop = builder.inverse_build(item["objects_bbox"])[1]
        np.testing.assert_allclose(crop, told, atol=0.02)
