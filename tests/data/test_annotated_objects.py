from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.data.annotated_objects_open_images import AnnotatedObjectsOpenImages
from taming.data.files.annotations import read_json
from taming.data.helper_types import AnnotationList, mirrored
from taming.data.open_images_helper import (
    open_images_unify_categories_for_coco,
    top_300_classes_plus_coco_compatibility,
)
from taming.data.scene_crops import SceneCrop
from taming.errors import UserError
from tests.kit.images import ramps, truncate, write_image
from tests.kit.real import FOLDER, needs_real_data
from tests.kit.scenes import BOXES, HEAD, OPTIONS, coco_content, write_coco, write_open_images

HELPER = "taming.data.open_images_helper"


def coco(root: Path, **options: Any) -> AnnotatedObjectsCoco:
    return AnnotatedObjectsCoco(data_path=root, **OPTIONS | options)


def open_images(root: Path, **options: Any) -> AnnotatedObjectsOpenImages:
    options = {"use_additional_parameters": True} | OPTIONS | options
    return AnnotatedObjectsOpenImages(data_path=root, **options)


def test_coco_item(tmp_path: Path) -> None:
    keys = "image image_path file_name image_id original_size annotations crop_bbox flipped"
    item = coco(write_coco(tmp_path), keys=[*keys.split(), "objects_center_points"])[0]
    assert set(item) == {*keys.split(), "objects_center_points"}
    assert item["image"].shape == (32, 32, 3) and item["image"].dtype == np.float32
    assert item["image_path"] == str(tmp_path / "train2017/5.jpg") and item["file_name"] == "5.jpg"
    assert item["original_size"] == (48, 32) and item["image_id"] == "5"
    np.testing.assert_allclose(item["crop_bbox"], [1 / 6, 0, 2 / 3, 1])
    assert item["flipped"] is False and item["objects_center_points"].shape == (3 * 2 + 2,)


def test_coco_annotations_and_numbers(tmp_path: Path) -> None:
    data = coco(write_coco(tmp_path))
    assert data.category_ids == ["1", "10", "2", "92"]  # as strings, without "other"
    assert data.get_textual_label_for_category_no(1) == "light"
    assert data.get_textual_label_for_category_id("10") == "light"
    assert len(data) == 1  # the other image has only a speck
    person, light, sky = data[0]["annotations"]
    assert person.bbox == (0.25, 0.25, 0.5, 0.5) and person.area == 0.25
    assert (person.category_id, person.category_no, person.id, person.image_id) == ("1", 0, 1, "5")
    assert (person.is_group_of, light.is_group_of) == (0, 1)
    assert type(light.is_group_of) is int  # as when published models were trained
    light = coco(tmp_path, mark_crowds=True)[0]["annotations"][1]
    assert light.is_group_of is True
    assert person.is_occluded is None and sky.category_no == 3


def test_things_and_stuff_are_options(tmp_path: Path) -> None:
    data = coco(write_coco(tmp_path))
    data.split = "validation"
    assert data.get_path_structure() == {
        "top_level": "",
        "instances_annotations": "annotations/instances_val2017.json",
        "stuff_annotations": "annotations/stuff_val2017.json",
        "files": "val2017",
    }
    assert [a.id for a in coco(tmp_path, use_stuff=False)[0]["annotations"]] == [1, 2]
    assert [a.id for a in coco(tmp_path, use_things=False)[0]["annotations"]] == [9]
    with pytest.raises(UserError, match="use_things and use_stuff are both false"):
        coco(tmp_path, use_things=False, use_stuff=False)


def test_batches_collate(tmp_path: Path) -> None:
    data = open_images(write_open_images(tmp_path))
    batch = next(iter(DataLoader(data, batch_size=2, num_workers=1)))
    assert batch["image"].shape == (2, 32, 32, 3) and batch["objects_bbox"].shape == (2, 11)
    assert batch["objects_bbox"].dtype == torch.int64
    assert [len(annotations) for annotations in batch["annotations"]] == [2, 1]
    assert isinstance(batch["annotations"][0], AnnotationList)
    assert default_collate([data[0], data[1]])["annotations"][1][0].category_id == "/m/0b"


def test_open_images_annotations(tmp_path: Path) -> None:
    data = open_images(write_open_images(tmp_path), keys=["annotations"])
    assert data.category_ids == ["/m/0a", "/m/0b", "/m/0c", "/m/01s55n"]  # the suitcase last
    suitcase, man = data[0]["annotations"]
    assert suitcase.bbox == (0, 0, 0.5, 0.25) and suitcase.category_no == 3
    assert (suitcase.source, suitcase.confidence, man.confidence) == ("xclick", 1, 0.5)
    assert suitcase.is_truncated and not suitcase.is_occluded
    assert man.is_occluded and man.is_group_of and man.is_inside  # -1 counts as true


