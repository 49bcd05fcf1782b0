from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import ConcatDataset, Dataset, Subset

from taming.data.base import ImagePaths
from taming.data.custom import CustomBase, CustomTrain
from taming.data.file_versions import version_of
from taming.data.tools.shard_writer import write_shards
from taming.data.transforms import get_preprocessor
from taming.data.whole_images import has_whole_images, whole_image
from taming.data.with_depth import BaseWithDepth
from taming.data.wrapping import changed_by, handed_on, image_files_in, parts
from taming.errors import UserError
from taming.evaluation.sources.dataset import DatasetSource
from taming.evaluation.sources.resize import CENTER, PILLOW, Resizing
from taming.training.data_module import DataModuleFromConfig, WrappedDataset
from tests.kit.images import write_images

GRAY = {"target": f"{__name__}.Gray", "params": {"size": 16, "training_images_list_file": "l"}}


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    paths = write_images(tmp_path / "images", 3, 40, 50)
    Path("l").write_text("\n".join(paths))
    return paths


class Holds(Dataset[Any]):
    """A dataset of the user's with these attributes, and an item."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return {"image": np.zeros((8, 8, 3), np.float32)}


class Plain:
    """No torch dataset, but one with a length and items."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


@pytest.mark.parametrize(
    "held",
    [
        {"data": torch.zeros(3)},
        {"data": np.zeros(3)},
        {"data": {"images": torch.zeros(3)}, "datasets": None},
        {"datasets": 5, "data": "a/b.npy", "dataset": "train"},
        {"datasets": {"train": "a"}, "data": [1] * 1000},
        {"datasets": (i for i in range(3))},
    ],
)
def test_what_is_no_dataset_is_not_walked(held: dict[str, Any]) -> None:
    dataset = Holds(**held)
    assert parts(dataset) == [] == list(image_files_in(dataset)) == handed_on(dataset)
    assert not has_whole_images(dataset) and version_of(dataset)
    if "datasets" in held and not isinstance(held["datasets"], int | dict | None):
        assert list(held["datasets"]) == [0, 1, 2]  # not used up


def test_what_is_inside_comes_in_order(paths: list[str]) -> None:
    one, two = ImagePaths(paths[:1]), ImagePaths(paths[1:])
    for dataset, expected in (
        (ConcatDataset([two, one, two]), [two, one, two]),
        (Subset(ConcatDataset([one, two]), [2, 0]), [one, two]),
        (Holds(datasets={"a": two, "b": one}), [two, one]),
        (Holds(data=[two, None]), [two]),
        (Holds(data=one, dataset=one), [one]),
        (WrappedDataset(Plain(CustomBase(one))), [one]),
    ):
        assert list(image_files_in(dataset)) == expected
    circle = Holds()
    circle.data = Holds(data=circle, dataset=one)  # type: ignore[attr-defined]
    circle.dataset = circle  # type: ignore[attr-defined]
    assert list(image_files_in(circle)) == [one]


def test_subsets_have_whole_images_and_versions(paths: list[str]) -> None:
    data = CustomTrain(16, "l")
    some = Subset(ConcatDataset([data, data]), [4, 0])
    assert has_whole_images(some) and len(handed_on(ConcatDataset([data, data]))) == 2
    assert handed_on(some) == []
    assert whole_image(some, 0)[1]["file_path_"] == paths[1]
    assert whole_image(some, 1)[1]["file_path_"] == paths[0]
    before = version_of(some)
    Path(paths[0]).touch()
    assert version_of(some) != before


class Gray(CustomTrain):
    def __getitem__(self, index: int) -> Any:
        item = super().__getitem__(index)
        gray = np.repeat(item["image"].mean(2, keepdims=True), 3, axis=2)
        return item | {"image": gray, "class_label": 7}


class Permuted(CustomTrain):
    def __getitem__(self, index: int) -> Any:
        return self.data[len(self) - 1 - index]


