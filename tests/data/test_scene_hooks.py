"""Methods of scene datasets that subclasses of the original override."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.data.annotated_objects_dataset import AnnotatedObjectsDataset
from taming.data.annotated_objects_open_images import AnnotatedObjectsOpenImages
from taming.data.conditional_builder.objects_center_points import (
    ObjectsCenterPointsConditionalBuilder,
)
from taming.data.files.images import BadImage
from taming.data.helper_types import Annotation, Category
from taming.data.image_transforms import CenterCropReturnCoordinates, RandomHorizontalFlipReturn
from taming.data.wrapping import changed_by
from taming.errors import UserError
from taming.training import DataModuleFromConfig
from tests.kit.images import ramps, write_image
from tests.kit.scenes import OPTIONS, write_coco, write_open_images

ALL = ["image", "image_path", "file_name", "image_id", "annotations", "objects_bbox", "flipped"]


def coco(root: Path, cls: type[AnnotatedObjectsCoco] = AnnotatedObjectsCoco, **options: Any) -> Any:
    return cls(data_path=root, **OPTIONS | {"keys": ALL} | options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path)


def test_what_is_known_of_images_and_classes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root))
    data = coco(Path("~"))
    image_id = data.get_image_id(0)
    assert image_id == "5" and data.get_annotation("5") == data.annotations(0)
    assert data.get_image_path(image_id) == data.get_image_path("5") == root / "train2017/5.jpg"
    assert data.get_image_description("5") == {"file_name": "5.jpg", "original_size": (48, 32)}
    assert data.no_classes == 4 and data.get_category_number("10") == 1
    assert (
        data.get_category_id(1) == "10" and data.get_textual_label_for_category_id("2") == "bicycle"
    )
    files = {"instances_annotations": "annotations/instances_train2017.json", "files": "train2017"}
    assert files.items() <= data.get_path_structure().items()
    assert data.build_paths(root)["files"] == root / "train2017"
    published = set(OPTIONS) & vars(data).keys() - {"keys"}
    assert {name: vars(data)[name] for name in published} == {k: OPTIONS[k] for k in published}
    assert {"max_objects_per_image", "no_tokens", "crop_method", "random_flip"} <= published
    with pytest.raises(
        UserError, match="is a base class; use one of its subclasses, or define get"
    ):
        AnnotatedObjectsDataset(data_path=root, **OPTIONS)


def test_open_images_describe_themselves(tmp_path: Path) -> None:
    options = OPTIONS | {"keys": ["file_path", "file_name"]}
    data = AnnotatedObjectsOpenImages(
        use_additional_parameters=True, data_path=write_open_images(tmp_path), **options
    )
    path = str(tmp_path / "train/aa.jpg")
    assert data[0] == data.get_image_description("aa") == {"file_path": path, "file_name": "aa.jpg"}
    assert data.get_path_structure()["file_list"] == "train-images-boxable.csv"


@pytest.mark.parametrize("keys", [[], None])
def test_without_keys_items_hold_what_needs_no_pixels(root: Path, keys: Any) -> None:
    item = coco(root, keys=keys)[0]
    assert item["file_name"] == "5.jpg" and len(item["annotations"]) == 3
    assert item["image_id"] == "5" and item["original_size"] == (48, 32) and "image" not in item


def test_images_and_objects_are_asked_for_by_their_id(root: Path) -> None:
    class Own(AnnotatedObjectsCoco):
        def get_image_id(self, no: int) -> str:
            return "5"  # and no more than the text

        def get_annotation(self, image_id: str) -> list[Annotation]:
            return [one._replace(category_no=2) for one in super().get_annotation(image_id)][:1]

        def get_image_path(self, image_id: str) -> Path:
            return self.data_path / "other.png"

        def get_image_description(self, image_id: str) -> dict[str, Any]:
            return super().get_image_description(image_id) | {"caption": f"image {image_id}"}

    write_image(root / "other.png", 32, 32, seed=3)
    data = coco(root, Own, keys=[*ALL, "caption"])
    item = data[0]
    assert item["caption"] == "image 5" and item["image_path"] == str(root / "other.png")
    np.testing.assert_allclose(item["image"], ramps(32, 32, 3) / 127.5 - 1, atol=1e-6)
    assert [one.category_no for one in item["annotations"]] == [2]
    assert item["objects_bbox"].tolist()[0] == 2 and item["objects_bbox"].tolist()[3] == 1023
    assert [one.category_no for one in data.annotations(0)] == [2]
    assert type(item["image_id"]) is str
    with pytest.raises(UserError, match="has no key 'captions'"):
        coco(root, Own, keys=["captions"])


def test_images_of_any_kind(root: Path) -> None:
    class Own(AnnotatedObjectsCoco):
        @staticmethod
        def load_image_from_disk(path: Any) -> Any:
            assert str(path).endswith("5.jpg")
            return PIL.Image.fromarray(ramps(32, 48, 4))

    for file in (root / "train2017").iterdir():
        file.write_bytes(b"no image")
    image = coco(root, Own)[0]["image"]
    np.testing.assert_allclose(image, ramps(32, 48, 4)[:, 8:40] / 127.5 - 1, atol=1e-6)

    class Broken(AnnotatedObjectsCoco):
        @staticmethod
        def load_image_from_disk(path: Any) -> Any:
            raise BadImage("is of no kind")

    with pytest.raises(UserError, match=r"5.jpg, from Broken of .*, is of no kind; replace"):
        coco(root, Broken)[0]


def test_own_transforms(root: Path) -> None:
    class Own(AnnotatedObjectsCoco):
        @staticmethod
        def setup_transform(target_image_size: int, crop_method: Any, random_flip: bool) -> Any:
            assert (target_image_size, crop_method, random_flip) == (16, "center", False)

            def values(image: Any) -> torch.Tensor:
                return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1

            size = target_image_size
            return [CenterCropReturnCoordinates(size), RandomHorizontalFlipReturn(1.0), values]

    own = coco(root, Own, target_image_size=16, keys=[*ALL, "crop_bbox"])
    assert changed_by(own).endswith("Own.setup_transform") and not changed_by(coco(root))
    item = own[0]
    pixels = np.asarray(PIL.Image.open(root / "train2017/5.jpg"))[8:24, 16:32][:, ::-1]
    np.testing.assert_allclose(item["image"], pixels / 127.5 - 1, atol=1e-6)
    assert item["flipped"] is True and item["image"].dtype == np.float32
    np.testing.assert_allclose(item["crop_bbox"], (1 / 6, 0, 2 / 3, 1))
    crop = item["objects_bbox"].tolist()[-2:]
    builder = coco(root).conditional_builders["objects_bbox"]
    assert crop == list(builder.token_pair_from_bbox((1 / 6, 0, 2 / 3, 1)))


def test_transforms_after_the_usual_ones(root: Path) -> None:
    class Own(AnnotatedObjectsCoco):
        def image_transform(self, x: Any) -> Any:
            crop, flipped, image = super().image_transform(x)
            return crop, flipped, -image

    assert changed_by(coco(root, Own)).endswith("Own.image_transform")
    np.testing.assert_array_equal(coco(root, Own)[0]["image"], -coco(root)[0]["image"])


def test_own_tokens(root: Path) -> None:
    class Classes(ObjectsCenterPointsConditionalBuilder):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.offset = 100

        def object_representation(self, annotation: Annotation) -> int:
            return self.offset + super().object_representation(annotation)

        def tokenize_coordinates(self, x: float, y: float) -> int:
            return 7

    class Own(AnnotatedObjectsCoco):
        @property
        def conditional_builders(self) -> dict[str, Any]:
            usual = super().conditional_builders["objects_bbox"]
            return {"classes": Classes(**vars(usual))}

    tokens = coco(root, Own, keys=["classes"])[0]["classes"].tolist()
    assert sorted(tokens[:6:2]) == [100, 101, 103] and tokens[1::2] == [7, 7, 7, 7]
    with pytest.raises(UserError, match="has no key 'objects_bbox'"):
        coco(root, Own)


def test_own_files_and_classes(root: Path) -> None:
    class Own(AnnotatedObjectsCoco):
        def get_path_structure(self) -> dict[str, str]:
            return super().get_path_structure() | {"files": "pictures"}

        def build_paths(self, top_level: Any) -> dict[str, Path]:
            return super().build_paths(Path(top_level, "moved"))

        def filter_categories(self) -> None:
            super().filter_categories()
            del self.categories["1"]

        def setup_category_id_and_number(self) -> None:
            self.category_ids = sorted(self.categories, reverse=True)
            self.category_number = {name: i for i, name in enumerate(self.category_ids)}

    (root / "moved").mkdir()
    (root / "annotations").rename(root / "moved/annotations")
    (root / "train2017").rename(root / "moved/pictures")
    data = coco(root, Own)
    assert data.category_ids == ["92", "2", "10"]
    assert data.conditional_builders["objects_bbox"].no_object_classes == data.no_classes == 3
    assert [one.category_no for one in data[0]["annotations"]] == [2, 0]
    assert data[0]["image_path"] == str(root / "moved/pictures/5.jpg")


def test_own_choice_of_objects_and_images(tmp_path: Path) -> None:
    seen = []

    class Own(AnnotatedObjectsOpenImages):
        @staticmethod
        def filter_object_number(*arguments: Any) -> Any:
            seen.append(arguments)
            return {image_id: things[::-1] for image_id, things in arguments[0].items()}

    class Fewer(AnnotatedObjectsOpenImages):
        def clean_up_annotations_and_image_descriptions(self) -> None:
            self.image_ids = [image_id for image_id in self.image_ids if image_id != "aa"]

    write_open_images(tmp_path)
    options = OPTIONS | {"keys": ALL, "min_object_area": 0.9, "data_path": tmp_path}
    data = Own(use_additional_parameters=True, **options)
    assert seen[0][1:] == (0.9, 1, 3) and list(seen[0][0]) == ["aa", "bb"]
    assert [one.category_id for one in data[0]["annotations"]] == ["/m/0a", "/m/01s55n"]
    options |= {"min_object_area": 0.001}
    fewer = Fewer(use_additional_parameters=True, **options)
    assert len(fewer) == 1 and fewer[0]["image_path"] == str(tmp_path / "train/bb.jpg")
    assert [one.category_id for one in fewer[0]["annotations"]] == ["/m/0b"]
    whole = AnnotatedObjectsOpenImages(use_additional_parameters=True, **options)
    large = whole.filter_object_number({"x": list(whole.annotations(0))}, 0.2, 1, 3)
    assert [one.category_id for one in large["x"]] == ["/m/0a"]
    assert whole.filter_object_number({"x": list(whole.annotations(0))}, 0.2, 2, 3) == {}


def test_crowds_take_the_tokens_that_published_models_know(root: Path) -> None:
    def class_tokens(**options: Any) -> set[int]:
        random.seed(0)
        return set(coco(root, **options)[0]["objects_bbox"].tolist()[:9:3])

    assert class_tokens() == {0, 1, 3}  # "light" of the crowd as well
    assert class_tokens(mark_crowds=True) == {0, 1 + 4, 3}
    assert class_tokens(mark_crowds=True, use_group_parameter=False) == {0, 1, 3}
    crowd = coco(root)[0]["annotations"][1]
    assert crowd.is_group_of == 1 and type(crowd.is_group_of) is int


def test_batches_of_a_whole_dataset(root: Path) -> None:
    class Own(AnnotatedObjectsCoco):
        def get_annotation(self, image_id: str) -> list[Annotation]:
            return list(super().get_annotation(image_id))

        def load_categories(self) -> list[Category]:
            return super().load_categories()

    params = OPTIONS | {"data_path": str(root), "keys": ALL, "min_object_area": 0}
    target = "taming.data.annotated_objects_coco.AnnotatedObjectsCoco"
    data = DataModuleFromConfig(2, {"target": target, "params": params}, num_workers=1)
    data.setup()
    data.datasets["train"] = Own(**params)
    [batch] = data.train_dataloader()
    assert sorted(len(annotations) for annotations in batch["annotations"]) == [1, 3]


def test_objects_of_exactly_the_least_area_are_left_out() -> None:
    objects = {str(n): [Annotation(0.1 * n, str(n), (0, 0, 1, 1), 0, "a")] * n for n in (1, 2, 3)}
    kept = AnnotatedObjectsDataset.filter_object_number(objects, 0.1, 1, 2)
    assert kept == {"2": objects["2"]}
