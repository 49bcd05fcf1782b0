from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import default_collate

from taming.data.base import ImagePaths
from taming.data.imagenet import (
    NOT_USED,
    RESTRICTED,
    BaseWithDepth,
    DRINExamples,
    ImageNetBase,
    ImageNetTrain,
    ImageNetTrainWithDepth,
    ImageNetValidation,
    ImageNetValidationWithDepth,
    RINTrainWithDepth,
    class_indices,
    get_preprocessor,
    give_synsets_from_indices,
    str_to_indices,
)
from taming.data.imagenet_classes import NAMES, SYNSETS
from taming.errors import UserError
from tests.kit.imagenet import CLASSES, write_depth
from tests.kit.images import ramps, write_image
from tests.kit.real import link_real_data, needs_real_data


def test_shipped_classes() -> None:
    assert len(SYNSETS) == 1000 and sorted(SYNSETS) == SYNSETS
    assert NAMES["n01440764"] == "tench, Tinca tinca" and SYNSETS[30] == "n01641577"


def test_item(imagenet: Path) -> None:
    data = ImageNetTrain({"size": 16})
    item = data[2]
    assert len(data) == 6 and item["image"].shape == (16, 16, 3)
    assert item["relpath"] == "n01641577/n01641577_0.JPEG" and item["synsets"] == "n01641577"
    assert item["class_label"] == 1 and type(item["class_label"]) is int
    assert item["human_label"] == "bullfrog, Rana catesbeiana"
    path = imagenet / "ILSVRC2012_train/data" / item["relpath"]
    assert item["file_path_"] == str(path)
    assert default_collate(list(data))["class_label"].tolist() == [0, 0, 1, 1, 2, 2]


def test_the_config_of_images_with_depth_is_heard(imagenet: Path) -> None:
    data = ImageNetTrainWithDepth({"size": 16, "sub_indices": "30"})
    assert len(data) == 2 and data[0]["synsets"] == "n01641577"
    assert data[0]["image"].shape == (16, 16, 3) and data[0]["depth"].shape == (16, 16)
    assert ImageNetTrainWithDepth({"size": 16}, size=20)[0]["image"].shape == (20, 20, 3)


def test_the_damaged_image_is_not_used(imagenet: Path) -> None:
    for number in (1, 2):
        folder = imagenet / "ILSVRC2012_train/data/n06596364"
        write_image(folder / f"n06596364_959{number}.JPEG", 32, 48)
    names = ImageNetTrain({"size": 16}).labels["relpath"]
    assert [name for name in names if "n06596364" in name] == ["n06596364/n06596364_9592.JPEG"]


def test_depth_of_a_subclass_is_turned_as_asked(imagenet: Path) -> None:
    path = imagenet / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ramps(8, 12)[..., 0]).save(path, exif=exif)
    for exif_option, shape in (("ignore", (8, 12)), ("apply", (12, 8))):
        data = ImageNetTrainWithDepth(size=16, exif=exif_option)
        assert data.preprocess_depth(str(path)).shape == shape
        assert data.base_dset.options.exif == exif_option  # type: ignore[attr-defined]


def test_crops_are_random_in_training_unless_the_config_says_otherwise(imagenet: Path) -> None:
    cases = [
        (ImageNetTrain, {}, True),
        (ImageNetTrain, {"ImageNetTrain/random_crop": False}, False),
        (ImageNetValidation, {"ImageNetTrain/random_crop": True}, False),
        (ImageNetValidation, {"ImageNetValidation/random_crop": True}, True),
    ]
    for dataset, config, random_crop in cases:
        data = dataset({"size": 16, **config})
        assert (len({data[0]["image"].tobytes() for _ in range(9)}) > 1) is random_crop


