from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import default_collate

from taming.data.base import ImagePaths
from taming.data.faceshq import (
    CelebAHQTrain,
    CelebAHQValidation,
    FacesBase,
    FacesHQTrain,
    FacesHQValidation,
    FFHQTrain,
    FFHQValidation,
    coordinates,
)
from taming.data.whole_images import has_whole_images, whole_image
from taming.errors import UserError
from tests.kit.images import ramps, write_images


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """12 CelebA-HQ and 14 FFHQ images of 32 x 32."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/celebahq").mkdir(parents=True)
    for i in range(12):
        image = ramps(32, 32, seed=i).transpose(2, 0, 1)[None]
        np.save(tmp_path / f"data/celebahq/imgHQ{i:05d}.npy", image)
    write_images(tmp_path / "data/ffhq", 14, 32, 32)
    return tmp_path / "data"


def test_lists_are_made_once_in_the_published_proportions(
    faces: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        sizes = [len(c(8)) for c in (CelebAHQTrain, CelebAHQValidation, FFHQTrain, FFHQValidation)]
    assert sizes == [10, 2, 12, 2] and caplog.text.count("published list") == 4
    lists = {file.name: set(file.read_text().split()) for file in faces.glob("*.txt")}
    assert lists["ffhqtrain.txt"] | lists["ffhqvalidation.txt"] == {
        f"{i:03}.png" for i in range(14)
    }
    assert all(name.startswith("imgHQ") for name in lists["celebahqtrain.txt"])
    assert not list(faces.glob(".*"))
    shares = [kind.lists.validation_fraction for kind in (CelebAHQTrain, FFHQTrain)]
    assert shares == [5_000 / 30_000, 10_000 / 70_000]


def test_lists_that_are_there_are_used(faces: Path) -> None:
    (faces / "ffhqtrain.txt").write_text("003.png\n001.png\n")
    assert [item["file_path_"] for item in FFHQTrain(8)] == [
        "data/ffhq/003.png",
        "data/ffhq/001.png",
    ]
    assert len(FFHQValidation(8)) == 12  # made of what the other does not name
    assert (faces / "ffhqtrain.txt").read_text() == "003.png\n001.png\n"


def test_whole_images_of_both_collections(faces: Path) -> None:
    data = FacesHQTrain(16)
    for index in (0, 9, 10, 21):
        pixels, known = whole_image(data, index)
        item = data[index]
        assert {name: item[name] for name in ("class", "file_path_")} == known
        assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    assert known["class"] == 1 and known["file_path_"] != whole_image(data, 20)[1]["file_path_"]
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(known["file_path_"])))


def test_what_has_whole_images(faces: Path) -> None:
    class Gray(FacesHQTrain):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)

    assert has_whole_images(FacesHQTrain(16)) and not has_whole_images(Gray(16))


def test_items(faces: Path) -> None:
    item = CelebAHQTrain(16)[0]
    assert set(item) == {"image", "file_path_"}
    assert item["image"].shape == (16, 16, 3) and item["image"].dtype == np.float32
    assert set(FFHQTrain(16, keys=["image"])[0]) == {"image"}


def test_both_come_with_their_class(faces: Path) -> None:
    data = FacesHQTrain(16)
    assert [data[i]["class"] for i in range(len(data))] == [0] * 10 + [1] * 12
    assert data[-1]["class"] == 1 and "coord" not in data[0]
    batch = default_collate([data[0], data[11]])
    assert batch["image"].shape == (2, 16, 16, 3) and batch["class"].tolist() == [0, 1]


def test_coordinates_are_shares_of_the_image() -> None:
    coord = coordinates(2, 3)
    np.testing.assert_allclose(coord[..., 0], [[0, 1 / 6, 2 / 6], [3 / 6, 4 / 6, 5 / 6]], rtol=1e-6)


def test_coordinates_are_cropped_with_the_image(faces: Path) -> None:
    whole = FacesHQTrain(32)
    data = FacesHQTrain(32, crop_size=16, coord=True)
    places = set()
    for _ in range(10):
        item = data[2]
        assert item["coord"].shape == (16, 16, 1) and item["coord"].dtype == np.float32
        number = round(float(item["coord"][0, 0, 0]) * 32 * 32)
        row, column = divmod(number, 32)
        expected = whole[2]["image"][row : row + 16, column : column + 16]
        np.testing.assert_array_equal(item["image"], expected)
        places.add(number)
    assert len(places) > 1


def test_validation_crops_at_the_center(faces: Path) -> None:
    item = FacesHQValidation(32, crop_size=16, coord=True)[0]
    np.testing.assert_array_equal(item["coord"], coordinates(32, 32)[8:24, 8:24])


def test_images_of_both_are_mirrored_if_asked(faces: Path) -> None:
    data = FacesHQTrain(32, random_flip=True)
    for index in (0, 11):
        assert len({data[index]["image"].tobytes() for _ in range(20)}) == 2


def test_what_is_black_and_white_is_said_to_both(faces: Path) -> None:
    whole = FacesHQTrain(16, value_range=[0, 9])
    ranges = [part.data.options.value_range for part in whole.data.datasets]  # type: ignore[attr-defined]
    assert ranges == [[0, 9], [0, 9]]


def test_wrong_options(faces: Path) -> None:
    with pytest.raises(UserError, match="crop_size 64 is larger than size 32"):
        FacesHQTrain(32, crop_size=64)
    with pytest.raises(UserError, match="has no 'label'; keys can be image, file_path_"):
        FFHQTrain(16, keys=["label"])[0]


def test_missing_folder_list_entry_and_images(faces: Path, tmp_path: Path) -> None:
    (faces / "ffhqtrain.txt").write_text("003.png\n\n999.png\n")
    with pytest.raises(UserError, match=r"line 3 of data/ffhqtrain.txt: 999.png does not exist"):
        FFHQTrain(16)
    for file in (faces / "celebahq").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="data/celebahq has no files ending in npy"):
        CelebAHQTrain(16)
    (faces / "celebahq").rmdir()
    with pytest.raises(UserError, match="CelebAHQTrain: there is no folder data/celebahq"):
        CelebAHQTrain(16)


def test_bad_files_are_skipped_if_asked(faces: Path, caplog: pytest.LogCaptureFixture) -> None:
    (faces / "ffhqtrain.txt").write_text("001.png\n002.png\n003.png\n")
    (faces / "ffhq/002.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"002.png, from FFHQTrain, is empty \(0 bytes\)"):
        FFHQTrain(16)
    (faces / "ffhqtrain.txt").write_text("001.png\n002.png\nabsent.png\n003.png\n")
    with caplog.at_level(logging.WARNING):
        data = FFHQTrain(16, on_error="skip")
    assert "1 of the 4 listed files are missing" in caplog.text
    assert "1 of the 3 files looked at cannot be used" in caplog.text
    assert [item["file_path_"][-7:] for item in data] == ["001.png", "003.png", "003.png"]


def test_no_keys_are_not_all_keys(faces: Path) -> None:
    assert FFHQTrain(8, keys=[])[0] == {} and set(FFHQTrain(8)[0]) == {"image", "file_path_"}
    assert FacesHQTrain(8, keys=[], crop_size=8)[0] == {"class": 0}
    assert FFHQTrain(-1)[0]["image"].shape == FacesHQTrain(-1, crop_size=-1)[0]["image"].shape
    assert FacesHQTrain(-1, crop_size=16)[0]["image"].shape == (16, 16, 3)


def test_collections_of_one_s_own(faces: Path) -> None:
    class Own(FacesBase):
        def __init__(self, keys: Any = None) -> None:
            super().__init__()
            self.data = ImagePaths(["data/ffhq/000.png"], size=16)
            self.keys = keys

    assert set(Own()[0]) == {"image", "file_path_"} and len(Own()) == 1
    assert list(Own(["image"])[0]) == ["image"]
    with pytest.raises(UserError, match="Own has no 'images'; keys can be image, file_path_"):
        Own(["images"])[0]
