from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import default_collate

from taming.data.degradation import canny_edges
from taming.data.paired import PairedTrain, PairedValidation
from taming.errors import UserError
from tests.kit.images import write_image, write_images

COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Ten images, and label maps of 0..2 as gray values, palette indices and colors."""
    for path in write_images(tmp_path / "images", 10):
        labels = (np.asarray(Image.open(path))[..., 0] % 3).astype(np.uint8)
        indexed = Image.fromarray(labels)
        indexed.putpalette(COLORS.tobytes())
        versions = (Image.fromarray(labels), indexed, Image.fromarray(COLORS[labels]))
        for folder, image in zip(("gray", "indexed", "color"), versions, strict=True):
            (tmp_path / folder).mkdir(exist_ok=True)
            image.save(tmp_path / folder / f"{Path(path).stem}.png")
    lines = [" ".join(map(str, color)) for color in COLORS]
    (tmp_path / "palette.txt").write_text("\n".join(lines))
    return tmp_path


def build(root: Path, folder: str | None, cls: Any = PairedTrain, **options: Any) -> PairedTrain:
    options = {"kind": "segmentation", "n_labels": 3} | options
    return cls(root / "images", root / folder if folder else None, **options)


@pytest.mark.parametrize("folder", ["gray", "indexed", "color"])
def test_labels_however_they_are_stored(pairs: Path, folder: str) -> None:
    palette = {"palette": pairs / "palette.txt"} if folder == "color" else {}
    data = build(pairs, folder, **palette)
    item = data[3]
    assert set(item) == {"image", "segmentation", "file_path_", "condition_path_"}
    assert Path(item["condition_path_"]).name == Path(item["file_path_"]).name
    red = np.round((item["image"][..., 0] + 1) * 127.5) % 3
    np.testing.assert_array_equal(item["segmentation"].argmax(-1), red)
    assert default_collate([data[0], data[1]])["segmentation"].shape == (2, 24, 32, 3)


def test_labels_may_be_shifted(pairs: Path) -> None:
    plain, shifted = (
        build(pairs, "gray", n_labels=4, shift_segmentation=shift)[3]["segmentation"].argmax(-1)
        for shift in (False, True)
    )
    np.testing.assert_array_equal(shifted, plain + 1)


def test_some_pairs_are_set_aside(pairs: Path) -> None:
    options = {"validation_fraction": 0.2}
    train, validation = (
        build(pairs, "gray", **options),
        build(pairs, "gray", PairedValidation, **options),
    )
    assert (len(train), len(validation)) == (8, 2)
    assert len({*train.paths, *validation.paths}) == 10
    other = build(pairs, "gray", PairedValidation, split_seed=1, **options)
    assert set(other.paths) != set(validation.paths)


def test_folders_of_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, count in (("train", 3), ("val", 1)):
        write_images(tmp_path / "images" / split / "deep", count)
        write_images(tmp_path / "other" / split / "deep", count)
    options = {"kind": "image", "n_labels": None}
    assert len(build(tmp_path, "other", **options)) == 3
    validation = build(tmp_path, "other", PairedValidation, **options)
    assert [item["condition_path_"] for item in validation] == [
        str(tmp_path / "other/val/deep/000.png")
    ]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(PairedTrain("~/images", "~/other", "image")) == 3


def test_endings_and_suffixes_may_differ(tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / f"images/a/{i}.jpg", seed=i)
        write_image(tmp_path / f"other/a/{i}_mask.png", seed=i)
        write_image(tmp_path / f"other/a/{i}_unused.png", seed=i)
        write_image(tmp_path / f"other/a/{i}.png", seed=i + 1)
    data = build(tmp_path, "other", kind="image", suffix="_mask", validation_fraction=0)
    item = data[2]
    assert item["condition_path_"].endswith("a/2_mask.png")
    assert item["condition"].shape == (24, 32, 3) and item["condition"].dtype == np.float32


@pytest.mark.parametrize(
    ("kind", "key", "shape"),
    [
        ("depth", "depth", (16, 16)),
        ("edges", "edges", (16, 16, 3)),
        ("image", "condition", (16, 16, 3)),
    ],
)
def test_other_kinds(pairs: Path, kind: str, key: str, shape: tuple[int, ...]) -> None:
    item = build(pairs, "gray", kind=kind, size=16)[0]
    assert item[key].shape == shape and item[key].dtype == np.float32
    assert -1 <= item[key].min() <= item[key].max() <= 1


def test_edges_are_found_where_there_are_none(pairs: Path) -> None:
    skimage = pytest.importorskip("skimage")
    item = build(pairs, None, kind="edges", size=16)[0]
    assert item["edges"].shape == (16, 16, 3) and set(np.unique(item["edges"])) <= {-1.0, 1.0}
    image = np.random.RandomState(0).randint(0, 256, (32, 48, 3)).astype(np.uint8)
    expected = skimage.feature.canny(skimage.color.rgb2gray(image), sigma=2)
    assert expected.any()
    np.testing.assert_array_equal(canny_edges(image)[..., 0], expected * 2.0 - 1)
    with pytest.raises(UserError, match="depth cannot be computed from images; give the folder"):
        build(pairs, None, kind="depth")


def test_images_without_a_condition(pairs: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pairs / "images/009.png").unlink()
    with caplog.at_level(logging.WARNING):
        build(pairs, "gray")
    assert "1 files in" in caplog.text
    for name in ("003", "004"):
        (pairs / f"gray/{name}.png").unlink()
    with pytest.raises(UserError, match=r"images/003.png has no file .*\(2 of the 9 images lack"):
        build(pairs, "gray")
    with pytest.raises(UserError, match="a paired dataset: there is no folder .*absent"):
        build(pairs, "absent")


def test_two_files_of_one_name(pairs: Path) -> None:
    write_image(pairs / "gray/003.jpg")
    with pytest.raises(UserError, match="003.jpg and .*003.png have the same name"):
        build(pairs, "gray")


def test_number_of_labels_is_checked(pairs: Path) -> None:
    with pytest.raises(UserError, match=r"has the label 2, but with n_labels 2 labels go from 0"):
        build(pairs, "gray", n_labels=2)
    with pytest.raises(UserError, match="palette.txt has 3 colors, but n_labels is 4"):
        build(pairs, "color", palette=pairs / "palette.txt", n_labels=4)
    with pytest.raises(UserError, match="segmentations need n_labels"):
        build(pairs, "gray", n_labels=None)
    with pytest.raises(UserError, match="mode RGB.*give a palette file"):
        build(pairs, "color")
    with pytest.raises(UserError, match="no kind 'dept' of condition; did you mean 'depth'"):
        build(pairs, "gray", kind="dept")
