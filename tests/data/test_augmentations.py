"""Pipelines of albumentations from configs."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from taming.config import instantiate_from_config
from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.data.augmentations import Augmentations
from taming.data.base import ImagePaths
from taming.data.custom import CustomTrain
from taming.data.folder import ImageFolderTrain
from taming.data.helper_types import Annotation, AnnotationList, in_crop, out_of_crop
from taming.data.imagenet import ImageNetTrain
from taming.data.paired import PairedTrain
from taming.data.scene_crops import augmented
from taming.data.seeding import Position, PositionSampler, SeededDataset
from taming.data.sflckr import SegmentationBase
from taming.data.shards import Shards
from taming.data.tools.shard_writer import write_shards
from taming.errors import UserError
from tests.kit.images import noise, ramps, write_image, write_images
from tests.kit.scenes import OPTIONS, write_coco

A = "albumentations."
Described = list[dict[str, Any]]


def one(name: str, **params: Any) -> dict[str, Any]:
    return {"target": A + name, "params": params}


FLIP = [one("HorizontalFlip", p=1.0)]
MANY = [
    one("HorizontalFlip", p=0.5),
    one("OneOf", p=1.0, transforms=[one("Blur"), one("RandomBrightnessContrast")]),
    one("Rotate", limit=[-30, 30], p=0.7),
    one("CoarseDropout", p=0.3),
]


class Speechless(albumentations.ImageOnlyTransform):
    """A transform of the user's that fails without a word."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        raise AssertionError  # as a bare assert does


