"""Photographs that were taken with a turned camera, in every dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from taming.checkpoint import find_run, run_config
from taming.config_before import is_of_run, keep_dataset_defaults
from taming.data import ade20k, coco, faceshq, imagenet
from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.data.base import ImagePaths
from taming.data.custom import CustomTest, CustomTrain
from taming.data.folder import ImageFolderTrain
from taming.data.loading import set_loading
from taming.data.paired import PairedTrain
from taming.data.sflckr import SegmentationBase
from taming.data.shards import Shards
from taming.data.tools.shard_writer import write_shards
from taming.errors import UserError
from taming.evaluation.sources.dataset import DatasetSource
from taming.training.run_configs import read_configs
from taming.training.run_folder import RunFolder, resumed_run
from tests.kit.images import ramps, write_image, write_turned
from tests.kit.models import FIRST_STAGE
from tests.kit.runs import tiny_run
from tests.kit.scenes import OPTIONS, coco_content, write_coco

UPRIGHT, STORED = (32, 24), (24, 32)


def listed(root: Path, cls: type = CustomTrain) -> Callable[..., Any]:
    write_turned(root / "a.png", 6)
    (root / "list.txt").write_text(f"{root / 'a.png'}\n")
    return lambda **options: cls(None, root / "list.txt", **options)


def folders(root: Path) -> Callable[..., Any]:
    for number in range(3):
        (root / "classes/cats").mkdir(parents=True, exist_ok=True)
        write_turned(root / f"classes/cats/{number}.png", 6)
    return lambda **options: ImageFolderTrain(root / "classes", **options)


def paths(root: Path) -> Callable[..., Any]:
    path = write_turned(root / "a.png", 6)
    return lambda **options: ImagePaths([path], **options)


def segmented(root: Path) -> Callable[..., Any]:
    write_turned(root / "images.png", 6)
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "labels").mkdir()
    Image.fromarray(ramps(*STORED)[..., 0] // 100).save(root / "labels/images.png", exif=exif)
    (root / "list.txt").write_text("images.png\n")
    return lambda **options: SegmentationBase(
        root / "list.txt", root, root / "labels", n_labels=3, **options
    )


OWN = {
    "CustomTrain": listed,
    "CustomTest": lambda root: listed(root, CustomTest),
    "ImageFolderTrain": folders,
    "ImagePaths": paths,
    "SegmentationBase": segmented,
}


@pytest.mark.parametrize("name", OWN)
def test_ones_own_photographs_stand_upright_unless_that_is_switched_off(
    tmp_path: Path, name: str
) -> None:
    make = OWN[name](tmp_path)
    for fast in (False, True):
        dataset = make()
        set_loading(dataset, fast_decode=fast, image_bytes=False)
        image = dataset[0]["image"]
        np.testing.assert_allclose(image, np.rot90(ramps(*STORED), 3) / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(
        make(exif="ignore")[0]["image"], ramps(*STORED) / 127.5 - 1, atol=1e-6
    )
    with pytest.raises(UserError, match="exif 'up' is not known; use apply or ignore"):
        make(exif="up")


def test_maps_turn_with_their_images(tmp_path: Path) -> None:
    make = segmented(tmp_path)
    for exif, expected in (("apply", np.rot90(ramps(*STORED)[..., 0] // 100, 3)), ("ignore", None)):
        labels = make(exif=exif)[0]["segmentation"].argmax(axis=2)
        expected = ramps(*STORED)[..., 0] // 100 if expected is None else expected
        np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("kind", ["depth", "image"])
def test_maps_that_were_drawn_upright_fit(tmp_path: Path, kind: Any) -> None:
    for folder in ("images", "maps"):
        (tmp_path / folder).mkdir()
    for number in range(2):
        write_turned(tmp_path / f"images/{number}.jpg", 6)
        pixels = ramps(*UPRIGHT)
        picture = Image.fromarray(pixels[..., 0] if kind == "depth" else pixels)
        picture.save(tmp_path / f"maps/{number}.png")
    make = lambda **options: PairedTrain(  # noqa: E731
        tmp_path / "images", tmp_path / "maps", kind, **options
    )
    item = make()[0]
    assert item["image"].shape[:2] == item[make().key].shape[:2] == UPRIGHT
    with pytest.raises(UserError, match="is 24 x 32 pixels, but its image .* set exif: apply"):
        make(exif="ignore")


def test_sizes_are_checked_as_images_stand(tmp_path: Path) -> None:
    path = write_turned(tmp_path / "a.jpg", 6, 24, 100)
    dataset = ImagePaths([path], size=24, crop_size=0)
    assert dataset.header_size(path) == (100, 24) and dataset[0]["image"].shape == (100, 24, 3)


def test_boxes_of_scenes_are_of_the_upright_image(tmp_path: Path) -> None:
    content = coco_content()
    content["images"][0] |= {"width": 32, "height": 48}
    content["annotations"][0]["bbox"] = [8, 12, 16, 24]
    root = write_coco(tmp_path, content)
    write_turned(root / "train2017/5.jpg", 6, 32, 48)
    options = {**OPTIONS, "keys": ["image", "annotations", "original_size"], "use_stuff": False}
    item = AnnotatedObjectsCoco(data_path=root, **{**options, "crop_method": "none"})[0]
    assert item["original_size"] == (32, 48)
    assert item["annotations"][0].bbox == (0.25, 0.25, 0.5, 0.5)
    with pytest.raises(UserError, match="annotations are of 32 x 48 pixels: set exif: apply"):
        AnnotatedObjectsCoco(data_path=root, **options, exif="ignore")
    stored = write_coco(tmp_path / "stored")
    write_turned(stored / "train2017/5.jpg", 6, 32, 48)
    with pytest.raises(UserError, match="annotations are of 48 x 32 pixels: set exif: ignore"):
        AnnotatedObjectsCoco(data_path=stored, **options)
    item = AnnotatedObjectsCoco(data_path=stored, **options, exif="ignore")[0]
    assert item["original_size"] == (48, 32)


@pytest.mark.parametrize("cls", [faceshq.FFHQTrain, faceshq.FacesHQTrain])
def test_published_sets_are_read_as_the_published_models_saw_them(
    cls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("data/ffhq", "data/celebahq"):
        Path(place).mkdir(parents=True)
    for number in range(4):
        np.save(f"data/celebahq/imgHQ{number:05}.npy", ramps(24, 32).transpose(2, 0, 1)[None])
        write_turned(Path(f"data/ffhq/{number:05}.png"), 6)
    for options, shape in (({}, STORED), ({"exif": "apply"}, UPRIGHT)):
        dataset = cls(None, **options)
        assert dataset[len(dataset) - 1]["image"].shape[:2] == shape


def test_shards_are_read_as_the_files_were_that_they_hold(tmp_path: Path) -> None:
    path = write_turned(tmp_path / "a.png", 6)
    for exif, shape in (("apply", UPRIGHT), ("ignore", STORED)):
        folder = tmp_path / exif
        assert write_shards(ImagePaths([path], exif=exif), folder, 1) == 1
        assert Shards(str(folder))[0]["image"].shape[:2] == shape
        assert Shards(str(folder), exif="apply")[0]["image"].shape[:2] == UPRIGHT
    description = tmp_path / "ignore/shards.json"
    before = {k: v for k, v in json.loads(description.read_text()).items() if k != "exif"}
    description.write_text(json.dumps(before))  # of shards from before the option
    assert Shards(str(tmp_path / "ignore"))[0]["image"].shape[:2] == STORED
    description.unlink()  # of somebody else
    assert Shards(str(tmp_path / "ignore"))[0]["image"].shape[:2] == UPRIGHT


def test_published_sets_ignore_by_default() -> None:
    assert keep_default(imagenet.ImageNetTrainWithDepth) == "ignore"
    assert keep_default(imagenet.ImageNetEdgesValidation) == "ignore"
    for cls in (ade20k.ADE20kTrain, ade20k.Examples, coco.Examples):
        assert keep_default(cls) == "ignore"
    assert keep_default(coco.CocoImagesAndCaptionsValidation) == "ignore"
    assert keep_default(CustomTest) == keep_default(AnnotatedObjectsCoco) == "apply"


def section(cls: type, **params: Any) -> dict[str, Any]:
    return {"target": f"{cls.__module__}.{cls.__qualname__}", "params": params}


def test_stored_configs_of_runs_are_read_as_they_were_meant(tmp_path: Path) -> None:
    """By all that reads a run's data again; a new run writes down what it does."""
    listed(tmp_path)
    data = {"size": 8, "test_images_list_file": str(tmp_path / "list.txt")}
    run = tiny_run(tmp_path / "run", FIRST_STAGE, validation=section(CustomTest, **data))
    stored = run_config(find_run(run)).data.params.validation
    assert stored.params.exif == "ignore"
    assert DatasetSource(find_run(run).configs).section["params"]["exif"] == "ignore"
    resumed, _ = read_configs(resumed_run(run, []), [], [])
    assert resumed.data.params.validation.params.exif == "ignore"
    base = tmp_path / "mine.yaml"
    OmegaConf.save(OmegaConf.load(find_run(run).configs[0]), base)
    fresh, _ = read_configs(RunFolder(tmp_path / "new", (base,)), [base], [])
    assert fresh.data.params.validation.params.exif == "apply"
    assert "exif" not in DatasetSource(base).section["params"]  # which is "apply"


