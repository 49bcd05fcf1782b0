from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from taming.data.folder import ImageFolderTrain, ImageFolderValidation
from taming.errors import UserError
from tests.kit.images import write_image, write_images


def names(dataset: ImageFolderTrain | ImageFolderValidation) -> set[str]:
    return set(dataset.paths)


def test_one_folder_is_divided_within_each_class(tmp_path: Path) -> None:
    paths = {name: write_images(tmp_path / name, 10) for name in ("dog", "cat")}
    train = ImageFolderTrain(tmp_path, size=8, validation_fraction=0.2)
    validation = ImageFolderValidation(str(tmp_path), size=8, validation_fraction=0.2)
    assert names(train) | names(validation) == set(paths["dog"] + paths["cat"])
    assert (len(train), len(validation)) == (16, 4)
    assert sorted(item["class_label"] for item in validation) == [0, 0, 1, 1]
    cats, dogs = ({Path(p).name for p in validation.paths if name in p} for name in ("cat", "dog"))
    assert cats != dogs  # each class is divided in its own way
    for item in (*train, *validation):
        name = Path(item["file_path_"]).parent.name
        assert (item["human_label"], item["class_label"]) == (name, ["cat", "dog"].index(name))
        assert type(item["class_label"]) is int and item["image"].shape == (8, 8, 3)


def test_the_division_is_fixed_by_its_seed(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 30)
    first = names(ImageFolderValidation(tmp_path, 8, validation_fraction=0.3))
    assert first == names(ImageFolderValidation(tmp_path, 8, validation_fraction=0.3))
    assert first != names(ImageFolderValidation(tmp_path, 8, validation_fraction=0.3, split_seed=1))


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_folders_of_splits_are_used_where_they_exist(tmp_path: Path, name: str) -> None:
    train = write_images(tmp_path / "train/a", 3) + write_images(tmp_path / "train/b/deep", 2)
    validation = write_images(tmp_path / name / "a", 1) + write_images(tmp_path / name / "b", 1)
    assert names(ImageFolderTrain(tmp_path, 8)) == set(train)
    assert names(ImageFolderValidation(tmp_path, 8)) == set(validation)


def test_train_folder_alone_is_divided(tmp_path: Path) -> None:
    write_images(tmp_path / "train/a", 4)
    assert len(ImageFolderTrain(tmp_path, 8)) == 3
    assert len(ImageFolderValidation(tmp_path, 8)) == 1


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("car", "train"):
        write_images(tmp_path / name, 2)
    assert ImageFolderTrain(tmp_path, 8).class_names == ["car", "train"]


@pytest.mark.parametrize(
    "folders",
    [["0", "1", "2", "10"], ["00001", "00002", "00010"], ["n01440764", "n01443537"], ["B", "a"]],
)
def test_class_order(tmp_path: Path, folders: list[str]) -> None:
    for name in reversed(folders):
        write_images(tmp_path / name, 1)
    (tmp_path / ".cache").mkdir()
    assert ImageFolderTrain(tmp_path, 8).class_names == folders


def test_only_the_extensions_asked_for(tmp_path: Path) -> None:
    write_image(tmp_path / "a/x.PNG")
    write_image(tmp_path / "a/x.jpg")
    (tmp_path / "a/notes.txt").write_text("")
    assert len(ImageFolderTrain(tmp_path, 8, validation_fraction=0)) == 2
    train = ImageFolderTrain(tmp_path, 8, validation_fraction=0, extensions=["png"])
    assert [Path(path).name for path in train.paths] == ["x.PNG"]


def test_random_crop_and_flip(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 1, 16, 64)
    dataset = ImageFolderTrain(tmp_path, 16, random_crop=True)
    assert len({np.asarray(dataset[0]["image"]).tobytes() for _ in range(20)}) > 3
    dataset = ImageFolderTrain(tmp_path, 16, random_flip=True)
    assert len({np.asarray(dataset[0]["image"]).tobytes() for _ in range(20)}) == 2
    assert ImageFolderTrain(tmp_path, 16, crop_size=8)[0]["image"].shape == (8, 8, 3)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ImageFolderTrain of .*absent: there is no folder"):
        ImageFolderTrain(tmp_path / "absent", 8)
    write_image(tmp_path / "x.png")
    with pytest.raises(UserError, match="has no class folders"):
        ImageFolderTrain(tmp_path, 8)
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"class folder .*a has no images \(jpg, .*\)"):
        ImageFolderTrain(tmp_path, 8)


def test_nothing_left_for_validation(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 1)
    with pytest.raises(UserError, match="has no images left"):
        ImageFolderValidation(tmp_path, 8)


def test_splits_must_have_the_same_classes(tmp_path: Path) -> None:
    for place in ("train/a", "train/b", "val/a"):
        write_images(tmp_path / place, 1)
    write_images(tmp_path / "other/train/a", 1)
    for name in "ab":
        write_images(tmp_path / "other/val" / name, 1)
    with pytest.raises(UserError, match="train lacks the class folder 'b' that .*val has"):
        ImageFolderTrain(tmp_path / "other", 8)
    with pytest.raises(UserError, match="val lacks the class folder 'b' that .*train has"):
        ImageFolderTrain(tmp_path, 8)


def test_number_of_classes_is_checked_against_the_model_s(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_images(tmp_path / name, 1)
    assert len(ImageFolderTrain(tmp_path, 8, n_classes=2)) == 2
    with pytest.raises(UserError, match="has 2 class folders, but n_classes is 10"):
        ImageFolderTrain(tmp_path, 8, n_classes=10)
