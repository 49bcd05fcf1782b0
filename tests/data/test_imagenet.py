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
    ImageNetEdgesTrain,
    ImageNetScale,
    ImageNetScaleTrain,
    ImageNetScaleValidation,
    ImageNetTrain,
    ImageNetTrainWithDepth,
    ImageNetValidation,
    ImageNetValidationWithDepth,
    RINTrainWithDepth,
    class_indices,
    get_preprocessor,
    give_synsets_from_indices,
    imscale,
    str_to_indices,
)
from taming.data.imagenet_classes import NAMES, SYNSETS
from taming.errors import UserError
from tests.kit.images import ramps, write_image
from tests.kit.real import link_real_data, needs_real_data

CLASSES = ("n01440764", "n01641577", "n15075141")  # numbers 0, 30, 999


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two training images and one for validation of each of three classes, with depth."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache/autoencoders/data"
    for split, maps, count in (("train", "train", 2), ("validation", "val", 1)):
        for number, synset in enumerate(CLASSES):
            for i in range(count):
                image = folder / f"ILSVRC2012_{split}/data/{synset}/{synset}_{i}.JPEG"
                write_image(image, 32, 48, seed=3 * number + i)
                depth = tmp_path / f"data/imagenet_depth/{maps}/{synset}/{synset}_{i}.png"
                write_depth(depth, np.asarray(Image.open(image))[..., 0])
    return folder


def write_depth(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = values.astype("<f4") * 37 + 1000
    Image.fromarray(stored.view(np.uint8).reshape(*values.shape, 4)).save(path)


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


def first_image() -> Image.Image:
    """The whole first image of training, 48 x 32."""
    path = Path("cache/autoencoders/data/ILSVRC2012_train/data/n01440764/n01440764_0.JPEG")
    return Image.open(path).convert("RGB")


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.float32) / 127.5 - 1


