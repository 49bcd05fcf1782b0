from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import default_collate

from taming.data import ade20k, coco, sflckr
from taming.data.ade20k import ADE20kBase, ADE20kTrain, ADE20kValidation
from taming.data.sflckr import SegmentationBase
from taming.errors import UserError
from tests.kit.images import write_image
from tests.kit.real import link_real_data, needs_real_data

KEYS = {"image", "segmentation", "relative_file_path_", "file_path_", "segmentation_path_"}


def write_labeled(image: Path, segmentation: Path, highest: int, seed: int = 0) -> None:
    write_image(image, 40, 48, seed)
    segmentation.parent.mkdir(parents=True, exist_ok=True)
    labels = np.arange(40 * 48).reshape(40, 48) % (highest + 1)
    Image.fromarray(labels.astype(np.uint8)).save(segmentation)


@pytest.fixture
def ade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data/ade20k_root"
    scenes = []
    for folder, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for i in range(count):
            name = f"ADE_{short}_{i:08d}"
            image = root / f"images/{folder}/{name}.jpg"
            write_labeled(image, root / f"annotations/{folder}/{name}.png", 150, i)
            scenes.append(f"{name} scene_{short}{i}\n")
    (root / "sceneCategories.txt").write_text("".join(scenes))
    return root


def test_own_lists(tmp_path: Path) -> None:
    for i, name in enumerate(("a/x", "y")):
        write_labeled(tmp_path / f"im/{name}.jpg", tmp_path / f"seg/{name}.png", 9, i)
    (tmp_path / "list.txt").write_text("a/x.jpg\ny.jpg\n")
    data = SegmentationBase(
        tmp_path / "list.txt", tmp_path / "im", tmp_path / "seg", 32, n_labels=10
    )
    item = data[0]
    assert set(item) == KEYS and len(data) == 2 and data.n_labels == 10
    assert item["image"].shape == (32, 32, 3) and item["segmentation"].shape == (32, 32, 10)
    assert item["relative_file_path_"] == "a/x.jpg"
    assert item["file_path_"] == str(tmp_path / "im/a/x.jpg")
    assert item["segmentation_path_"] == str(tmp_path / "seg/a/x.png")
    assert default_collate(list(data))["segmentation"].shape == (2, 32, 32, 10)
    places = (tmp_path / "list.txt", tmp_path / "im", tmp_path / "seg")
    plain, shifted = (
        SegmentationBase(*places, n_labels=11, shift_segmentation=shift)[1]["segmentation"]
        for shift in (False, True)
    )
    np.testing.assert_array_equal(shifted.argmax(-1), plain.argmax(-1) + 1)


def test_examples_are_of_256_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for module, name, highest in ((sflckr, "sflckr", 181), (ade20k, "ade20k", 150)):
        write_labeled(
            Path(f"data/{name}_images/a.jpg"), Path(f"data/{name}_segmentations/a.png"), highest
        )
        Path(f"data/{name}_examples.txt").write_text("a.jpg\n")
        item = module.Examples()[0]
        assert item["segmentation"].shape == (256, 256, highest + 1)


