from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taming.data import annotated_objects_coco, base, condition_maps
from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.data.columns import StringTable
from taming.data.condition_maps import Depth, ImageMap, Labels
from taming.data.files.images import image_mode_and_size
from taming.data.image_with_maps import ImagesWithMaps, MapFiles
from taming.data.options import ImageOptions
from taming.errors import UserError
from tests.kit.images import ramps, write_images
from tests.kit.scenes import OPTIONS, write_coco


def write_labels(folder: Path, images: list[str], height: int = 24, width: int = 32) -> list[str]:
    """Label maps that are the images' red channel, so that whoever sees both can compare."""
    folder.mkdir()
    paths = [str(folder / Path(image).name) for image in images]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(np.asarray(Image.open(image))[..., 0]).save(path)
    return paths


def test_map_is_cut_and_mirrored_with_its_image(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2, 24, 64)
    maps = StringTable(write_labels(tmp_path / "labels", images))
    data = ImagesWithMaps(
        images,
        {"segmentation": MapFiles(maps, Labels(256)), "same": MapFiles(maps, ImageMap())},
        ImageOptions(random_crop=True, random_flip=True, crop_size=16),
    )
    random.seed(0)
    seen = set()
    for _ in range(12):
        item = data[1]
        red = np.round((item["image"][..., 0] + 1) * 127.5)
        np.testing.assert_array_equal(item["segmentation"].argmax(-1), red)
        np.testing.assert_array_equal(item["same"][..., 0], item["image"][..., 0])
        seen.add(item["image"].tobytes())
    assert len(seen) > 6


def test_the_header_of_a_file_is_read_once_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: str, upright: bool = True) -> Any:
        read.append(path)
        return image_mode_and_size(path, upright)

    for module in (base, condition_maps, annotated_objects_coco):
        monkeypatch.setattr(module, "image_mode_and_size", counted)
    images = write_images(tmp_path / "images", 2, 24, 64)
    maps = write_images(tmp_path / "maps", 2, 24, 64)
    ImagesWithMaps(images, {"same": MapFiles(maps, ImageMap())}, ImageOptions(16))
    assert sorted(read) == sorted([*images, *maps])
    read.clear()
    scenes = AnnotatedObjectsCoco(data_path=write_coco(tmp_path / "coco"), **OPTIONS)
    assert sorted(read) == sorted(scenes.paths) and read


def test_labels_take_the_nearest_value_and_depth_is_smooth(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 1)
    (tmp_path / "maps").mkdir()
    steps = np.where(ramps(24, 32)[..., 1] > 99, 9, 0).astype(np.uint8)
    Image.fromarray(steps).save(tmp_path / "maps/000.png")
    path = StringTable([str(tmp_path / "maps/000.png")])
    data = ImagesWithMaps(
        images,
        {"labels": MapFiles(path, Labels(10)), "depth": MapFiles(path, Depth())},
        ImageOptions(17),
    )
    item = data[0]
    assert item["labels"].shape == (17, 17, 10) and item["depth"].shape == (17, 17)
    assert set(np.unique(item["labels"].argmax(-1))) == {0, 9}
    assert len(np.unique(item["depth"])) > 2 and np.abs(item["depth"]).max() <= 1


def test_maps_of_another_size_absent_or_too_few(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 3)
    maps = write_labels(tmp_path / "labels", images)

    def build(paths: list[str]) -> ImagesWithMaps:
        maps = {"segmentation": MapFiles(StringTable(paths), Labels(256))}
        return ImagesWithMaps(images, maps, ImageOptions())

    with pytest.raises(UserError, match="there are 2 files of segmentation for 3 images"):
        build(maps[:2])
    Image.fromarray(np.zeros((24, 31), dtype=np.uint8)).save(maps[1])
    with pytest.raises(UserError, match=r"001.png, .* is 31 x 24 pixels, but its image .* 32 x 24"):
        build(maps)
    Path(maps[1]).unlink()
    with pytest.raises(UserError, match="labels/001.png, from ImagesWithMaps, does not exist"):
        build(maps)


def test_labels_out_of_range_are_found_at_start_or_skipped(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 3)
    paths = StringTable(write_labels(tmp_path / "labels", images))
    maps = {"segmentation": MapFiles(paths, Labels(255))}
    Image.fromarray(np.full((24, 32), 255, dtype=np.uint8)).save(paths[1])
    with pytest.raises(UserError, match=r"labels/001.png, .* has the label 255, but with n_labels"):
        ImagesWithMaps(images, maps, ImageOptions())
    data = ImagesWithMaps(images, maps, ImageOptions(on_error="skip"))
    assert [Path(item["file_path_"]).stem for item in data] == ["000", "002", "002"]