def test_open_images_rows_are_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_images(write_open_images(tmp_path), keys=["annotations"])
    monkeypatch.setattr("taming.data.annotated_objects_open_images.CHUNK", 1)
    assert list(open_images(tmp_path, keys=["annotations"])) == list(whole)


def test_outlines_are_not_kept(tmp_path: Path) -> None:
    content = coco_content()
    for thing in content["annotations"]:
        thing["segmentation"] = [[1.0, 2.0]]
    file = write_coco(tmp_path, content) / "annotations/instances_train2017.json"
    read = read_json(file, ("images",), "x", unused=("segmentation", "height"))
    assert read["annotations"][0] == coco_content()["annotations"][0]
    assert "height" not in read["images"][0] and read["images"][0]["width"] == 48


def test_open_images_categories_are_allowed_and_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{HELPER}.open_images_unify_categories_for_coco", {"/m/0b": "/m/0a"})
    monkeypatch.setattr(f"{HELPER}.top_300_classes_plus_coco_compatibility", [("Man", 9)])
    data = open_images(
        write_open_images(tmp_path),
        category_allow_list_target=f"{HELPER}.top_300_classes_plus_coco_compatibility",
        category_mapping_target=f"{HELPER}.open_images_unify_categories_for_coco",
    )
    assert data.category_ids == ["/m/0a"]
    found = [(a.category_id, a.category_no) for item in data for a in item["annotations"]]
    assert found == [("/m/0a", 0), ("/m/0a", 0)]
    # Names alone; an id that is replaced by one which is not allowed is not used either.
    monkeypatch.setattr(f"{HELPER}.top_300_classes_plus_coco_compatibility", ["Suitcase"])
    data = open_images(
        tmp_path,
        category_allow_list_target=f"{HELPER}.top_300_classes_plus_coco_compatibility",
        category_mapping_target=f"{HELPER}.open_images_unify_categories_for_coco",
    )
    assert data.category_ids == ["/m/01s55n"]
    assert [one.category_id for item in data for one in item["annotations"]] == ["/m/01s55n"]


def test_shipped_lists_of_open_images() -> None:
    assert len(top_300_classes_plus_coco_compatibility) == 354
    assert top_300_classes_plus_coco_compatibility[0] == ("Man", 1060962)
    assert len(open_images_unify_categories_for_coco) == 12
    assert open_images_unify_categories_for_coco["/m/03bt1vf"] == "/m/01g317"


def test_builders_have_the_dataset_s_options(tmp_path: Path) -> None:
    write_open_images(tmp_path)
    for count in (4, 9):
        data = open_images(
            tmp_path, no_object_classes=count, use_group_parameter=False, encode_crop=False
        )
        for builder in data.conditional_builders.values():
            assert builder.no_object_classes == count and builder.no_max_objects == 3
            assert builder.no_tokens == 1024 and builder.use_additional_parameters
            assert not builder.use_group_parameter and not builder.encode_crop
    plain = open_images(tmp_path, use_additional_parameters=False).conditional_builders
    assert not plain["objects_bbox"].use_additional_parameters
    assert plain["objects_bbox"].use_group_parameter and plain["objects_bbox"].encode_crop


def test_images_with_too_few_or_too_many_objects_are_left_out(tmp_path: Path) -> None:
    write_open_images(tmp_path)
    few = open_images(tmp_path, max_objects_per_image=1, keys=["file_name"])
    many = open_images(tmp_path, min_objects_per_image=2, keys=["file_name"])
    assert [i["file_name"] for i in few] == ["bb.jpg"]
    assert [i["file_name"] for i in many] == ["aa.jpg"]
    with pytest.raises(UserError, match="none of the 2 train images has 1 to 3 objects with an"):
        open_images(tmp_path, min_object_area=0.9)
    with pytest.raises(UserError, match="leave no number of objects"):
        open_images(tmp_path, min_objects_per_image=5)


@pytest.mark.parametrize(
    ("method", "box"), [("none", None), ("center", (1 / 6, 0, 2 / 3, 1)), ("random-1d", None)]
)
def test_crops(method: Any, box: Any) -> None:
    image = ramps(32, 48)
    crop = SceneCrop(method, 16, random_flip=False)
    cut, place, flipped, size = crop(image)
    assert size == (48, 32)
    assert cut.shape == (16, 16, 3) and cut.dtype == np.uint8 and not flipped
    if method == "none":
        assert place is None
    elif method == "center":
        np.testing.assert_allclose(place, box)
    else:
        assert place is not None and place[1] == 0 and place[3] == 1
        assert len({crop(image)[1] for _ in range(9)}) > 1


