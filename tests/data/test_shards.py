"""Shards of every kind of sample hold what the files held."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taming.data.ade20k import ADE20kTrain
from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.data.annotated_objects_open_images import AnnotatedObjectsOpenImages
from taming.data.base import ImagePaths, NumpyPaths
from taming.data.coco import CocoImagesAndCaptionsTrain
from taming.data.condition_maps import ImageMap
from taming.data.custom import CustomTrain
from taming.data.examples import write_all
from taming.data.faceshq import FacesHQTrain
from taming.data.files.images import opened
from taming.data.files.tar_members import add_member
from taming.data.folder import ImageFolderTrain
from taming.data.image_with_maps import ImagesWithMaps, MapFiles
from taming.data.imagenet import (
    ImageNetEdgesTrain,
    ImageNetScaleTrain,
    ImageNetTrain,
    ImageNetTrainWithDepth,
)
from taming.data.loading import set_loading
from taming.data.lsun import LSUNTrain
from taming.data.options import ImageOptions
from taming.data.paired import PairedTrain
from taming.data.segmentation import SegmentationBase
from taming.data.shards import Shards
from taming.data.tools.shard_writer import write_shards
from taming.data.utils import custom_collate
from taming.data.whole_images import has_whole_images, whole_image
from taming.errors import UserError
from tests.kit.images import truncate, write_image
from tests.kit.scenes import OPTIONS, write_coco, write_open_images


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("examples")
    write_all(root)
    return root


BRIGHTER = [
    {"target": "albumentations.RandomBrightnessContrast", "params": {"p": 1.0}},
    {"target": "albumentations.HorizontalFlip", "params": {"p": 0.5}},
]
SR: dict[str, Any] = {"up_factor": 8, "hr_factor": 2, "keep_mode": "nearest"}


def paired(kind: str, folder: str | None = None, **options: Any) -> PairedTrain:
    root = Path("data/pairs")
    return PairedTrain(root / "images", folder and root / folder, kind, 32, **options)  # type: ignore[arg-type]


# A dataset, and the options with which shards of it give the same items.
DATASETS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "list": (lambda: CustomTrain(32, "data/own/train.txt", random_crop=True), {}),
    "faces": (lambda: FacesHQTrain(32), {"random_crop": False}),
    "imagenet": (lambda: ImageNetTrain({"size": 32}), {}),
    "depth": (lambda: ImageNetTrainWithDepth(size=32, random_flip=True), {"random_flip": True}),
    "classes": (lambda: ImageFolderTrain("data/classes", 32), {"random_crop": False}),
    "records": (lambda: LSUNTrain("tower", 32, random_crop=True), {}),
    "super-resolution": (lambda: ImageNetScaleTrain(32, **SR), SR),
    "augmented super-resolution": (
        lambda: ImageNetScaleTrain(32, **SR, augmentations=BRIGHTER),
        {**SR, "augmentations": BRIGHTER},
    ),
    "augmented edges": (
        lambda: ImageNetEdgesTrain(2, size=32, augmentations=BRIGHTER),
        {"edges": "lr", "up_factor": 2, "augmentations": BRIGHTER},
    ),
    "edges": (lambda: ImageNetEdgesTrain(2, size=32), {"edges": "lr", "up_factor": 2}),
    "captions": (
        lambda: CocoImagesAndCaptionsTrain(32, onehot_segmentation=True, crop_size=32),
        {},
    ),
    "pictures of labels": (lambda: CocoImagesAndCaptionsTrain(32, crop_size=24), {"crop_size": 24}),
    "ade20k": (lambda: ADE20kTrain(size=32), {}),
    "s-flckr": (
        lambda: SegmentationBase(
            "data/sflckr_train.txt", "data/sflckr_images", "data/sflckr_segmentations", 32
        ),
        {"random_crop": False},
    ),
    "paired colors": (
        lambda: paired("segmentation", "colors", n_labels=7, palette="data/pairs/palette.txt"),
        {"random_crop": False},
    ),
    "paired depth": (lambda: paired("depth", "depth", random_crop=True), {}),
    "paired images": (lambda: paired("image", "conditions", random_crop=True), {}),
    "paired drawings": (lambda: paired("edges", "edges", random_crop=True), {}),
    "paired with found edges": (lambda: paired("edges", random_crop=True), {"edges": "edges"}),
}


@pytest.mark.parametrize("name", DATASETS)
def test_shards_give_the_same_items(
    name: str, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(examples)
    monkeypatch.setenv("XDG_CACHE_HOME", str(examples / "cache"))
    make, options = DATASETS[name]
    dataset: Any = make()
    assert write_shards(dataset, tmp_path, per_shard=3) == len(dataset)
    sharded = Shards(str(tmp_path), 32, **{"random_crop": True} | options)
    assert len(sharded) == len(dataset) and len(sharded.shard_lengths) == -(-len(dataset) // 3)
    for index in range(len(dataset)):
        random.seed(index)
        expected = dataset[index]
        random.seed(index)
        item = sharded[index]
        assert item.pop("__key__") == f"{index:09}" and item.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(item[key], value, err_msg=key)
        for source in (dataset, sharded):  # nothing is done with the file's pixels
            whole, metadata = whole_image(source, index)
            np.testing.assert_array_equal(whole, stored(expected["file_path_"]))
            assert metadata.get("class_label") == expected.get("class_label")
    assert has_whole_images(dataset) and has_whole_images(sharded)


def stored(path: str) -> np.ndarray:
    """The pixels (H, W, 3) of a file."""
    if path.endswith(".npy"):
        return np.asarray(np.load(path)[0].transpose(1, 2, 0))
    with Image.open(opened(path)) as image:
        return np.asarray(image.convert("RGB"))


def test_coordinates_of_faces(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(examples)
    dataset = FacesHQTrain(32, crop_size=16, coord=True)
    write_shards(dataset, tmp_path, 100)
    sharded = Shards(str(tmp_path), 32, random_crop=True, coord_crop=16)
    random.seed(3)
    expected = dataset[1]
    random.seed(3)
    for key in ("image", "coord", "class"):
        np.testing.assert_array_equal(sharded[1][key], expected[key])
        random.seed(3)


def test_maps_are_cropped_with_their_image_and_its_coordinates(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", 32, 32)
    maps = {"condition": MapFiles([path], ImageMap())}
    write_shards(ImagesWithMaps([path], maps, ImageOptions(32)), tmp_path / "out", 1)
    data = Shards(str(tmp_path / "out"), 32, random_crop=True, coord_crop=8, up_factor=1)
    random.seed(1)
    item = data[0]
    for name in ("condition", "lr"):  # both are the image itself
        np.testing.assert_array_equal(item[name], item["image"])
    row, column = divmod(round(item["coord"][0, 0, 0] * 32**2), 32)
    image = Shards(str(tmp_path / "out"), 32)[0]["image"]
    np.testing.assert_array_equal(item["image"], image[row : row + 8, column : column + 8])


@pytest.mark.parametrize("name", ["coco", "open images"])
def test_scenes_take_their_images_from_shards(name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_coco(root) if name == "coco" else write_open_images(root)

    def scenes(**options: Any) -> Any:
        options = OPTIONS | options | {"data_path": root}
        if name == "coco":
            return AnnotatedObjectsCoco(**options)
        return AnnotatedObjectsOpenImages(use_additional_parameters=True, **options)

    dataset = scenes()
    write_shards(dataset, tmp_path / "shards", 10)
    expected = list(dataset)
    for folder in ("train", "train2017"):
        shutil.rmtree(root / folder, ignore_errors=True)
    random.seed(0)
    moved = list(scenes(shards=str(tmp_path / "shards")))
    assert len(moved) == len(expected)
    for found, item in zip(moved, expected, strict=True):
        np.testing.assert_array_equal(found["image"], item["image"])
        assert found["annotations"] == item["annotations"]
        assert sorted(found["objects_bbox"].tolist()) == sorted(item["objects_bbox"].tolist())


def test_shards_of_others(tmp_path: Path) -> None:
    image = Path(write_image(tmp_path / "a.png")).read_bytes()
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for key in ("one", "two"):
            for ending, content in (("cls", b"7"), ("png", image), ("txt", b"a house")):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    for _ in range(2):  # the second time from the index
        item = Shards(str(tmp_path / "*.tar"), 16, up_factor=4)[1]
        assert (item["__key__"], item["class_label"], item["caption"]) == ("two", 7, "a house")
        assert item["lr"].shape == item["image"].shape == (16, 16, 3)
    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        archive.addfile(member, io.BytesIO(content))  # the index is out of date
        for ending, content in (("cls", b"8"), ("png", image), ("txt", b"a tree" * 999)):
            member = tarfile.TarInfo(f"three.{ending}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert [item["class_label"] for item in Shards(str(tmp_path / "x.tar"), 16)] == [7, 7, 8]
    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        for ending, content in (("cls", b"9"), ("png", b"no image" * 2000), ("txt", b"?")):
            add_member(archive, f"four.{ending}", content)
    with pytest.raises(UserError, match="png, from Shards of .*x.tar, cannot be"):
        Shards(str(tmp_path / "x.tar"), 16)
    data = Shards(str(tmp_path / "x.tar"), 16, on_error="skip")
    assert data[3]["class_label"] == 7  # of the next one that can be used


def write_samples(tar: Path, image: bytes, *metadata: dict[str, Any]) -> None:
    with tarfile.open(tar, "w") as archive:
        for number, entries in enumerate(metadata):
            add_member(archive, f"{number:09}.jpg", image)
            add_member(archive, f"{number:09}.json", json.dumps(entries).encode())
            add_member(archive, f"{number:09}.txt", str(entries.get("caption") or "").encode())


def test_shards_of_img2dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As that program writes them, and what else others put into their JSON."""
    image = Path(write_image(tmp_path / "a.jpg", 64, 48)).read_bytes()
    usual = {"caption": "a house", "url": "https://x/a.jpg", "key": "0", "status": "success"}
    usual |= {"error_message": None, "width": 64, "exif": "{}", "similarity": 0.25, "nsfw": False}
    usual |= {"size": [64, 48], "captions": ["a", "b"], "boxes": [[0.1, 0.2], [0.3, 1]]}
    taken = {"image": "a.jpg", "lr": "a_small.jpg", "edges": 1}
    odd = {"tags": ["x"], "found": [[1, 2]], "license": "CC", "hash": 7, "mixed": 1, "more": {}}
    others = {"tags": [], "found": [[1, 2, 3]], "hash": 2**64 - 1, "mixed": "1", "more": {"a": 1}}
    metadata = [usual | taken | odd, usual | {"caption": None, "nsfw": True} | taken | others]
    for name in ("a", "b"):
        write_samples(tmp_path / f"{name}.tar", image, *metadata)
    for _ in range(2):  # the second time from the indices
        caplog.clear()
        data = Shards(str(tmp_path), 32, up_factor=2, edges="edges")
        batch = custom_collate([data[number] for number in range(4)])
        assert batch["caption"] == ["a house", ""] * 2 and batch["url"] == [usual["url"]] * 4
        assert batch["size"].tolist() == [[64, 48]] * 4 and batch["boxes"].shape == (4, 2, 2)
        assert batch["nsfw"].tolist() == [False, True] * 2 and set(batch["captions"]) <= {"a", "b"}
        assert all(batch[name].shape == (4, 32, 32, 3) for name in ("image", "lr", "edges"))
        left_out = {"error_message"} | odd.keys()
        assert batch.keys() == {"__key__", "file_path_"} | (usual.keys() - left_out) | taken.keys()
        (line,) = caplog.messages
        assert {*line.partition("left out ")[2].partition(":")[0].split(", ")} == (
            left_out | taken.keys()
        )
    assert data.metadata(1)["size"].tolist() == [64, 48]
    write_samples(tmp_path / "c.tar", image, {"width": 1.5, "size": 3, "url": "u"})
    data = Shards(str(tmp_path), 32)
    assert data[4].keys() == {"image", "__key__", "file_path_", "width", "url", "caption"}
    assert custom_collate([data[0], data[4]])["width"].tolist() == [64, 1.5]