def test_pairs_for_super_resolution(imagenet: Path) -> None:
    """Less is left of the whole image, before it is resized and cropped."""
    item = ImageNetScaleTrain(size=32, up_factor=4, random_crop=False)[0]
    small = first_image().resize((12, 8), Image.Resampling.BICUBIC)
    expected = values(small.resize((48, 32), Image.Resampling.BICUBIC))[:, 8:40]
    np.testing.assert_allclose(item["lr"], expected, atol=1e-6)
    np.testing.assert_allclose(item["image"], values(first_image())[:, 8:40], atol=1e-6)
    assert item["class_label"] == 0 and item["relpath"] == "n01440764/n01440764_0.JPEG"
    halves = ImageNetScaleTrain(size=16, up_factor=4, random_crop=False)[0]
    assert halves["lr"].shape == halves["image"].shape == (16, 16, 3)
    resized = cv2.resize(expected, (16, 16), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(halves["lr"], resized, atol=2 / 127.5)
    assert "lr" not in ImageNetScaleTrain(size=32)[0]
    mirrored = ImageNetScaleTrain(size=32, random_crop=False, random_flip=True, value_range=[0, 9])
    assert len({mirrored[0]["image"].tobytes() for _ in range(20)}) == 2
    assert mirrored.data.options.value_range == [0, 9]  # type: ignore[attr-defined]
    assert mirrored.data.options.exif == "ignore"  # type: ignore[attr-defined]
    assert len(ImageNetScaleValidation(size=32, up_factor=2)) == 3


def test_sides_are_divided_without_remainder(imagenet: Path) -> None:
    lr = ImageNetScaleTrain(up_factor=7, keep_mode="nearest", crop_size=0)[0]["lr"]
    small = first_image().resize((6, 4), Image.Resampling.BICUBIC)
    expected = values(small.resize((48, 32), Image.Resampling.NEAREST))
    np.testing.assert_allclose(lr, expected, atol=1e-6)


def test_enlargement_and_size_of_the_target(imagenet: Path) -> None:
    options = {"size": 32, "random_crop": False}
    lr = ImageNetScaleTrain(up_factor=4, keep_mode="nearest", **options)[0]["lr"]
    np.testing.assert_array_equal(lr[:4, :4], np.broadcast_to(lr[0, 0], (4, 4, 3)))
    target = ImageNetScaleTrain(hr_factor=4)[0]["image"]
    expected = first_image().resize((12, 8), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(target, values(expected), atol=1e-6)
    with pytest.raises(UserError, match="keep_mode 'bicubik' is not known; did you mean 'bicubic'"):
        ImageNetScaleTrain(size=32, up_factor=4, keep_mode="bicubik")
    with pytest.raises(UserError, match="up_factor 0 is no factor"):
        ImageNetScaleTrain(size=32, up_factor=0)


@pytest.mark.parametrize("hr_factor", [None, 2])
def test_images_smaller_than_the_crop_are_enlarged(imagenet: Path, hr_factor: int | None) -> None:
    item = ImageNetScaleTrain(crop_size=64, up_factor=2, hr_factor=hr_factor)[0]
    assert item["image"].shape == item["lr"].shape == (64, 64, 3)
    options = {"size": 32, "crop_size": 16, "random_crop": False, "up_factor": 2}
    item = ImageNetScaleTrain(**options, hr_factor=4)[0]  # to `size`, before `lr` is made
    small = np.asarray(first_image().resize((12, 8), Image.Resampling.BICUBIC))
    target = cv2.resize(small, (48, 32), interpolation=cv2.INTER_LINEAR)
    lr = Image.fromarray(target).resize((24, 16), Image.Resampling.BICUBIC)
    expected = values(lr.resize((48, 32), Image.Resampling.BICUBIC))[8:24, 16:32]
    np.testing.assert_allclose(item["lr"], expected, atol=1e-6)


def test_reduced_values() -> None:
    x = values(Image.fromarray(ramps(33, 48)))
    small = imscale(x, 4)
    assert small.shape == (8, 12, 3) and small.dtype == np.float32
    assert abs(small.mean() - x.mean()) < 0.02
    kept = imscale(x.astype(np.float64), 4, keepshapes=True, keepmode="nearest")
    assert kept.shape == x.shape and kept.dtype == np.float64
    np.testing.assert_array_equal(kept[:4, :4], np.broadcast_to(kept[0, 0], (4, 4, 3)))
    assert imscale(x, None) is x and imscale(x, 1) is x


def test_edges(imagenet: Path) -> None:
    """1 on 0, found in the whole image, whose values are in [-1, 1], and resized with it."""
    skimage = pytest.importorskip("skimage")
    path = imagenet / "ILSVRC2012_train/data/n01440764/n01440764_0.JPEG"
    half = np.full((64, 96, 3), 100, dtype=np.uint8)
    half[:, 48], half[:, 49:] = 108, 123  # too little contrast for values in [0, 1]
    Image.fromarray(half).save(path, quality=95)
    lr = ImageNetEdgesTrain(crop_size=64, random_crop=False)[0]["lr"]
    gray = skimage.color.rgb2gray(values(Image.open(path)))
    expected = skimage.feature.canny(gray, sigma=2).astype(np.float32)[:, 16:80]
    assert expected.any() and not skimage.feature.canny(gray / 2 + 0.5, sigma=2).any()
    np.testing.assert_array_equal(lr, np.repeat(expected[..., None], 3, axis=2))
    resized = ImageNetEdgesTrain(size=32, random_crop=False)[0]["lr"]
    assert resized.min() == 0 and 0.4 < resized.max() <= 1
    halves = ImageNetEdgesTrain(2, crop_size=64, random_crop=False)[0]["lr"]
    columns = np.flatnonzero(halves[32, :, 0])
    assert len(columns) and columns.min() >= 29 and columns.max() <= 35
    np.testing.assert_array_equal(halves[::2, ::2], halves[1::2, 1::2])  # found at half the size


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


def test_depth_beside_any_dataset(imagenet: Path) -> None:
    class Items(list[Any]):
        pass

    class Own(BaseWithDepth):
        def get_base_dset(self) -> Any:
            image = ramps(32, 48).astype(np.float32) / 127.5 - 1
            return Items([{"image": image, "depth_file": "n01440764/n01440764_0.png"}])

        def get_depth_path(self, e: Any) -> str:
            return f"{self.data_root}/train/{e['depth_file']}"

    depth = BaseWithDepth.preprocess_depth
    center = Own(size=16)[0]["depth"]
    whole = depth(Own(), "data/imagenet_depth/train/n01440764/n01440764_0.png")
    expected = cv2.resize(whole, (24, 16), interpolation=cv2.INTER_LINEAR)[:, 4:20]
    np.testing.assert_allclose(center, expected, atol=1e-6)
    item = Own(size=16, random_crop=True, random_flip=False)[0]
    assert item["image"].shape == (16, 16, 3) and item["depth"].shape == (16, 16)
    Path("data/imagenet_depth/train/n01440764/n01440764_0.png").write_text("no image")
    with pytest.raises(UserError, match="n01440764_0.png, depth of Own, is no image"):
        Own(size=16)[0]
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


def test_pairs_from_any_dataset() -> None:
    image = ramps(32, 48).astype(np.float32) / 127.5 - 1

    class Own(ImageNetScaleTrain):
        def get_base(self) -> Any:
            return [{"image": image, "name": "a"}]

    class Edges(ImageNetEdgesTrain):
        get_base = Own.get_base

    item = Own(crop_size=32, up_factor=2)[0]
    assert item["name"] == "a" and item["lr"].shape == (32, 32, 3)
    assert Edges(crop_size=32)[0]["lr"].max() <= 1
    with pytest.raises(UserError, match="ImageNetScale is a base class; .* define get_base in it"):
        ImageNetScale()


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