def test_free_crops_are_at_least_as_large_as_the_target() -> None:
    random.seed(0)
    crop, image = SceneCrop("random-2d", 20, random_flip=True), ramps(32, 48)
    places, ends, sides = [crop(image) for _ in range(200)], set(), set()
    for pixels, place, flipped, _ in places:
        assert place is not None
        side = place[2] * 48
        x0, y0 = round(place[0] * 48), round(place[1] * 32)
        box = (x0, y0, x0 + round(side), y0 + round(side))
        shown = np.asarray(Image.fromarray(image).resize((20, 20), 2, box=box))
        np.testing.assert_array_equal(pixels, shown[:, ::-1] if flipped else shown)
        sides.add(round(side))
        ends |= {("x", x0 == 0, box[2] == 48), ("y", y0 == 0, box[3] == 32)}
        assert 20 <= round(side, 6) <= 32 and abs(side - place[3] * 32) < 1e-6
        assert place[0] + place[2] <= 1 + 1e-9 and place[1] + place[3] <= 1 + 1e-9
    assert sides == set(range(20, 33))
    assert {(side, *end) for side in "xy" for end in ((True, False), (False, True))} < ends
    assert 75 < sum(view.flipped for view in places) < 125
    assert SceneCrop("random-2d", 99, False)(ramps(32, 48)).pixels.shape == (99, 99, 3)


def test_flip_and_crop_go_to_the_condition(tmp_path: Path) -> None:
    keys = ["flipped", "objects_bbox", "annotations", "image"]
    data = coco(write_coco(tmp_path), random_flip=True, keys=keys)
    builder = data.conditional_builders["objects_bbox"]
    places: dict[bool, Any] = {}
    for item in (data[0] for _ in range(20)):
        objects, crop = builder.inverse_build(item["objects_bbox"])
        np.testing.assert_allclose(crop, [1 / 6, 0, 2 / 3, 1], atol=0.03)
        boxes = [one.bbox for one in item["annotations"]]
        seen = sorted(map(mirrored, boxes)) if item["flipped"] else sorted(boxes)
        places[item["flipped"]] = sorted(place for _, place in objects)
        np.testing.assert_allclose(places[item["flipped"]], seen, atol=0.03)
    assert set(places) == {True, False} and places[True] != places[False]