def keep_default(cls: type) -> str:
    """What the config of a new run says of a dataset that says nothing itself."""
    config = OmegaConf.create({"data": {"params": {"validation": section(cls, size=8)}}})
    keep_dataset_defaults(config, new=True)
    return str(config.data.params.validation.params.exif)


class Stored(CustomTrain):
    def __init__(self, list_file: str, exif: Any = "ignore", **options: Any) -> None:
        super().__init__(8, list_file, exif=exif, **options)


class Closed(ImagePaths):
    def __init__(self, size: int) -> None:
        super().__init__(["a.png"], size)


def test_runs_keep_the_way_that_they_were_trained() -> None:
    def config() -> Any:
        data = {"train": section(CustomTrain, size=8), "test": section(CustomTest, exif="apply")}
        data["validation"] = {"target": "nowhere.Dataset", "params": {"size": 8}}
        return OmegaConf.create({"data": {"params": data}})

    before, now = config(), config()
    keep_dataset_defaults(before, new=False)
    keep_dataset_defaults(now, new=True)
    assert before.data.params.train.params == {"size": 8, "exif": "ignore"}
    assert now.data.params.train.params == {"size": 8, "exif": "apply"}
    for kept in (before, now):
        assert kept.data.params.test.params.exif == "apply"
        assert kept.data.params.validation.params == {"size": 8}
    keep_dataset_defaults(OmegaConf.create({"model": {}}), new=True)
    own = OmegaConf.create({"data": {"params": {"test": section(Stored, list_file="a.txt")}}})
    keep_dataset_defaults(own, new=True)
    assert own.data.params.test.params.exif == "ignore"  # as the subclass says
    closed = OmegaConf.create({"data": {"params": {"test": section(Closed, size=8)}}})
    keep_dataset_defaults(closed, new=True)
    assert closed.data.params.test.params == {"size": 8}  # its constructor takes no more
    assert is_of_run("logs/x/configs/2026-01-01T00-00-00-project.yaml")
    assert not is_of_run("configs/custom_vqgan.yaml")


