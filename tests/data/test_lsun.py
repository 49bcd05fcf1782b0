from __future__ import annotations

import io
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from taming.data.checks import damage_found_later
from taming.data.files.lmdb_records import FILE, write_records
from taming.data.files.lsun_layout import SCENES
from taming.data.lsun import (
    LSUNBedroomsTrain,
    LSUNBedroomsValidation,
    LSUNCatsTrain,
    LSUNCatsValidation,
    LSUNChurchesTrain,
    LSUNChurchesValidation,
    LSUNTrain,
    LSUNValidation,
)
from taming.errors import DamagedImage, UserError
from tests.kit.images import ramps, write_image, write_images


def encoded(seed: int, form: str = "WEBP") -> bytes:
    raw = io.BytesIO()
    Image.fromarray(ramps(24, 32, seed)).save(
        raw, form, **({"lossless": True} if form == "WEBP" else {})
    )
    return raw.getvalue()


def write_database(folder: Path, count: int, first: int = 0, **others: bytes) -> None:
    folder.mkdir(parents=True)
    records = {f"{seed:040x}": encoded(seed) for seed in range(first, first + count)}
    write_records(folder / FILE, records | others)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for place, category in enumerate(("bedroom", "tower")):
        write_database(tmp_path / f"{category}_train_lmdb", 5, 10 * place)
        write_database(tmp_path / f"{category}_val_lmdb", 2, 10 * place + 5)
    return tmp_path


def seeds(dataset: LSUNTrain) -> list[int]:
    """Which `ramps` the whole images are."""
    return [
        next(s for s in range(50) if (pixels == ramps(24, 32, s)).all())
        for pixels in map(dataset.pixels, range(len(dataset)))
    ]


def test_databases_as_published(root: Path) -> None:
    train, validation = LSUNTrain("tower", root=root), LSUNValidation("tower", root=str(root))
    assert seeds(train) == list(range(10, 15)) and seeds(validation) == [15, 16]
    item = LSUNTrain("tower", 8, root=root)[0]
    assert item["image"].shape == (8, 8, 3) and item["image"].dtype == np.float32
    assert (item["class_label"], item["human_label"]) == (0, "tower")
    assert seeds(LSUNBedroomsTrain(root=root)) == list(range(5))
    assert seeds(LSUNBedroomsValidation(root=root)) == [5, 6]


def test_several_categories_are_labeled(root: Path) -> None:
    dataset = LSUNTrain(["tower", "bedrooms"], 8, root=root)
    assert [item["class_label"] for item in dataset] == [0] * 5 + [1] * 5
    assert [dataset[index]["human_label"] for index in (4, 5)] == ["tower", "bedroom"]


def test_records_of_any_format(tmp_path: Path) -> None:
    write_database(
        tmp_path / "kitchen_train_lmdb", 1, jpeg=encoded(3, "JPEG"), png=encoded(4, "PNG")
    )
    dataset = LSUNTrain("kitchen", root=tmp_path)
    assert (dataset.pixels(2) == ramps(24, 32, 4)).all() and dataset.pixels(1).shape == (24, 32, 3)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers(root: Path, start: str) -> None:
    dataset = LSUNTrain("bedroom", 8, root=root)
    expected = [item["image"] for item in dataset]  # the database is open here, too
    loader = DataLoader(dataset, 1, num_workers=2, multiprocessing_context=start)
    for batch, image in zip(loader, expected, strict=True):
        np.testing.assert_array_equal(batch["image"][0], image)


def test_bad_records(tmp_path: Path) -> None:
    write_database(tmp_path / "tower_train_lmdb", 2, ffff=b"no image", fffe=encoded(1)[:60])
    with pytest.raises(UserError, match=r"LSUNTrain of tower, cannot be read.*on_error=skip"):
        LSUNTrain("tower", 8, root=tmp_path)
    dataset = LSUNTrain("tower", 8, root=tmp_path, on_error="skip")
    images = [dataset[index]["image"] for index in range(4)]
    assert (images[2] == images[0]).all() and (images[3] == images[0]).all()
    with damage_found_later():
        dataset = LSUNTrain("tower", 8, root=tmp_path)
    with pytest.raises(
        DamagedImage, match="ffff.webp, from LSUNTrain of tower, cannot be read .it is no image"
    ):
        dataset[3]