def test_sub_indices(imagenet: Path) -> None:
    data = ImageNetTrain({"size": 16, "sub_indices": "30-32, 999"})
    assert [item["synsets"] for item in data] == ["n01641577"] * 2 + ["n15075141"] * 2
    assert [item["class_label"] for item in data] == [0, 0, 1, 1]
    with pytest.raises(UserError, match="has no images of the classes 5"):
        ImageNetTrain({"sub_indices": "5"})


def test_ranges_end_before_their_second_number() -> None:
    assert class_indices("30-32, 33-37") == [30, 31, 33, 34, 35, 36]
    assert len(class_indices(RESTRICTED)) == 2 + 4 + 117 + 4 + 20 + 17 + 8 + 3 + 19
    for wrong in ("cat", "3-", "-3", "7-7", "990-1001", "1000"):
        with pytest.raises(UserError, match=f"sub_indices: '{wrong}' "):
            class_indices(f"1, {wrong}")


def test_unknown_option(imagenet: Path) -> None:
    with pytest.raises(UserError, match="has no 'sizes'; did you mean 'size'"):
        ImageNetTrain({"sizes": 16})


def test_damaged_image_of_the_original_is_passed_over(imagenet: Path) -> None:
    write_image(imagenet / "ILSVRC2012_train/data/n06596364" / NOT_USED)
    assert len(ImageNetTrain({"size": 16})) == 6


def test_depth_is_cut_with_its_image(imagenet: Path) -> None:
    data = ImageNetTrainWithDepth(crop_size=16, random_flip=True)
    whole = ImageNetTrainWithDepth(crop_size=0)
    full = whole[1]
    assert full["depth"].shape == (32, 48) and full["depth"].dtype == np.float32
    assert full["depth"].min() == -1 and full["depth"].max() == 1
    for _ in range(6):
        item = data[1]
        assert item["depth"].shape == (16, 16)
        red = np.round((item["image"][..., 0] + 1) * 127.5)
        # depth was made from red, and the whole image's extremes are -1 and 1
        slope, offset = np.polyfit(red.ravel(), item["depth"].ravel(), 1)
        np.testing.assert_allclose(red * slope + offset, item["depth"], atol=1e-4)
    assert {"relpath", "class_label", "human_label", "synsets", "file_path_"} < set(data[0])


def test_depth_of_validation_and_restricted_classes(imagenet: Path) -> None:
    assert len(ImageNetValidationWithDepth(size=16)) == 3
    assert [item["synsets"] for item in RINTrainWithDepth(size=16)] == ["n01641577"] * 2


def test_missing_depth_is_named(imagenet: Path) -> None:
    Path("data/imagenet_depth/train/n01641577/n01641577_1.png").unlink()
    with pytest.raises(UserError, match="n01641577_1.png, from .* does not exist"):
        ImageNetTrainWithDepth(size=16)


def test_settings_of_a_split_may_be_nested(imagenet: Path) -> None:
    for config in ({"ImageNetTrain": {"random_crop": False}}, {"ImageNetTrain/random_crop": False}):
        for settings in (config, OmegaConf.create(config)):
            data = ImageNetTrain({"size": 16, **settings})
            assert data.random_crop is False and data.size == 16
            assert ImageNetValidation({"size": 16, **settings}).random_crop is False
    nested = {"ImageNetValidation": {"random_crop": True}, "size": 16}
    assert ImageNetValidation(nested).random_crop and ImageNetTrain(nested).random_crop
    assert ImageNetTrain({"size": -1})[0]["image"].shape == (32, 48, 3)
    with pytest.raises(UserError, match="has no 'ImageNetTrain/random_crops'; did you mean"):
        ImageNetTrain({"ImageNetTrain": {"random_crops": True}})
    with pytest.raises(UserError, match="has size outside of ImageNetTrain"):
        ImageNetTrain({"ImageNetTrain": {"size": 16}})
    with pytest.raises(UserError, match="ImageNetBase is a base class; use one of its subclasses"):
        ImageNetBase()