@pytest.mark.parametrize("name", ["imagenet", "drin"])
def test_imagenet_files_as_they_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if name == "drin":
        Path("data/drin_images").mkdir(parents=True)
        write_turned(Path("data/drin_images/a.JPEG"), 6, 256, 256)
        write_image(Path("data/drin_depth/a.png"), 256, 256)
        Image.fromarray(np.zeros((256, 256), np.uint8)).save("data/drin_depth/a.png")
        Path("data/drin_examples.txt").write_text("a.JPEG\n")
        image = imagenet.DRINExamples()[0]["image"]
        with Image.open("data/drin_images/a.JPEG") as stored:
            expected = np.asarray(stored)
    else:
        folder = tmp_path / "cache/autoencoders/data/ILSVRC2012_train/data/n01440764"
        folder.mkdir(parents=True)
        write_turned(folder / "a.JPEG", 6)
        image = imagenet.ImageNetTrain()[0]["image"]
        with Image.open(folder / "a.JPEG") as stored:
            expected = np.asarray(stored)
        turned = imagenet.ImageNetTrain({"exif": "apply"})[0]["image"]
        np.testing.assert_array_equal(turned, np.rot90(image, 3))
    np.testing.assert_allclose(image, expected / 127.5 - 1, atol=1e-6)
