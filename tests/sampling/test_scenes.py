from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.data.seeding import SeededDataset
from taming.errors import UserError
from taming.sampling import request_for_inputs, requests_for_scene
from taming.sampling.inputs import condition_images, inputs_of_example, reads_files
from taming.sampling.scenes import Scene, builder_of, read_layout, read_scene
from tests.kit.models import scene_config, tiny_model, transformer_config
from tests.kit.scenes import OPTIONS, coco_content, write_coco


@pytest.mark.parametrize("encode_crop", [True, False])
@pytest.mark.parametrize("flip", [False, True])
def test_scenes_are_those_of_the_items(tmp_path: Path, encode_crop: bool, flip: bool) -> None:
    keys = ["objects_bbox", "crop_bbox", "flipped"]
    options: dict[str, Any] = OPTIONS | {"keys": keys, "encode_crop": encode_crop}
    data = AnnotatedObjectsCoco(data_path=write_coco(tmp_path), **options | {"random_flip": flip})
    builder = builder_of(data, "objects_bbox")
    seen = set()
    for seed in range(6):
        data.keys = keys
        item = SeededDataset(data, seed)[0]
        scene, _ = read_scene(SeededDataset(data, seed), 0)
        objects, crop = builder.inverse_build(scene.tokens(builder))
        expected, expected_crop = builder.inverse_build(item["objects_bbox"])
        assert sorted(objects) == sorted(expected)  # items shuffle them
        assert crop == expected_crop
        seen.add(item["flipped"])
    assert seen == ({True, False} if flip else {False})
    data.keys = []  # whatever its items held before
    assert read_scene(SeededDataset(data), 0)[1].shape == (1, 32, 32, 3)


def test_examples_of_scenes_are_kept_as_such(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][2]["bbox"] = [0, 0, 24, 16]  # of the second scene
    data = AnnotatedObjectsCoco(data_path=write_coco(tmp_path, content), **OPTIONS)
    dataset, model = SeededDataset(data), tiny_model(transformer_config(**scene_config(32)))
    assert reads_files(model, dataset) and not reads_files(model, None)
    inputs = inputs_of_example(model, dataset, 1)
    assert (inputs.shape, inputs.number, inputs.c) == ((16, 16), 1, None)
    known = torch.full((16, 16), -1)
    request = request_for_inputs(model, inputs, known)
    assert (request.number, request.label) == (0, 1) and request.known is known
    pictures = condition_images(model, replace(inputs, shape=(16, 8)), dataset)
    assert {name: picture.shape for name, picture in pictures.items()} == {
        "objects_bbox": (3, 384, 192)
    }


def test_windows_see_their_part(tmp_path: Path) -> None:
    data = AnnotatedObjectsCoco(data_path=write_coco(tmp_path), **OPTIONS)
    scene = Scene("000000", list(data.annotations(0)))
    builder = builder_of(data, "objects_bbox")
    (request,) = requests_for_scene(scene, builder, 4, [2])
    assert (request.number, request.label) == (2, 4)
    assert request.prompt_in is not None
    assert request.whole == request.prompt_in((0.0, 0.0, 1.0, 1.0))
    lower_right = request.prompt_in((0.5, 0.5, 0.5, 0.5))
    objects, _crop = builder.inverse_build(builder.build_in_order(scene.annotations))
    seen, window = builder.inverse_build(scene.tokens(builder, (0.5, 0.5, 0.5, 0.5)))
    assert len(seen) < len(objects)
    assert window == pytest.approx((0.5, 0.5, 0.5, 0.5), abs=0.05)
    assert len(lower_right) == len(request.whole)


def test_windows_of_a_mirrored_scene_see_the_other_side(tmp_path: Path) -> None:
    data = AnnotatedObjectsCoco(data_path=write_coco(tmp_path), **OPTIONS)
    builder = builder_of(data, "objects_bbox")

    def seen(flipped: bool, window: tuple[float, float, float, float]) -> set[Any]:
        scene = Scene("000000", list(data.annotations(0)), flipped=flipped)
        return {thing for thing, _ in builder.inverse_build(scene.tokens(builder, window))[0]}

    left, right = (0.0, 0.0, 0.25, 1.0), (0.75, 0.0, 0.25, 1.0)
    assert seen(False, left) != seen(False, right)
    assert seen(True, left) == seen(False, right) and seen(True, right) == seen(False, left)


def test_layouts_are_read_as_they_are_written(tmp_path: Path) -> None:
    data = AnnotatedObjectsCoco(data_path=write_coco(tmp_path), **OPTIONS)
    layout: list[dict[str, Any]] = [
        {"class": "person", "box": [0, 0.25, 0.5, 0.75], "group": True, "inside": False},
        {"class": "sky", "box": [0, 0, 1, 0.5], "occluded": True},
        {"class": "light", "box": [0.5, 0.5, 0.5, 0.25], "depiction": True, "inside": True},
    ]
    path = tmp_path / "street.json"
    path.write_text(json.dumps(layout))
    scene = read_layout(path, data, "objects_bbox")
    assert (scene.name, scene.crop, scene.flipped) == ("street", (0, 0, 1, 1), False)
    for given, thing in zip(layout, scene.annotations, strict=True):
        assert data.get_textual_label_for_category_no(thing.category_no) == given["class"]
        assert list(thing.bbox) == given["box"] and thing.area == given["box"][2] * given["box"][3]
    flags = [(t.is_group_of, t.is_occluded, t.is_depiction, t.is_inside) for t in scene.annotations]
    assert [tuple(map(bool, each)) for each in flags] == [
        (True, False, False, False),
        (False, True, False, False),
        (False, False, True, True),
    ]
    empty, outside = ([0, 0, 1, 0], [0, 0, 0, 1]), ([0, 0.5, 1, 0.6], [0.5, 0, 0.6, 1])
    for box in (*empty, *outside, [0, 0, 1], [-1, 0, 1, 1]):
        path.write_text(json.dumps([{"class": "sky", "box": box}]))
        with pytest.raises(UserError, match="object 1: the box is"):
            read_layout(path, data, "objects_bbox")
    path.write_text(json.dumps([{"class": "sky", "box": [0, 0, 1, 1], "grup": True}]))
    with pytest.raises(UserError, match="object 1 must have a class and a box, and perhaps group"):
        read_layout(path, data, "objects_bbox")