def test_synsets_of_class_numbers(tmp_path: Path) -> None:
    assert str_to_indices("0-2, 30") == [0, 1, 30]
    assert give_synsets_from_indices([0, 30, 999]) == list(CLASSES)
    file = tmp_path / "synsets.yaml"
    file.write_text("0: n1\n7: n2\n")
    assert give_synsets_from_indices([7, 0], str(file)) == ["n2", "n1"]
    with pytest.raises(UserError, match="has no such classes"):
        give_synsets_from_indices([3], file)


def test_depth_of_any_kind(imagenet: Path) -> None:
    class Own(ImageNetTrainWithDepth):
        def get_depth_path(self, e: Any) -> str:
            return f"{self.data_root}/{e['class_label']}.npy"

        def preprocess_depth(self, path: str) -> np.ndarray:
            return np.load(path)

    Path("own").mkdir()
    for number in range(3):
        values = np.arange(32 * 48, dtype=np.float32).reshape(32, 48) * (number + 1)
        np.save(f"own/{number}.npy", values)
    data = Own(size=32, random_crop=False, root="own")
    assert len(data) == 6 and data[5]["depth"][0, 1] == 3 * 9
    assert data[5]["relpath"] == "n15075141/n15075141_1.JPEG"
    assert data.get_base_dset()[0]["image"].shape == (32, 48, 3)
    plain = ImageNetTrainWithDepth()
    path = plain.get_depth_path(plain.base_dset[0])
    assert path == "data/imagenet_depth/train/n01440764/n01440764_0.png"
    assert plain.preprocess_depth(path).min() == -1


INVERTED = [{"target": "albumentations.InvertImg", "params": {"p": 1.0}}]


def test_depth_beside_any_dataset(imagenet: Path) -> None:
    class Items(list[Any]):
        pass

    class Own(BaseWithDepth):
        def get_base_dset(self) -> Any:
            image = ramps(32, 48).astype(np.float32) / 127.5 - 1
            files = [f"n01440764/n01440764_{number}.png" for number in (0, 1)]
            return Items([{"image": image, "depth_file": file} for file in files])

        def get_depth_path(self, e: Any) -> str:
            return f"{self.data_root}/train/{e['depth_file']}"

    depth = BaseWithDepth.preprocess_depth
    center = Own(size=16)[0]["depth"]
    whole = depth(Own(), "data/imagenet_depth/train/n01440764/n01440764_0.png")
    expected = cv2.resize(whole, (24, 16), interpolation=cv2.INTER_LINEAR)[:, 4:20]
    np.testing.assert_allclose(center, expected, atol=1e-6)
    item = Own(size=16, random_crop=True, random_flip=False)[0]
    assert item["image"].shape == (16, 16, 3) and item["depth"].shape == (16, 16)
    options: Any = {"random_crop": False, "augmentations": INVERTED}
    inverted, plain = Own(size=32, **options)[0]["image"], Own(size=32)[0]["image"]
    np.testing.assert_allclose(inverted, -plain, atol=1e-6)
    Path("data/imagenet_depth/train/n01440764/n01440764_0.png").write_text("no image")
    replaced, following = Own(size=16, on_error="skip")[0], Own(size=16)[1]
    np.testing.assert_array_equal(replaced["depth"], following["depth"])
    Path("data/imagenet_depth/train/n01440764/n01440764_1.png").write_text("no image")
    with pytest.raises(UserError, match="n01440764_0.png, depth of Own, is no image"):
        Own(size=16)[0]
    with pytest.raises(UserError, match="of Own, is no image.*; look at the warnings above"):
        Own(size=16, on_error="skip")[0]
    with pytest.raises(UserError, match="BaseWithDepth is a base class; .* define get_base_dset"):
        BaseWithDepth()


