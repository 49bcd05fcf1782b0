from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import default_collate

from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.training.data_module import WrappedDataset
from taming.training.scenes import scene_pictures
from tests.data.scenes import OPTIONS, write_coco


def test_scenes_are_drawn_as_their_builder_draws_them(tmp_path: Path) -> None:
    keys = ["image", "objects_bbox", "objects_center_points"]
    dataset = AnnotatedObjectsCoco(data_path=write_coco(tmp_path), **(OPTIONS | {"keys": keys}))
    batch = default_collate([dataset[0], dataset[0]])
    for key in keys[1:]:
        pictures = scene_pictures(WrappedDataset(dataset), batch, key, (48, 64))["conditioning"]
        assert pictures.shape == (2, 3, 48, 64) and pictures.min() >= -1 and pictures.max() == 1
        builder = dataset.conditional_builders[key]
        names = dataset.get_textual_label_for_category_no
        assert torch.equal(pictures[0], builder.plot(batch[key][0], names, (64, 48), 1))
        assert (pictures[0] < 1).any()


def test_other_conditions_have_no_scene(tmp_path: Path) -> None:
    dataset = AnnotatedObjectsCoco(data_path=write_coco(tmp_path), **OPTIONS)
    assert scene_pictures(dataset, {"image": torch.zeros(1)}, "image", (8, 8)) == {}
    assert scene_pictures([], {"class_label": torch.zeros(1)}, "class_label", (8, 8)) == {}