class Twice(CustomTrain):
    """No item is a file of its own."""

    def load(self) -> None: ...  # of no item

    def __len__(self) -> int:
        return 2 * len(self.data)  # type: ignore[arg-type]


class Masked(ImagePaths):
    def load(self, index: int) -> Any:
        return super().load(index)


class Labeled(ImagePaths):
    def _item(self, index: int) -> Any:
        return super()._item(index) | {"class_label": 1}


class Dark(ImagePaths):
    def finish_image(self, pixels: np.ndarray) -> np.ndarray:
        return super().finish_image(pixels) / 2


class Renamed(ImagePaths):
    def metadata(self, index: int) -> Any:
        return super().metadata(index) | {"class_label": 5}


def test_items_that_own_code_changes_are_no_files(paths: list[str]) -> None:
    for dataset in (Gray(16, "l"), Permuted(16, "l"), Masked(paths), Labeled(paths), Dark(paths)):
        own = f"{__name__}.{type(dataset).__name__}."
        assert changed_by(dataset).startswith(own) and not has_whole_images(dataset)
        assert not has_whole_images(WrappedDataset(ConcatDataset([dataset])))
        assert handed_on(dataset) == []
    assert changed_by(Twice(16, "l")) == "" and not has_whole_images(Twice(16, "l"))
    assert (
        has_whole_images(Renamed(paths)) and whole_image(Renamed(paths), 0)[1]["class_label"] == 5
    )
    own = ImagePaths(paths)
    own.preprocessor = get_preprocessor(16)
    assert has_whole_images(own)
    own.preprocessor = lambda image: {"image": 255 - image}
    assert changed_by(own) == "taming.data.base.ImagePaths.preprocessor"


def test_depth_is_not_laid_beside_files_of_changed_items(paths: list[str]) -> None:
    class Depth(BaseWithDepth):
        def __init__(self, base: Any) -> None:
            self.base = base
            super().__init__()

        def get_base_dset(self) -> Any:
            return self.base

        def get_depth_path(self, e: Any) -> str:
            return str(e["file_path_"])

    for kind in (Masked, Labeled, Dark, Renamed):
        assert list(image_files_in(Depth(base := kind(paths)))) == [base]
    with pytest.raises(UserError, match="from Depth, has pixels of mode RGB"):  # as all are checked
        Depth(ImagePaths(paths))


def test_evaluation_takes_changed_items_as_training_sees_them(paths: list[str]) -> None:
    OmegaConf.save({"data": {"params": {"validation": GRAY}}}, "gray.yaml")
    source = DatasetSource("gray.yaml", workers=0)
    source.resizing = Resizing(PILLOW, CENTER, (24, 24))
    assert not source.reads_files and source.describe()["images_are"] == "as in training"
    pixels, label, _, _ = source.load(0)
    assert label == 7 and pixels.shape == (3, 24, 24)
    np.testing.assert_array_equal(pixels[0], pixels[1])


def test_shards_and_bytes_of_changed_items(
    paths: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert write_shards(Gray(16, "l"), "shards", 2) == 3
    assert f"what {__name__}.Gray.__getitem__ does is not in them" in caplog.text
    with pytest.raises(UserError, match="Twice alone knows which files its items are of"):
        write_shards(Twice(16, "l"), "twice", 2)
    data = DataModuleFromConfig(2, GRAY, image_bytes=True, num_workers=0)
    with pytest.raises(UserError, match=r"image_bytes: .*Gray.__getitem__ is made for images in"):
        data.setup()


def test_sizes_are_those_of_all_joined_files(paths: list[str], tmp_path: Path) -> None:
    other = write_images(tmp_path / "other", 2, 20, 20)
    data = DataModuleFromConfig(2)
    data.datasets = {"train": ConcatDataset([ImagePaths(paths), ImagePaths(other)])}
    with pytest.raises(UserError, match=r"several sizes, 50 x 40 .* and 20 x 20 "):
        data.setup()
    data.datasets = {"train": Subset(data.datasets["train"], [0, 1])}
    data.setup()