def test_wrong_options(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for options, message in [
        ({"keys": ["imag"]}, "has no key 'imag'; did you mean 'image'"),
        ({"split": "val"}, "there is no split 'val'"),
        ({"split": "test"}, "COCO has no annotations of test"),
        ({"crop_method": "centre"}, "crop_method 'centre' is not known; did you mean 'center'"),
        ({"no_object_classes": 2}, "has 4 categories, but no_object_classes is 2"),
        ({"no_tokens": 4}, "no_tokens 4 is too small"),
    ]:
        with pytest.raises(UserError, match=message):
            coco(tmp_path, **options)


def test_categories_are_found_by_their_number_however_it_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = coco(write_coco(tmp_path / "a"))[0]["annotations"]
    content = coco_content()
    for one in content["annotations"]:
        one.update(category_id=float(one["category_id"]), image_id=float(one["image_id"]))
    found = coco(write_coco(tmp_path / "b", content))[0]
    assert found["annotations"] == expected and not caplog.text
    content["annotations"][0]["category_id"] = [1]
    write_coco(tmp_path / "b", content)
    message = r"entry 0 of .* is of the category \[1\], which is no id"
    with pytest.raises(UserError, match=message):
        coco(tmp_path / "b")
    assert len(coco(tmp_path / "b", on_error="skip")[0]["annotations"]) == len(expected) - 1


def test_objects_of_categories_that_are_not_listed_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = coco_content()
    content["annotations"][0]["category_id"] = 11
    assert len(coco(write_coco(tmp_path / "coco", content))[0]["annotations"]) == 2
    message = "passed over 1 objects of categories that are not listed; the first, entry 0 of"
    assert caplog.text.count(message) == 1 and "json is of 11" in caplog.text
    caplog.clear()
    boxes = [*BOXES, *["aa,xclick,/m/zz,1,0,1,0,1,0,0,0,0,0"] * 2]
    open_images(write_open_images(tmp_path / "boxes", boxes))
    assert "passed over 2 objects" in caplog.text and "line 5 of" in caplog.text


def test_half_a_character_in_a_name_is_a_file_that_is_missing(tmp_path: Path) -> None:
    content = coco_content()
    content["images"][0]["file_name"] = "\ud800.jpg"
    with pytest.raises(UserError, match="/\ud800.jpg, from AnnotatedObjectsCoco .* does not exist"):
        coco(write_coco(tmp_path, content))[0]


def test_images_have_ids(tmp_path: Path) -> None:
    content = coco_content()
    content["images"][1]["id"] = {}
    with pytest.raises(UserError, match="the 'id' of entry 1 of images is no number or text"):
        coco(write_coco(tmp_path, content))


def test_coco_files_with_mistakes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = coco_content()
    content["annotations"][1]["image_id"] = 99
    write_coco(tmp_path, content)
    message = r"entry 1 of annotations in .*instances_train2017.json is for image 99"
    with pytest.raises(UserError, match=message):
        coco(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert [a.id for a in coco(tmp_path, on_error="skip")[0]["annotations"]] == [1, 9]
    assert "left out 1 objects, the first because entry 1" in caplog.text
    content = coco_content()
    content["annotations"][0]["bbox"] = [40, 0, 24, 16]
    write_coco(tmp_path, content)
    with pytest.raises(UserError, match=r"entry 0 of .* has a box outside its image \(.*0.833, 0"):
        coco(tmp_path)
    content["annotations"][0]["bbox"] = [1, 2]
    write_coco(tmp_path, content)
    with pytest.raises(UserError, match="which is not four numbers"):
        coco(tmp_path)
    truncate(tmp_path / "annotations/stuff_train2017.json")
    with pytest.raises(UserError, match="stuff_train2017.json is no valid JSON"):
        coco(tmp_path)


@pytest.mark.parametrize(
    ("boxes", "head", "message"),
    [
        (BOXES, HEAD.replace("YMax", "Y"), "line 1 of .*bbox.csv lacks the column 'YMax'"),
        (
            [*BOXES, "cc,x,/m/0a,1,0,1,0,1,0,0,0,0,0"],
            HEAD,
            "line 5 of .* is for image cc, which is not listed",
        ),
        ([BOXES[0].replace("0.25", "1.5")], HEAD, "line 2 of .* has a box outside its image"),
        ([BOXES[0].replace("0.25", "half")], HEAD, "line 2 of .* cannot be read .*'half'"),
        ([BOXES[0][:30]], HEAD, "line 2 of .*bbox.csv has only 7 columns"),
    ],
)
def test_open_images_csvs_with_mistakes(
    tmp_path: Path, boxes: list[str], head: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_images(write_open_images(tmp_path, boxes, head))


def test_absent_files_are_named(tmp_path: Path) -> None:
    write_open_images(tmp_path)
    (tmp_path / "train/bb.jpg").unlink()
    with pytest.raises(UserError, match="train/bb.jpg, from Annotated.* does not exist"):
        open_images(tmp_path)
    (tmp_path / "class-descriptions-boxable.csv").unlink()
    with pytest.raises(UserError, match="class-descriptions-boxable.csv cannot be read"):
        open_images(tmp_path)


def test_images_in_the_folder_take_an_empty_list_s_place(tmp_path: Path) -> None:
    write_open_images(tmp_path)
    (tmp_path / "train-images-boxable.csv").write_text("image_name,image_url\n")
    assert len(open_images(tmp_path)) == 2
    write_image(tmp_path / "train/cc.jpg")
    (tmp_path / "train-images-boxable.csv").write_text("ImageID,Subset\naa,train\nbb,train\n")
    assert len(open_images(tmp_path)) == 2


@needs_real_data
@pytest.mark.parametrize("split", ["train", "validation"])
def test_real_scenes(split: str) -> None:
    common = OPTIONS | {
        "split": split,
        "min_object_area": 0.00001,
        "max_objects_per_image": 30,
        "min_objects_per_image": 2,
        "no_tokens": 8192,
        "crop_method": "random-1d",
        "random_flip": True,
    }
    scenes: list[Any] = [
        AnnotatedObjectsCoco(data_path=FOLDER / "coco_annotations", **common),
        AnnotatedObjectsOpenImages(
            data_path=FOLDER / "open_images_annotations",
            category_allow_list_target=f"{HELPER}.top_300_classes_plus_coco_compatibility",
            category_mapping_target=f"{HELPER}.open_images_unify_categories_for_coco",
            use_additional_parameters=True,
            **common,
        ),
    ]
    for data, classes in zip(scenes, (171, 340), strict=True):
        assert len(data.category_ids) == classes and len(data) >= 11
        batch = default_collate([data[i] for i in range(len(data))])
        assert batch["objects_bbox"].shape == (len(data), 92)
        assert (batch["objects_bbox"] < 8192).all() and (batch["objects_bbox"][:, 0] < 8191).any()
        assert all(len(annotations) >= 2 for annotations in batch["annotations"])