def test_depth_beside_images_that_are_changed_before(imagenet: Path) -> None:
    """Cropped or loaded in their own way, they are taken as their dataset gives them."""
    path = str(next(imagenet.rglob("n01440764_0.JPEG")))

    class Negative(ImagePaths):
        def load(self, index: int) -> dict[str, Any]:
            return {"image": -super().load(index)["image"]}

    def beside(images: Any) -> Any:
        class Own(BaseWithDepth):
            def get_base_dset(self) -> Any:
                return images

            def get_depth_path(self, e: Any) -> str:
                return f"{self.data_root}/train/n01440764/n01440764_0.png"

        return Own()[0]

    whole = beside(ImagePaths([path]))
    np.testing.assert_array_equal(beside(Negative([path]))["image"], -whole["image"])
    assert whole["image"].shape == (32, 48, 3)
    assert beside(ImagePaths([path], 16))["image"].shape == (16, 16, 3)
    assert beside(ImagePaths([path], crop_size=20))["image"].shape == (20, 20, 3)


def test_random_crops_of_resized_images_are_mirrored_with_their_depth(imagenet: Path) -> None:
    """As published; other crops are not, unless `random_flip` says so."""

    def outcomes(**options: Any) -> int:
        data = ImageNetTrainWithDepth(**options)
        return len({data[0]["depth"].tobytes() for _ in range(200)})

    random.seed(0)
    assert outcomes(size=32) > 17  # 17 places for the crop
    assert outcomes(size=32, random_flip=False) <= 17
    assert outcomes(crop_size=32) <= 17 and outcomes(size=32, random_crop=False) == 1


def test_published_transform_of_images_and_depth() -> None:
    random.seed(0)
    image = ramps(32, 48)
    targets = {"depth": "image", "labels": "mask"}
    both = get_preprocessor(16, True, targets)(image=image, depth=image[..., 0], labels=image)
    assert both["image"].shape == both["labels"].shape == (16, 16, 3)
    np.testing.assert_array_equal(both["depth"], both["image"][..., 0])
    assert get_preprocessor(crop_size=20)(image=image)["image"].shape == (20, 20, 3)
    assert get_preprocessor(16, crop_size=99)(image=image)["image"].shape == (16, 16, 3)
    np.testing.assert_array_equal(get_preprocessor()(image=image)["image"], image)
    cropped = get_preprocessor(random_crop=True, crop_size=32)
    rows = {cropped(image=image)["image"][0].tobytes() for _ in range(60)}
    assert rows <= {image[0, left : left + 32].tobytes() for left in range(17)}  # no flips


def test_hooks_of_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(DRINExamples):
        def preprocess_image(self, image_path: str) -> np.ndarray:
            return -super().preprocess_image(image_path)

        def preprocess_depth(self, path: str) -> np.ndarray:
            return -super().preprocess_depth(path)

    monkeypatch.chdir(tmp_path)
    write_image(Path("data/drin_images/a/b.png"), 32, 48)
    write_depth(Path("data/drin_depth/a/b.png"), ramps(32, 48)[..., 0])
    Path("data/drin_examples.txt").write_text("a/b.png\n")
    usual, own = DRINExamples()[0], Own()[0]
    for key in ("image", "depth"):
        np.testing.assert_array_equal(own[key], -usual[key])
    assert usual["depth"].shape == (256, 256) and usual["depth"].dtype == np.float32

    class Text(DRINExamples):
        def preprocess_depth(self, path: str) -> np.ndarray:
            return np.full((32, 48), float(Path(path).read_text()), np.float32)

    Path("data/drin_depth/a/b.png").write_text("7")  # no image, which is nobody's business
    assert Text()[0]["depth"].max() == 7


@needs_real_data
def test_real_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link_real_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    items = list(DRINExamples())
    assert len(items) == 3
    for item in items:
        assert item["image"].shape == (256, 256, 3) and item["depth"].shape == (256, 256)
        assert -1 <= item["depth"].min() < -0.9 and 0.9 < item["depth"].max() <= 1
