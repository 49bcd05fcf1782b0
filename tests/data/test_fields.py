"""One item of every dataset class, field by field: entries, types, shapes and ranges."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taming.data import ade20k, coco, faceshq, imagenet, sflckr
from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.data.annotated_objects_open_images import AnnotatedObjectsOpenImages
from taming.data.custom import CustomTest, CustomTrain
from taming.data.digits import DigitsTrain, DigitsValidation
from taming.data.examples import write_all
from taming.data.folder import ImageFolderTrain, ImageFolderValidation
from taming.data.helper_types import AnnotationList
from taming.data.imagenet_classes import NAMES
from taming.data.lsun import LSUNTowersTrain, LSUNTowersValidation, LSUNTrain, LSUNValidation
from taming.data.paired import PairedTrain, PairedValidation
from taming.data.shards import Shards
from taming.data.tools.shard_writer import write_shards
from tests.kit.real import FOLDER, link_real_data, needs_real_data

Check = Callable[[Any], None]
S = 48
HELPER = "taming.data.open_images_helper"
SCENES: dict[str, Any] = {
    "target_image_size": S,
    "min_object_area": 0.00001,
    "min_objects_per_image": 1,
    "max_objects_per_image": 30,
    "crop_method": "random-1d",
    "random_flip": True,
    "no_tokens": 8192,
    "use_group_parameter": True,
    "encode_crop": True,
}


def floats(*shape: int, low: float = -1, high: float = 1) -> Check:
    """Between -1 and 1, or as far as said, and not all the same."""

    def check(value: Any) -> None:
        assert isinstance(value, np.ndarray) and value.dtype == np.float32
        assert value.shape == shape and low <= value.min() < value.max() <= high

    return check


def one_hot(n_labels: int) -> Check:
    def check(value: Any) -> None:
        assert value.dtype == np.float32 and value.shape == (S, S, n_labels)
        assert set(np.unique(value)) == {0, 1} and (value.sum(axis=2) == 1).all()

    return check


def text(pattern: str) -> Check:
    """A plain string; a file if it is called one of `file:`."""
    file = pattern.startswith("file:")

    def check(value: Any) -> None:
        assert type(value) is str and re.fullmatch(pattern.removeprefix("file:"), value), value
        assert not file or Path(value).is_file()

    return check


def whole(low: int, high: int) -> Check:
    def check(value: Any) -> None:
        assert type(value) is int and low <= value <= high

    return check


def tokens(*shape: int) -> Check:
    def check(value: Any) -> None:
        assert isinstance(value, torch.Tensor) and value.dtype == torch.int64
        assert value.shape == shape and value.min() >= 0 and value.max() <= 8191

    return check


def box(value: Any) -> None:
    assert len(value) == 4 and all(type(part) is float for part in value)
    x0, y0, width, height = value
    assert 0 <= x0 <= x0 + width <= 1 + 1e-9 and 0 <= y0 <= y0 + height <= 1 + 1e-9


def flag(value: Any) -> None:
    assert type(value) is bool


def size(value: Any) -> None:
    assert len(value) == 2 and all(type(part) is int and part > 1 for part in value)


def annotations(flags: tuple[str, ...], kind: type, source: type) -> Check:
    def check(value: Any) -> None:
        assert isinstance(value, AnnotationList) and len(value) >= 1
        for one in value:
            box(one.bbox)
            assert one.area == pytest.approx(one.bbox[2] * one.bbox[3])
            assert type(one.image_id) is type(one.category_id) is str
            assert type(one.category_no) is type(one.id) is int and 0 <= one.category_no < 400
            assert type(one.source) is source and 0 <= one.confidence <= 1
            known = {name for name in one._fields if name.startswith("is_")} - set(flags)
            assert all(type(getattr(one, name)) is kind for name in flags)
            assert {getattr(one, name) for name in known} <= {None} and one.segmentation is None

    return check


IMAGE = {"image": floats(S, S, 3)}
LISTED = IMAGE | {"file_path_": text(r"file:.+\.(jpg|png|npy|JPEG)")}
SYNSET = r"n\d{8}"
IMAGENET = LISTED | {
    "relpath": text(rf"{SYNSET}/.+\.JPEG"),
    "synsets": text(SYNSET),
    "class_label": whole(0, 999),
    "human_label": text("|".join(map(re.escape, NAMES.values()))),
}
DEPTH = {"depth": floats(S, S)}
LR = {"lr": floats(S, S, 3)}
EDGES = {"lr": floats(S, S, 3, low=0)}
SEGMENTED = LISTED | {
    "relative_file_path_": text(r"[^/].+\.jpg"),
    "segmentation_path_": text(r"file:data/.+\.png"),
}
CAPTIONED = LISTED | {
    "caption": text(r".+ .+"),
    "segmentation": one_hot(183),
    "img_path": text(r"file:data/coco/.+\.jpg"),
    "seg_path": text(r"file:data/coco.+\.png"),
    "filename_": text(r"\d{12}\.jpg"),
}
SCENE = IMAGE | {
    "image_path": text(r"file:.+\.jpg"),
    "file_name": text(r"[^/]+\.jpg"),
    "image_id": text(r"[0-9a-f]+"),
    "original_size": size,
    "crop_bbox": box,
    "flipped": flag,
    "objects_bbox": tokens(30 * 3 + 2),
    "objects_center_points": tokens(30 * 2 + 2),
}
COCO = SCENE | {"annotations": annotations(("is_group_of",), int, type(None))}
FLAGS = ("is_group_of", "is_truncated", "is_occluded", "is_depiction", "is_inside")
OPEN_IMAGES = SCENE | {"annotations": annotations(FLAGS, bool, str)}
CONDITION = {"condition_path_": text(r"file:.+\.png")}
CLASS = {"class_label": whole(0, 9), "human_label": text(r"\w+")}
CATEGORY = {"class_label": whole(0, 0), "human_label": text(r"\w+")}
RECORD = IMAGE | {"file_path_": text(r".+_lmdb/data\.mdb::[0-9a-f]{40}\.webp")}
FACES = LISTED | {"class": whole(0, 1)}


def coco_scenes(split: str) -> Any:
    keys = list(COCO)
    return AnnotatedObjectsCoco(data_path="data/coco_annotations", split=split, keys=keys, **SCENES)


def open_images(split: str) -> Any:
    return AnnotatedObjectsOpenImages(
        data_path="data/open_images_annotations",
        split=split,
        keys=list(OPEN_IMAGES),
        use_additional_parameters=True,
        category_allow_list_target=f"{HELPER}.top_300_classes_plus_coco_compatibility",
        category_mapping_target=f"{HELPER}.open_images_unify_categories_for_coco",
        **SCENES,
    )


def paired(dataset: Any, kind: str, folder: str | None, **options: Any) -> Any:
    root = Path("data/pairs")
    return dataset(root / "images", folder and root / folder, kind, S, **options)


def sharded() -> Any:
    write_shards(faceshq.FFHQTrain(S), "shards", 100)
    return Shards("shards", S)


Case = tuple[Callable[[], Any], dict[str, Check]]
ONE_HOT = {"onehot_segmentation": True, "use_stuffthing": True, "crop_size": S}
EXAMPLES: dict[str, Case] = {
    "CustomTrain": (lambda: CustomTrain(S, "data/own/train.txt"), LISTED),
    "CustomTest": (lambda: CustomTest(S, "data/own/test.txt"), LISTED),
    "CelebAHQTrain": (lambda: faceshq.CelebAHQTrain(S), LISTED),
    "CelebAHQValidation": (lambda: faceshq.CelebAHQValidation(S), LISTED),
    "FFHQTrain": (lambda: faceshq.FFHQTrain(S), LISTED),
    "FFHQValidation": (lambda: faceshq.FFHQValidation(S, keys=["image"]), IMAGE),
    "FacesHQTrain": (lambda: faceshq.FacesHQTrain(S), FACES),
    "FacesHQValidation": (
        lambda: faceshq.FacesHQValidation(96, crop_size=S, coord=True),
        FACES | {"coord": floats(S, S, 1, low=0)},
    ),
    "ImageNetTrain": (lambda: imagenet.ImageNetTrain({"size": S}), IMAGENET),
    "ImageNetValidation": (lambda: imagenet.ImageNetValidation({"size": S}), IMAGENET),
    "ImageNetTrainWithDepth": (
        lambda: imagenet.ImageNetTrainWithDepth(size=64, crop_size=S),
        IMAGENET | DEPTH,
    ),
    "ImageNetValidationWithDepth": (
        lambda: imagenet.ImageNetValidationWithDepth({"size": S}),
        IMAGENET | DEPTH,
    ),
    "RINTrainWithDepth": (lambda: imagenet.RINTrainWithDepth(size=S), IMAGENET | DEPTH),
    "RINValidationWithDepth": (lambda: imagenet.RINValidationWithDepth(size=S), IMAGENET | DEPTH),
    "ImageNetScaleTrain": (
        lambda: imagenet.ImageNetScaleTrain(64, S, up_factor=4, hr_factor=2),
        IMAGENET | LR,
    ),
    "ImageNetScaleValidation": (lambda: imagenet.ImageNetScaleValidation(S), IMAGENET),
    "ImageNetEdgesTrain": (lambda: imagenet.ImageNetEdgesTrain(size=S), IMAGENET | EDGES),
    "ImageNetEdgesValidation": (
        lambda: imagenet.ImageNetEdgesValidation(2, size=S),
        IMAGENET | EDGES,
    ),
    "CocoImagesAndCaptionsTrain": (
        lambda: coco.CocoImagesAndCaptionsTrain(64, **ONE_HOT),  # type: ignore[arg-type]
        CAPTIONED,
    ),
    "CocoImagesAndCaptionsValidation": (
        lambda: coco.CocoImagesAndCaptionsValidation(S),
        CAPTIONED | {"segmentation": floats(S, S, 3)},
    ),
    "ADE20kTrain": (
        lambda: ade20k.ADE20kTrain(size=64, crop_size=S),
        SEGMENTED | {"segmentation": one_hot(151), "scene_category": text(r"\w+_field")},
    ),
    "ADE20kValidation": (
        lambda: ade20k.ADE20kValidation(size=S),
        SEGMENTED | {"segmentation": one_hot(151), "scene_category": text(r"\w+_field")},
    ),
    "SegmentationBase": (
        lambda: sflckr.SegmentationBase(
            "data/sflckr_train.txt", "data/sflckr_images", "data/sflckr_segmentations", S
        ),
        SEGMENTED | {"segmentation": one_hot(182)},
    ),
    "AnnotatedObjectsCoco, train": (lambda: coco_scenes("train"), COCO),
    "AnnotatedObjectsCoco, validation": (lambda: coco_scenes("validation"), COCO),
    "AnnotatedObjectsOpenImages, train": (lambda: open_images("train"), OPEN_IMAGES),
    "AnnotatedObjectsOpenImages, validation": (lambda: open_images("validation"), OPEN_IMAGES),
    "ImageFolderTrain": (lambda: ImageFolderTrain("data/classes", S), LISTED | CLASS),
    "ImageFolderValidation": (lambda: ImageFolderValidation("data/classes", S), LISTED | CLASS),
    "LSUNTrain": (lambda: LSUNTrain("bedroom", S), RECORD | CATEGORY),
    "LSUNValidation": (lambda: LSUNValidation("church", S), LISTED | CATEGORY),
    "LSUNTowersTrain": (lambda: LSUNTowersTrain(size=S), RECORD | CATEGORY),
    "LSUNTowersValidation": (lambda: LSUNTowersValidation(size=S), RECORD | CATEGORY),
    "PairedTrain, segmentation": (
        lambda: paired(PairedTrain, "segmentation", "segmentation", n_labels=7),
        LISTED | CONDITION | {"segmentation": one_hot(7)},
    ),
    "PairedValidation, depth": (
        lambda: paired(PairedValidation, "depth", "depth"),
        LISTED | CONDITION | DEPTH,
    ),
    "PairedTrain, edges": (
        lambda: paired(PairedTrain, "edges", None),
        LISTED | CONDITION | {"edges": floats(S, S, 3)},
    ),
    "PairedValidation, image": (
        lambda: paired(PairedValidation, "image", "conditions"),
        LISTED | CONDITION | {"condition": floats(S, S, 3)},
    ),
    "Shards": (sharded, LISTED | {"__key__": text(r"\d{9}")}),
    "DigitsTrain": (lambda: DigitsTrain(S), IMAGE | CLASS),
    "DigitsValidation": (lambda: DigitsValidation(S), IMAGE | CLASS),
}
BOTH: dict[str, Case] = {  # of which there may be real files, too
    "DRINExamples": (
        imagenet.DRINExamples,
        LISTED | {"image": floats(256, 256, 3), "depth": floats(256, 256)},
    ),
    "coco.Examples": (lambda: coco.Examples(S), SEGMENTED | {"segmentation": one_hot(183)}),
    "ade20k.Examples": (lambda: ade20k.Examples(S), SEGMENTED | {"segmentation": one_hot(151)}),
    "sflckr.Examples": (lambda: sflckr.Examples(S), SEGMENTED | {"segmentation": one_hot(182)}),
}
REAL = BOTH | {name: case for name, case in EXAMPLES.items() if "Annotated" in name}


def check_items(case: Case) -> None:
    make, fields = case
    dataset = make()
    assert len(dataset) > 0
    for item in (dataset[0], dataset[len(dataset) - 1]):
        assert set(item) == set(fields)
        for key, check in fields.items():
            check(item[key])


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("examples")
    write_all(root, train=20, validation=6)
    return root


@pytest.mark.parametrize("name", EXAMPLES | BOTH)
def test_example_items(name: str, examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(examples)
    monkeypatch.setenv("XDG_CACHE_HOME", str(examples / "cache"))
    check_items((EXAMPLES | BOTH)[name])


@needs_real_data
@pytest.mark.parametrize("name", REAL)
def test_real_items(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FOLDER.is_dir()
    link_real_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    check_items(REAL[name])


def test_every_dataset_is_here() -> None:
    """Every class that data sections of the configs name, and those of published configs."""
    configs = Path(__file__).parents[2] / "configs"
    named = {
        target.rpartition(".")[2]
        for file in configs.glob("*.yaml")
        for target in re.findall(r"^ *target: (taming\.data\.\S+)", file.read_text(), re.MULTILINE)
    }
    here = {name.partition(",")[0].rpartition(".")[2] for name in EXAMPLES | BOTH}
    assert named <= here