def test_own_lists_with_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_labeled(tmp_path / "im/x.jpg", tmp_path / "seg/x.png", 9)
    (tmp_path / "list.txt").write_text("x.jpg\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ("~/list.txt", "~/im", "~/seg")
    with pytest.raises(UserError, match=r"seg/x.png, from .*list.txt, has the label 9, but with"):
        SegmentationBase(*arguments, n_labels=9)
    (tmp_path / "list.txt").write_text("x.jpg\nz.jpg\n")
    with pytest.raises(UserError, match=r"line 2 of .*list.txt: z.jpg does not exist"):
        SegmentationBase(*arguments, n_labels=10)
    assert len(SegmentationBase(*arguments, n_labels=10, on_error="skip")) == 1


def test_ade20k_lists_are_made_by_folder(ade: Path) -> None:
    train, validation = ADE20kTrain(size=16), ADE20kValidation(size=16)
    assert (len(train), len(validation)) == (3, 2)
    lines = Path("data/ade20k_test.txt").read_text().split()
    assert lines == ["validation/ADE_val_00000000.jpg", "validation/ADE_val_00000001.jpg"]
    item = train[1]
    assert set(item) == KEYS | {"scene_category"} and item["scene_category"] == "scene_train1"
    assert item["segmentation"].shape == (16, 16, 151)
    expected = "data/ade20k_root/annotations/training/ADE_train_00000001.png"
    assert item["segmentation_path_"] == expected


@pytest.mark.parametrize("form", ["{}/", "images/{}/", ""])
def test_ade20k_lists_come_in_several_forms(ade: Path, form: str) -> None:
    for kind, file, folder, name in (
        (ADE20kTrain, "train", "training", "ADE_train_00000002.jpg"),
        (ADE20kValidation, "test", "validation", "ADE_val_00000001.jpg"),
    ):
        Path(f"data/ade20k_{file}.txt").write_text(form.format(folder) + name + "\n")
        paths = [item["relative_file_path_"] for item in kind(size=16)]
        assert paths == [f"{folder}/{name}"]


def test_ade20k_crops_anywhere_in_training(ade: Path) -> None:
    assert len({ADE20kValidation(size=32)[0]["image"].tobytes() for _ in range(9)}) == 1
    assert len({ADE20kTrain(size=32, crop_size=8)[0]["image"].tobytes() for _ in range(9)}) > 1
    for options, different in (({"random_crop": False}, 1), ({"random_flip": True}, 2)):
        data = ADE20kTrain(**{"size": 32, "crop_size": 32, "random_crop": False} | options)
        assert len({data[0]["image"].tobytes() for _ in range(30)}) == different


def test_ade20k_asks_subclasses_for_their_split(ade: Path) -> None:
    class Own(ADE20kTrain):
        def get_split(self) -> str:
            return "validation"

    assert len(Own(size=32)) == 2 and len(ADE20kTrain(size=32)) == 3
    with pytest.raises(UserError, match="ADE20kBase is a base class; .* define get_split in it"):
        ADE20kBase(size=32)


@pytest.mark.parametrize("line", ["ADE_{}_00000000.jpg", "images/{}/ADE_{}_00000000.jpg", "./{}/x"])
def test_ade20k_beside_a_list_of_one_split(ade: Path, line: str) -> None:
    """Lines of published lists begin at the root, at its images or at their split."""
    kinds = (("test", "val", ADE20kTrain, "training"), ("train", "train", ADE20kValidation, "val"))
    for file, short, other, folder in kinds:
        for made in Path("data").glob("ade20k_t*.txt"):
            made.unlink()
        long = {"val": "validation", "train": "training"}[short]
        words = (short,) if line.startswith("ADE") else (long, short)
        Path(f"data/ade20k_{file}.txt").write_text(f"{line.format(*words)}\n")
        names = [item["relative_file_path_"] for item in other(size=16)]
        assert len(names) == (3 if other is ADE20kTrain else 2)
        assert all(name.startswith(folder) for name in names)


@pytest.mark.parametrize("size", [-1, 0, None])
def test_ade20k_at_its_own_size(ade: Path, size: int | None) -> None:
    assert ADE20kTrain(size=size)[0]["segmentation"].shape == (40, 48, 151)


def test_ade20k_scenes_with_mistakes(ade: Path) -> None:
    scenes = ade / "sceneCategories.txt"
    scenes.write_text("ADE_train_00000000 a\nADE_train_00000001\n")
    with pytest.raises(UserError, match=r"line 2 of .*sceneCategories.txt is not 'image category'"):
        ADE20kTrain(size=16)
    scenes.write_text("ADE_train_00000000 a\n")
    with pytest.raises(UserError, match="sceneCategories.txt lacks ADE_train_00000001"):
        ADE20kTrain(size=16)
    scenes.unlink()
    with pytest.raises(UserError, match="sceneCategories.txt, of ADE20K, cannot be read"):
        ADE20kTrain(size=16)


@needs_real_data
@pytest.mark.parametrize(
    ("module", "count", "n_labels"), [(sflckr, 4, 182), (ade20k, 6, 151), (coco, 6, 183)]
)
def test_real_examples(
    module: object, count: int, n_labels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link_real_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = module.Examples(size=64)  # type: ignore[attr-defined]
    items = list(data)
    assert len(items) == count
    for item in items:
        assert set(item) == KEYS
        assert item["image"].shape == (64, 64, 3) and -1 <= item["image"].min() < 0
        assert item["segmentation"].shape == (64, 64, n_labels)
        np.testing.assert_array_equal(item["segmentation"].sum(-1), 1)
    if module is coco:  # 255 in every file
        assert any(item["segmentation"][..., 0].any() for item in items)