def segmented(root: Path, **options: Any) -> SegmentationBase:
    write_image(root / "images/a.png", 32, 32)
    (root / "labels").mkdir()
    Image.fromarray(ramps(32, 32)[..., 1] // 20).save(root / "labels/a.png")
    (root / "list.txt").write_text("a.png\n")
    return SegmentationBase(
        root / "list.txt", root / "images", root / "labels", n_labels=20, **options
    )


def test_images_and_labels_move_together(tmp_path: Path) -> None:
    options: dict[str, Any] = {"size": 32, "augmentations": [*FLIP, one("Transpose", p=1.0)]}
    item = segmented(tmp_path, **options)[0]
    expected = ramps(32, 32)[:, ::-1].transpose(1, 0, 2)
    np.testing.assert_allclose(item["image"], expected / 127.5 - 1, atol=1e-6)
    assert (item["segmentation"].argmax(axis=2) == expected[..., 1] // 20).all()


def test_depth_moves_and_keeps_its_values(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 2, 32, 32)
    for number in range(2):
        (tmp_path / "depth").mkdir(exist_ok=True)
        Image.fromarray(ramps(32, 32)[..., 1]).save(tmp_path / f"depth/{number:03}.png")
    places = (tmp_path / "images", tmp_path / "depth", "depth", 32)
    plain = PairedTrain(*places)[0]
    bright = one("RandomBrightnessContrast", brightness_limit=[0.4, 0.4], p=1.0)
    moved = PairedTrain(*places, augmentations=[*FLIP, bright])[0]
    np.testing.assert_array_equal(moved["depth"], plain["depth"][:, ::-1])
    assert moved["image"].mean() > plain["image"].mean() + 0.3
    turned = PairedTrain(*places, augmentations=[one("Rotate", limit=[20, 20], p=1.0)])[0]
    assert set(np.unique(turned["depth"])) <= {*np.unique(plain["depth"]), 0.0}


def listed(root: Path, **options: Any) -> CustomTrain:
    (root / "list.txt").write_text("\n".join(write_images(root / "images", 6)))
    return CustomTrain(16, root / "list.txt", random_crop=True, **options)


def classes(root: Path, **options: Any) -> ImageFolderTrain:
    write_images(root / "classes/a", 6)
    return ImageFolderTrain(root / "classes", 16, True, validation_fraction=0.0, **options)


def sharded(root: Path, **options: Any) -> Shards:
    write_shards(ImagePaths(write_images(root / "images", 6)), root / "shards", 3)
    return Shards(str(root / "shards"), 16, True, **options)


@pytest.mark.parametrize("make", [listed, classes, sharded])
def test_an_item_is_the_same_whatever_was_loaded_before(tmp_path: Path, make: Any) -> None:
    """As after a resume: with and without workers, in any order, in a new dataset."""
    dataset = make(tmp_path, augmentations=MANY)
    seeded = SeededDataset(dataset, seed=3)

    def epoch(workers: int, number: int = 1, start: int = 0) -> list[bytes]:
        sampler = PositionSampler(6, seed=3)
        sampler.set_position(number, start)
        loader = DataLoader(seeded, 2, sampler=sampler, num_workers=workers)
        return [image.numpy().tobytes() for batch in loader for image in batch["image"]]

    first = epoch(0)
    assert epoch(2) == first == epoch(0)
    assert epoch(0, start=4) == first[4:]
    assert set(first).isdisjoint(epoch(0, 2))
    again = SeededDataset(make(tmp_path / "again", augmentations=MANY), seed=3)
    for index in (4, 1):
        one_image = seeded[Position(1, index)]["image"]
        assert (again[Position(1, index)]["image"] == one_image).all()
        assert (SeededDataset(dataset, 4)[Position(1, index)]["image"] != one_image).any()


def test_without_augmentations_nothing_is_drawn_for_them(tmp_path: Path) -> None:
    dataset = listed(tmp_path)
    random.seed(0)
    state = [random.random() for _ in range(3)]
    random.seed(0)
    dataset[0]
    assert random.random() == state[2]  # after the crop's row and column


def test_imagenet_takes_them_in_its_config(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_image(tmp_path / "autoencoders/data/ILSVRC2012_train/data/n01440764/a.JPEG")
    config = {"size": 16, "ImageNetTrain/random_crop": False}
    plain = ImageNetTrain(config)[0]["image"]
    flipped = ImageNetTrain(config | {"augmentations": FLIP})[0]["image"]
    np.testing.assert_array_equal(flipped, plain[:, ::-1])


def scenes(root: Path, **options: Any) -> AnnotatedObjectsCoco:
    keys = ["image", "annotations", "objects_bbox", "crop_bbox", "flipped"]
    place = root if (root / "annotations").is_dir() else write_coco(root)
    return AnnotatedObjectsCoco(data_path=place, **{**OPTIONS, "keys": keys, **options})


@pytest.mark.parametrize("method", ["none", "center"])
def test_boxes_move_with_their_scene(tmp_path: Path, method: Any) -> None:
    plain = scenes(tmp_path, crop_method=method)[0]
    random.seed(0)
    moved = scenes(tmp_path, crop_method=method, augmentations=FLIP)[0]
    np.testing.assert_array_equal(moved["image"], plain["image"][:, ::-1])

    def seen(item: dict[str, Any]) -> list[tuple[float, ...]]:
        return [in_crop(a.bbox, item["crop_bbox"], item["flipped"]) for a in item["annotations"]]

    shown = [box for box in seen(plain) if box[2] > 0 and box[3] > 0]
    expected = [(1 - x - width, y, width, height) for x, y, width, height in shown]
    np.testing.assert_allclose(seen(moved), expected, atol=1e-5)
    assert (moved["objects_bbox"] != plain["objects_bbox"]).any()


def test_colors_leave_boxes_and_their_order_alone(tmp_path: Path) -> None:
    plain = scenes(tmp_path)
    changed = scenes(tmp_path, augmentations=[one("InvertImg", p=1.0)])
    np.testing.assert_allclose(changed[0]["image"], -plain[0]["image"], atol=0.01)
    assert changed[0]["annotations"] == plain[0]["annotations"]


def test_objects_that_leave_the_image_leave_the_scene(tmp_path: Path) -> None:
    pipeline = [one("Crop", x_max=8, y_max=32, p=1.0), one("Resize", height=32, width=32, p=1.0)]
    item = scenes(tmp_path, crop_method="none", augmentations=pipeline)[0]
    left = [a.category_id for a in scenes(tmp_path, crop_method="none")[0]["annotations"]]
    assert len(item["annotations"]) < len(left)


def test_a_mirrored_scene_is_changed_as_it_is_seen(tmp_path: Path) -> None:
    left_half = [one("Crop", x_max=16, y_max=32, p=1.0), one("Resize", height=32, width=32, p=1.0)]
    data = scenes(tmp_path, crop_method="none", random_flip=True, augmentations=left_half)
    random.seed(0)
    seen = {}
    for item in (data[0] for _ in range(8)):
        seen[item["flipped"]] = {one.category_id: one.bbox for one in item["annotations"]}
    assert set(seen[False]) == {"1", "10", "92"} and set(seen[True]) == {"1", "92"}
    np.testing.assert_allclose(seen[False]["1"], (0.5, 0.25, 0.5, 0.5), atol=1e-5)
    np.testing.assert_allclose(seen[True]["1"], (0, 0.25, 0.5, 0.5), atol=1e-5)


def test_objects_beside_the_crop_are_not_seen() -> None:
    boxes = [(0.0, 0.0, 0.25, 1.0), (0.625, 0.0, 0.125, 1.0)]
    objects = AnnotationList(Annotation(0.1, "x", b, n, str(n)) for n, b in enumerate(boxes))
    pixels, flip = np.zeros((8, 8, 3), np.uint8), Augmentations(FLIP, boxes=True, side=8)
    _, (left,) = augmented(pixels, objects, (0.5, 0.0, 0.5, 1.0), False, flip)
    assert left.category_no == 1
    np.testing.assert_allclose(left.bbox, (0.75, 0, 0.125, 1), atol=1e-6)


def test_there_and_back_in_a_crop() -> None:
    crop = (0.2, 0.1, 0.5, 0.6)
    for flipped in (False, True):
        box = (0.3, 0.3, 0.2, 0.1)
        np.testing.assert_allclose(out_of_crop(in_crop(box, crop, flipped), crop, flipped), box)
    assert in_crop((0.0, 0.0, 0.45, 1.0), crop, False) == (0.0, 0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ([one("GaussNoise", foo=1)], r"augmentations\[0\].*GaussNoise has no parameter 'foo'"),
        ([one("HorizontalFlip", bar=1)], "HorizontalFlip has no parameter 'bar'"),
        ([one("HorizontalFlop")], "no 'HorizontalFlop' in albumentations; did you mean"),
        ([one("HorizontalFlip", p=3)], "HorizontalFlip: p Input should be less than or equal to 1"),
        ([one("GaussNoise", std_range=[5, 9])], r"GaussNoise: std_range .*must be >= 0 and <= 1"),
        (
            [one("Compose", transforms=[one("OneOf", transforms=[one("Nope")])])],
            r"augmentations\[0\].transforms\[0\].transforms\[0\]: there is no 'Nope'",
        ),
        ([one("Normalize")], r"Normalize makes float32 .* uint8 .* is needed; leave it out"),
        ([one("ToTensorV2")], "ToTensorV2 makes"),
        ([one("MaskDropout")], "MaskDropout cannot be used here"),
        (
            [one("RandomSizedBBoxSafeCrop", height=32, width=32)],
            "RandomSizedBBoxSafeCrop cannot be used here: it needs boxes, which the items do not",
        ),
        ([one("RandomScale", p=0.01)], "which fit into no batch; .* albumentations.Resize"),
        ([one("RandomScale", p=1)], "which fit into no batch; .* albumentations.Resize"),
        ([one("RandomCrop", height=16, width=16, p=0.9999)], "32 x 32 pixels, which fit into no"),
        ([one("RandomCrop", height=16, width=16, p=0.3)], "32 x 32 pixels, which fit into no"),
        ([one("RandomCrop", height=99, width=99)], "RandomCrop cannot be used here: Crop size"),
        ([one("ImageOnlyTransform")], "ImageOnlyTransform cannot be used here: NotImplemented"),
        ([one("DualTransform")], "DualTransform cannot change depth"),
        ([one("core")], "albumentations.core is a module, not a class"),
        ([one("__version__")], "albumentations.__version__ is an object of type str, not a class"),
        ([{"target": f"{__name__}.Speechless"}], r"cannot be used here: AssertionError \("),
        ([{"target": "torch.nn.ReLU"}], "torch.nn.ReLU is no transform of albumentations"),
        ([{"params": {}}], "expected a 'target'"),
        ([3], "give a target such as albumentations.HorizontalFlip"),
        ([], "a list of transforms"),
        ("HorizontalFlip", "a list of transforms"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(described: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentations(described, {"depth": True}, side=32)


def test_what_cannot_move_boxes_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="AnnotatedObjectsCoco .*OverlayElements cannot move boxes"):
        scenes(tmp_path, augmentations=[one("OverlayElements")])
    with pytest.raises(UserError, match="fit into no batch"):
        scenes(tmp_path, augmentations=[one("CenterCrop", height=16, width=16, p=0.5)])


def test_other_sizes_are_fine_where_there_is_one_in_the_end(tmp_path: Path) -> None:
    pipeline = [one("RandomScale", p=0.5), one("Resize", height=12, width=12, p=1.0)]
    assert segmented(tmp_path, size=32, augmentations=pipeline)[0]["image"].shape == (12, 12, 3)


def test_labels_that_a_fill_invents_are_named(tmp_path: Path) -> None:
    dataset = segmented(
        tmp_path, size=32, augmentations=[one("Affine", rotate=[45, 45], fill_mask=99, p=1.0)]
    )
    with pytest.raises(UserError, match="label 99, but n_labels is 20; give it another fill_mask"):
        dataset[0]


def test_many_labels_are_turned_as_well() -> None:
    rotate = Augmentations([one("Rotate", limit=[90, 90], p=1.0)], {"labels": False}, side=12)
    labels = np.arange(144, dtype=np.int32).reshape(12, 12) + 1000
    found, _ = rotate({"image": noise(), "labels": labels})
    assert found["labels"].dtype == np.int32 and set(np.unique(found["labels"])) <= {
        0,
        *range(1000, 1144),
    }


def test_errors_of_a_config_say_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(write_images(tmp_path / "images", 2)))
    params = {"size": 16, "training_images_list_file": str(tmp_path / "list.txt")}
    config = {
        "target": "taming.data.custom.CustomTrain",
        "params": {**params, "augmentations": [one("Blur", blur=1)]},
    }
    place = r"data.params.train.params.augmentations\[0\].params: albumentations.Blur has no"
    with pytest.raises(UserError, match=place):
        instantiate_from_config(config, "data.params.train")
    config["params"]["augmentations"] = FLIP
    assert len(instantiate_from_config(config, "data.params.train", "dataset")) == 2


def test_the_library_is_kept_from_looking_for_news() -> None:
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


def test_boxes_without_an_area_are_left_out() -> None:
    flip = Augmentations(FLIP, boxes=True, side=8)
    boxes = [(0.5, 0.5, 0.5, 0.7), (0.25, 0.5, 0.5, 1 + 1e-9)]
    _, [(number, box)] = flip({"image": ramps(8, 8)}, boxes)
    assert number == 1 and box == pytest.approx((0.5, 0.5, 0.75, 1))


def test_images_without_a_fixed_size_may_change_theirs() -> None:
    described = [one("RandomScale", scale_limit=[1.0, 1.0], p=0.5)]
    made = Augmentations(described)({"image": ramps(8, 8)})[0]["image"]
    assert made.shape in {(8, 8, 3), (16, 16, 3)}
    with pytest.raises(UserError, match="have .* pixels, which fit into no batch"):
        Augmentations(described, side=8)
