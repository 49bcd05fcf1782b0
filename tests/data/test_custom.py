from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from taming.data.base import ImagePaths
from taming.data.custom import CustomBase, CustomTest, CustomTrain
from taming.errors import UserError, sentence
from tests.kit.images import truncate, write_deep, write_image, write_images


def write_list(folder: Path, names: list[str]) -> Path:
    (folder / "list.txt").write_text("\n".join(names))
    return folder / "list.txt"


def test_train_and_test_items(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 3)
    file = write_list(tmp_path, ["000.png", "001.png", "002.png"])
    train = CustomTrain(size=16, training_images_list_file=str(file))
    test = CustomTest(size=16, test_images_list_file=str(file))
    assert len(train) == len(test) == 3
    assert train[2]["file_path_"] == paths[2] and train[2]["image"].shape == (16, 16, 3)
    np.testing.assert_array_equal(train[1]["image"], test[1]["image"])


def test_random_crop_is_an_option(tmp_path: Path) -> None:
    write_images(tmp_path, 1, 16, 64)
    file = write_list(tmp_path, ["000.png"])
    dataset = CustomTrain(16, file, random_crop=True)
    assert len({dataset[0]["image"].tobytes() for _ in range(20)}) > 3
    for kind in (CustomTrain, CustomTest):
        dataset = kind(16, file, random_flip=True)
        assert len({dataset[0]["image"].tobytes() for _ in range(20)}) == 2


def test_own_subclasses_may_set_data_themselves(tmp_path: Path) -> None:
    class Mine(CustomBase):
        def __init__(self) -> None:
            super().__init__()
            self.data = ImagePaths(write_images(tmp_path, 2), size=16)

    assert len(Mine()) == 2 and Mine()[1]["image"].shape == (16, 16, 3)


def test_errors_name_class_list_and_file(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    with pytest.raises(UserError, match=r"CustomTest: line 2 of .*list\.txt: absent\.png"):
        CustomTest(16, write_list(tmp_path, ["000.png", "absent.png"]))
    (tmp_path / "001.png").write_text("no image")
    with pytest.raises(UserError, match=r"001\.png, from CustomTrain's list .*list\.txt, is no im"):
        CustomTrain(16, write_list(tmp_path, ["000.png", "001.png"]))


def test_bad_files_and_absent_ones_are_passed_over_if_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path, 3)
    truncate(write_image(tmp_path / "a.jpg", 100, 100), 0.7)
    (tmp_path / "b.png").write_bytes(b"")
    file = write_list(tmp_path, ["000.png", "absent.png", "a.jpg", "b.png", "001.png"])
    data = CustomTrain(16, file, on_error="skip")
    assert "line 2 of" in caplog.text and "(1 of the 5 listed files are missing" in caplog.text
    assert "1 of the 4 files looked at cannot be used" in caplog.text  # the empty one
    names = [Path(item["file_path_"]).name for item in data]
    assert names == ["000.png", "001.png", "001.png", "001.png"]
    file = write_list(tmp_path, ["absent.png"])
    with pytest.raises(UserError, match="1 of the 1 listed files are missing"):
        CustomTest(16, file, on_error="skip")


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_found_by_a_worker_is_one_sentence(tmp_path: Path, workers: int) -> None:
    truncate(write_image(tmp_path / "a.jpg", 100, 100), 0.7)
    loader = DataLoader(CustomTrain(16, write_list(tmp_path, ["a.jpg"])), num_workers=workers)
    items: Any = iter(loader)
    with pytest.raises(UserError) as caught:
        list(items)
    if workers:
        items._shutdown_workers()  # the collector would wait for them for seconds
    assert sentence(caught.value).startswith(str(tmp_path / "a.jpg") + ", from CustomTrain's list")
    assert "\n" not in sentence(caught.value)


@pytest.mark.parametrize("kind", [CustomTrain, CustomTest])
def test_what_is_black_and_white_is_an_option(tmp_path: Path, kind: type[CustomTrain]) -> None:
    write_deep(tmp_path / "000.png", 100)
    image = kind(None, write_list(tmp_path, ["000.png"]), value_range=[0, 100])[0]["image"]
    assert image.min() == -1 and image.max() == 1