def test_arrays_among_the_labels_are_given_back(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", 32, 32)
    vectors = np.arange(6, dtype=np.float64).reshape(2, 3) / 7
    write_shards(ImagePaths([path] * 2, labels={"vector": vectors}), tmp_path / "out", 1)
    np.testing.assert_array_equal(Shards(str(tmp_path / "out"))[1]["vector"], vectors[1])


def test_files_of_any_name_can_be_read_from_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a", "./b", "c.jpg ", "d.jpe", "x.y/e", "f.JPEG?size=1", "g.PNG", "v1.5"]
    Path("x.y").mkdir()
    image = Path(write_image(tmp_path / "image.jpg", 16, 16)).read_bytes()
    for name in names:
        Path(name).write_bytes(image)
    maps = {"condition": MapFiles(names, ImageMap())}
    write_shards(ImagesWithMaps(names, maps, ImageOptions()), "out", 8)
    sharded = Shards("out")
    assert len(sharded) == len(names) and sharded[7]["condition"].shape == (16, 16, 3)
    assert list(sharded.labels["file_path_"]) == names


def test_images_with_maps_are_decoded_whole(tmp_path: Path) -> None:
    image, other = (write_image(tmp_path / f"a.{e}", 64, 64) for e in ("jpg", "png"))
    maps = {"condition": MapFiles([other], ImageMap())}
    write_shards(ImagesWithMaps([image], maps, ImageOptions(16)), tmp_path / "out", 1)
    data = Shards(str(tmp_path / "out"), 16)
    set_loading(data, fast_decode=True, image_bytes=False)
    assert data[0]["image"].shape == data[0]["condition"].shape == (16, 16, 3)


@pytest.mark.parametrize(
    "options", [{"up_factor": 4}, {"hr_factor": 2}, {"edges": "lr"}, {"edges": "edges"}, {}]
)
def test_conditions_are_made_of_the_whole_image(options: dict[str, Any], tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.jpg", 512, 512)
    write_samples(tmp_path / "a.tar", Path(image).read_bytes(), {})
    slow, fast = Shards(str(tmp_path), 64, **options), Shards(str(tmp_path), 64, **options)
    set_loading(fast, fast_decode=True, image_bytes=False)
    (path,) = fast.paths
    assert fast.read(path).shape == ((512, 512, 3) if options else (64, 64, 3))
    if options:
        for name, values in slow[0].items():
            if isinstance(values, np.ndarray):
                np.testing.assert_allclose(fast[0][name], values, atol=2.1 / 255, err_msg=name)


def test_a_preprocessor_is_used_or_refused(tmp_path: Path) -> None:
    image = Path(write_image(tmp_path / "a.jpg", 64, 64)).read_bytes()
    write_samples(tmp_path / "a.tar", image, {})
    data = Shards(str(tmp_path), 32)
    data.preprocessor = lambda image: {"image": image[:4]}
    assert data[0]["image"].shape == (4, 64, 3)
    with pytest.raises(UserError, match="preprocessor cannot be set beside maps .lr."):
        Shards(str(tmp_path), 32, up_factor=2).preprocessor = data.preprocessor


def test_bad_shards(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no shards"):
        Shards(str(tmp_path))
    np.save(tmp_path / "a.npy", np.zeros((1, 3, 20, 20), np.uint8))
    write_shards(NumpyPaths([str(tmp_path / "a.npy")]), tmp_path / "out", 1)
    assert Shards(str(tmp_path / "out"))[0]["image"].shape == (20, 20, 3)
    with pytest.raises(UserError, match="has no depth for 000000000"):
        Shards(str(tmp_path / "out"), maps={"depth": {"kind": "depth"}})
    with pytest.raises(UserError, match="no kind 'dept' of map; did you mean 'depth'"):
        Shards(str(tmp_path / "out"), maps={"depth": {"kind": "dept"}})
    write_shards(NumpyPaths([str(tmp_path / "a.npy")], labels={"x": [3]}), tmp_path / "more", 1)
    (tmp_path / "more/shard-000000.tar").rename(tmp_path / "out/shard-000001.tar")
    assert "x" not in Shards(str(tmp_path / "out"))[1]  # the other shard has none
    (tmp_path / "out/shard-000001.tar").unlink()
    truncate(tmp_path / "out/shard-000000.tar", 0.05)
    with pytest.raises(UserError, match="shard-000000.tar"):
        Shards(str(tmp_path / "out"))
