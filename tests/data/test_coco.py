from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from taming.data.coco import (
    CocoBase,
    CocoImagesAndCaptionsTrain,
    CocoImagesAndCaptionsValidation,
)
from taming.errors import UserError
from tests.kit.images import truncate, write_image

JSON = "data/coco/annotations/captions_train2017.json"


@pytest.fixture
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two captioned images and one without captions, of which no file exists."""
    monkeypatch.chdir(tmp_path)
    annotations = []
    for identity in (7, 3):
        write_image(Path(f"data/coco/train2017/{identity:012}.jpg"), 24, 48, identity)
        for folder in ("cocostuffthings/train2017", "coco/annotations/stuff_train2017_pixelmaps"):
            path = Path(f"data/{folder}/{identity:012}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            labels = np.full((24, 48), identity, dtype=np.uint8)
            labels[:11] = 255  # so that other ways of resizing mix rows
            Image.fromarray(labels).save(path)
        annotations += [{"image_id": identity, "caption": f"{identity} {i}"} for i in range(5)]
    images = [{"id": i, "file_name": f"{i:012}.jpg"} for i in (7, 3, 5)]
    write({"images": images, "annotations": annotations})
    return {"images": images, "annotations": annotations}


def write(content: dict[str, Any]) -> None:
    Path(JSON).parent.mkdir(parents=True, exist_ok=True)
    Path(JSON).write_text(json.dumps(content))


def test_one_hot_of_stuff_and_things(content: dict[str, Any]) -> None:
    data = CocoImagesAndCaptionsTrain(16, onehot_segmentation=True, use_stuffthing=True)
    item = data[1]
    assert len(data) == 2 and item["filename_"] == "000000000003.jpg"
    assert item["img_path"] == item["file_path_"] == "data/coco/train2017/000000000003.jpg"
    assert item["seg_path"] == "data/cocostuffthings/train2017/000000000003.png"
    assert item["image"].shape == (16, 16, 3) and item["segmentation"].shape == (16, 16, 183)
    np.testing.assert_array_equal(np.unique(item["segmentation"].argmax(-1)), [0, 4])


def test_a_random_caption_of_the_image_s_own(content: dict[str, Any]) -> None:
    random.seed(0)
    data = CocoImagesAndCaptionsTrain(16)
    assert {data[0]["caption"] for _ in range(60)} == {f"7 {i}" for i in range(5)}


def test_picture_of_pixelmaps(content: dict[str, Any]) -> None:
    item = CocoImagesAndCaptionsTrain(16)[0]
    assert item["seg_path"].startswith("data/coco/annotations/stuff_train2017_pixelmaps/")
    assert item["segmentation"].shape == (16, 16, 3)
    values = np.unique(item["segmentation"])
    np.testing.assert_allclose(values, [7 / 127.5 - 1, 1], atol=1e-6)  # nothing in between


def test_the_validation_s_own_folders(content: dict[str, Any]) -> None:
    Path(JSON.replace("train", "val")).write_text(json.dumps(content))
    places = ["coco/train2017", "cocostuffthings/train2017"]
    places += ["coco/annotations/stuff_train2017_pixelmaps"]
    for place in places:
        Path("data", place).rename(Path("data", place.replace("train", "val")))
    for use_stuffthing, place in ((True, places[1]), (False, places[2])):
        item = CocoImagesAndCaptionsValidation(16, use_stuffthing=use_stuffthing)[0]
        assert item["img_path"] == "data/coco/val2017/000000000007.jpg"
        assert item["seg_path"] == f"data/{place.replace('train', 'val')}/000000000007.png"


def test_crops(content: dict[str, Any]) -> None:
    data = CocoImagesAndCaptionsTrain(16, force_no_crop=True)
    assert data[0]["image"].shape == (16, 32, 3)
    data = CocoImagesAndCaptionsTrain(16, crop_size=8)
    assert len({data[0]["image"].tobytes() for _ in range(9)}) > 1


def test_given_files(content: dict[str, Any]) -> None:
    data = CocoImagesAndCaptionsTrain(16, given_files=["000000000003.jpg"])
    assert [item["filename_"] for item in data] == ["000000000003.jpg"]
    assert data[0]["caption"].startswith("3 ")
    with pytest.raises(UserError, match="no image of given_files, such as x.jpg, has captions"):
        CocoImagesAndCaptionsTrain(16, given_files=["x.jpg"])
    # as published: names of segmentations, in the order of the annotations, of other splits as well
    png = [f"{number:012}.png" for number in (3, 8, 7)]
    data = CocoImagesAndCaptionsTrain(16, given_files=png)
    assert [item["filename_"] for item in data] == ["000000000007.jpg", "000000000003.jpg"]


def test_images_are_resized_bilinearly(content: dict[str, Any]) -> None:
    item = CocoImagesAndCaptionsTrain(16, force_no_crop=True)[0]
    pixels = np.asarray(Image.open(item["img_path"]))
    expected = cv2.resize(pixels, (32, 16), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(item["image"], expected / 127.5 - 1, atol=1e-6)


def test_hooks_of_subclasses(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(CocoImagesAndCaptionsTrain):
        def get_split(self) -> str:
            return "validation"

        def preprocess_image(self, image_path: str, segmentation_path: str) -> Any:
            image, _ = super().preprocess_image(image_path, segmentation_path)
            return -image, segmentation_path

    own = Own(16)
    assert own[0]["segmentation"] == own[0]["seg_path"]
    assert len({own[0]["image"].tobytes() for _ in range(9)}) == 1  # cropped at the center
    center = CocoImagesAndCaptionsTrain(16, force_no_crop=True)[0]["image"][:, 8:24]
    np.testing.assert_array_equal(own[0]["image"], -center)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    file = "~/data/coco/annotations/captions_train2017.json"
    with monkeypatch.context() as patched:
        patched.setattr(CocoBase, "get_split", Own.get_split)
        assert len(CocoBase(16, "~/data/coco/train2017", file)) == len(own)
    with pytest.raises(UserError, match="CocoBase is a base class; use one of its subclasses"):
        CocoBase(16)


def test_captions_of_unknown_images_are_left_out_if_asked(
    content: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    unknown = {"image_id": 99, "caption": "?"}
    write(content | {"annotations": [unknown, *content["annotations"]]})
    with pytest.raises(UserError, match="entry 0 of annotations is for image 99, which is not"):
        CocoImagesAndCaptionsTrain(16)
    assert len(CocoImagesAndCaptionsTrain(16, on_error="skip")) == 2
    assert "left out 1 captions, the first because entry 0 of annotations is for" in caplog.text


def test_mistakes_in_the_annotations(content: dict[str, Any]) -> None:
    write(content | {"annotations": [{"image_id": 99, "caption": "?"}]})
    with pytest.raises(UserError, match="entry 0 of annotations is for image 99, which is not"):
        CocoImagesAndCaptionsTrain(16)
    write(content | {"annotations": [{"image_id": 7}]})
    with pytest.raises(UserError, match="entry 0 of annotations has no 'caption'"):
        CocoImagesAndCaptionsTrain(16)
    write({"images": []})
    with pytest.raises(UserError, match="captions_train2017.json has no 'annotations'"):
        CocoImagesAndCaptionsTrain(16)
    truncate(JSON)
    with pytest.raises(UserError, match=r"captions_train2017.json is no valid JSON .* cut short"):
        CocoImagesAndCaptionsTrain(16)
    with pytest.raises(UserError, match=r"captions_val2017.json cannot be read \(No such file"):
        CocoImagesAndCaptionsValidation(16)


def test_damaged_images_are_passed_over_if_asked(content: dict[str, Any]) -> None:
    Path("data/coco/train2017/000000000003.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="000000000003.jpg, from .* is empty"):
        CocoImagesAndCaptionsTrain(16)
    data = CocoImagesAndCaptionsTrain(16, on_error="skip")
    assert [item["filename_"] for item in data] == ["000000000007.jpg"] * 2