# What is below the root, for training and for validation.
LAYOUTS = {
    "one folder per split": ("tower_train", "tower_val"),
    "splits in the category": ("tower/train/a/b", "tower/val"),
    "categories in the split": ("train/tower", "validation/towers/x"),
    "another name": ("towers_train", "towers_validation"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_exported_folders(tmp_path: Path, name: str) -> None:
    places = [tmp_path / place for place in LAYOUTS[name]]
    paths = [set(write_images(place, count)) for place, count in zip(places, (4, 2), strict=True)]
    assert set(LSUNTrain("tower", 8, root=tmp_path).paths) == paths[0]
    assert set(LSUNValidation("tower", 8, root=tmp_path).paths) == paths[1]


@pytest.mark.parametrize("place", ["tower", "tower/a/b", ".", "0/a"])
def test_images_without_splits_are_divided(tmp_path: Path, place: str) -> None:
    paths = set(write_images(tmp_path / place, 40))
    train, validation = (
        set(one("tower", 8, root=tmp_path).paths) for one in (LSUNTrain, LSUNValidation)
    )
    assert {Path(p).resolve() for p in train | validation} == {Path(p).resolve() for p in paths}
    assert (len(train), len(validation)) == (38, 2) and not train & validation


def test_databases_without_splits_are_divided(tmp_path: Path) -> None:
    write_database(tmp_path / "cat", 40)
    parts = [seeds(one(root=tmp_path)) for one in (LSUNCatsTrain, LSUNCatsValidation)]
    assert sorted(parts[0] + parts[1]) == list(range(40)) and len(parts[1]) == 2


def test_lists_beside_folders(tmp_path: Path) -> None:
    for seed in range(4):
        write_image(tmp_path / f"churches/{seed}.png", seed=seed)
    (tmp_path / "church_outdoor_train.txt").write_text("1.png\nchurches/3.png\n")
    (tmp_path / "church_outdoor_val.txt").write_text("2.png\nno.png\n")
    assert seeds(LSUNChurchesTrain(root=tmp_path)) == [1, 3]
    assert seeds(LSUNChurchesValidation(root=tmp_path, on_error="skip")) == [2]
    with pytest.raises(UserError, match="line 2 .*no.png does not exist"):
        LSUNChurchesValidation(root=tmp_path)


@pytest.mark.parametrize("there", ["train", "val"])
def test_images_without_splits_beside_a_list_of_one(tmp_path: Path, there: str) -> None:
    write_images(tmp_path / "tower", 4)
    (tmp_path / f"towers_{there}.txt").write_text("./000.png\ntower/002.png\n")
    listed, rest = (one("tower", root=tmp_path) for one in (LSUNTrain, LSUNValidation))
    if there == "val":
        listed, rest = rest, listed
    assert seeds(listed) == [0, 2] and seeds(rest) == [1, 3]


def test_a_list_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        write_image(tmp_path / f"x/{seed}.png", seed=seed)
    names, options = tmp_path / "names.txt", {"txt_file": tmp_path / "names.txt"}
    names.write_text("2.png\n0.png\n")
    assert seeds(LSUNBedroomsTrain(data_root=tmp_path / "x", **options)) == [2, 0]  # type: ignore[arg-type]
    names.write_text("2.png\nnone.png\n")
    options["data_root"] = tmp_path / "x"
    assert seeds(LSUNBedroomsTrain(on_error="skip", **options)) == [2]  # type: ignore[arg-type]
    with pytest.raises(UserError, match="none.png does not exist"):
        LSUNBedroomsTrain(**options)  # type: ignore[arg-type]
    del options["data_root"]
    names.write_text("x/1.png\n")
    assert seeds(LSUNBedroomsTrain(**options)) == [1]  # type: ignore[arg-type]
    with pytest.raises(UserError, match="txt_file lists one category"):
        LSUNTrain(["tower", "bedroom"], **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="data_root is for the names in txt_file"):
        LSUNTrain("tower", data_root="x")


def test_the_folder_of_one_category_may_be_the_root(root: Path) -> None:
    assert seeds(LSUNTrain("tower", root=root / "tower_train_lmdb")) == list(range(10, 15))
    assert seeds(LSUNValidation("tower", root=root / "tower_train_lmdb")) == [15, 16]
    # A root may be called like a category, too.
    other = root / "bedroom"
    shutil.copytree(root / "tower_train_lmdb", other / "tower_train_lmdb")
    assert seeds(LSUNTrain("tower", root=other)) == list(range(10, 15))


def test_random_crops_and_flips(root: Path) -> None:
    dataset = LSUNTrain("tower", 16, random_crop=True, random_flip=True, crop_size=8, root=root)
    random.seed(1)
    images = {dataset[0]["image"].tobytes() for _ in range(8)}
    assert len(images) > 4 and dataset[0]["image"].shape == (8, 8, 3)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no category": ({}, "category '' is no name such as tower"),
    "numbers": ({"category": [1]}, r"category \[1\] is no name"),
    "twice": ({"category": ["tower", "towers"]}, "category has 'tower' twice"),
    "misspelled": ({"category": "towr"}, "no category 'towr'; did you mean 'tower'"),
    "absent": (
        {"category": "kitchen"},
        r"no split 'train' of kitchen \(it has bedroom, .*, tower\)",
    ),
    "no root": ({"category": "tower", "root": "/none"}, "there is no folder /none; root is"),
    "an archive": ({"category": "bridge"}, "unpack .*bridge_train_lmdb.zip"),
    "other folder": (
        {"category": "tower", "root": "bedroom_train_lmdb"},
        "has images of bedroom, not of tower; set category=bedroom",
    ),
    "no database": ({"category": "classroom"}, "classroom_train_lmdb/data.mdb cannot be read"),
    "empty folder": ({"category": "restaurant"}, "no split 'train' of restaurant"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_a_sentence(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "bridge_train_lmdb.zip").touch()
    (root / "classroom_train_lmdb").mkdir()
    (root / "restaurant_train").mkdir()
    monkeypatch.chdir(root)
    options, sentence = WRONG[name]
    with pytest.raises(UserError, match=f"LSUNTrain.*: .*{sentence}"):
        LSUNTrain(**{"root": "."} | options)


def test_folders_need_no_lmdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    write_images(tmp_path / "tower_train", 2)
    assert len(LSUNTrain("tower", 8, root=tmp_path)) == 2


def test_the_scenes() -> None:
    assert len(SCENES) == 10 == len(set(SCENES)) and list(SCENES) == sorted(SCENES)
